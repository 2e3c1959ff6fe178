"""The links of journey 1. Each takes a run folder and plain inputs, works once, and returns the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from micrographia.detect.finder import DefectFinder
from micrographia.errors import UserError
from micrographia.io import atomic_path
from micrographia.library import ImageLibrary
from micrographia.metrics.domain import LEAST_IMAGES, LEAST_PATCH_PX, DomainReference
from micrographia.metrics.fidelity import LabelFidelity, label_fidelity
from micrographia.micrograph import Micrograph, robust_scale
from micrographia.nets.weights import weights_key
from micrographia.simulate.defects import parse_kind
from micrographia.simulate.degrade import Conditions, draw_conditions
from micrographia.simulate.fit import FittedConditions, cut_patches, fit_conditions, usable_patch
from micrographia.simulate.scenes import label_maps, simulate_series
from micrographia.training.distributed import is_first
from micrographia.translate.cyclegan import TranslateConfig
from micrographia.translate.translator import Translator, Watch
from micrographia.workflows.recipe import Recipe, to_dict
from micrographia.workflows.runfolder import RunFolder, fingerprint

Say = Callable[[str], None]

#: A place further than this from every atom is empty.
EMPTY_A = 2.0
#: What somebody who looks at the images would type in: one setting for all of them.
HAND_TUNED = Conditions(
    defocus_A=(0.0, 0.0), astigmatism_A=(0.0, 0.0), coma_A=(0.0, 0.0), threefold_A=(0.0, 0.0),
    source_size_A=(0.9, 0.9), counts_per_A2=(150.0, 150.0), background=(0.2, 0.2), readout=(0.1, 0.1),
    blur_px=(0.3, 0.3), afterglow_px=(0.0, 0.0), line_jitter_A=(0.05, 0.05), slow_jitter_A=(0.1, 0.1),
    line_gain=(0.0, 0.0), contamination=(0.2, 0.2), contamination_length_A=(20.0, 20.0),
    speckle=(0.0, 0.0), speckle_length_A=(1.0, 1.0),
)  # fmt: skip


@dataclass(frozen=True)
class LabelledSet:
    """Labelled images at the working sampling, wherever they come from."""

    name: str
    images: np.ndarray
    """float32 ``[N, H, W]``."""
    sites: pd.DataFrame
    """``index, x_px, y_px, kind``."""
    key: str
    """Stands for the content in the fingerprints of later stages."""


def defect_kinds(recipe: Recipe) -> list[str]:
    """Return the kinds that the recipe looks for, in its order."""
    return list(recipe.specimen.defects)


def fit_stage(run: RunFolder, images: Sequence[Micrograph], recipe: Recipe, say: Say) -> FittedConditions:
    """Fit the imaging conditions to unlabelled images (at the working sampling)."""

    def work(folder: Path) -> None:
        fitted = fit_conditions(images, recipe.specimen, recipe.optics, recipe.fit, recipe.seed, say)
        _write_json(folder / "fitted.json", fitted.to_dict())

    inputs = {
        "images": images_key(images),
        "fit": to_dict(recipe.fit),
        "specimen": to_dict(recipe.specimen),
        "optics": to_dict(recipe.optics),
        "seed": recipe.seed,
    }
    return FittedConditions.from_dict(_read_json(run.stage("fit", inputs, work, say) / "fitted.json"))


def images_key(images: Sequence[Micrograph]) -> str:
    """Return a short text that stands for the content and scale of images, the same in every process."""
    digest = hashlib.sha256()
    for m in images:
        digest.update(f"{m.name} {m.pixel_size_A} {m.shape}".encode())
        digest.update(m.data.tobytes())
    return digest.hexdigest()[:12]


def simulate_stage(
    run: RunFolder, recipe: Recipe, name: str, conditions: FittedConditions | Conditions | None, say: Say
) -> tuple[LabelledSet, np.ndarray]:
    """Simulate the labelled library under fitted conditions, given ranges, or noise-free (None).

    Returns the set and the same images noise-free.
    """
    config = recipe.library
    shape = (config.size_px, config.size_px)

    def work(folder: Path) -> None:
        rng = np.random.default_rng([recipe.seed, 11])
        drawn = None
        if isinstance(conditions, FittedConditions):
            drawn = conditions.draw(config.images, rng)
        elif conditions is not None:
            drawn = draw_conditions(conditions, config.images, rng)
        images, clean, sites = simulate_series(
            recipe.specimen, recipe.optics, config.images, shape, recipe.sampling_A, recipe.seed + 1, drawn
        )
        np.save(folder / "clean.npy", clean)
        store_library(
            folder / "library",
            images,
            sites,
            recipe,
            {"synthetic": True, "set": name, "recipe": to_dict(recipe)},
        )

    key = None
    if isinstance(conditions, FittedConditions):
        key = fingerprint(conditions.to_dict())
    elif conditions is not None:
        key = fingerprint(asdict(conditions))
    inputs = {
        "conditions": key,
        "library": {"images": config.images, "size_px": config.size_px},
        "specimen": to_dict(recipe.specimen),
        "optics": to_dict(recipe.optics),
        "sampling_A": recipe.sampling_A,
        "seed": recipe.seed,
    }
    folder = run.stage(f"simulate-{name}", inputs, work, say)
    return load_set(folder / "library", name, folder.name), np.load(folder / "clean.npy")


def store_library(
    path: Path, images: np.ndarray, sites: pd.DataFrame, recipe: Recipe, about: dict[str, Any]
) -> None:
    """Write labelled images as an `ImageLibrary` (sites: ``index, x_px, y_px, kind``)."""
    kinds = defect_kinds(recipe) + other_kinds(sites, recipe)
    n, height, width = images.shape
    labels = label_maps(sites, kinds, n, (height, width), recipe.detect.radius_A / recipe.sampling_A)
    grouped = dict(list(sites.groupby("index")))
    empty = sites.iloc[:0]
    with ImageLibrary.create(path, n, (height, width), kinds, recipe.sampling_A, about) as library:
        for i in range(n):
            own = grouped.get(i, empty)
            table = own.drop(columns="index").assign(image=str(i), confidence=1.0)
            library.write(i, images[i], labels[i], table)


def load_set(path: Path, name: str, key: str) -> LabelledSet:
    """Read an `ImageLibrary` into memory."""
    library = ImageLibrary.open(path)
    images, _ = library.load()
    sites = library.sites
    return LabelledSet(name, images, sites.assign(index=sites["image"].astype(int)), key)


def other_kinds(sites: pd.DataFrame, recipe: Recipe) -> list[str]:
    """Return the labelled kinds that are learnt alongside: the intact columns."""
    return sorted(set(sites["kind"]) - set(defect_kinds(recipe)))


def translate_stage(
    run: RunFolder,
    source: LabelledSet,
    images: Sequence[Micrograph],
    recipe: Recipe,
    say: Say,
    name: str = "translate",
) -> tuple[Translator, pd.DataFrame]:
    """Train the CycleGAN from `source` to the experiment; return it and the course of its training."""
    experimental = cut_patches(images, translation_patch_px(images, recipe), 400)

    def work(folder: Path) -> None:
        def watch(step: int, seen: Watch) -> None:
            save_samples(folder / "samples", step, seen, recipe.sampling_A, recipe.seed)

        translator = Translator(recipe.sampling_A, _fitting(recipe, experimental))
        result = translator.fit(
            source.images, experimental, folder / "training", recipe.seed, recipe.device, watch
        )
        if not is_first():
            return
        translator.save(folder / "translator.safetensors")
        result.history.to_csv(folder / "history.csv", index=False)
        _write_json(
            folder / "result.json",
            {"best_step": result.best_step, "best_frechet": result.best_score, "stopped": result.stopped},
        )

    inputs = {
        "source": source.key,
        "images": images_key(images),
        "translate": to_dict(recipe.translate),
        "seed": recipe.seed,
    }
    folder = run.stage(name, inputs, work, say, together=True)
    return Translator.load(folder / "translator.safetensors"), pd.read_csv(folder / "history.csv")


def translation_patch_px(images: Sequence[Micrograph], recipe: Recipe) -> int:
    """Edge of the patches that the CycleGAN learns from: as the recipe says, less where the images are smaller.

    Raises
    ------
    UserError
        The library's images would be smaller.
    """
    patch_px = usable_patch(images, recipe.translate.patch_px)
    if patch_px > recipe.library.size_px:
        raise UserError(
            f"translate.patch_px = {patch_px} is more than library.size_px = {recipe.library.size_px}: patches are cut "
            "from the library's images; make those larger, or the patches smaller."
        )
    return patch_px


def _fitting(recipe: Recipe, patches: np.ndarray) -> TranslateConfig:
    return replace(recipe.translate, patch_px=patches.shape[-1])


def apply_stage(
    run: RunFolder,
    translator: Translator,
    source: LabelledSet,
    recipe: Recipe,
    say: Say,
    name: str = "translated",
) -> LabelledSet:
    """Translate a labelled set; the sites stay what they are."""

    def work(folder: Path) -> None:
        images = translator.apply(source.images, recipe.seed, recipe.device)
        store_library(
            folder / "library",
            images,
            source.sites,
            recipe,
            {"synthetic": True, "set": name, "recipe": to_dict(recipe)},
        )

    assert translator.to_experiment is not None
    inputs = {"source": source.key, "translator": weights_key(translator.to_experiment), "seed": recipe.seed}
    folder = run.stage(f"apply-{name}", inputs, work, say)
    return load_set(folder / "library", name, folder.name)


def detect_stage(
    run: RunFolder, sets: Sequence[LabelledSet], recipe: Recipe, say: Say, name: str = "detect"
) -> tuple[DefectFinder, pd.DataFrame]:
    """Train the detector on one or several labelled sets; return it and the course of its training.

    Several sets are interleaved, so that the images held out for validation are the same scenes of each.
    """

    def work(folder: Path) -> None:
        images, sites = interleave(sets)
        finder = DefectFinder(
            defect_kinds(recipe), other_kinds(sites, recipe), recipe.sampling_A, recipe.detect
        )
        results = finder.fit(
            images, sites, folder / "training", recipe.seed, recipe.device, recipe.tolerance_A
        )
        if not is_first():
            return
        finder.save(folder / "detector.safetensors")
        pd.concat([r.history.assign(member=i) for i, r in enumerate(results)]).to_csv(
            folder / "history.csv", index=False
        )
        assert finder.validation is not None
        finder.validation.to_csv(folder / "validation.csv", index=False)

    inputs = {
        "sets": [s.key for s in sets],
        "detect": to_dict(recipe.detect),
        "kinds": defect_kinds(recipe),
        "seed": recipe.seed,
    }
    folder = run.stage(name, inputs, work, say, together=True)
    finder = DefectFinder.load(folder / "detector.safetensors")
    finder.validation = pd.read_csv(folder / "validation.csv")
    for kind in finder.unlearnt():
        say(
            f"warning: only {finder.recall[kind]:.0%} of the simulated {kind} that were held out were found: under "
            "these conditions it can hardly be seen, or the training was too short (detect.steps)"
        )
    return finder, pd.read_csv(folder / "history.csv")


def interleave(sets: Sequence[LabelledSet]) -> tuple[np.ndarray, pd.DataFrame]:
    """Merge sets of equal size: image `i` of set `k` becomes ``i * len(sets) + k``, scaled robustly."""
    if len({s.images.shape for s in sets}) != 1:
        raise ValueError("the sets must have the same shape")
    scaled = [np.stack([robust_scale(image)[0] for image in s.images]) for s in sets]
    images = np.stack(scaled, axis=1).reshape(-1, *sets[0].images.shape[1:])
    tables = [s.sites.assign(index=s.sites["index"] * len(sets) + k) for k, s in enumerate(sets)]
    return images, pd.concat(tables, ignore_index=True)


def fidelity_of(
    before: LabelledSet, after: LabelledSet, pixel_size_A: float, most: int = 64
) -> dict[str, LabelFidelity]:
    """Measure for each kind of defect what a translation did to atoms and labels, on up to `most` images.

    Both images carry the same noise, so what differs is the translation's doing; ``filled_in_before`` and
    ``invented_before`` say how many sites looked wrong already through that noise. A defect is compared with the
    intact columns that it replaces; where nothing was before (an adatom, a pair of columns), with all of them; an
    atom on a film without columns with empty places of that film.
    """
    n = min(most, len(before.images))
    sites = before.sites[before.sites["index"] < n]
    kinds = list(dict.fromkeys(sites["kind"]))
    columns = [kind for kind in kinds if kind.startswith("column-")]

    def positions(chosen: list[str]) -> list[np.ndarray]:
        own = sites[sites["kind"].isin(chosen)]
        return [own.loc[own["index"] == i, ["x_px", "y_px"]].to_numpy() for i in range(n)]

    out = {}
    for kind in (k for k in kinds if k not in columns):
        defects = positions([kind])
        if columns:
            replaced = f"column-{parse_kind(kind).old}"
            atoms, intact = positions(columns), positions([replaced] if replaced in columns else columns)
        else:
            far_px = EMPTY_A / pixel_size_A
            atoms = defects
            intact = [
                _empty_places(xy, before.images.shape[1:], far_px, i) for i, xy in enumerate(positions(kinds))
            ]
        pair = before.images[:n], after.images[:n]
        with suppress(UserError):  # of this kind no site can be measured: all too near an edge
            out[kind] = label_fidelity(*pair, atoms, intact, defects, pixel_size_A)
    return out


def fidelity_numbers(
    before: LabelledSet, after: LabelledSet, pixel_size_A: float
) -> dict[str, dict[str, Any]]:
    """Return what `fidelity_of` does as plain values, for files and tables."""
    return {kind: asdict(found) for kind, found in fidelity_of(before, after, pixel_size_A).items()}


def _empty_places(taken: np.ndarray, shape: tuple[int, ...], far_px: float, seed: int) -> np.ndarray:
    """Random places ``[M, 2]`` of an image that are far from all atoms."""
    rng = np.random.default_rng([seed, 5])
    places = rng.uniform(0, np.array(shape[::-1]) - 1, (max(50, 3 * len(taken)), 2))
    return places[cKDTree(taken).query(places)[0] > far_px] if len(taken) else places


def domain_reference(sets: Sequence[LabelledSet], recipe: Recipe) -> DomainReference | None:
    """Learn what the detector was trained on, to tell whether an image is like it; None from too few or too small."""
    images = np.concatenate([s.images for s in sets])
    patch = min(64, images.shape[-1])
    if len(images) < LEAST_IMAGES or patch < LEAST_PATCH_PX:
        return None
    return DomainReference.fit(images, recipe.sampling_A, patch_px=patch, max_patches=1500, seed=recipe.seed)


def home_reference(images: Sequence[Micrograph], recipe: Recipe) -> DomainReference | None:
    """Learn what the images look like that a detector is made for; None if they are too few or too small.

    Other days on the same microscope differ too little from the training images, which are varied on purpose,
    to be told by :func:`domain_reference`.
    """
    at_work = [m.resampled(recipe.sampling_A) for m in images]
    for edge in (256, 128):
        pieces = [p for m in at_work for p in cut_patches([m], min(edge, *m.shape), 100)]
        if len(pieces) >= LEAST_IMAGES and min(min(p.shape) for p in pieces) >= LEAST_PATCH_PX:
            return DomainReference.fit(
                pieces,
                recipe.sampling_A,
                64,
                1500,
                seed=recipe.seed,
                of="the images the detector was made for",
            )
    return None


def save_samples(folder: Path, step: int, seen: Watch, pixel_size_A: float, seed: int) -> None:
    """Draw a simulated, a translated and an experimental patch beside each other, as the training goes on."""
    from micrographia.plots.pictures import comparison_sheet
    from micrographia.workflows.report import figure_png

    figure = comparison_sheet(
        {
            "simulated": seen.simulated[0],
            "translated": seen.translated[0],
            "experimental": seen.experimental[0],
        },
        pixel_size_A,
    )
    made = {"generator": "cyclegan", "step": step, "trained_with_seed": seed}
    with atomic_path(folder / f"{step:06d}.png") as temporary:
        temporary.write_bytes(figure_png(figure, synthetic=made))


def _write_json(path: Path, values: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, default=float), "utf-8")


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
