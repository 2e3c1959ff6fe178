"""Pictures of latent models: manifold, traversals, scatter with thumbnails, reconstructions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from micrographia.errors import UserError
from micrographia.plots.colouring import Colouring, axis_label, by_class, by_value, draw_key
from micrographia.plots.thumbnails import limits_of, mosaic, thumbnails

#: Points drawn in a scatter; of more, evenly spaced ones.
MOST_POINTS = 20_000


def manifold_figure(images: np.ndarray, values: np.ndarray, names: Sequence[str]) -> Figure:
    """Show patches drawn over a plane of two latents (`latent.manifold.draw_manifold`).

    Parameters
    ----------
    images : ``[R, S, H, W]`` or ``[R, S, C, H, W]``
    values : ``[R, S, 2]``
        (row's, column's) latent.
    names : of the rows' and the columns' latent
    """
    rows, columns = images.shape[:2]
    figure = Figure(
        figsize=(5.6, 5.6 * rows * images.shape[-2] / (columns * images.shape[-1])), layout="constrained"
    )
    axes = figure.subplots()
    _mosaic_axes(axes, images)
    _ticks(axes, images, values[:, 0, 0], values[0, :, 1])
    axes.set(xlabel=names[1], ylabel=names[0])
    return figure


def traversal_figure(images: np.ndarray, values: np.ndarray, names: Sequence[str]) -> Figure:
    """Show what each latent does while the others rest (`latent.manifold.draw_traversals`).

    Parameters
    ----------
    images : ``[R, S, H, W]`` or ``[R, S, C, H, W]``
    values : ``[R, S]``
    names : of the latent of each row
    """
    rows, columns = images.shape[:2]
    figure = Figure(figsize=(6.8, 0.4 + 6.0 / columns * rows * 1.22), layout="constrained")
    panels = figure.subplots(rows, 1, squeeze=False)[:, 0]
    limits = limits_of(images.reshape(-1, *images.shape[2:]))
    for axes, row, value, name in zip(panels, images, values, names, strict=True):
        _mosaic_axes(axes, row[None], limits)
        _ticks(axes, row[None], None, value)
        axes.set_ylabel(axis_label(name), rotation=0, ha="right", va="center")
    return figure


def latent_scatter(
    x: np.ndarray,
    y: np.ndarray,
    patches: np.ndarray | None = None,
    colour: np.ndarray | None = None,
    colouring: Colouring | None = None,
    names: Sequence[str] = ("z1", "z2"),
    across: int = 9,
) -> Figure:
    """Scatter two latents, with patches where there is room: one in each cell of a grid that holds points.

    Parameters
    ----------
    x, y : ``[N]``
    patches : ``[N, H, W]`` or ``[N, C, H, W]``, optional
    colour : ``[N]``, optional
        Numbers, or labels (text, whole numbers).
    colouring : Colouring, optional
        How; without: by class for labels, by value for numbers.
    names : of x and y
    across : int
        Thumbnails side by side, at most.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise UserError(
            f"latent_scatter: give x and y of one length, got {list(x.shape)} and {list(y.shape)}."
        )
    some = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).astype(int))
    figure = Figure(figsize=(6.8, 5.6), layout="constrained")
    axes = figure.subplots()
    size = float(np.clip(3e4 / len(some), 4, 26))
    axes.set(xlabel=axis_label(names[0]), ylabel=axis_label(names[1]))
    axes.spines[["top", "right"]].set_visible(False)
    frame: list[np.ndarray] | None = None
    if colour is None:
        axes.scatter(x[some], y[some], s=size, color="0.55", linewidths=0)
    else:
        colour = np.asarray(colour)
        if colouring is None:
            labels = colour.dtype.kind not in "fc"
            colouring = by_class(np.unique(colour).tolist()) if labels else by_value(colour, "value")
        rgba = colouring.colours(colour)
        axes.scatter(x[some], y[some], s=size, c=rgba[some], linewidths=0)
        draw_key(figure, axes, colouring, colour)
        frame = list(rgba)
    if patches is not None:
        _thumbnails_on(axes, x, y, patches, frame, across)
    if len(some) < len(x):
        axes.set_title(f"{len(some)} of {len(x)} points", fontsize=8, loc="left", color="0.4")
    return figure


