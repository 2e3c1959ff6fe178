"""Graphene's own defects: those that take a pair of atoms, and tilt grain boundaries.

After the bonds are chosen, positions follow from springs along them: nearest neighbours want 1.42 Å, second
neighbours 2.46 Å (softly). That gives bond lengths within some per cent of calculated ones, in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ase import Atoms
from scipy.sparse import coo_matrix
from scipy.spatial import Delaunay, cKDTree

from micrographia.errors import UserError
from micrographia.simulate.lattice import screen_matrix

LATTICE_A = 2.461  # graphite at 300 K: Baskin and Meyer, Phys. Rev. 100, 544 (1955)
BOND_A = LATTICE_A / np.sqrt(3)
PAIR_DEFECTS = ("divacancy", "stone-wales", "fourfold")


def is_graphene(atoms: Atoms) -> bool:
    """Whether the crystal is graphene, going by what built it."""
    return atoms.info.get("material") == "graphene"


def _springs(xy: np.ndarray, bonds: np.ndarray, free: np.ndarray, steps: int = 60) -> np.ndarray:
    """Relax planar positions ``[n, 2]`` of the `free` atoms under springs along `bonds` ``[m, 2]``."""
    n = len(xy)
    ones = np.ones(2 * len(bonds))
    link = coo_matrix(
        (ones, (np.r_[bonds[:, 0], bonds[:, 1]], np.r_[bonds[:, 1], bonds[:, 0]])), (n, n)
    ).tocsr()
    second = (link @ link).tocoo()
    apart = second.row < second.col
    pairs = np.r_[bonds, np.c_[second.row[apart], second.col[apart]]]
    rest = np.r_[np.full(len(bonds), BOND_A), np.full(int(apart.sum()), LATTICE_A)]
    stiffness = np.r_[np.full(len(bonds), 0.15), np.full(int(apart.sum()), 0.03)]
    xy = xy.copy()
    for _ in range(steps):
        offset = xy[pairs[:, 1]] - xy[pairs[:, 0]]
        length = np.maximum(np.hypot(*offset.T), 1e-6)
        pull = (stiffness * (1 - rest / length))[:, None] * offset
        force = np.stack(
            [
                np.bincount(pairs[:, 0], pull[:, i], n) - np.bincount(pairs[:, 1], pull[:, i], n)
                for i in (0, 1)
            ],
            1,
        )
        xy[free] += force[free]
    return xy


def pair_defects(
    atoms: Atoms,
    action: str,
    free: np.ndarray,
    removed: np.ndarray,
    choose: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Make defects on pairs of bonded atoms of graphene: change `atoms`, `free` and `removed` in place.

    Parameters
    ----------
    action : ``"divacancy"``, ``"stone-wales"`` or ``"fourfold"``
        Two missing atoms, closed to two pentagons and an octagon (5-8-5); a bond turned by 90° (55-77); or a
        dopant in a divacancy, bound to four atoms (which the caller adds).
    free : bool ``[columns]``
        Which columns have no defect yet. In graphene a column is an atom.
    choose
        Picks indices from the bonds' centres ``[m, 2]``.

    Returns
    -------
    centres ``[n, 2]`` in Å
    """
    xy = atoms.positions[:, :2]
    column = atoms.arrays["column"]
    alive = np.flatnonzero(~removed)
    bonds = alive[cKDTree(xy[alive]).query_pairs(1.3 * BOND_A, output_type="ndarray")]
    open_bonds = bonds[free[column[bonds]].all(1)]
    centres = xy[open_bonds].mean(1)
    tree = cKDTree(xy)
    made = []
    for index in choose(centres) if len(centres) else ():
        centre, pair = centres[index], open_bonds[index]
        near = np.array(tree.query_ball_point(centre, 9.0), dtype=int)
        near = near[~removed[near]]
        core = near[np.hypot(*(xy[near] - centre).T) < 3.5]
        # Its surroundings must be untouched graphene: defects that share atoms are something else.
        if not free[column[core]].all() or len(core) < 10:
            continue
        free[column[core]] = False
        made.append(centre)
        if action == "stone-wales":
            a, b = xy[pair] - centre
            xy[pair] = centre + np.array([[-a[1], a[0]], [-b[1], b[0]]])
        else:
            removed[pair] = True
            near = near[~removed[near]]
        if action != "fourfold":
            _relax_patch(xy, near, centre, closed=action == "divacancy")
    return np.array(made).reshape(-1, 2)


