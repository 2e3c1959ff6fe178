"""Scenes: pieces of specimen with labelled defects, drawn at random, and their images.

A scene is what lies under the beam in one field of view: atoms and the truth about them. Scenes are drawn
from a :class:`Specimen`, rendered with one set of optics each, and degraded under drawn conditions. Item `i`
of a series depends on the seed and on `i` only, never on the number of workers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from ase import Atoms
from ase.data import chemical_symbols
from loky import ProcessPoolExecutor
from scipy.spatial import cKDTree

from micrographia.errors import UserError, check_ranges
from micrographia.simulate.crystals import LARGEST_STRAIN, build_crystal
from micrographia.simulate.defects import DefectSpec, place_defects
from micrographia.simulate.degrade import REACH_PX, aberrated, degrade, moved, sample_displaced
from micrographia.simulate.imaging import disc_maps, render_patches
from micrographia.simulate.probe import Optics
from micrographia.simulate.scattering import cross_section_A2

_ALLOY = re.compile(r"[A-Z][a-z]?-[A-Z][a-z]?")
#: Scenes are rendered in groups of this size; a group is one job of a worker.
GROUP = 8
#: From this many pixels on (margins included), processes earn back the seconds that it takes to start them.
BULK = 100_000_000
#: Rendered around every field and cut off again: room for scan displacement and the detector's response (px).
MARGIN_PX = REACH_PX


@dataclass(frozen=True)
class Specimen:
    """What is under the beam, and how much it may vary from image to image."""

    material: str = "WSe2"
    """Built-in material (WSe2, MoS2, graphene, SrTiO3, single-atoms, ...) or a structure file that ASE
    reads."""
    defects: dict[str, float] = field(default_factory=lambda: {"vacancy-1Se": 0.03})
    """Kind of defect -> fraction of the sites that can have it. A few per cent teach a network best."""
    zone_axis: tuple[int, int, int] = (0, 0, 1)
    """Direction [uvw] of SrTiO3, or of a structure file's crystal, that points along the beam."""
    thickness_A: float = 0.0
    """Thickness along the beam of SrTiO3, of a file's crystal or of the carbon film, Å; 0 = one cell, 20 Å of film."""
    alloy: dict[str, float] = field(default_factory=dict)
    """New-old -> probability: { "S-Se" = 0.3 } makes three in ten Se of every image S, without labels."""
    relaxation: tuple[float, float] = (0.0, 0.0)
    """Range of the displacement of a defect's neighbours towards it, as a fraction of their distance; below 0 =
    away."""
    element: str = "Re"
    """The heavy element of the material single-atoms."""
    atoms_per_nm2: tuple[float, float] = (0.2, 2.0)
    """Range of areal densities of the heavy atoms of single-atoms, per nm²."""
    clustering: tuple[float, float] = (0.0, 0.9)
    """Range of the share of single atoms that sit within a few Å of another one, in pairs, chains and heaps."""
    holes: float = 0.05
    """Fraction of images in which the specimen has a hole or an edge."""
    angle_deg: tuple[float, float] = (0.0, 360.0)
    """Range of in-plane rotations, degrees counter-clockwise as seen on the screen. A run whose images all show their
    lattices takes 0 to 360 to mean: as measured; give 0 to 361 for all."""
    mean_strain: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Strain (xx, yy, xy) common to all images: a scan that stretches or shears what it sees."""
    strain: float = 0.015
    """Standard deviation of each component of the homogeneous strain (stands for miscalibration and shear,
    too)."""
    disorder_A: float = 0.05
    """Root-mean-square static displacement of each atom, Å."""
    contrast: tuple[float, float] = (0.85, 1.1)
    """Exponent on the relative cross-sections: 1 is the independent-atom model, less allows for
    channelling."""

    def __post_init__(self) -> None:
        if self.material == "single-atoms":
            # On a film there is one thing to look for, all of it.
            object.__setattr__(self, "defects", {self.element: 1.0})
        for kind, value in self.defects.items():
            if not 0 < value <= 1:
                raise UserError(
                    f"specimen.defects: '{kind}' = {value}: give a fraction of sites above 0, at most 1; "
                    "leave a kind out to have none."
                )
        for pair, value in self.alloy.items():
            if not (_ALLOY.fullmatch(pair) and 0 < value <= 1):
                raise UserError(
                    f"specimen.alloy: '{pair}' = {value}: give the new and the old element and a probability above 0, "
                    'at most 1, as in { "S-Se" = 0.3 }.'
                )
        if len({pair.split("-")[1] for pair in self.alloy}) < len(self.alloy):
            raise UserError("specimen.alloy: an element is replaced twice; name every old element once.")
        check_ranges(
            "specimen",
            self,
            holes=(0, 1),
            strain=(0, LARGEST_STRAIN),
            disorder_A=(0, 5),
            thickness_A=(0, 5000),
        )
        # Six standard deviations: beyond them lies none of the ten thousands of draws of a run.
        reach = np.abs(self.mean_strain).max() + 6 * self.strain
        if not reach < LARGEST_STRAIN:
            mean = tuple(float(component) for component in self.mean_strain)
            raise UserError(
                f"specimen.mean_strain = {mean} with specimen.strain = {self.strain}: strains would reach "
                f"{reach:.2f}; give values that stay below {LARGEST_STRAIN} (mean + 6 standard deviations)."
            )
        for name, least, most in (
            ("atoms_per_nm2", 0, 10),
            ("clustering", 0, 1),
            ("angle_deg", -3600, 3600),
            ("contrast", 0, 10),
            ("relaxation", -0.5, 0.5),
        ):
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise UserError(
                    f"specimen.{name} = ({low}, {high}): give (low, high) with {least} <= low <= high <= {most}."
                )


@dataclass(frozen=True)
class Scene:
    """Atoms and labelled sites in one field; positions in Å from the centre of the field's first pixel."""

    x_A: np.ndarray
    y_A: np.ndarray
    number: np.ndarray
    site_x_A: np.ndarray
    site_y_A: np.ndarray
    site_kind: np.ndarray
    """Kind of each labelled site: the defects, then every intact column as ``column-<element>``."""


