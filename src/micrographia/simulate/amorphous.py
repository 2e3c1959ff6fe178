"""Isolated heavy atoms on an amorphous carbon film."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from scipy.spatial import cKDTree

from micrographia.errors import UserError, did_you_mean

#: Evaporated carbon has 1.8 to 2.1 g/cm3 (Robertson, Mater. Sci. Eng. R 37, 129 (2002)).
FILM_DENSITY_G_CM3 = 1.9
_ATOMS_PER_A3 = FILM_DENSITY_G_CM3 * 0.6022 / 12.011
_BOND_A = 1.35
_HEAVY_DISTANCE_A = 2.5
_BLOCK_A = np.array([100.0, 100.0, 10.0])


def _separated_points(n: int, size: np.ndarray, distance: float, rng: np.random.Generator) -> np.ndarray:
    """Draw about `n` points in a box (periodic in x and y) no closer than `distance` to each other."""
    box = np.append(size[:2], np.zeros(len(size) - 2))  # 0: not periodic
    kept = np.zeros((0, len(size)))
    for _ in range(12):
        points = np.concatenate([kept, rng.uniform(0, size, (n - len(kept), len(size)))])
        pairs = cKDTree(points, boxsize=box).query_pairs(distance, output_type="ndarray")
        # Of a crowded pair the newer point goes, and is drawn again.
        kept = np.delete(points, np.unique(pairs.max(1)), axis=0) if len(pairs) else points
    return kept


@lru_cache(maxsize=1)
def _carbon_block() -> np.ndarray:
    """Return one piece of film, ``[atoms, 3]``, periodic in x and y."""
    return _separated_points(
        round(np.prod(_BLOCK_A) * _ATOMS_PER_A3), _BLOCK_A, _BOND_A, np.random.default_rng(0)
    )


def _carbon_film(
    thickness_A: float, low: np.ndarray, high: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Stack layers of the block, each turned and shifted at random, so that the film does not repeat."""
    layers = []
    for top in np.arange(0.0, thickness_A, _BLOCK_A[2]):
        block = _carbon_block()
        block = block[block[:, 2] < thickness_A - top]
        angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(0, _BLOCK_A[:2])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        corners = np.array([low, high, (low[0], high[1]), (high[0], low[1])]) @ turn - shift
        cells = (np.arange(a, b) for a, b in zip(*_reach(corners), strict=True))
        tiles = np.stack(np.meshgrid(*cells), -1).reshape(-1, 1, 2) * _BLOCK_A[:2]
        xy = (tiles + block[:, :2] + shift) @ turn.T
        inside = ((xy >= low) & (xy <= high)).all(-1)
        z = np.broadcast_to(-top - block[:, 2], inside.shape)
        layers.append(np.c_[xy[inside], z[inside]])
    return np.concatenate(layers)


def _reach(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last (exclusive) block along x and y that the rectangle with these corners touches."""
    blocks = corners / _BLOCK_A[:2]
    return np.floor(blocks.min(0)).astype(int), np.floor(blocks.max(0)).astype(int) + 1


def atoms_on_film(
    element: str,
    atoms_per_nm2: float,
    thickness_A: float,
    low: np.ndarray,
    high: np.ndarray,
    rng: np.random.Generator,
) -> Atoms:
    """Put isolated atoms of one element on a carbon film between the corners `low` and `high` (x, y in Å).

    The film is a random arrangement of carbon at 1.9 g/cm3 with no two atoms closer than 1.35 Å: it has the
    right mass thickness and fluctuations, not the bond angles. The heavy atoms lie on its surface, 2.5 Å or
    more apart. Arrays ``column`` and ``sublattice`` are -1 throughout; ``isolated`` marks the heavy atoms.
    """
    if element not in chemical_symbols[1:104]:
        raise UserError(f"'{element}' is not an element.{did_you_mean(element, chemical_symbols[1:104])}")
    if not 0 <= atoms_per_nm2 <= 10:
        raise UserError(f"atoms_per_nm2 must be between 0 and 10, got {atoms_per_nm2}.")
    area = float(np.prod(high - low))
    film = _carbon_film(thickness_A, low, high, rng)
    count = rng.poisson(area * atoms_per_nm2 / 100)
    heavy = low + _separated_points(count, high - low, _HEAVY_DISTANCE_A, rng)
    positions = np.concatenate([film, np.c_[heavy, np.full(len(heavy), 1.5)]])
    isolated = np.arange(len(positions)) >= len(film)
    atoms = Atoms(numbers=np.where(isolated, atomic_numbers[element], 6), positions=positions)
    for array in ("column", "sublattice"):
        atoms.set_array(array, np.full(len(atoms), -1))
    atoms.set_array("isolated", isolated)
    atoms.info["elements"] = sorted({"C", element})
    return atoms
