"""Scenes: pieces of specimen with labelled defects, drawn at random, and their images.

A scene is what lies under the beam in one field of view: atoms and the truth about them. Scenes are drawn
from a :class:`Specimen`, rendered with one set of optics each, and degraded under drawn conditions. Item `i`
of a series depends on the seed and on `i` only, never on the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch
from ase import Atoms
from ase.data import chemical_symbols
from scipy.spatial import cKDTree

from micrographia.errors import UserError
from micrographia.simulate.crystals import build_crystal
from micrographia.simulate.defects import DefectSpec, introduce_defects
from micrographia.simulate.degrade import aberrated, degrade, moved, sample_displaced
from micrographia.simulate.imaging import disc_maps, render_patches
from micrographia.simulate.probe import Optics
from micrographia.simulate.scattering import cross_section_A2

#: Scenes are rendered in groups of this size; a group is one job of a worker.
GROUP = 16
#: Rendered around every field and cut off again: room for scan displacement and the detector's response (px).
MARGIN_PX = 12


@dataclass(frozen=True)
class Specimen:
    """What is under the beam, and how much it may vary from image to image."""

    material: str = "WSe2"
    """Built-in material (WSe2, MoS2, graphene, SrTiO3, single-atoms, ...) or a structure file that ASE
    reads."""
    defects: dict[str, float] = field(default_factory=lambda: {"vacancy-1Se": 0.03})
    """Kind of defect -> fraction of the sites that can have it. A few per cent teach a network best."""
    element: str = "Re"
    """The heavy element of the material single-atoms."""
    atoms_per_nm2: tuple[float, float] = (0.2, 2.0)
    """Range of areal densities of the heavy atoms of single-atoms, per nm²."""
    angle_deg: tuple[float, float] = (0.0, 360.0)
    """Range of in-plane rotations, degrees counter-clockwise as seen on the screen."""
    strain: float = 0.015
    """Standard deviation of each component of the homogeneous strain (stands for miscalibration and shear,
    too)."""
    disorder_A: float = 0.05
    """Root-mean-square static displacement of each atom, Å."""
    contrast: tuple[float, float] = (0.85, 1.1)
    """Exponent on the relative cross-sections: 1 is the independent-atom model, less allows for
    channelling."""

    def __post_init__(self) -> None:
        for kind, value in self.defects.items():
            if not 0 < value <= 1:
                raise UserError(
                    f"specimen.defects: '{kind}' = {value}: give a fraction of sites between 0 and 1."
                )
        if self.strain < 0 or self.disorder_A < 0:
            raise UserError("specimen: strain and disorder_A must not be negative.")


@dataclass(frozen=True)
class Scene:
    """Atoms and labelled sites in one field; positions in Å from the centre of the field's first pixel."""

    x_A: np.ndarray
    y_A: np.ndarray
    number: np.ndarray
    sites: pd.DataFrame
    """Columns ``x_A, y_A, kind``: the defects, then every intact column as ``column-<element>``."""


def draw_scene(specimen: Specimen, field_A: tuple[float, float], rng: np.random.Generator) -> Scene:
    """Draw one scene that covers a field of (width, height) Å."""
    strain = tuple(rng.normal(0, specimen.strain, 3))
    atoms = build_crystal(
        specimen.material,
        field_A,
        angle_deg=rng.uniform(*specimen.angle_deg),
        strain=strain,
        disorder_A=specimen.disorder_A,
        element=specimen.element,
        atoms_per_nm2=rng.uniform(*specimen.atoms_per_nm2),
        rng=rng,
    )
    atoms, defects = introduce_defects(atoms, [DefectSpec(k, c) for k, c in specimen.defects.items()], rng)
    x, y = atoms.positions[:, 0], atoms.positions[:, 1]
    sites = pd.concat([defects[["x_A", "y_A", "kind"]], _intact_columns(atoms, defects)], ignore_index=True)
    return Scene(x, y, atoms.numbers.copy(), sites)


def _intact_columns(atoms: Atoms, defects: pd.DataFrame) -> pd.DataFrame:
    """Every column of atoms that holds no defect, as ``column-<heaviest element>``."""
    column = atoms.arrays.get("column", np.full(len(atoms), -1))
    known = np.flatnonzero(column >= 0)
    known = known[np.argsort(-atoms.numbers[known], kind="stable")]
    _, first, member = np.unique(column[known], return_index=True, return_inverse=True)
    count = np.bincount(member, minlength=len(first))
    x, y = (
        np.bincount(member, atoms.positions[known, axis], minlength=len(first)) / count for axis in (0, 1)
    )
    if len(defects) and len(first):
        nearest, _ = cKDTree(defects[["x_A", "y_A"]].to_numpy()).query(np.c_[x, y])
        first, x, y = (values[nearest > 0.6] for values in (first, x, y))
    kinds = ["column-" + chemical_symbols[z] for z in atoms.numbers[known[first]]]
    return pd.DataFrame({"x_A": x, "y_A": y, "kind": kinds})


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
        Processes; as many as cores by default.

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
    results: Iterator = map(job, groups, parts)
    if workers > 1 and len(groups) >= 8:
        # spawn: a forked child of a process that already runs torch's threads can hang.
        spawn = get_context("spawn")
        with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (1,)) as pool:
            done = list(pool.map(job, groups, parts))
    else:
        done = list(results)
    images, clean, tables = zip(*done, strict=True)
    return np.concatenate(images), np.concatenate(clean), pd.concat(tables, ignore_index=True)


def _simulate_group(
    specimen: Specimen,
    optics: Optics,
    shape: tuple[int, int],
    pixel_size_A: float,
    seed: int,
    span: tuple[int, int],
    conditions: dict[str, np.ndarray] | None,
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
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
    tables = []
    for k, scene in enumerate(scenes):
        x, y = scene.sites["x_A"].to_numpy() / pixel_size_A, scene.sites["y_A"].to_numpy() / pixel_size_A
        x, y = moved(x, y, displacement[k])
        x, y = x - MARGIN_PX, y - MARGIN_PX
        table = pd.DataFrame(
            {"index": start + k, "x_px": x, "y_px": y, "kind": scene.sites["kind"].to_numpy()}
        )
        inside = (x > -0.5) & (x < shape[1] - 0.5) & (y > -0.5) & (y < shape[0] - 0.5)
        tables.append(table[inside])
    return np.ascontiguousarray(images), np.ascontiguousarray(clean), pd.concat(tables, ignore_index=True)


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