def draw_scene(specimen: Specimen, field_A: tuple[float, float], rng: np.random.Generator) -> Scene:
    """Draw one scene that covers a field of (width, height) Å."""
    strain = tuple(rng.normal(specimen.mean_strain, specimen.strain))
    atoms = build_crystal(
        specimen.material,
        field_A,
        angle_deg=rng.uniform(*specimen.angle_deg),
        strain=strain,
        zone_axis=specimen.zone_axis,
        thickness_A=specimen.thickness_A or None,
        alloy={old: (new, p) for pair, p in specimen.alloy.items() for new, old in [pair.split("-")]},
        disorder_A=specimen.disorder_A,
        element=specimen.element,
        atoms_per_nm2=rng.uniform(*specimen.atoms_per_nm2),
        rng=rng,
    )
    _gather(atoms, rng.uniform(*specimen.clustering), rng)
    relaxation = rng.uniform(*specimen.relaxation) if any(specimen.relaxation) else 0.0
    specs = [DefectSpec(kind, part, relaxation=relaxation) for kind, part in specimen.defects.items()]
    atoms, defect_xy, named = place_defects(atoms, specs, rng)
    defect_kinds = np.array(named, dtype=object)
    if rng.random() < specimen.holes:
        hole = _hole(field_A, rng)
        atoms = atoms[~hole(atoms.positions[:, :2])]
        kept = ~hole(defect_xy)
        defect_xy, defect_kinds = defect_xy[kept], defect_kinds[kept]
    columns, kinds = _intact_columns(atoms, defect_xy)
    site_x, site_y = np.concatenate([defect_xy, columns]).T
    kinds = np.concatenate([defect_kinds, kinds])
    x, y = atoms.positions[:, 0], atoms.positions[:, 1]
    return Scene(x, y, atoms.numbers.copy(), site_x, site_y, kinds)


def _gather(atoms: Atoms, share: float, rng: np.random.Generator) -> None:
    """Move a share of the isolated atoms next to others: on real films heavy atoms come in groups."""
    heavy = np.flatnonzero(atoms.arrays.get("isolated", np.zeros(len(atoms), dtype=bool)))
    if len(heavy) < 2:
        return
    for i in heavy[rng.random(len(heavy)) < share]:
        host = rng.choice(heavy[heavy != i])
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(2.0, 6.0)
        atoms.positions[i, :2] = atoms.positions[host, :2] + distance * np.array(
            [np.cos(angle), np.sin(angle)]
        )


