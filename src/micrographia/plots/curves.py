"""Curves and bars: intensities, spectra, losses, detection scores, fitted conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from micrographia.errors import UserError
from micrographia.metrics.distances import intensity_window, radial_power_spectrum, scale_each
from micrographia.plots.palette import COLOURS, LINES

#: Quantities of a training's history that are looked at now and then, not logged as losses.
WATCHED = ("frechet", "kl")


def histogram_figure(sets: Mapping[str, np.ndarray]) -> Figure:
    """Intensity histograms of sets ``[N, H, W]``, each robustly scaled; the last set sets the range."""
    scaled = _scaled(sets)
    try:
        low, high = intensity_window(list(scaled.values())[-1])
    except UserError:  # a constant reference
        low, high = -1.5, 1.5
    edges = np.linspace(low - 0.15 * (high - low), high + 0.15 * (high - low), 81)
    figure, axes = _single()
    for k, (name, images) in enumerate(scaled.items()):
        counts, _ = np.histogram(images, edges)
        density = counts / max(images.size, 1) / np.diff(edges)
        axes.plot((edges[1:] + edges[:-1]) / 2, density, **_line(k), label=name)
    axes.set(xlabel="scaled intensity", ylabel="density")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)
    return figure


def radial_spectrum_figure(sets: Mapping[str, np.ndarray], pixel_size_A: float) -> Figure:
    """Mean radial power spectra of sets ``[N, H, W]`` of robustly scaled images."""
    figure, axes = _single()
    for k, (name, images) in enumerate(_scaled(sets).items()):
        frequency, power = radial_power_spectrum(images, pixel_size_A)
        axes.plot(frequency, np.maximum(power, 1e-6), **_line(k), label=name)
    axes.set(xlabel="spatial frequency (1/Å)", ylabel="power", yscale="log")
    axes.legend(fontsize=8, frameon=False)
    return figure


def loss_figure(history: pd.DataFrame) -> Figure:
    """Losses of a training over its steps; below them the distances watched (Fréchet, KL), if any.

    Parameters
    ----------
    history : DataFrame
        As in ``metrics.csv``: `step`, perhaps `seconds`, and one column per quantity, with gaps.
    """
    if "step" not in history.columns:
        raise UserError("loss_figure: the history has no column 'step'; give the table of a metrics.csv.")
    names = [c for c in history.columns if c not in ("step", "seconds", *WATCHED)]
    watched = [c for c in WATCHED if c in history.columns]
    figure = Figure(figsize=(6.5, 2.8 + 1.6 * len(watched)), layout="constrained")
    heights = [2.4, *([1.3] * len(watched))]
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for k, name in enumerate(names):
        _course(panels[0], history, name, _line(k))
    panels[0].set_ylabel("loss")
    if names:
        panels[0].legend(fontsize=7, frameon=False, ncols=3)
    for axes, name in zip(panels[1:], watched, strict=True):
        _course(axes, history, name, {"color": COLOURS[0], "marker": "o", "markersize": 3})
        axes.set_ylabel({"frechet": "Fréchet\ndistance", "kl": "KL (nats)"}[name], fontsize=8)
    for axes in panels:
        values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines] or [np.ones(1)])
        if len(values) and (values > 0).all():
            axes.set_yscale("log")
        axes.grid(alpha=0.25)
    panels[-1].set_xlabel("step")
    return figure


def classes_figure(curve: pd.DataFrame) -> Figure:
    """Agreement, mutual information and error against the number of classes (`latent.ensemble.uncertainty_by_classes`).

    The number to choose is the largest before the members of the ensemble stop agreeing.
    """
    shown = {
        "agreement": "votes that agree",
        "mutual_information": "disagreement (nats)",
        "error": "squared error",
    }
    if missing := [name for name in ("classes", *shown) if name not in curve.columns]:
        raise UserError(
            f"classes_figure: the table lacks {', '.join(missing)}; give that of uncertainty_by_classes."
        )
    figure = Figure(figsize=(6.5, 4.8), layout="constrained")
    panels = figure.subplots(len(shown), 1, sharex=True)
    for k, (axes, (name, label)) in enumerate(zip(panels, shown.items(), strict=True)):
        axes.plot(curve["classes"], curve[name], **_line(k), marker="o")
        axes.set_ylabel(label, fontsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("classes")
    panels[-1].set_xticks(curve["classes"])
    return figure


def precision_recall_figure(
    curves: Mapping[str, pd.DataFrame], thresholds: Mapping[str, float] | None = None
) -> Figure:
    """Precision against recall, with lines of equal F1; a dot marks each curve's chosen threshold.

    Parameters
    ----------
    curves : mapping of name to DataFrame
        From `metrics.matching.precision_recall_curve`; an empty one is named in the legend and not drawn.
    thresholds : mapping of name to float, optional
    """
    figure, axes = _single(height=4.2)
    recall = np.linspace(0.01, 1, 200)
    for f1 in (0.5, 0.7, 0.8, 0.9, 0.95):
        precision = np.where(2 * recall > f1, f1 * recall / np.maximum(2 * recall - f1, 1e-9), np.nan)
        precision[precision > 1.02] = np.nan
        axes.plot(recall, precision, color="0.8", linewidth=0.8, zorder=0)
        axes.annotate(
            f"{f1:g}",
            (1.0, f1 / (2 - f1)),
            fontsize=7,
            color="0.5",
            xytext=(2, -2),
            textcoords="offset points",
        )
    for k, (name, curve) in enumerate(curves.items()):
        axes.plot(
            curve["recall"], curve["precision"], **_line(k), label=name if len(curve) else f"{name} (nothing)"
        )
        if thresholds and name in thresholds and len(curve):
            row = curve.iloc[int((curve["threshold"] - thresholds[name]).abs().argmin())]
            axes.plot(row["recall"], row["precision"], "o", color=COLOURS[k % len(COLOURS)], markersize=7)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.06), ylim=(0, 1.03))
    axes.set_title("grey: equal F1; dot: chosen threshold", fontsize=8, loc="right", color="0.4")
    if curves:
        axes.legend(fontsize=8, frameon=False, loc="lower left")
    return figure


def reliability_figure(curve: pd.DataFrame) -> Figure:
    """Fraction of true sites against stated confidence (`metrics.calibration.reliability_curve`)."""
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="perfectly calibrated")
    axes.errorbar(
        curve["confidence"], curve["fraction_true"], 1.96 * curve["standard_error"],
        color=COLOURS[0], marker="o", capsize=3, label="measured, 95 %",
    )  # fmt: skip
    axes.set(ylabel="fraction that is real", xlim=(0, 1), ylim=(-0.02, 1.02))
    axes.legend(fontsize=8, frameon=False)
    below.bar(
        curve["low"], curve["n"], curve["high"] - curve["low"], align="edge", color="0.75", edgecolor="white"
    )
    below.set(xlabel="stated confidence", ylabel="sites")
    return figure


def conditions_figure(table: pd.DataFrame) -> Figure:
    """Fitted imaging conditions against the ranges they were sought in.

    Parameters
    ----------
    table : DataFrame
        From `simulate.fit.FittedConditions.table`: condition, prior_low, prior_high, q05, median, q95, r2.
        Ranges with a positive lower end are shown on a log scale.
    """
    figure = Figure(figsize=(6.8, 0.9 + 0.27 * max(len(table), 1)), layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(table.itertuples()):
        low, high = row.prior_low, row.prior_high
        values = np.array([row.q05, row.median, row.q95], float)
        if low > 0:
            low, high, values = np.log(low), np.log(high), np.log(np.maximum(values, 1e-12))
        a, m, b = np.clip((values - low) / (high - low), 0, 1) if high > low else (0.5, 0.5, 0.5)
        axes.plot([0, 1], [y, y], color="0.87", linewidth=7, solid_capstyle="butt", zorder=0)
        axes.plot(
            [a, b], [y, y], color=COLOURS[0], linewidth=7, solid_capstyle="butt", alpha=0.35 + 0.65 * row.r2
        )
        axes.plot(m, y, "o", color="black", markersize=4)
        axes.text(-0.01, y, f"{row.prior_low:g}", ha="right", va="center", fontsize=7, color="0.5")
        told = f"{row.prior_high:g}   [{row.q05:.3g} to {row.q95:.3g}]  R² {row.r2:.2f}"
        axes.text(1.01, y, told, ha="left", va="center", fontsize=7, color="0.3")
    axes.set_yticks(range(len(table)), [str(c) for c in table["condition"]], fontsize=8)
    axes.tick_params(axis="y", pad=28, length=0)
    axes.set_xticks([])
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.set_frame_on(False)
    axes.set_title(
        "grey: range sought; colour: fitted, 5 to 95 % (pale where hard to tell); dot: median", fontsize=8
    )
    return figure


def score_bars(table: pd.DataFrame, scores: Sequence[str] = ("precision", "recall", "f1")) -> Figure:
    """Precision, recall and F1 of several trainings as bars with their intervals.

    Parameters
    ----------
    table : DataFrame
        One row per training, named by the index; columns as in `scores`, and ``NAME_low``, ``NAME_high`` for
        the error bars where they exist. NaN is left out.
    """
    figure = Figure(figsize=(6.5, 1.2 + 0.55 * max(len(table), 1)), layout="constrained")
    axes = figure.subplots()
    thickness = 0.8 / len(scores)
    for k, name in enumerate(scores):
        value = table[name].to_numpy(float)
        y = np.arange(len(table)) + (k - (len(scores) - 1) / 2) * thickness
        axes.barh(y, np.nan_to_num(value), thickness * 0.92, color=COLOURS[k], label=name)
        if f"{name}_low" in table and f"{name}_high" in table:
            ends = table[[f"{name}_low", f"{name}_high"]].to_numpy(float)
            away = np.nan_to_num(np.clip(np.stack([value - ends[:, 0], ends[:, 1] - value]), 0, None))
            axes.errorbar(
                np.nan_to_num(value), y, xerr=away, fmt="none", ecolor="0.2", elinewidth=1, capsize=2
            )
        for at, v in zip(y, value, strict=True):
            axes.text(0.01, at, f"{v:.2f}" if np.isfinite(v) else "–", va="center", fontsize=7, color="white")
    axes.set_yticks(range(len(table)), [str(name) for name in table.index], fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=len(scores), fontsize=8, frameon=False)
    return figure


def _single(height: float = 3.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.5, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _line(k: int) -> dict:
    """Colour and dash of the k-th curve: they differ in both, for those who tell no colours."""
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": LINES[k % len(LINES)], "linewidth": 1.5}


def _course(axes: Axes, history: pd.DataFrame, name: str, style: dict) -> None:
    some = history[["step", name]].apply(pd.to_numeric, errors="coerce").dropna()
    axes.plot(some["step"], some[name], **style, label=name.replace("_", " "))


def _scaled(sets: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    if not sets:
        raise UserError("Nothing to plot: give at least one set of images.")
    return {name: scale_each(np.asarray(images)) for name, images in sets.items()}
