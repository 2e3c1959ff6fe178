"""Drawing atoms as spots of one height: what is left of an image when only order counts, not brightness."""

from __future__ import annotations

import numpy as np
import pandas as pd

from micrographia.errors import UserError


def draw_positions(sites: pd.DataFrame, shape: tuple[int, int], sigma_px: float) -> np.ndarray:
    """Draw every site as a Gaussian spot of height 1, one map for each kind in alphabetical order.

    Such maps, which a network's probabilities per species resemble, are what Kalinin, Dyck, Jesse and Ziatdinov,
    Sci. Adv. 7, eabd5084 (2021), learn order parameters from: a dopant's brightness does not drown the lattice.

    Parameters
    ----------
    sites : DataFrame with ``x_px, y_px, kind``
        Of one image.
    shape : (H, W)
    sigma_px : float
        Standard deviation of a spot.

    Returns
    -------
    float32 array ``[K, H, W]``
        Where spots overlap, the higher counts.

    Raises
    ------
    UserError
        The width is not positive.
    """
    if not sigma_px > 0:
        raise UserError(f"sigma_px = {sigma_px} is not possible; give more than 0 pixels.")
    reach = int(np.ceil(4 * sigma_px))
    offset = np.arange(-reach, reach + 1)
    kinds = sorted(sites["kind"].unique())
    maps = np.zeros((max(len(kinds), 1), shape[0] + 2 * reach, shape[1] + 2 * reach), np.float32)
    for k, kind in enumerate(kinds):
        xy = sites.loc[sites["kind"] == kind, ["x_px", "y_px"]].to_numpy(float)
        near = np.round(xy).astype(int)
        inside = ((near >= 0) & (near < shape[::-1])).all(axis=1)
        xy, near = xy[inside], near[inside]
        along = (
            np.exp(-((offset - (xy[:, a] - near[:, a])[:, None]) ** 2) / (2 * sigma_px**2)) for a in (0, 1)
        )
        gx, gy = along
        spots = (gy[:, :, None] * gx[:, None, :]).astype(np.float32)
        rows = near[:, 1, None, None] + offset[None, :, None] + reach
        columns = near[:, 0, None, None] + offset[None, None, :] + reach
        np.maximum.at(maps[k], (rows, columns), spots)
    return maps[:, reach : reach + shape[0], reach : reach + shape[1]]