def _relax_patch(xy: np.ndarray, near: np.ndarray, centre: np.ndarray, closed: bool) -> None:
    """Relax the atoms `near` a defect, the outermost held; `closed` first joins dangling atoms in pairs."""
    local = xy[near]
    bonds = cKDTree(local).query_pairs(1.25 * BOND_A, output_type="ndarray")
    distance = np.hypot(*(local - centre).T)
    if closed:
        degree = np.bincount(bonds.ravel(), minlength=len(local))
        dangling = np.flatnonzero((degree == 2) & (distance < 2.5))
        pairs = cKDTree(local[dangling]).query_pairs(1.1 * LATTICE_A, output_type="ndarray")
        bonds = np.r_[bonds, dangling[pairs]]
    xy[near] = _springs(local, bonds, distance < 7.0)


def build_grain_boundary(
    field_A: tuple[float, float],
    angles_deg: tuple[float, float],
    boundary_deg: float = 90.0,
    rng: np.random.Generator | None = None,
    margin_A: float = 5.0,
) -> Atoms:
    """Build graphene with a straight tilt grain boundary through the middle of the field.

    Two lattices of *hexagon centres* are joined along the boundary and evened out; carbon atoms sit in the
    triangles between neighbouring centres (the dual lattice). So every atom has three bonds, and the boundary
    consists of pentagons and heptagons as it does in reality (compare Ophus et al., Phys. Rev. B 92, 205402
    (2015)).

    Parameters
    ----------
    field_A : (width, height)
    angles_deg : (first, second)
        Orientation of the grain on either side, counter-clockwise as seen on the screen.
    boundary_deg : float
        Direction of the boundary line, counter-clockwise from the screen's x axis.
    rng : numpy Generator, optional
        Draws the offset of the two lattices.

    Returns
    -------
    ase.Atoms
        As `build_crystal`; ``sublattice`` is -1 throughout.
    """
    if len(field_A) != 2 or not all(np.isfinite(f) and f > 0 for f in field_A):
        raise UserError(f"The field must be a positive (width, height) in Å, got {field_A}.")
    random = rng if rng is not None else np.random.default_rng(0)
    low, high = np.full(2, -margin_A - 8.0), np.array(field_A) + margin_A + 8.0
    centre = np.array(field_A) / 2
    line = np.deg2rad(boundary_deg)
    normal = np.array([np.sin(line), np.cos(line)])  # y points down
    reach = int(np.hypot(*(high - low)) / LATTICE_A) + 2
    i, j = np.meshgrid(*[np.arange(-reach, reach + 1)] * 2)
    flat = np.c_[(i + j / 2).ravel(), (j * np.sqrt(3) / 2).ravel()] * LATTICE_A
    grains = []
    for angle, side in zip(angles_deg, (-1, 1), strict=True):
        points = (flat + random.uniform(0, LATTICE_A, 2)) @ screen_matrix(angle).T + centre
        inside = ((points >= low) & (points <= high)).all(1)
        grains.append(points[inside & (side * ((points - centre) @ normal) > 0)])
    second = grains[1]
    # Of two hexagons that overlap across the boundary one goes.
    gap, _ = cKDTree(grains[0]).query(second) if len(grains[0]) and len(second) else (np.zeros(0), None)
    points = np.concatenate([grains[0], second[gap > 0.68 * LATTICE_A]])
    moving = np.abs((points - centre) @ normal) < 2 * LATTICE_A
    for _ in range(20):
        triangles = Delaunay(points).simplices
        edges = np.unique(np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1), axis=0)
        offset = points[edges[:, 1]] - points[edges[:, 0]]
        length = np.hypot(*offset.T)
        pull = (0.1 * (1 - LATTICE_A / length))[:, None] * offset * (length < 1.8 * LATTICE_A)[:, None]
        n = len(points)
        force = np.stack(
            [
                np.bincount(edges[:, 0], pull[:, k], n) - np.bincount(edges[:, 1], pull[:, k], n)
                for k in (0, 1)
            ],
            1,
        )
        points[moving] += force[moving]

    mesh = Delaunay(points)
    xy = points[mesh.simplices].mean(1)
    neighbour = mesh.neighbors
    first, slot = np.nonzero(neighbour > np.arange(len(neighbour))[:, None])
    bonds = np.c_[first, neighbour[first, slot]]
    bonds = bonds[np.hypot(*(xy[bonds[:, 0]] - xy[bonds[:, 1]]).T) < 2 * BOND_A]
    near_line = np.abs((xy - centre) @ normal) < 4 * LATTICE_A
    xy = _springs(xy, bonds, near_line, steps=150)
    inside = ((xy >= -margin_A) & (xy <= np.array(field_A) + margin_A)).all(1)
    xy = xy[inside]
    atoms = Atoms(numbers=np.full(len(xy), 6), positions=np.c_[xy, np.zeros(len(xy))])
    atoms.set_array("column", np.arange(len(xy)))
    atoms.set_array("sublattice", np.full(len(xy), -1))
    atoms.info.update(material="graphene", elements=["C"])
    atoms.set_cell([*field_A, 1.0])
    return atoms
