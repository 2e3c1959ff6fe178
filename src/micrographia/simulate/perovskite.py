"""Two square lattices side by side: perovskite (La,Sr)MnO3 with pillars of rock salt NiO, seen along [001].

The perovskite shows bright La/Sr columns with Mn columns in the middles of their squares, 3.88 Å apart; NiO shows
one kind of column on a square lattice of 2.09 Å. Both share their directions, as in vertically aligned
nanocomposites. Without the second phase the same function gives a single crystal, the null case for whatever
claims to find phases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from ase import Atoms
from scipy.spatial import cKDTree

from micrographia.errors import UserError
from micrographia.simulate.acquire import acquire
from micrographia.simulate.crystals import check_field
from micrographia.simulate.degrade import Conditions, draw_conditions, narrowed
from micrographia.simulate.lattice import PlaneCell, along_zone_axis, screen_matrix, tile
from micrographia.simulate.probe import Optics
from micrographia.simulate.scenes import MARGIN_PX, Scene

PHASES = ("LSMO", "NiO")
#: Pseudo-cubic La0.7Sr0.3MnO3: Martin et al., Phys. Rev. B 53, 14285 (1996). NiO: Sasaki et al., Proc. Jpn. Acad.
#: 55B, 43 (1979).
LSMO_A = 3.88
NIO_A = 4.177
STRONTIUM = 0.3
#: Columns closer than this across an interface do not fit beside each other, Å. (Within the perovskite no point is
#: further than 1.4 Å from a column.)
_CLEARANCE_A = 1.7
Region = Callable[[np.ndarray], np.ndarray]
#: A conventional HAADF-STEM at 200 kV, and a clean, well-aligned image.
HAADF = Optics(energy_keV=200.0, convergence_mrad=22.0, inner_mrad=70.0, outer_mrad=200.0)
CLEAN = Conditions(
    defocus_A=(-20.0, 20.0),
    astigmatism_A=(0.0, 15.0),
    coma_A=(0.0, 300.0),
    threefold_A=(0.0, 300.0),
    source_size_A=(0.7, 1.0),
    background=(0.1, 0.4),
    readout=(0.02, 0.1),
    blur_px=(0.3, 0.6),
    afterglow_px=(0.0, 0.3),
    line_jitter_A=(0.02, 0.06),
    slow_jitter_A=(0.05, 0.3),
    line_gain=(0.0, 0.02),
    contamination=(0.0, 0.1),
    speckle=(0.0, 0.05),
)


@dataclass(frozen=True)
class TwoPhaseImages:
    """Images and the truth about every column that holds a metal."""

    images: np.ndarray
    """float32 ``[N, H, W]``."""
    sites: pd.DataFrame
    """``image, x_px, y_px, kind`` (La/Sr, Mn, Ni), ``confidence`` (1), ``index`` of the image, ``phase``
    (LSMO, NiO), ``angle_deg`` (orientation of the strained lattice, counter-clockwise on the screen, modulo 90°
    about `angle_deg` of the image), ``exx, eyy, exy`` (strain along the screen's axes, relative to the phase's
    own lattice)."""
    pixel_size_A: float


def two_phase(
    n: int = 1,
    field_A: tuple[float, float] = (60.0, 60.0),
    pixel_size_A: float = 0.2,
    nio: float = 0.35,
    pillar_A: float = 30.0,
    angle_deg: tuple[float, float] = (-45.0, 45.0),
    misfit_deg: float = 2.0,
    strain: float = 0.005,
    layers: int = 8,
    counts_per_A2: float = 1000.0,
    conditions: Conditions | None = None,
    optics: Optics | None = None,
    seed: int = 0,
) -> TwoPhaseImages:
    """Simulate images of (La,Sr)MnO3 with pillars of NiO; with ``nio=0`` or ``nio=1`` of a single crystal.

    Parameters
    ----------
    n : int
        Number of images, each of another place.
    field_A : (width, height)
    nio : float
        Fraction of the area that is NiO.
    pillar_A : float
        About the distance between pillars.
    angle_deg : (low, high)
        Range of the whole field's orientation.
    misfit_deg : float
        Standard deviation of the rotation of NiO against the perovskite.
    strain : float
        Root mean square of the components of strain and rotation (radians), which vary over tens of Å.
    layers : int
        Thickness of the foil in unit cells; the share of Sr fluctuates from column to column with it.
    counts_per_A2 : float
        Detected electrons per Å², on average over the image.
    conditions : Conditions, optional
        Drawn for each image; `CLEAN` by default. Its dose is replaced.
    optics : Optics, optional
        200 kV HAADF by default.
    seed : int

    Raises
    ------
    UserError
        Impossible sizes or fractions.
    """
    check_field(field_A)
    if n < 1 or not 1 <= layers <= 100:
        raise UserError(f"n = {n} images and layers = {layers}: give at least 1 (and at most 100 layers).")
    if not (0 < pixel_size_A < 2 and counts_per_A2 > 0 and pillar_A > 0):
        raise UserError(
            f"pixel_size_A = {pixel_size_A} must be between 0 and 2 Å, counts_per_A2 = {counts_per_A2} and "
            f"pillar_A = {pillar_A} positive."
        )
    if not (0 <= nio <= 1 and 0 <= strain <= 0.1 and 0 <= misfit_deg <= 45):
        raise UserError(
            f"nio = {nio} (0 to 1), strain = {strain} (0 to 0.1), misfit_deg = {misfit_deg} (0 to 45)."
        )
    if len(angle_deg) != 2 or not np.isfinite(angle_deg).all() or angle_deg[0] > angle_deg[1]:
        raise UserError(f"angle_deg = {angle_deg}: give (low, high) with low <= high.")
    shape = (round(field_A[1] / pixel_size_A), round(field_A[0] / pixel_size_A))
    if min(shape) < 8:
        raise UserError(
            f"A field of {field_A} Å has {shape} pixels of {pixel_size_A} Å; it needs at least 8 x 8."
        )
    margin_A = MARGIN_PX * pixel_size_A + 6.0
    cells = {"LSMO": _lsmo(layers), "NiO": _nio(layers)}
    ranges = narrowed(conditions or CLEAN, counts_per_A2=counts_per_A2)
    images, tables = [], []
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        field = np.array(field_A)
        angle = rng.uniform(*angle_deg)
        turned = {"LSMO": angle, "NiO": angle + rng.normal(0, misfit_deg)}
        bend = _Bend.draw(strain, rng)
        is_nio = _pillars(nio, pillar_A, field, rng)
        scene, truth = _grow(cells, turned, bend, is_nio, field, margin_A, rng)
        drawn = draw_conditions(ranges, 1, rng)
        image, positions = acquire(
            [scene], optics or HAADF, drawn, shape, pixel_size_A, int(rng.integers(2**31))
        )
        images.append(image[0])
        x, y = positions[0]
        inside = (x > -0.5) & (x < shape[1] - 0.5) & (y > -0.5) & (y < shape[0] - 0.5)
        table = truth.assign(image=f"image-{i:03d}", x_px=x, y_px=y, confidence=1.0, index=i)
        tables.append(table[inside])
    columns = [
        "image",
        "x_px",
        "y_px",
        "kind",
        "confidence",
        "index",
        "phase",
        "angle_deg",
        "exx",
        "eyy",
        "exy",
    ]
    return TwoPhaseImages(np.stack(images), pd.concat(tables, ignore_index=True)[columns], pixel_size_A)


def _lsmo(layers: int) -> PlaneCell:
    a = LSMO_A
    scaled = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    return along_zone_axis(
        Atoms("LaMnO3", scaled_positions=scaled, cell=[a] * 3, pbc=True), (0, 0, 1), layers * a
    )


def _nio(layers: int) -> PlaneCell:
    metal = [(0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    oxygen = [(0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5), (0.5, 0.5, 0.5)]
    crystal = Atoms("Ni4O4", scaled_positions=metal + oxygen, cell=[NIO_A] * 3, pbc=True)
    # As thick as the perovskite.
    return along_zone_axis(crystal, (0, 0, 1), layers * LSMO_A)


@dataclass(frozen=True)
class _Bend:
    """A displacement field of a few long waves, whose gradient is known."""

    wave: np.ndarray  # [K, 2], 1/Å
    amplitude: np.ndarray  # [K, 2], Å
    phase: np.ndarray  # [K]

    @classmethod
    def draw(cls, strain: float, rng: np.random.Generator) -> _Bend:
        k = 6
        length, direction = rng.uniform(40.0, 120.0, k), rng.uniform(0, 2 * np.pi, k)
        wave = (2 * np.pi / length)[:, None] * np.c_[np.cos(direction), np.sin(direction)]
        # Each component of the gradient is amplitude * wave * cos: its mean square is strain^2 in all.
        amplitude = rng.normal(0, 1, (k, 2)) * (strain * 2 / np.sqrt(k)) * (length / (2 * np.pi))[:, None]
        return cls(wave, amplitude, rng.uniform(0, 2 * np.pi, k))

    def at(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Displacement ``[n, 2]`` and its gradient ``[n, i, j]`` = d u_i / d x_j at points ``[n, 2]``."""
        argument = xy @ self.wave.T + self.phase
        gradient = np.einsum("nk,ki,kj->nij", np.cos(argument), self.amplitude, self.wave)
        return np.sin(argument) @ self.amplitude, gradient


