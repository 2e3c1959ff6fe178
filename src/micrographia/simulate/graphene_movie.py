"""A graphene sheet that loses order under the beam, frame by frame, with the truth about every atom.

The sheet is a graph of bonds that events change one at a time: atoms are knocked out (rarely in the bulk, often
at the edges of holes), bonds turn by 90° and make chains of pentagons and heptagons, silicon atoms change places
with carbon on their way to the nearest edge. Springs along the bonds then move the atoms. Rates are chosen for
a movie that shows everything, not for one beam energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import cKDTree

from micrographia.bonds import FOURFOLD, BondGraph, bond_graph
from micrographia.errors import UserError
from micrographia.simulate.acquire import acquire
from micrographia.simulate.crystals import build_crystal, check_field
from micrographia.simulate.degrade import Conditions, draw_conditions, narrowed
from micrographia.simulate.graphene import BOND_A, LATTICE_A, build_grain_boundary
from micrographia.simulate.lattice import screen_matrix
from micrographia.simulate.probe import Optics
from micrographia.simulate.scenes import MARGIN_PX, Scene

#: Projected length of the Si-C bond, Å (the silicon of SiC3 buckles out of the sheet).
SILICON_BOND_A = 1.68
#: Standard deviation of the Gaussian neighbourhood that `crystallinity` and `angle_deg` describe, Å. Two of
#: them are half the window of 12 Å that is customary for patches.
NEIGHBOURHOOD_A = 3.0
#: Imaging conditions of a well-aligned microscope on a clean sheet.
CLEAN = Conditions(
    defocus_A=(-10.0, 10.0),
    astigmatism_A=(0.0, 8.0),
    coma_A=(0.0, 150.0),
    threefold_A=(0.0, 150.0),
    source_size_A=(0.7, 0.9),
    background=(0.1, 0.2),
    readout=(0.02, 0.05),
    blur_px=(0.4, 0.6),
    afterglow_px=(0.0, 0.3),
    line_jitter_A=(0.01, 0.03),
    slow_jitter_A=(0.02, 0.1),
    line_gain=(0.0, 0.02),
    contamination=(0.0, 0.1),
    speckle=(0.0, 0.05),
)
MEDIUM_ANGLE = Optics(energy_keV=60.0, convergence_mrad=31.0, inner_mrad=54.0, outer_mrad=200.0)
_FIXED_A = 4.0


@dataclass(frozen=True)
class BeamDamage:
    """How fast the sheet changes. Rates are chances per frame."""

    vacancies: float = 0.0008
    """Chance that an atom in the bulk is knocked out."""
    rotations: float = 0.0008
    """Chance, per bond, that it turns by 90°."""
    growth: float = 12.0
    """How many times more often bonds turn beside a ring that is not a hexagon, so that chains grow."""
    edge_loss: float = 0.06
    """Chance that an atom with two bonds is lost: holes grow from their edges."""
    silicon: float = 0.006
    """Fraction of the atoms that are silicon at the start."""
    silicon_hop: float = 0.5
    """Chance that a silicon atom takes a step towards the nearest edge (any step while there is none)."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            high = 1e6 if f.name == "growth" else 1.0
            if not 0 <= value <= high:
                raise UserError(f"BeamDamage.{f.name} = {value} must be between 0 and {high:g}.")


@dataclass(frozen=True)
class GrapheneMovie:
    """A movie and the truth about it."""

    images: np.ndarray
    """float32 ``[T, H, W]``, in units of the first frame's mean signal."""
    sites: pd.DataFrame
    """A row for every atom that a frame shows: ``image, x_px, y_px, kind`` (C or Si), ``confidence`` (1),
    ``frame, atom`` (the same number in all frames), ``grain``, ``angle_deg`` (orientation of the lattice around
    the atom, counter-clockwise on the screen, the branch of 60° that is nearest to its grain's),
    ``grain_angle_deg`` (that of the perfect grain in this frame), ``ring_label`` (of the true structure),
    ``crystallinity`` (0 to about 1), ``hole`` (the atom is at the edge of a hole)."""
    pixel_size_A: float


