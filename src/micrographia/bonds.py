"""Bonds, rings and ring labels of graphene-like sheets, from the positions of atoms.

A sheet is a planar graph: bonds are the short edges of the Delaunay triangulation (no two of them cross), and
rings are the faces of the graph. Faces of up to seven atoms are rings, larger ones are holes. The labels are
those of Kalinin, Dyck, Jesse and Ziatdinov, Sci. Adv. 7, eabd5084 (2021): which rings an atom belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import Delaunay, QhullError, cKDTree

from micrographia.errors import UserError

#: Ring labels of the atoms; "0" has fewer than two rings, "other" any combination that is not listed.
RING_LABELS = ("0", "[6,6]", "[5,6]", "[6,6,7]", "[6,6,6]", "[5,6,7]", "[5,6,6]", "other")
#: Faces of more atoms than this are holes.
LARGEST_RING = 7
#: Atoms that bind to four neighbours in a sheet; all others bind to three at most.
FOURFOLD = ("Si",)


@dataclass(frozen=True)
class BondGraph:
    """The bonds of one sheet and the rings they form."""

    xy_A: np.ndarray
    """Positions ``[N, 2]``."""
    edges: np.ndarray
    """Bonded pairs, int ``[E, 2]``, the lower index first."""
    rings: tuple[np.ndarray, ...]
    """The atoms of each ring of three to seven, in order around it."""
    holes: tuple[np.ndarray, ...]
    """The atoms around each larger enclosed face, in order; an atom to which a bond leads back occurs twice."""
    border: np.ndarray
    """Bool ``[N]``: the edge of the field cuts rings of this atom, so that its label says nothing."""

    @cached_property
    def ring_sizes(self) -> np.ndarray:
        """Number of atoms of each ring, ``[rings]``."""
        return np.array([len(ring) for ring in self.rings], dtype=int)

    @cached_property
    def coordination(self) -> np.ndarray:
        """Number of bonds of each atom, ``[N]``."""
        return np.bincount(self.edges.ravel(), minlength=len(self.xy_A))

    @cached_property
    def rings_of(self) -> np.ndarray:
        """How many rings of 0, 1, ... 7 atoms each atom belongs to, int ``[N, 8]``."""
        counts = np.zeros((len(self.xy_A), LARGEST_RING + 1), dtype=int)
        if self.rings:
            np.add.at(counts, (np.concatenate(self.rings), np.repeat(self.ring_sizes, self.ring_sizes)), 1)
        return counts

    @cached_property
    def labels(self) -> np.ndarray:
        """Ring label of each atom, one of `RING_LABELS`, ``[N]``."""
        rows, member = np.unique(self.rings_of, axis=0, return_inverse=True)
        names = []
        for row in rows:
            name = "[" + ",".join(str(size) for size in np.repeat(np.arange(len(row)), row)) + "]"
            names.append("0" if row.sum() < 2 else name if name in RING_LABELS else "other")
        return np.array(names, dtype=object)[member.reshape(-1)]

    def ring_label(self, i: int) -> str:
        """Return the ring label of atom `i`."""
        return str(self.labels[i])


def bond_graph(
    xy_A: npt.ArrayLike,
    bond_A: float = 1.42,
    tolerance: float = 0.35,
    max_bonds: int | npt.ArrayLike = 3,
    field_A: tuple[float, float] | None = None,
) -> BondGraph:
    """Find the bonds and rings of a sheet.

    Atoms closer than half a bond are one atom found twice: only the first of them gets bonds. Where an atom
    has too many close neighbours, bonds between less crowded atoms come first, then short ones, so that an
    atom found by mistake in the middle of a ring leaves the ring as it is.

    Parameters
    ----------
    xy_A : ``[N, 2]``
        Positions in Å.
    bond_A : float
        Length of the ideal bond.
    tolerance : float
        Bonds are up to ``(1 + tolerance) * bond_A`` long. 0.35 lies midway to the second neighbours.
    max_bonds : int or ``[N]``
        Most bonds of an atom: 3 for carbon, 4 for silicon.
    field_A : (width, height), optional
        The field that was imaged, from the origin; atoms near its edge are `BondGraph.border`. Without it, the
        rectangle around the atoms.

    Raises
    ------
    UserError
        Positions that are not ``[N, 2]`` or not finite; lengths out of range.
    """
    xy = np.array(xy_A, dtype=float)
    if xy.size == 0:
        xy = xy.reshape(0, 2)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise UserError(f"bond_graph needs positions of shape [N, 2] in Å, got {list(xy.shape)}.")
    if not np.isfinite(xy).all():
        bad = int((~np.isfinite(xy)).any(1).sum())
        raise UserError(f"{bad} of {len(xy)} positions are NaN or infinite; drop those atoms first.")
    if not (np.isfinite(bond_A) and bond_A > 0 and 0 < tolerance < 0.7):
        raise UserError(
            f"bond_A = {bond_A} must be positive and tolerance = {tolerance} between 0 and 0.7 "
            "(0.73 is the second neighbour)."
        )
    if np.shape(max_bonds) not in ((), (len(xy),)) or np.min(max_bonds, initial=1) < 1:
        raise UserError(f"max_bonds must be 1 or more: one number, or one for each of the {len(xy)} atoms.")
    if field_A is not None and (len(field_A) != 2 or not all(np.isfinite(f) and f > 0 for f in field_A)):
        raise UserError(f"field_A must be a positive (width, height) in Å, got {field_A}.")
    limit = np.broadcast_to(np.asarray(max_bonds, dtype=int), len(xy))
    edges = _bonds(xy, bond_A, (1 + tolerance) * bond_A, limit)
    rings, holes, enclosed = _faces(xy, edges)
    if field_A is not None:
        low, high = np.zeros(2), np.array(field_A, dtype=float)
    else:
        low, high = xy.min(axis=0, initial=np.inf), xy.max(axis=0, initial=-np.inf)
    # A heptagon is 2.3 bonds wide: an atom further inside has all its rings in the field.
    near_edge = np.minimum(xy - low, high - xy).min(axis=1) < 2.3 * bond_A
    return BondGraph(xy, edges, rings, holes, near_edge & ~enclosed)


def _bonds(xy: np.ndarray, bond_A: float, longest_A: float, limit: np.ndarray) -> np.ndarray:
    """Pairs ``[E, 2]`` of neighbours, none crossing another, at most `limit` for each atom."""
    if len(xy) < 2:
        return np.zeros((0, 2), dtype=int)
    twice = cKDTree(xy).query_pairs(bond_A / 2, output_type="ndarray")
    single = np.setdiff1d(np.arange(len(xy)), twice.max(1, initial=-1))
    points = xy[single]
    try:
        corner = Delaunay(points).simplices
        pairs = np.unique(np.sort(corner[:, [[0, 1], [1, 2], [0, 2]]].reshape(-1, 2), axis=1), axis=0)
    except (QhullError, ValueError):  # fewer than three atoms, or all of them on a line
        pairs = cKDTree(points).query_pairs(longest_A, output_type="ndarray")
    pairs = single[pairs.reshape(-1, 2)]
    length = np.hypot(*(xy[pairs[:, 0]] - xy[pairs[:, 1]]).T)
    pairs, length = pairs[length <= longest_A], length[length <= longest_A]
    degree = np.bincount(pairs.ravel(), minlength=len(xy))
    crowded = (degree > limit)[pairs].any(axis=1)
    kept = [pairs[~crowded]]
    used = np.bincount(kept[0].ravel(), minlength=len(xy))
    contested = pairs[crowded]
    for a, b in contested[np.lexsort((length[crowded], degree[contested].max(axis=1)))]:
        if used[a] < limit[a] and used[b] < limit[b]:
            used[[a, b]] += 1
            kept.append(np.array([[a, b]]))
    return np.unique(np.sort(np.concatenate(kept), axis=1), axis=0)


def _faces(
    xy: np.ndarray, edges: np.ndarray
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], np.ndarray]:
    """Rings, holes, and which atoms have bounded faces on all sides (bool ``[N]``)."""
    n = len(xy)
    while len(edges):  # chains that hang into a face are not part of its outline
        loose = (np.bincount(edges.ravel(), minlength=n) < 2)[edges].any(axis=1)
        if not loose.any():
            break
        edges = edges[~loose]
    if not len(edges):
        return (), (), np.zeros(n, dtype=bool)
    # Every bond is walked in both directions; each walk has one face to its left.
    start, end = np.r_[edges[:, 0], edges[:, 1]], np.r_[edges[:, 1], edges[:, 0]]
    step = xy[end] - xy[start]
    order = np.lexsort((np.arctan2(step[:, 1], step[:, 0]), start))
    first = np.searchsorted(start[order], np.arange(n))
    degree = np.bincount(start, minlength=n)
    place = np.empty(len(order), dtype=int)
    place[order] = np.arange(len(order))
    back = np.roll(np.arange(len(start)), len(edges))
    # On arrival, take the next bond around the atom from the one we came by.
    turn = place[back] - first[end]
    following = order[first[end] + (turn - 1) % degree[end]]
    links = coo_matrix((np.ones(len(start)), (np.arange(len(start)), following)), (len(start),) * 2)
    _, face = connected_components(links, directed=False)
    count = np.bincount(face)
    area = np.bincount(face, xy[start, 0] * xy[end, 1] - xy[start, 1] * xy[end, 0]) / 2
    bounded = area > 0
    outside = np.zeros(n, dtype=bool)
    outside[start[~bounded[face]]] = True
    enclosed = (degree > 0) & ~outside

    _, head = np.unique(face, return_index=True)
    rings: list[np.ndarray] = []
    holes: list[np.ndarray] = []
    for size in np.unique(count[bounded]):
        walk = [head[bounded & (count == size)]]
        for _ in range(size - 1):
            walk.append(following[walk[-1]])
        atoms = start[np.stack(walk, axis=1)]
        simple = (np.diff(np.sort(atoms, axis=1), axis=1) > 0).all(axis=1)
        is_ring = simple & (size <= LARGEST_RING)
        rings.extend(atoms[is_ring])
        holes.extend(atoms[~is_ring])
    return tuple(rings), tuple(holes), enclosed


def ring_statistics(graphs: Iterable[BondGraph]) -> pd.DataFrame:
    """Count atoms, bonds, rings, holes and labels, one row per graph (frame), in the order given.

    Atoms of the border are left out of the counts of labels. ``hexagons`` is the share of six-membered rings
    among all rings, ``hole_A2`` the enclosed area of the holes.

    Returns
    -------
    DataFrame
        ``frame, atoms, bonds, rings_5, rings_6, rings_7, rings_other, hexagons, holes, hole_A2``, and a count
        for each of `RING_LABELS`.
    """
    rows = []
    for frame, graph in enumerate(graphs):
        sizes = np.bincount(graph.ring_sizes, minlength=LARGEST_RING + 1)
        row: dict[str, float] = {"frame": frame, "atoms": len(graph.xy_A), "bonds": len(graph.edges)}
        row |= {f"rings_{size}": int(sizes[size]) for size in (5, 6, 7)}
        row["rings_other"] = int(sizes.sum() - sizes[5:8].sum())
        row["hexagons"] = sizes[6] / sizes.sum() if sizes.sum() else np.nan
        row["holes"] = len(graph.holes)
        row["hole_A2"] = sum((polygon_area_A2(graph.xy_A[hole]) for hole in graph.holes), 0.0)
        inner = graph.labels[~graph.border]
        rows.append(row | {label: int((inner == label).sum()) for label in RING_LABELS})
    columns = ["frame", "atoms", "bonds", "rings_5", "rings_6", "rings_7", "rings_other", "hexagons"]
    return pd.DataFrame(rows, columns=[*columns, "holes", "hole_A2", *RING_LABELS])


def polygon_area_A2(xy_A: np.ndarray) -> float:
    """Return the area of a polygon with corners ``[n, 2]`` in order."""
    x, y = (xy_A - xy_A[:1]).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def label_rings(
    sites: pd.DataFrame, pixel_size_A: float, bond_A: float = 1.42, tolerance: float = 0.35
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Label all atoms of a table of sites, frame by frame.

    Parameters
    ----------
    sites : frame with x_px, y_px, kind
        And `frame` for a movie, or else `image`. Silicon may have four bonds, other kinds three.
    pixel_size_A : float

    Returns
    -------
    sites : DataFrame
        The same rows, with the new columns ``ring_label``, ``bonds`` and ``border``.
    statistics : DataFrame
        As :func:`ring_statistics`, one row for each frame or image.
    """
    if not (np.isfinite(pixel_size_A) and pixel_size_A > 0):
        raise UserError(f"pixel_size_A = {pixel_size_A} must be a positive length in Å.")
    by = "frame" if "frame" in sites.columns else "image"
    missing = [name for name in ("x_px", "y_px", "kind", by) if name not in sites.columns]
    if missing:
        raise UserError(f"The table of sites lacks the column {', '.join(missing)}.")
    label = np.full(len(sites), "0", dtype=object)
    bonds, border = np.zeros(len(sites), dtype=int), np.zeros(len(sites), dtype=bool)
    graphs, names = [], []
    for name, rows in sites.groupby(by, sort=True).indices.items():
        part = sites.iloc[rows]
        limit = np.where(part["kind"].isin(FOURFOLD), 4, 3)
        xy = part[["x_px", "y_px"]].to_numpy(float) * pixel_size_A
        graph = bond_graph(xy, bond_A, tolerance, limit)
        label[rows], bonds[rows], border[rows] = graph.labels, graph.coordination, graph.border
        graphs.append(graph)
        names.append(name)
    statistics = ring_statistics(graphs)
    statistics["frame"] = names
    labelled = sites.assign(ring_label=label, bonds=bonds, border=border)
    return labelled, statistics.rename(columns={"frame": by})
