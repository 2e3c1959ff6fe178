"""Quantities back on the sample: values, angles and classes of atoms on their image and through a movie."""

from __future__ import annotations

from math import ceil, sqrt

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from scipy.spatial import KDTree

from micrographia.errors import UserError
from micrographia.micrograph import robust_scale
from micrographia.plots.colouring import Colouring, draw_key
from micrographia.plots.pictures import image_axes


def site_map(
    image: np.ndarray,
    sites: pd.DataFrame,
    column: str,
    colouring: Colouring,
    pixel_size_A: float | None = None,
    title: str = "",
) -> Figure:
    """Colour the atoms of one image by a column of their table.

    Parameters
    ----------
    image : ``[H, W]``
    sites : DataFrame
        ``x_px, y_px`` and `column`; of this image only. Atoms without a value (NaN) are grey.
    column : str
    colouring : Colouring
        `plots.colouring.by_value`, `by_angle`, `by_small_angle` or `by_class`.
    pixel_size_A : float, optional
        For the scale bar.
    """
    _check(sites, column)
    height, width = image.shape
    figure = Figure(figsize=(7.4, float(np.clip(6.0 * height / width + 0.3, 2.2, 11))), layout="constrained")
    axes = figure.subplots()
    draw_sites(axes, image, sites, column, colouring, pixel_size_A, title)
    draw_key(figure, axes, colouring, sites[column].to_numpy())
    return figure


def movie_sheet(
    frames: np.ndarray,
    sites: pd.DataFrame,
    column: str,
    colouring: Colouring,
    pixel_size_A: float | None = None,
    shown: int = 9,
    across: int = 3,
) -> Figure:
    """Colour the atoms of evenly spaced frames of a movie by a column; one key for all.

    Parameters
    ----------
    frames : ``[T, H, W]``
    sites : DataFrame
        ``frame, x_px, y_px`` and `column`.
    """
    _check(sites, column, "frame")
    frames = np.asarray(frames)
    if frames.ndim != 3 or not len(frames):
        raise UserError(f"movie_sheet: give frames [T, H, W], got {list(frames.shape)}.")
    some = np.unique(np.linspace(0, len(frames) - 1, min(shown, len(frames))).round().astype(int))
    across = min(across, ceil(sqrt(len(some))))
    down = -(-len(some) // across)
    aspect = frames.shape[1] / frames.shape[2]
    figure = Figure(figsize=(2.5 * across + 1.2, 2.5 * down * aspect + 0.25 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes in panels[len(some) :]:
        axes.set_axis_off()
    for axes, t in zip(panels, some, strict=False):
        here = sites[sites["frame"] == t]
        draw_sites(axes, frames[t], here, column, colouring, pixel_size_A, f"frame {t}")
    draw_key(figure, list(panels), colouring, sites.loc[sites["frame"].isin(some), column].to_numpy())
    return figure


def draw_sites(
    axes: Axes,
    image: np.ndarray,
    sites: pd.DataFrame,
    column: str,
    colouring: Colouring,
    pixel_size_A: float | None,
    title: str,
) -> None:
    """Draw an image and on each atom a coloured disc, as large as the distance between atoms allows.

    More than six classes differ in shape as well as colour.
    """
    shown = robust_scale(image)[0] if np.ptp(image) > 0 else np.zeros(image.shape, np.float32)
    image_axes(axes, shown, pixel_size_A, title, (-1.3, 2.2))
    if len(sites):
        values, at = sites[column].to_numpy(), sites[["x_px", "y_px"]].to_numpy(float)
        radius = _radius(at, max(image.shape))
        marks = [colouring.marker(v) for v in values.tolist()] if colouring.classes else ["o"] * len(at)
        outlines = [centre + radius * _OUTLINES[mark] for centre, mark in zip(at, marks, strict=True)]
        colours = colouring.colours(values)
        axes.add_collection(PolyCollection(outlines, facecolors=colours, edgecolors="black", linewidths=0.25))
    axes.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))


def _polygon(corners: int, turn_deg: float) -> np.ndarray:
    angle = np.deg2rad(turn_deg + 360 * np.arange(corners) / corners)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


#: Outlines of the marks, in units of the radius; y points down.
_OUTLINES = {
    "o": _polygon(20, 0), "s": 1.1 * _polygon(4, 45), "^": 1.25 * _polygon(3, -90),
    "D": 1.15 * _polygon(4, 0), "v": 1.25 * _polygon(3, 90), "P": 1.15 * _polygon(6, 0),
}  # fmt: skip


def _radius(at: np.ndarray, size: int) -> float:
    """Radius of the discs: they just do not touch, and are neither dots nor blots."""
    least, most = 0.005 * size, 0.025 * size
    if len(at) < 2:
        return most
    nearest = KDTree(at).query(at, k=2)[0][:, 1]
    return float(np.clip(0.42 * np.median(nearest), least, most))


def _check(sites: pd.DataFrame, *columns: str) -> None:
    missing = [name for name in ("x_px", "y_px", *columns) if name not in sites.columns]
    if missing:
        raise UserError(
            f"The table of sites has no column {', '.join(map(repr, missing))}; it has {', '.join(map(str, sites.columns))}."
        )