@dataclass
class _Sheet:
    """The specimen in its own frame; atoms keep their index when others are lost."""

    xy: np.ndarray
    bonds: list[set[int]]
    silicon: np.ndarray
    fixed: np.ndarray
    alive: np.ndarray
    grain: np.ndarray
    edges: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=int))

    def refresh(self) -> None:
        pairs = [(a, b) for a, others in enumerate(self.bonds) for b in others if a < b]
        self.edges = np.array(pairs, dtype=int).reshape(-1, 2)

    def link(self, a: int, b: int) -> None:
        self.bonds[a].add(b)
        self.bonds[b].add(a)

    def cut(self, a: int, b: int) -> None:
        self.bonds[a].discard(b)
        self.bonds[b].discard(a)

    def matrix(self) -> csr_matrix:
        e, n = self.edges, len(self.xy)
        return coo_matrix(
            (np.ones(2 * len(e)), (np.r_[e[:, 0], e[:, 1]], np.r_[e[:, 1], e[:, 0]])), (n, n)
        ).tocsr()


def graphene_movie(
    n_frames: int = 8,
    field_A: tuple[float, float] = (40.0, 40.0),
    pixel_size_A: float = 0.2,
    counts_per_A2: float = 400.0,
    grains_deg: Sequence[float] = (-5.0, 5.0),
    frame_rotation_deg: float = 2.0,
    drift_A: float = 1.0,
    damage: BeamDamage | None = None,
    conditions: Conditions | None = None,
    optics: Optics | None = None,
    seed: int = 0,
) -> GrapheneMovie:
    """Simulate a movie of graphene under the beam.

    ``crystallinity`` is the fraction of the area around an atom that hexagons cover, in a Gaussian window of
    `NEIGHBOURHOOD_A`: 1 in the perfect sheet, about 1/2 at a straight edge, 0 where no hexagon is left. A hole
    lowers it as pentagons and heptagons do. The hexatic order ``|psi6|`` was not chosen because it is 1 for the
    atoms at the edge of a hole and does not see vacancies, which are most of what a patch shows.

    Parameters
    ----------
    n_frames : int
    field_A : (width, height)
        A field of 65 Å holds 1,600 atoms.
    pixel_size_A, counts_per_A2 : float
        Sampling, and detected electrons per Å² of perfect sheet.
    grains_deg : one or two angles
        Orientation of the sheet, or of the two grains on both sides of a tilt boundary through the middle.
    frame_rotation_deg, drift_A : float
        The whole frame turns to and fro by up to ± this angle, and drifts by this length in a random direction,
        during the movie.
    damage : BeamDamage, optional
    conditions : Conditions, optional
        Imaging conditions, drawn once for the movie; `CLEAN` by default. Its dose is replaced by
        `counts_per_A2`.
    optics : Optics, optional
        60 kV, 31 mrad, 54 to 200 mrad by default.
    seed : int

    Raises
    ------
    UserError
        Impossible sizes or angles.
    """
    check_field(field_A)
    if n_frames < 1:
        raise UserError(f"{n_frames} frames cannot be simulated; ask for at least 1.")
    if not (0 < pixel_size_A < 2 and counts_per_A2 > 0):
        raise UserError(
            f"pixel_size_A = {pixel_size_A} must be below 2 Å, counts_per_A2 = {counts_per_A2} positive."
        )
    if len(grains_deg) not in (1, 2) or not np.isfinite(grains_deg).all():
        raise UserError(f"grains_deg = {grains_deg}: give one angle, or two for a grain boundary.")
    if not (0 <= frame_rotation_deg <= 180 and 0 <= drift_A <= 100):
        raise UserError(
            f"frame_rotation_deg = {frame_rotation_deg} (0 to 180), drift_A = {drift_A} (0 to 100)."
        )
    shape = (round(field_A[1] / pixel_size_A), round(field_A[0] / pixel_size_A))
    if min(shape) < 8:
        raise UserError(
            f"A field of {field_A} Å has {shape} pixels of {pixel_size_A} Å; it needs at least 8 x 8."
        )
    rng = np.random.default_rng([seed, 0])
    damage = damage or BeamDamage()
    phase, direction = rng.uniform(0, 2 * np.pi, 2)
    when = np.arange(n_frames) / n_frames
    turn = frame_rotation_deg * np.sin(2 * np.pi * when + phase)
    shift = drift_A * (when[:, None] - 0.5) * [np.cos(direction), np.sin(direction)]

    half = np.array(field_A) / 2
    margin_A = MARGIN_PX * pixel_size_A + 6.0
    most = min(np.deg2rad(frame_rotation_deg), np.pi / 2)
    needed = half + margin_A + drift_A / 2
    reach = needed + needed[::-1] * np.sin(most) + _FIXED_A
    sheet = _new_sheet(2 * reach, grains_deg, damage, rng)
    scenes, truths = [], []
    for t in range(n_frames):
        if t:
            _expose(sheet, damage, rng)
        here = np.flatnonzero(sheet.alive)
        # `screen_matrix` flips y; two of them leave the rotation alone.
        rotation = screen_matrix(turn[t]) @ screen_matrix(0.0)
        xy = (sheet.xy[here] - reach) @ rotation.T + half + shift[t]
        truth = _describe(xy, sheet.silicon[here])
        truth["atom"], truth["grain"] = here, sheet.grain[here]
        truth["grain_angle_deg"] = np.asarray(grains_deg, dtype=float)[sheet.grain[here]] + turn[t]
        gap = truth["angle_deg"] - truth["grain_angle_deg"]
        truth["angle_deg"] -= 60 * np.round(gap / 60)
        number, (x_A, y_A) = np.where(sheet.silicon[here], 14, 6), xy.T
        scenes.append(Scene(x_A, y_A, number, x_A, y_A, truth["kind"].to_numpy(object)))
        truths.append(truth)

    ranges = narrowed(conditions or CLEAN, counts_per_A2=counts_per_A2)
    same = {k: np.repeat(v, n_frames) for k, v in draw_conditions(ranges, 1, rng).items()}
    images, positions = acquire(scenes, optics or MEDIUM_ANGLE, same, shape, pixel_size_A, seed)
    tables = []
    for t, (truth, (x, y)) in enumerate(zip(truths, positions, strict=True)):
        table = truth.assign(image=f"frame-{t:03d}", frame=t, x_px=x, y_px=y, confidence=1.0)
        tables.append(table[(x > -0.5) & (x < shape[1] - 0.5) & (y > -0.5) & (y < shape[0] - 0.5)])
    columns = ["image", "x_px", "y_px", "kind", "confidence", "frame", "atom", "grain", "angle_deg"]
    columns += ["grain_angle_deg", "ring_label", "crystallinity", "hole"]
    return GrapheneMovie(images, pd.concat(tables, ignore_index=True)[columns], pixel_size_A)


