"""From confidence maps to a table of sites: local maxima with sub-pixel positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import ndimage

from micrographia.sites import concat_sites, make_sites


def find_peaks(
    maps: np.ndarray,
    kinds: Sequence[str],
    radius_px: float,
    threshold: float = 0.1,
    image: str = "image",
) -> pd.DataFrame:
    """Locate the sites in the confidence maps of one image.

    A site is a local maximum within `radius_px` above `threshold`. Its position is the centroid of the
    confidence around the maximum; its confidence the value there. Where maxima of several kinds fall within
    `radius_px` of each other, the most confident one stands for all. Sites nearer to the border than
    `radius_px` are left out: half of what tells them is not in the image.

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
    for kind, confidence in zip(kinds, maps, strict=True):
        inside = np.zeros(confidence.shape, dtype=bool)
        inside[reach:-reach, reach:-reach] = True
        smooth = ndimage.gaussian_filter(confidence, 0.35 * radius_px, mode="nearest")
        top = smooth == ndimage.maximum_filter(smooth, footprint=disc, mode="nearest")
        row, col = np.nonzero(top & inside & (confidence > threshold))
        if not len(row):
            continue
        padded = np.pad(confidence, reach, mode="constant")
        windows = padded[
            row[:, None, None] + offsets[:, None] + reach, col[:, None, None] + offsets[None, :] + reach
        ]
        weight = windows * disc
        total = weight.sum(axis=(1, 2))
        dy = (weight * offsets[:, None]).sum(axis=(1, 2)) / total
        dx = (weight * offsets[None, :]).sum(axis=(1, 2)) / total
        tables.append(make_sites(image, col + dx, row + dy, kind, confidence[row, col]))
    return suppress_neighbours(concat_sites(tables), radius_px)


def suppress_neighbours(sites: pd.DataFrame, radius_px: float) -> pd.DataFrame:
    """Keep, of sites closer than `radius_px` in one image, only the most confident."""
    sites = sites.sort_values("confidence", ascending=False, ignore_index=True)
    xy = sites[["x_px", "y_px"]].to_numpy()
    keep = np.ones(len(sites), dtype=bool)
    for i in range(1, len(sites)):
        near = np.hypot(*(xy[:i] - xy[i]).T) < radius_px
        keep[i] = not np.any(near & keep[:i])
    return sites[keep].reset_index(drop=True)