def _hole(field_A: tuple[float, float], rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Draw a hole of uneven outline, often cut by the image's edge; return the test for being inside it."""
    centre = rng.uniform(0, 1, 2) * field_A
    radius = rng.uniform(0.1, 0.45) * min(field_A)
    order = np.arange(2, 6)
    waves, phases = rng.normal(0, 0.25, 4) / order, rng.uniform(0, 2 * np.pi, 4)

    def inside(xy: np.ndarray) -> np.ndarray:
        offset = xy - centre
        angle = np.arctan2(offset[:, 1], offset[:, 0])
        edge = radius * (1 + (waves * np.cos(order * angle[:, None] + phases)).sum(axis=1))
        return np.hypot(*offset.T) < edge

    return inside


def _intact_columns(atoms: Atoms, defect_xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions ``[M, 2]`` and kinds ``column-<heaviest element>`` of all columns that hold no defect."""
    column = atoms.arrays.get("column", np.full(len(atoms), -1))
    known = np.flatnonzero(column >= 0)
    known = known[np.argsort(-atoms.numbers[known], kind="stable")]
    _, first, member = np.unique(column[known], return_index=True, return_inverse=True)
    count = np.bincount(member, minlength=len(first))
    xy = np.stack(
        [np.bincount(member, atoms.positions[known, a], minlength=len(first)) / count for a in (0, 1)], axis=1
    )
    if len(defect_xy) and len(first):
        nearest, _ = cKDTree(defect_xy).query(xy)
        first, xy = first[nearest > 0.6], xy[nearest > 0.6]
    kinds = ["column-" + chemical_symbols[z] for z in atoms.numbers[known[first]]]
    return xy, np.array(kinds, dtype=object)


def render_scenes(
    scenes: Sequence[Scene],
    optics: Sequence[Optics],
    contrast: Sequence[float] | np.ndarray,
    shape: tuple[int, int],
    pixel_size_A: float,
) -> torch.Tensor:
    """Render noise-free images ``[N, H, W]`` (fraction of the beam that reaches the detector)."""
    atoms = []
    for scene, o, gamma in zip(scenes, optics, contrast, strict=True):
        sigma = {
            z: cross_section_A2(int(z), o.energy_keV, o.inner_mrad, o.outer_mrad)
            for z in np.unique(scene.number)
        }
        heaviest = max(sigma.values(), default=1.0)
        weight = np.array([heaviest * (sigma[z] / heaviest) ** gamma for z in scene.number])
        atoms.append((scene.x_A, scene.y_A, weight))
    return render_patches(atoms, list(optics), shape, pixel_size_A)


def simulate_series(
    specimen: Specimen,
    optics: Optics,
    n: int,
    shape: tuple[int, int],
    pixel_size_A: float,
    seed: int,
    conditions: dict[str, np.ndarray] | None = None,
    workers: int | None = None,
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Simulate `n` labelled images.

    Parameters
    ----------
    conditions : dict of arrays ``[n]``, optional
        Imaging conditions of each image; without them the images are noise-free.
    workers : int, optional
        Threads, or processes for many images; as many as cores by default. Each holds eight images at once, so fewer
        need less memory.

    Returns
    -------
    images : float32 ``[n, H, W]``
    clean : float32 ``[n, H, W]``
        The same crystals noise-free, distorted by the same scan, so that the sites are theirs, too.
    sites : DataFrame
        ``index, x_px, y_px, kind`` of defects and intact columns inside the images, where `images` show
        them.
    """
    if n < 1:
        raise UserError(f"{n} images cannot be simulated; ask for at least 1.")
    groups = [(start, min(start + GROUP, n)) for start in range(0, n, GROUP)]
    job = partial(_simulate_group, specimen, optics, shape, pixel_size_A, seed)
    parts = [({k: v[a:b] for k, v in conditions.items()} if conditions else None) for a, b in groups]
    workers = min(workers or torch.get_num_threads(), len(groups))
    bulk = workers > 1 and n * (shape[0] + 2 * MARGIN_PX) * (shape[1] + 2 * MARGIN_PX) >= BULK
    done = _shared_out(job, groups, parts, workers, bulk)
    images, clean, sites = zip(*done, strict=True)
    columns = [np.concatenate(part) for part in zip(*sites, strict=True)]
    table = pd.DataFrame(dict(zip(("index", "x_px", "y_px", "kind"), columns, strict=True)))
    return np.concatenate(images), np.concatenate(clean), table


def _shared_out(
    job: Callable[..., Any], groups: Sequence[Any], parts: Sequence[Any], workers: int, bulk: bool
) -> list[Any]:
    """Do `job` for every group, in processes (`bulk`) or threads.

    PyTorch gets one thread each: sharing out an operation changes its rounding, and with it the electrons that are drawn.
    """
    single: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (1,)}
    if not bulk:
        given = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(workers, **single) as pool:
                return list(pool.map(job, groups, parts))
        finally:
            torch.set_num_threads(given)  # or threads that others start later would have one, too
    processes = ProcessPoolExecutor(workers, **single)
    try:
        futures = [processes.submit(job, *given) for given in zip(groups, parts, strict=True)]
        return [future.result() for future in futures]
    except BrokenExecutor as error:
        raise UserError(
            "A process that simulates was ended, probably for want of memory: simulate fewer or smaller images at once."
        ) from error
    finally:
        processes.shutdown(kill_workers=True)  # an interrupt must not wait for what is queued


def _simulate_group(
    specimen: Specimen,
    optics: Optics,
    shape: tuple[int, int],
    pixel_size_A: float,
    seed: int,
    span: tuple[int, int],
    conditions: dict[str, np.ndarray] | None,
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    start, stop = span
    big = (shape[0] + 2 * MARGIN_PX, shape[1] + 2 * MARGIN_PX)
    field_A = (big[1] * pixel_size_A, big[0] * pixel_size_A)
    scenes = [draw_scene(specimen, field_A, np.random.default_rng([seed, i])) for i in range(start, stop)]
    inner = (slice(None), slice(MARGIN_PX, -MARGIN_PX), slice(MARGIN_PX, -MARGIN_PX))
    if conditions is None:
        clean = render_scenes(scenes, [optics] * len(scenes), [1.0] * len(scenes), big, pixel_size_A)[
            inner
        ].numpy()
        images, displacement = clean, np.zeros((len(scenes), big[0], 2))
    else:
        rngs = [np.random.default_rng([seed, i, 1]) for i in range(start, stop)]
        own = [{name: v[k : k + 1] for name, v in conditions.items()} for k in range(len(scenes))]
        contrast = [rng.uniform(*specimen.contrast) for rng in rngs]
        settings = [aberrated(optics, c, rng)[0] for c, rng in zip(own, rngs, strict=True)]
        noise_free = render_scenes(scenes, settings, contrast, big, pixel_size_A)
        # One by one, each with its own generator: no image depends on how many follow it.
        parts = [
            degrade(image[None], c, pixel_size_A, torch.Generator().manual_seed(int(rng.integers(2**62))))
            for image, c, rng in zip(noise_free, own, rngs, strict=True)
        ]
        degraded, shift = (torch.cat(part) for part in zip(*parts, strict=True))
        clean = sample_displaced(noise_free, shift)[inner].numpy()
        images, displacement = degraded[inner].numpy(), shift.numpy()
    sites: list[tuple[np.ndarray, ...]] = []
    for k, scene in enumerate(scenes):
        x, y = moved(scene.site_x_A / pixel_size_A, scene.site_y_A / pixel_size_A, displacement[k])
        x, y = x - MARGIN_PX, y - MARGIN_PX
        inside = (x > -0.5) & (x < shape[1] - 0.5) & (y > -0.5) & (y < shape[0] - 0.5)
        sites.append((np.full(inside.sum(), start + k), x[inside], y[inside], scene.site_kind[inside]))
    columns = tuple(np.concatenate(part) for part in zip(*sites, strict=True))
    return np.ascontiguousarray(images), np.ascontiguousarray(clean), columns


def label_maps(
    sites: pd.DataFrame, kinds: Sequence[str], n: int, shape: tuple[int, int], radius_px: float
) -> np.ndarray:
    """Draw one map per kind for the sites (``index, x_px, y_px, kind``) of `n` images.

    Returns
    -------
    uint8 ``[n, K, H, W]``
        0 to 255 for 0 to 1: discs of a physical radius with a soft rim of one pixel.
    """
    chosen = sites[sites["kind"].isin(kinds)]
    order = {kind: k for k, kind in enumerate(kinds)}
    channel = chosen["index"].to_numpy(int) * len(kinds) + chosen["kind"].map(order).to_numpy(int)
    x, y = chosen["x_px"].to_numpy(), chosen["y_px"].to_numpy()
    maps = disc_maps(x, y, channel, n * len(kinds), shape, radius_px)
    return (255 * maps).round().to(torch.uint8).view(n, len(kinds), *shape).numpy()
