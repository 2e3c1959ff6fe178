"""Single atoms that move while they are scanned.

Heavy atoms on carbon hop while the beam passes over them line by line (Isaacson, Kopf, Utlaut, Parker & Crewe,
Proc. Natl. Acad. Sci. USA 74, 1802 (1977)): spots are cut off at a line, appear a second time, or shrink to streaks.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

#: Root mean square of a hop along each axis: about the distance of neighbouring places on a carbon surface.
HOP_A = 1.5


def atom_tracks(
    own_line: np.ndarray,
    lines: int,
    hops_per_line: float,
    hop_px: float,
    tremble_px: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return where each atom is at every scan line, ``[atoms, lines, 2]`` as (dx, dy) in px.

    Between hops it trembles along the fast axis. On its `own_line` it has made no hop: there the label is true.
    """
    n = len(own_line)
    hop = rng.random((n, lines, 1)) < hops_per_line
    place = np.cumsum(hop * rng.normal(0, hop_px, (n, lines, 2)), axis=1)
    place -= place[np.arange(n), own_line.round().astype(int).clip(0, lines - 1)][:, None]
    place[..., 0] += rng.normal(0, tremble_px, (n, lines))
    return place


def motion_field(
    x_px: np.ndarray,
    y_px: np.ndarray,
    shape: tuple[int, int],
    hops_per_line: float,
    hop_px: float,
    tremble_px: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return where an image at rest must be read to show its atoms in motion, ``[H, W, 2]`` as (dx, dy) in px.

    Each atom takes the pixels along that are nearer to it than to any other atom.
    """
    if not len(x_px):
        return np.zeros((*shape, 2))
    tracks = atom_tracks(y_px, shape[0], hops_per_line, hop_px, tremble_px, rng)
    row, col = np.mgrid[: shape[0], : shape[1]]
    _, nearest = cKDTree(np.c_[x_px, y_px]).query(np.stack([col, row], axis=-1))
    return -tracks[nearest, row]
