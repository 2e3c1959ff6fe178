"""From confidence maps to a table of sites: local maxima with sub-pixel positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial import cKDTree

from micrographia.sites import concat_sites, make_sites


def find_peaks(
    maps: np.ndarray,
    kinds: Sequence[str],
    radius_px: float,
    threshold: float = 0.1,
    image: str = "image",
) -> pd.DataFrame:
    """Locate the sites in the confidence maps of one image.

    A site is a local maximum of the smoothed confidence within `radius_px`, above `threshold`. Its position
    is the vertex of the parabolas through the maximum and its neighbours; its confidence the value there.
    Where maxima of several kinds fall within `radius_px` of each other, the most confident one stands for
    all. Sites nearer to the border than `radius_px` are left out: half of what tells them is not in the
    image.

    Parameters
    ----------
    maps : float ``[K, H, W]`` in [0, 1]
    kinds : K names
    radius_px : float
        Physical radius of a site in pixels.

    Returns
    -------
    DataFrame
        Sites table (``image, x_px, y_px, kind, confidence``), most confident first.
    """
    tables = []
    reach = max(1, round(radius_px))
    offsets = np.arange(-reach, reach + 1)
    disc = np.hypot(*np.meshgrid(offsets, offsets)) <= radius_px + 0.25
    dy, dx = (o[disc] for o in np.meshgrid(offsets, offsets, indexing="ij"))
    for kind, confidence in zip(kinds, maps, strict=True):
        smooth = ndimage.gaussian_filter(confidence, 0.35 * radius_px, mode="nearest")
        # Few pixels are above the threshold: only they are compared with their surroundings.
        row, col = np.nonzero(confidence[reach:-reach, reach:-reach] > threshold)
        row, col = row + reach, col + reach
        top = (smooth[row[:, None] + dy, col[:, None] + dx] <= smooth[row, col, None]).all(axis=1)
        row, col = row[top], col[top]
        here = smooth[row, col]
        shift_y, bend_y = _vertex(smooth[row - 1, col], here, smooth[row + 1, col])
        shift_x, bend_x = _vertex(smooth[row, col - 1], here, smooth[row, col + 1])
        peaked = bend_x + bend_y > 1e-4  # every pixel of a flat region equals its maximum
        x, y = (col + shift_x)[peaked], (row + shift_y)[peaked]
        tables.append(make_sites(image, x, y, kind, confidence[row, col][peaked]))
    return suppress_neighbours(concat_sites(tables), radius_px)


def _vertex(before: np.ndarray, here: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the parabola through three neighbouring values has its top, and how strongly it bends."""
    bend = 2 * here - before - after
    return 0.5 * (after - before) / np.maximum(bend, 1e-9), bend


def suppress_neighbours(sites: pd.DataFrame, radius_px: float) -> pd.DataFrame:
    """Keep, of sites closer than `radius_px` in one image, only the most confident."""
    sites = sites.sort_values("confidence", ascending=False, ignore_index=True)
    keep = np.ones(len(sites), dtype=bool)
    if len(sites):
        xy = sites[["x_px", "y_px"]].to_numpy(float)
        tree = cKDTree(xy)
        for i, near in enumerate(tree.query_ball_point(xy, radius_px)):
            if keep[i]:
                keep[[j for j in near if j > i]] = False
    return sites[keep].reset_index(drop=True)
