"""How atoms change with time: distributions of a quantity, populations of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from micrographia.errors import UserError
from micrographia.plots.colouring import axis_label, circular_mean
from micrographia.plots.palette import COLOURS, LINES

#: Columns of a histogram over time, at most: of longer movies several frames share one.
MOST_COLUMNS = 120


def time_histograms(
    table: pd.DataFrame,
    columns: Sequence[str],
    time: str = "frame",
    symmetry: int = 1,
    bins: int = 48,
) -> Figure:
    """Show the distribution of each column against time, with its mean and the central 68 %.

    Parameters
    ----------
    table : DataFrame
        One row per atom and frame; NaN is left out.
    columns : sequence of str
        Those that end in ``angle_deg`` are circular, modulo ``360 / symmetry`` degrees.
    time : str
        Column of the time, dose or frame.
    bins : int
        Of the quantity.
    """
    missing = [name for name in (time, *columns) if name not in table.columns]
    if missing or not len(columns):
        raise UserError(f"time_histograms: no column {missing} in {list(table.columns)}; name at least one.")
    figure = Figure(figsize=(6.8, 0.5 + 2.1 * len(columns)), layout="constrained")
    panels = figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, columns, strict=True):
        some = table[[time, name]].apply(pd.to_numeric, errors="coerce").dropna()
        period = 360 / symmetry if name.endswith("angle_deg") else 0.0
        axes.set_ylabel(axis_label(name))
        if some.empty:
            axes.text(0.5, 0.5, "no values", ha="center", transform=axes.transAxes, color="0.4")
            continue
        _time_histogram(figure, axes, some[time].to_numpy(float), some[name].to_numpy(float), period, bins)
    panels[-1].set_xlabel(axis_label(time))
    panels[0].set_title("line: mean; dashes: central 68 %", fontsize=8, loc="right", color="0.4")
    return figure


def populations_figure(
    table: pd.DataFrame, column: str = "cluster", time: str = "frame", names: Sequence[str] | None = None
) -> Figure:
    """Show the share of each class against time, and the number of atoms below.

    Parameters
    ----------
    table : DataFrame
        One row per atom and frame; rows without a class (NaN) are left out.
    names : sequence of str, optional
        Of the classes, in sorted order.
    """
    for name in (time, column):
        if name not in table.columns:
            raise UserError(f"populations_figure: no column '{name}' in {list(table.columns)}.")
    counts = table.dropna(subset=[column]).groupby([time, column]).size().unstack(fill_value=0).sort_index()
    if counts.empty:
        raise UserError(f"populations_figure: no atom has a value in column '{column}'.")
    share = counts.div(counts.sum(axis=1), axis=0)
    told = list(names) if names is not None else [str(c) for c in share.columns]
    figure = Figure(figsize=(6.8, 4.0), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for k, name in enumerate(share.columns):
        line = LINES[(k + k // len(COLOURS)) % len(LINES)]  # moves on by one when the colours begin again
        style = {"color": COLOURS[k % len(COLOURS)], "linestyle": line, "linewidth": 1.6}
        marker = "o" if len(share) < 30 else None
        axes.plot(share.index, share[name], **style, label=told[k], marker=marker, markersize=3)
    axes.set(ylabel="share of atoms", ylim=(0, min(1.02, 1.1 * float(share.to_numpy().max()))))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False,
                  title=axis_label(column), title_fontsize=8)  # fmt: skip
    below.plot(counts.index, counts.sum(axis=1), color="0.3")
    below.set(xlabel=axis_label(time), ylabel="atoms", ylim=(0, None))
    if np.allclose(share.index.to_numpy(float), np.round(share.index.to_numpy(float))):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in (axes, below):
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _time_histogram(
    figure: Figure, axes: Axes, t: np.ndarray, values: np.ndarray, period: float, bins: int
) -> None:
    times = np.unique(t)
    symmetry = round(360 / period) if period else 1
    if period:  # cut the circle where it is emptiest, opposite to the mean
        around = circular_mean(values, symmetry)
        values = around + _wrapped(values - around, period)
    low, high = np.quantile(values, [0.002, 0.998])
    edges = np.linspace(low, high, bins + 1) if high > low else np.linspace(low - 0.5, low + 0.5, bins + 1)
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    columns = int(min(MOST_COLUMNS, max(round((times[-1] - times[0]) / step) + 1, 1)))
    along = np.linspace(times[0] - step / 2, times[-1] + step / 2, columns + 1)
    counts, _, _ = np.histogram2d(t, values, [along, edges])
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) / np.diff(edges)
    share[share == 0] = np.nan
    least = np.nanquantile(share, 0.02)
    norm = LogNorm(least, max(float(np.nanmax(share)), 1.01 * least))
    picture = axes.pcolormesh(along, edges, share.T, cmap="Blues", norm=norm, rasterized=True)
    bar = figure.colorbar(picture, ax=axes, label="density", pad=0.02, aspect=14)
    bar.ax.yaxis.set_major_locator(LogLocator(numticks=4))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    which = np.clip(np.searchsorted(along, t, side="right") - 1, 0, columns - 1)
    middle, lower, upper = np.full((3, columns), np.nan)
    for column in np.unique(which):
        inside = values[which == column]
        if period:
            middle[column] = around + _wrapped(circular_mean(inside, symmetry) - around, period)
            away = _wrapped(inside - middle[column], period)
        else:
            middle[column] = inside.mean()
            away = inside - middle[column]
        lower[column], upper[column] = middle[column] + np.quantile(away, [0.16, 0.84])
    if period:  # no line across the cut
        middle[1:][np.abs(np.diff(middle)) > period / 2] = np.nan
    at = (along[1:] + along[:-1]) / 2
    axes.plot(at, middle, color=COLOURS[2], linewidth=1.6, marker="o" if columns < 30 else None, markersize=3)
    for edge in (lower, upper):
        axes.plot(at, edge, color=COLOURS[2], linewidth=1, linestyle="--")
    axes.set_ylim(edges[0], edges[-1])
    if np.allclose(times, np.round(times)):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _wrapped(angles: Any, period: float) -> Any:
    """Angles, one or many, between minus and plus half a period."""
    return np.mod(angles + period / 2, period) - period / 2