def _pillars(nio: float, pillar_A: float, field_A: np.ndarray, rng: np.random.Generator) -> Region:
    """Return the test for being in NiO: where a smooth random function is high."""
    k = 24
    direction = rng.uniform(0, 2 * np.pi, k)
    length = pillar_A * rng.uniform(0.8, 1.4, k)
    wave = (2 * np.pi / length)[:, None] * np.c_[np.cos(direction), np.sin(direction)]
    phase = rng.uniform(0, 2 * np.pi, k)
    grid = np.stack(np.meshgrid(*(np.linspace(0, f, 64) for f in field_A)), -1).reshape(-1, 2)
    # The threshold is that of this field, so that the fraction is as asked.
    level = np.quantile(np.cos(grid @ wave.T + phase).sum(axis=1), 1 - nio)

    def inside(xy: np.ndarray) -> np.ndarray:
        if nio in (0.0, 1.0):
            return np.full(len(xy), nio == 1.0)
        return np.cos(xy @ wave.T + phase).sum(axis=1) > level

    return inside


def _grow(
    cells: dict[str, PlaneCell],
    turned: dict[str, float],
    bend: _Bend,
    is_nio: Region,
    field_A: np.ndarray,
    margin_A: float,
    rng: np.random.Generator,
) -> tuple[Scene, pd.DataFrame]:
    """The atoms of one place, and the table of its columns of metal."""
    parts = []
    for phase, cell in cells.items():
        low, high = np.full(2, -margin_A - 2.0), field_A + margin_A + 2.0
        atoms = tile(cell, screen_matrix(turned[phase]), rng.uniform(0, field_A), low, high)
        if phase == "LSMO":
            lanthanum = np.flatnonzero(atoms.numbers == 57)
            atoms.numbers[lanthanum[rng.random(len(lanthanum)) < STRONTIUM]] = 38
        _, first, column = np.unique(atoms.arrays["column"], return_index=True, return_inverse=True)
        ideal = atoms.positions[first, :2]
        kept = is_nio(ideal) == (phase == "NiO")
        parts.append((phase, atoms, column, ideal, kept))
    host, guest = parts
    # NiO fills what the perovskite leaves.
    if host[4].any():
        gap, _ = cKDTree(host[3][host[4]]).query(guest[3])
        guest[4][:] = gap > _CLEARANCE_A
    x, y, numbers, tables = [], [], [], []
    for phase, atoms, column, ideal, kept in parts:
        displacement, gradient = bend.at(ideal)
        xy = ideal + displacement
        inside = kept[column]
        x.append(xy[column[inside], 0])
        y.append(xy[column[inside], 1])
        numbers.append(atoms.numbers[inside])
        heaviest = np.zeros(len(ideal), dtype=int)
        np.maximum.at(heaviest, column, atoms.numbers)
        metal = kept & (heaviest > 8)
        kind = np.select([heaviest >= 38, heaviest == 28], ["La/Sr", "Ni"], "Mn")
        g = gradient[metal]
        spin = np.rad2deg(g[:, 0, 1] - g[:, 1, 0]) / 2  # counter-clockwise on the screen: y points down
        tables.append(
            pd.DataFrame(
                {
                    "x_A": xy[metal, 0],
                    "y_A": xy[metal, 1],
                    "kind": kind[metal],
                    "phase": phase,
                    "angle_deg": turned[phase] + spin,
                    "exx": g[:, 0, 0],
                    "eyy": g[:, 1, 1],
                    "exy": (g[:, 0, 1] + g[:, 1, 0]) / 2,
                }
            )
        )
    truth = pd.concat([t for t in tables if len(t)], ignore_index=True)
    sites = (truth["x_A"].to_numpy(), truth["y_A"].to_numpy(), truth["kind"].to_numpy(object))
    return Scene(np.concatenate(x), np.concatenate(y), np.concatenate(numbers), *sites), truth