def _new_sheet(
    size_A: np.ndarray, grains_deg: Sequence[float], damage: BeamDamage, rng: np.random.Generator
) -> _Sheet:
    size = (float(size_A[0]), float(size_A[1]))
    boundary_deg = rng.uniform(0, 180)
    if len(grains_deg) == 2:
        pair = (float(grains_deg[0]), float(grains_deg[1]))
        atoms = build_grain_boundary(size, pair, boundary_deg, rng, margin_A=0.0)
    else:
        atoms = build_crystal("graphene", size, grains_deg[0], rng=rng, margin_A=0.0)
    xy = atoms.positions[:, :2].copy()
    line = np.deg2rad(boundary_deg)
    side = (xy - size_A / 2) @ [np.sin(line), np.cos(line)]
    fixed = np.minimum(xy, size_A - xy).min(axis=1) < _FIXED_A
    silicon = ~fixed & (rng.random(len(xy)) < damage.silicon)
    grain = (side > 0).astype(int) * (len(grains_deg) - 1)
    sheet = _Sheet(xy, [set() for _ in xy], silicon, fixed, np.ones(len(xy), dtype=bool), grain)
    for a, b in bond_graph(xy, BOND_A).edges.tolist():
        sheet.link(a, b)
    sheet.refresh()
    _relax(sheet, steps=100)
    return sheet


def _expose(sheet: _Sheet, damage: BeamDamage, rng: np.random.Generator) -> None:
    """One frame's dose: atoms are lost, bonds turn, silicon moves; then the sheet relaxes."""
    _lose_atoms(sheet, damage, rng)
    sheet.refresh()
    _relax(sheet, steps=15)
    _turn_bonds(sheet, damage, rng)
    _move_silicon(sheet, damage, rng)
    sheet.refresh()
    _relax(sheet, steps=45)


