"""Single links of the chain, from files to files: simulate, translate, detect."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from micrographia.detect.finder import DefectFinder
from micrographia.errors import UserError
from micrographia.io import atomic_path, write_image
from micrographia.library import ImageLibrary
from micrographia.metrics.domain import LEAST_IMAGES, LEAST_PATCH_PX, DomainReference
from micrographia.micrograph import Micrograph
from micrographia.plots.figures import loss_figure
from micrographia.simulate.degrade import draw_conditions
from micrographia.simulate.fit import cut_patches
from micrographia.simulate.scenes import simulate_series
from micrographia.sites import SITE_COLUMNS, concat_sites, write_sites
from micrographia.training.device import choose_device, set_threads
from micrographia.training.distributed import by_first
from micrographia.translate.translator import Translator, Watch
from micrographia.workflows.annotate import annotate, file_name
from micrographia.workflows.recipe import Recipe, to_dict
from micrographia.workflows.report import figure_png
from micrographia.workflows.scale import ScaleRule, decide_scale, read_experiment
from micrographia.workflows.stages import (
    LabelledSet,
    fidelity_numbers,
    interleave,
    load_set,
    save_samples,
    store_library,
)

Say = Callable[[str], None]
#: Edge of an image that is simulated, at least.
SMALLEST_PX = 16
#: Experimental patches that a translator learns from at most.
MAX_PATCHES = 400


def simulate(recipe: Recipe, n: int, size_px: int, out: Path, noise_free: bool = False) -> None:
    """Simulate `n` labelled images under the recipe's range of conditions.

    Parameters
    ----------
    out : path
        ``NAME.zarr`` becomes an :class:`ImageLibrary`, all else a folder of TIFF files and ``sites.csv``.
    """
    if size_px < SMALLEST_PX:
        raise UserError(f"Images of {size_px} px show nothing; give --size-px {SMALLEST_PX} or more.")
    _must_be_new(out)
    set_threads()
    rng = np.random.default_rng([recipe.seed, 31])
    conditions = None if noise_free else draw_conditions(recipe.fit.prior, n, rng)
    images, _, sites = simulate_series(
        recipe.specimen, recipe.optics, n, (size_px, size_px), recipe.sampling_A, recipe.seed, conditions
    )
    about = {"step": "simulate", "synthetic": True, "noise_free": noise_free, "recipe": to_dict(recipe)}
    if out.suffix == ".zarr":
        store_library(out, images, sites, recipe, about)
    else:
        _write_folder(out, images, sites, recipe.sampling_A, about)


def fit_translator(
    recipe: Recipe, library: Path, images: Sequence[str], pixel_size_A: float | None, out: Path, say: Say
) -> None:
    """Train the translation between a library and unlabelled images; write the model to `out`."""
    _must_be_new(out)
    set_threads()
    choose_device(recipe.device)
    labelled = ImageLibrary.open(library)
    config = recipe.translate
    rule = replace(ScaleRule.of(recipe), pixel_size_A=pixel_size_A or 0.0)
    real = [m.resampled(labelled.pixel_size_A) for m in _at_scale(images, rule, labelled.pixel_size_A, say)]
    large = [min(m.shape) for m in real if min(m.shape) >= config.patch_px]
    edge = min([2 * config.patch_px, *large]) if large else config.patch_px
    translator = Translator(labelled.pixel_size_A, config)
    patches = cut_patches(real, edge, MAX_PATCHES)
    folder = out.with_suffix(".training")

    def watch(step: int, seen: Watch) -> None:
        save_samples(folder / "samples", step, seen, labelled.pixel_size_A, recipe.seed)

    result = translator.fit(labelled.load()[0], patches, folder, recipe.seed, recipe.device, watch)

    def finish() -> None:
        translator.save(out)
        with atomic_path(folder / "losses.png") as temporary:
            temporary.write_bytes(figure_png(loss_figure(result.history)))

    by_first(finish)
    say(f"sample pictures and losses: {folder}")


def apply_translator(
    model: Path,
    inputs: Sequence[str],
    pixel_size_A: float | None,
    out: Path,
    reverse: bool,
    device: str,
    say: Say,
) -> None:
    """Translate a library (its labels stay) or image files (at the translator's sampling)."""
    _must_be_new(out)
    set_threads()
    translator = Translator.load(model)
    about = {"step": "translate", "model": str(model), "reverse": reverse}
    if len(inputs) == 1 and (Path(inputs[0]) / "zarr.json").is_file():
        library = ImageLibrary.open(inputs[0])
        images, labels = library.load()
        sites = library.sites
        translated = translator.apply(images, 0, device, reverse)
        about |= {"of": library.metadata}
        if not reverse:
            before = LabelledSet("source", images, sites.assign(index=sites["image"].astype(int)), inputs[0])
            about["label_fidelity"] = _told_fidelity(before, translated, library.pixel_size_A, say)
        with ImageLibrary.create(
            out, len(images), library.shape, library.kinds, library.pixel_size_A, about, str(labels.dtype)
        ) as copy:
            for i, image in enumerate(translated):
                copy.write(i, image, labels[i], sites[sites["image"] == str(i)])
        return
    with _new_folder(out) as folder:
        for micrograph in read_experiment(inputs, pixel_size_A or 0.0, say)[0]:
            at_work = micrograph.resampled(translator.pixel_size_A)
            data = translator.apply(at_work.data[None], 0, device, reverse)[0]
            name = file_name(micrograph.name).removesuffix(".tif")
            write_image(folder / f"{name}.tif", at_work.with_data(data, f"translated by {model}"), about)
            say(f"{name}.tif")


def _told_fidelity(
    before: LabelledSet, translated: np.ndarray, pixel_size_A: float, say: Say
) -> dict[str, dict]:
    """Measure what a translation did to a library's labels, and tell it."""
    fidelity = fidelity_numbers(before, replace(before, images=translated), pixel_size_A)
    for kind, f in fidelity.items():
        say(
            f"{kind}: atoms moved by {f['median_displacement_pm']:.2g} pm (median; 95 %: {f['displacement_95_pm']:.2g}), "
            f"contrast kept {f['contrast_kept']:.2f}, filled in {f['filled_in']:.1%} (before {f['filled_in_before']:.1%}), "
            f"invented {f['invented']:.1%} (before {f['invented_before']:.1%})"
        )
    return fidelity


def fit_detector(recipe: Recipe, libraries: Sequence[Path], out: Path) -> dict[str, float]:
    """Train the detector on libraries of one kind; write it to `out`, return its scores at home."""
    _must_be_new(out)
    set_threads()
    choose_device(recipe.device)
    opened = [ImageLibrary.open(path) for path in libraries]
    first = opened[0]
    for other in opened[1:]:
        if (other.kinds, len(other), other.shape) != (first.kinds, len(first), first.shape):
            raise UserError(
                f"{other.path} and {first.path} differ in kinds, number or size of images; "
                "train on one of them, or on a library and its translation."
            )
        if other.pixel_size_A != first.pixel_size_A:
            raise UserError(f"{other.path} and {first.path} differ in pixel size; train on one of them.")
    columns = [kind for kind in first.kinds if kind.startswith("column-")]
    kinds = [kind for kind in first.kinds if kind not in columns]
    images, sites = interleave([load_set(path, path.name, str(path)) for path in libraries])
    finder = DefectFinder(kinds, columns, first.pixel_size_A, recipe.detect)
    finder.scale = ScaleRule.of(recipe).of_others()
    folder = out.with_suffix(".training")
    finder.fit(images, sites, folder, recipe.seed, recipe.device, recipe.tolerance_A)
    if len(images) >= LEAST_IMAGES and min(first.shape) >= LEAST_PATCH_PX:
        finder.home = DomainReference.fit(images, first.pixel_size_A, 64, 1500, seed=recipe.seed)
    by_first(lambda: finder.save(out))
    return finder.validation_scores


def apply_detector(
    model: Path,
    images: Sequence[str],
    pixel_size_A: float | None,
    out: Path,
    threshold: float | None,
    device: str,
    say: Say,
) -> tuple[pd.DataFrame, list[str]]:
    """Find sites in image files; write ``defects.csv`` and each image with its sites to `out`.

    Without a `threshold`, confidence and threshold are adapted to all images together.

    Returns
    -------
    sites : DataFrame
    outside : list of str
        A warning for each image that is unlike those the detector was made for.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"The threshold ({threshold}) is a confidence; give 0 to 1.")
    set_threads()
    finder = DefectFinder.load(model)
    _must_be_writable(out)
    rule = replace(ScaleRule(**finder.scale), pixel_size_A=pixel_size_A or 0.0)
    micrographs = _at_scale(images, rule, finder.pixel_size_A, say)
    if threshold is None:
        found, _, chosen = finder.find_all(micrographs, device)
        say(f"threshold {chosen:.2f} on the confidence, chosen without labels")
    else:
        found = concat_sites([finder.find(m, threshold, device) for m in micrographs])
    outside = []
    for micrograph in micrographs:
        say(f"{micrograph.name}: {(found['image'] == micrograph.name).sum()} sites")
        at_work = micrograph.resampled(finder.pixel_size_A)
        if finder.home is not None and min(at_work.shape) >= finder.home.patch_px:
            domain = finder.home.distance(at_work)
            if domain.outside:
                outside.append(domain.message)
    annotate(out, micrographs, found, {"step": "detect", "model": str(model)})
    write_sites(found, out / "defects.csv")
    return found, outside


def _at_scale(images: Sequence[str], rule: ScaleRule, sampling_A: float, say: Say) -> list[Micrograph]:
    """Read images and decide on their pixel sizes, telling which, and which images are left out."""
    read, _ = read_experiment(images, rule.pixel_size_A, say)
    scaled, _ = decide_scale(read, rule, say, sampling_A)
    for s in scaled:
        say(f"{s.image.name}: {s.image.pixel_size_A:.4g} Å per pixel, {s.why}")
    return [s.image for s in scaled]


def _write_folder(
    out: Path, images: np.ndarray, sites: pd.DataFrame, pixel_size_A: float, about: dict
) -> None:
    names = [f"simulated-{i:04d}.tif" for i in range(len(images))]
    table = sites.assign(image=[names[i] for i in sites["index"]], confidence=1.0)
    with _new_folder(out) as folder:
        for name, image in zip(names, images, strict=True):
            write_image(folder / name, Micrograph(image, pixel_size_A, name, "file"), about)
        write_sites(table[list(SITE_COLUMNS)], folder / "sites.csv")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder that gets its name when the block ends: whoever interrupts leaves no part of it."""
    with atomic_path(out) as folder:
        folder.mkdir()
        yield folder


def _must_be_new(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out} exists already; choose another --out, or remove it.")


def _must_be_writable(out: Path) -> None:
    """Make sure that the folder `out` can be written, leaving no trace, before any work is spent on it."""
    nearest = next(place for place in (out, *out.parents) if os.path.exists(place))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another --out.") from error