def reconstruction_sheet(
    patches: np.ndarray,
    reconstructed: np.ndarray,
    upright: np.ndarray | None = None,
    angle_deg: np.ndarray | None = None,
    shown: int = 10,
) -> Figure:
    """Show patches, what the model makes of them, and the same upright, all by the same limits.

    Parameters
    ----------
    patches, reconstructed, upright : ``[N, H, W]`` or ``[N, C, H, W]``
        `upright` from `latent.manifold.draw_upright`.
    angle_deg : ``[N]``, optional
        Written above each patch.
    shown : int
        Of the N, evenly spaced.
    """
    rows = {"patch": patches, "reconstruction": reconstructed}
    if upright is not None:
        rows["upright"] = upright
    shapes = {name: np.shape(stack) for name, stack in rows.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(f"reconstruction_sheet: the stacks differ in shape: {shapes}.")
    some = np.unique(np.linspace(0, len(patches) - 1, min(shown, len(patches))).astype(int))
    limits = limits_of(np.asarray(patches)[some])
    figure = Figure(figsize=(0.72 * len(some) + 1.3, 0.85 * len(rows) + 0.2), layout="constrained")
    panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axes, (name, stack) in zip(panels, rows.items(), strict=True):
        row = np.asarray(stack)[some][None]
        _mosaic_axes(axes, row, limits)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axes.set_xticks([])
    if angle_deg is not None:
        centres = _centres(len(some), np.shape(patches)[-1])
        panels[0].xaxis.tick_top()
        panels[0].set_xticks(centres, [f"{a:.0f}°" for a in np.asarray(angle_deg)[some]], fontsize=8)
        panels[0].tick_params(length=0)
    return figure


def _thumbnails_on(
    axes: Axes, x: np.ndarray, y: np.ndarray, patches: np.ndarray, frame: list[np.ndarray] | None, across: int
) -> None:
    """In each cell of a grid, the patch whose point lies nearest to the middle of the cell's points."""
    if len(patches) != len(x):
        raise UserError(f"latent_scatter: {len(patches)} patches for {len(x)} points.")
    spans = [max(np.ptp(v), 1e-12) for v in (x, y)]
    cell = [
        np.minimum(((v - v.min()) / s * across).astype(int), across - 1)
        for v, s in zip((x, y), spans, strict=True)
    ]
    chosen: list[int] = []
    for key in np.unique(cell[0] * across + cell[1]):
        inside = np.flatnonzero(cell[0] * across + cell[1] == key)
        middle = (x[inside].mean(), y[inside].mean())
        away = ((x[inside] - middle[0]) / spans[0]) ** 2 + ((y[inside] - middle[1]) / spans[1]) ** 2
        candidate = int(inside[away.argmin()])
        # Neighbours in two cells can lie side by side: leave out what would overlap.
        if all(
            max(abs(x[candidate] - x[o]) / spans[0], abs(y[candidate] - y[o]) / spans[1]) > 0.85 / across
            for o in chosen
        ):
            chosen.append(candidate)
    pictures = thumbnails(np.asarray(patches)[chosen])
    zoom = 38 * 8.5 / across / max(pictures.shape[1:3])  # points across, each
    for i, picture in zip(chosen, pictures, strict=True):
        image = OffsetImage(picture, zoom=zoom, cmap="gray", norm=None, interpolation="nearest")
        image.image.set_clim(0, 1)
        edge = {"edgecolor": "0.3" if frame is None else frame[i], "linewidth": 1.8}
        axes.add_artist(AnnotationBbox(image, (x[i], y[i]), pad=0.06, bboxprops=edge))


def _mosaic_axes(axes: Axes, images: np.ndarray, limits: Sequence[tuple[float, float]] | None = None) -> None:
    flat = images.reshape(-1, *images.shape[2:])
    pictures = thumbnails(flat, limits)
    sheet = mosaic(pictures.reshape(*images.shape[:2], *pictures.shape[1:]))
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8)
    axes.set_yticks([])


def _ticks(axes: Axes, images: np.ndarray, down: np.ndarray | None, along: np.ndarray) -> None:
    axes.set_xticks(_centres(images.shape[1], images.shape[-1]), _told(along), fontsize=8)
    if down is not None:
        axes.set_yticks(_centres(images.shape[0], images.shape[-2]), _told(down), fontsize=8)


def _centres(n: int, size: int) -> np.ndarray:
    return np.arange(n) * (size + 1) + (size - 1) / 2


def _told(values: np.ndarray) -> list[str]:
    """Numbers with as many decimals as their range needs."""
    span = float(np.ptp(values))
    decimals = 0 if span >= 20 else 1 if span >= 4 else 2
    return [f"{v + 0.0:.{decimals}f}" for v in np.round(values, decimals)]