def _lose_atoms(sheet: _Sheet, damage: BeamDamage, rng: np.random.Generator) -> None:
    degree = np.array([len(others) for others in sheet.bonds])
    chance = np.select([degree >= 3, degree == 2], [damage.vacancies, damage.edge_loss], 1.0)
    chance[sheet.fixed | sheet.silicon | ~sheet.alive] = 0
    for atom in np.flatnonzero(rng.random(len(chance)) < chance).tolist():
        around = list(sheet.bonds[atom])
        # Silicon is not left hanging on one bond.
        if any(sheet.silicon[other] and len(sheet.bonds[other]) <= 2 for other in around):
            continue
        for other in around:
            sheet.cut(atom, other)
        sheet.alive[atom] = False
        # Half of the time two of the neighbours close the gap: a pentagon.
        open_ = [a for a in around if len(sheet.bonds[a]) == 2 and not sheet.fixed[a]]
        if len(open_) >= 2 and rng.random() < 0.5:
            a, b = rng.choice(open_, 2, replace=False).tolist()
            if not sheet.bonds[a] & sheet.bonds[b]:
                sheet.link(a, b)
    # What no longer hangs on the sheet is gone.
    sheet.refresh()
    _, piece = connected_components(sheet.matrix(), directed=False)
    lost = sheet.alive & ~np.isin(piece, np.unique(piece[sheet.fixed]))
    for atom in np.flatnonzero(lost).tolist():
        sheet.bonds[atom].clear()
    sheet.alive &= ~lost


def _turn_bonds(sheet: _Sheet, damage: BeamDamage, rng: np.random.Generator) -> None:
    """Turn bonds whose four rings allow it: the two beside it lose an atom, the two at its ends gain one."""
    here = np.flatnonzero(sheet.alive)
    graph = _graph(sheet.xy[here], sheet.silicon[here])
    sizes = graph.ring_sizes
    beside: dict[tuple[int, int], list[int]] = {}
    rings_of: dict[int, set[int]] = {}
    for number, ring in enumerate(graph.rings):
        members = here[ring].tolist()
        for a, b in zip(members, members[1:] + members[:1], strict=True):
            beside.setdefault((min(a, b), max(a, b)), []).append(number)
            rings_of.setdefault(a, set()).add(number)
    bonds, weight = [], []
    for (a, b), pair in beside.items():
        if len(pair) != 2 or sheet.fixed[[a, b]].any() or sheet.silicon[[a, b]].any():
            continue
        ends = (rings_of[a] ^ rings_of[b]) - set(pair)
        if len(ends) != 2 or b not in sheet.bonds[a] or len(sheet.bonds[a]) != 3 or len(sheet.bonds[b]) != 3:
            continue
        if min(sizes[pair]) >= 6 and max(sizes[list(ends)]) <= 6:
            odd = (sizes[[*pair, *ends]] != 6).any()
            bonds.append((a, b))
            weight.append(damage.growth if odd else 1.0)
    chosen = np.flatnonzero(rng.random(len(bonds)) < damage.rotations * np.array(weight))
    done = np.zeros((0, 2))
    for index in rng.permutation(chosen):
        a, b = bonds[index]
        centre = (sheet.xy[a] + sheet.xy[b]) / 2
        # The rings must still be those that were counted.
        if len(done) and np.hypot(*(done - centre).T).min() < 7.0:
            continue
        along = sheet.xy[b] - sheet.xy[a]

        def right_of(atom: int, centre: np.ndarray = centre, along: np.ndarray = along) -> float:
            offset = sheet.xy[atom] - centre
            return float(along[0] * offset[1] - along[1] * offset[0])

        left_a = min(sheet.bonds[a] - {b}, key=right_of)
        right_b = max(sheet.bonds[b] - {a}, key=right_of)
        if sheet.fixed[[left_a, right_b]].any():
            continue
        sheet.cut(a, left_a)
        sheet.cut(b, right_b)
        sheet.link(a, right_b)
        sheet.link(b, left_a)
        across = np.array([-along[1], along[0]]) / 2
        sheet.xy[a], sheet.xy[b] = centre + across, centre - across
        done = np.r_[done, [centre]]


def _move_silicon(sheet: _Sheet, damage: BeamDamage, rng: np.random.Generator) -> None:
    degree = np.array([len(others) for others in sheet.bonds])
    edge = np.flatnonzero(sheet.alive & ~sheet.fixed & (degree == 2))
    sheet.refresh()
    if len(edge):
        far = dijkstra(sheet.matrix(), directed=False, indices=edge, unweighted=True, min_only=True)
    for atom in np.flatnonzero(sheet.silicon & sheet.alive).tolist():
        target = [b for b in sheet.bonds[atom] if not (sheet.silicon[b] or sheet.fixed[b])]
        if len(edge):
            target = [b for b in target if far[b] < far[atom]]
        if target and rng.random() < damage.silicon_hop:
            other = int(rng.choice(target))
            sheet.silicon[atom], sheet.silicon[other] = False, True


