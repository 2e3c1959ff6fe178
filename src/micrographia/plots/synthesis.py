"""Pictures of generated images: sheets, paths between them, and the course of their training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from micrographia.errors import UserError
from micrographia.plots.palette import COLOURS
from micrographia.plots.pictures import scale_bar
from micrographia.plots.thumbnails import mosaic


def as_pictures(images: np.ndarray) -> np.ndarray:
    """Images ``[N, C, H, W]`` of -1 ... 1 as pictures of 0 ... 1: ``[N, H, W]`` or ``[N, H, W, 3]``.

    All by the same window: a brightness of its own is something an image may have.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"Images to be shown must be [N, 1 or 3, H, W], got {list(images.shape)}.")
    shown = np.clip((images + 1) / 2, 0, 1).astype(np.float32)
    return shown[:, 0] if images.shape[1] == 1 else np.moveaxis(shown, 1, -1)


def enlarged(pictures: np.ndarray, wanted_px: int) -> np.ndarray:
    """Pictures ``[N, H, W, ...]`` whose pixels are squares of so many that the short edge is about `wanted_px`, or as they are."""
    factor = max(1, wanted_px // min(pictures.shape[1:3]))
    return pictures.repeat(factor, axis=1).repeat(factor, axis=2)


def sheet(images: np.ndarray, columns: int, gap_px: int = 2) -> np.ndarray:
    """Lay images ``[N, C, H, W]`` out in rows, white between: ``[h, w]`` or ``[h, w, 3]``, 0 to 1."""
    pictures = as_pictures(images)
    rows = -(-len(pictures) // columns)
    blank = np.ones((rows * columns - len(pictures), *pictures.shape[1:]), np.float32)
    full = np.concatenate([pictures, blank])
    return mosaic(full.reshape(rows, columns, *full.shape[1:]), gap_px)


def seeds_figure(images: np.ndarray, seeds: Sequence[int], columns: int = 8) -> Figure:
    """Show samples ``[N, C, H, W]``, each above the seed that draws it again."""
    if len(images) != len(seeds) or len(images) == 0:
        raise UserError(f"seeds_figure: give as many seeds as images, not {len(seeds)} for {len(images)}.")
    columns = min(columns, len(images))
    height, width = images.shape[-2:]
    gap = max(height, width) // 4  # room for a line of text
    picture = sheet(images, columns, gap)
    rows = -(-len(images) // columns)
    width_in = max(1.1 * columns, 2.0)
    figure = Figure(figsize=(width_in, width_in * rows * (height + gap) / (columns * (width + gap))))
    axes = figure.add_axes((0.01, 0.0, 0.98, 0.99))
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axes.set_ylim(rows * (height + gap) - 0.5, -0.5)
    axes.set_anchor("N")
    axes.set_axis_off()
    for k, seed in enumerate(seeds):
        row, column = divmod(k, columns)
        middle, below = column * (width + gap) + width / 2, row * (height + gap) + height + gap / 2
        axes.text(middle, below, str(seed), ha="center", va="center", fontsize=7)
    return figure


def sheet_figure(
    sets: Mapping[str, np.ndarray], columns: int = 6, pixel_size_A: float | None = None
) -> Figure:
    """Show sets of images ``[N, C, H, W]`` of one window side by side, each under its name."""
    if not sets:
        raise UserError("sheet_figure: give at least one set of images.")
    sheets = {name: sheet(images, columns) for name, images in sets.items()}
    widths = [s.shape[1] for s in sheets.values()]
    aspect = max(s.shape[0] / s.shape[1] for s in sheets.values())
    width_in = min(10.0, 3.2 * len(sheets) + 1.5)
    figure = Figure(figsize=(width_in, width_in / len(sheets) * aspect + 0.35), layout="constrained")
    panels = figure.subplots(
        1, len(sheets), squeeze=False, width_ratios=widths, gridspec_kw={"wspace": 0.06}
    )[0]
    for axes, (name, picture) in zip(panels, sheets.items(), strict=True):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_anchor("N")
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_axis_off()
        if pixel_size_A is not None:
            scale_bar(axes, pixel_size_A, across_px=sets[name].shape[-1])
    return figure


def rows_figure(rows: Mapping[str, np.ndarray], pixel_size_A: float | None = None) -> Figure:
    """Show one row of images ``[N, C, H, W]`` under each name: paths, or samples as a training goes on."""
    if not rows:
        raise UserError("rows_figure: give at least one row of images.")
    longest = max(len(images) for images in rows.values())
    pictures = {name: sheet(images, longest) for name, images in rows.items()}
    height, width = next(iter(pictures.values())).shape[:2]
    inches = 9.5 * height / width
    figure = Figure(figsize=(9.5, (inches + 0.28) * len(rows)), layout="constrained")
    for axes, (name, picture) in zip(
        figure.subplots(len(rows), 1, squeeze=False)[:, 0], pictures.items(), strict=True
    ):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axes.set_title(name, fontsize=8, loc="left", pad=2)
        axes.set_axis_off()
        if pixel_size_A is not None:
            scale_bar(axes, pixel_size_A, across_px=rows[name].shape[-1])
    return figure


def adversarial_figure(history: pd.DataFrame, images_per_step: int) -> Figure:
    """Course of an adversarial training: losses, distance to the real images, and how sure the critic is.

    Parameters
    ----------
    history : DataFrame
        As in ``metrics.csv``.
    images_per_step : int
    """
    panels: dict[str, dict[str, str]] = {
        "loss": {"critic": "critic", "generator": "generator", "r1": "squared gradient on images"},
        "Fréchet\ndistance": {"frechet": ""},
        "": {
            "real_signs": "mean sign of the verdict on real images",
            "overfit": "unseen real images judged as generated ones",
            "augment_p": "probability of augmentation",
        },
    }
    panels = {
        title: {k: v for k, v in names.items() if k in history and history[k].notna().any()}
        for title, names in panels.items()
    }
    panels = {title: names for title, names in panels.items() if names}
    figure = Figure(figsize=(6.5, 0.6 + 1.7 * len(panels)), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, names) in zip(all_axes, panels.items(), strict=True):
        for (name, label), colour in zip(names.items(), COLOURS, strict=False):
            known = history[["step", name]].dropna()
            marker = "o" if name == "frechet" else None
            axes.plot(
                known["step"], known[name], color=colour, label=label, lw=1, marker=marker, markersize=3
            )
        if title:
            axes.set_yscale("log")
        axes.set_ylabel(title, fontsize=8)
        axes.grid(alpha=0.25)
        if any(names.values()):
            axes.legend(fontsize=7, frameon=False)
    all_axes[-1].set_xlabel(f"step (of {images_per_step} images)")
    return figure
