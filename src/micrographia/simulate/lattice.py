"""Cells that repeat in the plane of the image, and filling a rectangle with them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from micrographia.errors import UserError

#: Atoms closer than this in projection are one column.
COLUMN_RADIUS_A = 0.3
_MAX_ATOMS = 5_000_000


@dataclass(frozen=True)
class PlaneCell:
    """A cell repeated in two directions of the plane; y up as in textbooks, first vector along x."""

    vectors: np.ndarray  # [2, 2], one per row
    numbers: np.ndarray  # [atoms]
    positions: np.ndarray  # [atoms, 3]
    column: np.ndarray  # [atoms], 0 to columns - 1


def plane_cell(vectors: np.ndarray, numbers: np.ndarray, positions: np.ndarray) -> PlaneCell:
    """Sort a cell's atoms into projected columns, and move each atom next to the first of its column."""
    positions = np.array(positions, dtype=float)
    column = np.full(len(numbers), -1)
    heads: list[np.ndarray] = []
    for i, position in enumerate(positions):
        for j, head in enumerate(heads):
            fractional = np.linalg.solve(vectors.T, position[:2] - head)
            nearest = vectors.T @ (fractional - np.rint(fractional))
            if np.hypot(*nearest) < COLUMN_RADIUS_A:
                positions[i, :2] = head + nearest
                column[i] = j
                break
        else:
            column[i] = len(heads)
            heads.append(position[:2].copy())
    return PlaneCell(vectors, np.asarray(numbers), positions, column)


def along_zone_axis(
    crystal: Atoms, zone_axis: tuple[int, int, int], thickness_A: float | None = None
) -> PlaneCell:
    """Look along [uvw]: find the two short lattice vectors that repeat the projected structure."""
    cell = np.asarray(crystal.cell)
    axis = np.array(zone_axis)
    if axis.shape != (3,) or not axis.any() or (axis != np.rint(axis)).any():
        raise UserError(f"The zone axis must be three integers that are not all 0, got {zone_axis}.")
    axis = (axis // np.gcd.reduce(axis.astype(int))).astype(int)
    period = axis @ cell
    beam = period / np.linalg.norm(period)
    candidates = np.array(list(itertools.product(range(-4, 5), repeat=3)))
    vectors = candidates @ cell
    flat = vectors - np.outer(vectors @ beam, beam)
    length = np.linalg.norm(flat, axis=1)
    # Shortest first; among equals the one with the fewest negative indices, so that [001] keeps a along x.
    order = [int(i) for i in np.lexsort((-candidates.sum(1), np.round(length, 4))) if length[i] > 1e-6]
    for i, j in sorted(itertools.combinations(order[:60], 2), key=sum):
        handed = round(np.linalg.det([candidates[i], candidates[j], axis]))
        if abs(handed) == 1:
            break
    else:
        raise UserError(f"No short repeat vectors for the zone axis {list(zone_axis)}; use lower indices.")
    first, second = flat[i], flat[j] if handed * np.linalg.det(cell) > 0 else -flat[j]
    x_axis = first / np.linalg.norm(first)
    frame = np.array([x_axis, np.cross(beam, x_axis), beam])
    repeats = max(1, round((thickness_A or 0) / np.linalg.norm(period)))
    positions = crystal.positions @ frame.T
    # Repeat vectors that are not perpendicular to the beam change heights, too; the projection does not care.
    step = np.linalg.norm(period) * beam @ frame.T
    stacked = np.concatenate([positions + k * step for k in range(repeats)])
    plane = np.array([first, second]) @ frame[:2].T
    return plane_cell(plane, np.tile(crystal.numbers, repeats), stacked)


def tile(cell: PlaneCell, matrix: np.ndarray, origin: np.ndarray, low: np.ndarray, high: np.ndarray) -> Atoms:
    """Repeat a cell over the rectangle from `low` to `high` after mapping its plane by `matrix`."""
    vectors, basis = cell.vectors @ matrix.T, cell.positions[:, :2] @ matrix.T + origin
    corners = np.array(list(itertools.product(*zip(low, high, strict=True))))
    indices = (corners[:, None, :] - basis[None]) @ np.linalg.inv(vectors)
    first, last = np.floor(indices.min((0, 1))).astype(int), np.ceil(indices.max((0, 1))).astype(int)
    if np.prod(last - first + 1.0) * len(basis) > _MAX_ATOMS:
        raise UserError(f"The field holds over {_MAX_ATOMS:,} atoms; make it smaller or the crystal thinner.")
    i, j = np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(first, last, strict=True)), indexing="ij")
    corner = np.stack([i.ravel(), j.ravel()], 1) @ vectors
    columns = int(cell.column.max()) + 1
    xy = corner[:, None, :] + basis
    # An ideal column is inside as a whole or not at all.
    head = np.array([np.flatnonzero(cell.column == c)[0] for c in range(columns)])[cell.column]
    inside = ((xy[:, head] >= low) & (xy[:, head] <= high)).all(-1)
    column = np.arange(len(corner))[:, None] * columns + cell.column
    z = np.broadcast_to(cell.positions[:, 2], inside.shape)
    atoms = Atoms(
        numbers=np.broadcast_to(cell.numbers, inside.shape)[inside], positions=np.c_[xy[inside], z[inside]]
    )
    atoms.set_array("column", np.unique(column[inside], return_inverse=True)[1].astype(int))
    atoms.set_array("sublattice", np.broadcast_to(cell.column, inside.shape)[inside].astype(int))
    return atoms


def screen_matrix(angle_deg: float, strain: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    """Return the 2 x 2 map from textbook coordinates (y up) to the screen (y down).

    Rotation by `angle_deg` counter-clockwise as seen on the screen, then strain (exx, eyy, exy) along the
    screen's axes.
    """
    angle = np.deg2rad(angle_deg)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    exx, eyy, exy = strain
    return np.array([[1 + exx, exy], [exy, 1 + eyy]]) @ np.diag([1.0, -1.0]) @ rotation