def _relax(sheet: _Sheet, steps: int) -> None:
    """Move the free atoms under springs along bonds and, softly, to second neighbours; others repel."""
    n, free = len(sheet.xy), sheet.alive & ~sheet.fixed
    link = sheet.matrix()
    second = (link @ link).tocoo()
    apart = second.row < second.col
    bonds, next_bonds = sheet.edges, np.c_[second.row[apart], second.col[apart]]
    rest = np.where(sheet.silicon[bonds].any(axis=1), SILICON_BOND_A, BOND_A)
    known = bonds.min(axis=1, initial=n) * n + bonds.max(axis=1, initial=0)
    known = np.r_[known, next_bonds[:, 0].astype(np.int64) * n + next_bonds[:, 1]]
    alive = np.flatnonzero(sheet.alive)
    for start in range(0, steps, 15):
        # Atoms without a bond must not come as close as bonded ones.
        close = np.sort(alive[cKDTree(sheet.xy[alive]).query_pairs(2.1, output_type="ndarray")], axis=1)
        close = close[~np.isin(close[:, 0] * n + close[:, 1], known)]
        pairs = np.r_[bonds, next_bonds, close]
        want = np.r_[rest, np.full(len(next_bonds), LATTICE_A), np.full(len(close), 2.3)]
        stiffness = np.repeat([0.15, 0.03, 0.1], [len(bonds), len(next_bonds), len(close)])
        for _ in range(min(15, steps - start)):
            offset = sheet.xy[pairs[:, 1]] - sheet.xy[pairs[:, 0]]
            length = np.maximum(np.hypot(*offset.T), 1e-6)
            pull = (stiffness * (1 - want / length))[:, None] * offset
            for axis in (0, 1):
                force = np.bincount(pairs[:, 0], pull[:, axis], n) - np.bincount(
                    pairs[:, 1], pull[:, axis], n
                )
                sheet.xy[free, axis] += force[free]


def _graph(xy: np.ndarray, silicon: np.ndarray) -> BondGraph:
    return bond_graph(xy, BOND_A, max_bonds=np.where(silicon, 4, 3))


def _describe(xy: np.ndarray, silicon: np.ndarray) -> pd.DataFrame:
    """The truth about atoms at ``[n, 2]``: kind, ring label, local angle (modulo 60°) and crystallinity."""
    graph = _graph(xy, silicon)
    n, sigma = len(xy), NEIGHBOURHOOD_A
    tree = cKDTree(xy)
    hexagons = np.array([ring for ring in graph.rings if len(ring) == 6], dtype=int).reshape(-1, 6)
    corners = xy[hexagons]
    centres = corners.mean(axis=1)
    x, y = np.moveaxis(corners - centres[:, None], 2, 0)
    areas = np.abs(x * np.roll(y, -1, axis=1) - y * np.roll(x, -1, axis=1)).sum(axis=1) / 2
    near = tree.sparse_distance_matrix(cKDTree(centres), 4 * sigma, output_type="coo_matrix")
    window = np.exp(-(near.data**2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    crystallinity = np.bincount(near.row, window * areas[near.col], n)

    a, b = graph.edges.T
    sixfold = np.exp(-6j * np.arctan2(xy[b, 1] - xy[a, 1], xy[b, 0] - xy[a, 0]))  # y points down
    middle = (xy[a] + xy[b]) / 2
    near = tree.sparse_distance_matrix(cKDTree(middle), 3 * sigma, output_type="coo_matrix")
    window = np.exp(-(near.data**2) / (2 * sigma**2)) * sixfold[near.col]
    order = np.bincount(near.row, window.real, n) + 1j * np.bincount(near.row, window.imag, n)
    hole = graph.coordination < 3
    if graph.holes:
        hole[np.concatenate(graph.holes)] = True
    return pd.DataFrame(
        {
            "kind": np.where(silicon, FOURFOLD[0], "C"),
            "ring_label": graph.labels,
            "angle_deg": np.rad2deg(np.angle(-order)) / 6,  # bonds lie at 30° to the lattice vectors
            "crystallinity": crystallinity,
            "hole": hole,
        }
    )
