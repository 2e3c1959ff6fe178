"""`micrographia synthesize`: a folder of images to a generative model, its samples, and how good they are."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from micrographia.errors import UserError
from micrographia.files import atomic_path
from micrographia.io import write_array
from micrographia.metrics.distances import compare_sets, frechet_distance, standardise
from micrographia.metrics.features import FeatureExtractor, inception_extractor, physical_features
from micrographia.metrics.levels import compare_levels
from micrographia.metrics.memorisation import Memorisation, memorisation, pixel_keys
from micrographia.metrics.microstructure import MicrostructureComparison, compare_micrographs
from micrographia.nets.weights import weights_key
from micrographia.plots.synthesis import enlarged, sheet
from micrographia.synthesize.images import TrainingSet, Window, read_training_set, write_samples
from micrographia.synthesize.synthesizer import FEATURE_PIXEL_A, Synthesizer
from micrographia.training import distributed
from micrographia.training.checkpoint import data_fingerprint
from micrographia.training.device import choose_device, set_threads
from micrographia.training.loop import TrainingDiverged
from micrographia.workflows.runfolder import RunFolder, versions
from micrographia.workflows.synthesize_recipe import JudgeConfig, SynthesizeRecipe

Say = Callable[[str], None]
#: What is held out as a whole, coarse to fine: files; places in them, with all that overlaps; successive frames of movies,
#: whose neighbours in time are learnt from.
Way = Literal["files", "places", "frames"]
#: Seeds of the samples that judge a model start here; users' small numbers stay theirs.
JUDGED_FROM = 1_000_000
#: Images of the sheet that shows how a training goes on, and of those written at its end.
SHOWN, WRITTEN = 24, 64
#: Short edge of pictures to be looked at, at least about this; training images may be stamps.
PICTURE_PX = 256
#: From this many on, images judge; and whole files of them, or places in them, are held out.
_MANY = 8


@dataclass(frozen=True)
class Judgement:
    """How generated images compare with real ones."""

    numbers: dict[str, Any]
    """Of `metrics.json`."""
    microstructure: MicrostructureComparison | None
    memorisation: Memorisation | None
    by_class: pd.DataFrame | None
    """Fréchet distance of each class, with its noise floor."""


@dataclass(frozen=True)
class Synthesis:
    """Everything a run has made, and what its report shows."""

    model: Synthesizer
    recipe: SynthesizeRecipe
    training: TrainingSet
    learnt: np.ndarray
    """The training images as the networks see them, ``[N, C, H, W]`` in -1 ... 1."""
    real: np.ndarray
    """``[N, C, H, W]`` in -1 ... 1: the images that judge, held out where there are enough."""
    held_out_by: Way | Literal[""]
    samples: np.ndarray
    """``[M, C, H, W]``, of the seeds from `JUDGED_FROM` on."""
    looks: list[tuple[int, np.ndarray]]
    """(step, samples) as the training went on."""
    history: pd.DataFrame
    best_step: int | None
    judgement: Judgement
    folder: Path


def fit_synthesizer(
    images: Sequence[Path | str],
    recipe: SynthesizeRecipe,
    out: Path,
    resume: bool = False,
    say: Say = print,
) -> Synthesis | None:
    """Learn a population of images; judge samples of it; leave model, samples, metrics and report in `out`.

    Parameters
    ----------
    images : files, folders or patterns
        With ``images.classes`` one folder of folders.
    recipe : SynthesizeRecipe
    out : path
        The run folder.
    resume : bool
        Continue an earlier run of the same recipe.
    say : callable
        Told what is going on.

    Returns
    -------
    Synthesis
        None in all but the first process of ``torchrun``.

    Raises
    ------
    UserError
        No or too few images, of mixed bit depths or all too small; a run folder of something else; out of memory
        (with the batch that would fit); diverged.
    """
    from micrographia.workflows.synthesize_report import write_synthesis_report

    set_threads()
    device = choose_device(recipe.device)
    everything = read_images_of(recipe, images, say)
    divided = divide(everything, recipe)
    training, real = divided.training, divided.real
    # What would fail after the training fails now.
    if len(training) < recipe.gan.batch <= len(everything):
        raise UserError(
            f"Of {len(everything)} images {len(real)} are held out to judge by, and {len(training)} are left, fewer than "
            f"a batch of {recipe.gan.batch}: give more images, cut more patches of each (images.crops_per_image), or set "
            "gan.batch or images.hold_out smaller."
        )
    Synthesizer(recipe.gan).check(training)
    _extractor(recipe.judge)
    run = RunFolder(out, recipe, resume, free=("judge.",))
    inputs = {"images": data_fingerprint([everything.images, str(everything.names)])}
    run.require_inputs(inputs)
    left_out = [[str(path), why] for path, why in everything.failures]
    if left_out:
        run.write_json("left_out.json", left_out)
        say(f"left out: all {len(left_out)} are listed in {run.path / 'left_out.json'}")
    if not divided.held_out_by:
        say(
            "note: no image is held out: those learnt from judge, and copies of them would score best of all."
        )
    say(
        f"{len(training)} training images of {recipe.gan.resolution} px, {len(real)} to judge by, device {device}"
    )

    looks = run.path / "looks"
    looks.mkdir(exist_ok=True)

    def watch(step: int, samples: np.ndarray) -> None:
        told = {
            "generator": recipe.gan.network, "model": f"{run.path.name}, in training", "step": step,
            "trained_with_seed": recipe.seed,
        }  # fmt: skip
        write_sheet(looks / f"step-{step:06d}.png", sheet(samples[:SHOWN], 8), told)
        write_array(looks / f"step-{step:06d}.npy", samples[:8].astype(np.float16), told)

    def work(folder: Path) -> None:
        model = Synthesizer(recipe.gan)
        try:
            result = model.fit(training, folder, recipe.seed, str(device), watch, divided.unseen)
        except TrainingDiverged as error:
            if model.generator is None:
                raise
            model.save(run.path / "model.safetensors")
            raise TrainingDiverged(f"{error} Its generator is {run.path / 'model.safetensors'}.") from error
        if not distributed.is_first():
            return
        model.save(folder / "model.safetensors")
        result.history.to_csv(folder / "history.csv", index=False)
        (folder / "best.txt").write_text(str(result.best_step))

    # Which images are learnt from, the pixels being among the inputs already.
    division = data_fingerprint([[str(part.names), part.corners_px] for part in (training, real)])
    key = inputs | {"division": division, "gan": str(recipe.gan), "seed": recipe.seed}
    stage = run.stage("train", key, work, say, together=True)
    if not distributed.is_first():
        return None
    with atomic_path(run.path / "model.safetensors") as temporary:
        shutil.copyfile(stage / "model.safetensors", temporary)
    model = Synthesizer.load(run.path / "model.safetensors")

    samples, labels, seeds = draw_for_judging(model, training, recipe.judge.samples, str(device))
    say(f"judging {len(samples)} samples by {len(real)} real images")
    judged_by = real.batch(slice(None)).numpy()
    learnt = training.batch(slice(None)).numpy() if divided.held_out_by else judged_by
    judgement = judge(
        judged_by, samples, learnt, recipe.judge, recipe.seed, (real.class_numbers, labels, training.classes),
        training.pixel_size_A,
    )  # fmt: skip
    numbers = judgement.numbers | {
        "seed": recipe.seed, "training_images": len(training), "judged_by": len(real),
        "held_out_by": divided.held_out_by or "nothing",
        "best_step": int((stage / "best.txt").read_text()), "pixel_size_A": training.pixel_size_A,
        "images_left_out": left_out, "versions": versions(),
    }  # fmt: skip
    run.write_json("metrics.json", numbers)
    provenance = provenance_of(model, run.path / "model.safetensors")
    each = [{"class": model.classes[k]} for k in labels[:WRITTEN]] if model.classes else None
    write_samples(
        run.path / "samples", samples[:WRITTEN], model.window, provenance, seeds[:WRITTEN].tolist(), each,
        model.pixel_size_A,
    )  # fmt: skip
    shown = [
        (int(path.stem.removeprefix("step-")), np.load(path).astype(np.float32))
        for path in sorted(looks.glob("step-*.npy"))
    ]
    found = Synthesis(
        model, recipe, training, learnt, judged_by, divided.held_out_by, samples, shown,
        pd.read_csv(stage / "history.csv"), numbers["best_step"], judgement, run.path,
    )  # fmt: skip
    write_synthesis_report(found)
    say(f"open {run.path / 'report.html'}")
    return found


def judge(
    real: np.ndarray,
    generated: np.ndarray,
    training: np.ndarray | None,
    config: JudgeConfig,
    seed: int,
    classes: tuple[np.ndarray, np.ndarray, tuple[str, ...]] | None = None,
    pixel_size_A: float | None = None,
) -> Judgement:
    """Compare generated with real images, both ``[N, C, H, W]`` in one window.

    Parameters
    ----------
    training : array, optional
        The images that the model learnt from: are samples copies of them? May be `real` itself; if not, they are compared
        with `real` as the samples are (``NAME_training``): others of the same population, a model cannot be expected to
        come nearer.
    classes : (of real, of generated, names), optional
    """
    grey_real, grey = _grey(real), _grey(generated)
    extractor = _extractor(config)
    numbers, microstructure = _compared(
        real, generated, config, extractor, seed, pixel_size_A, config.bootstrap
    )
    if training is not None and training is not real:
        some = np.random.default_rng([seed, 17]).permutation(len(training))[: len(generated)]
        learnt, _ = _compared(real, training[some], config, extractor, seed, pixel_size_A, 0)
        numbers |= {f"{k}_training": learnt[k] for k in learnt if f"{k}_floor" in learnt}
    copies = None
    if training is not None:
        copies = memorisation(grey, _grey(training), None if training is real else grey_real, seed)
        numbers |= copies.numbers()
    by_class = None
    if classes is not None and classes[2]:
        by_class = _by_class(grey_real, grey, *classes, seed)
        numbers["frechet_by_class"] = by_class.dropna().set_index("class")["frechet"].to_dict()
    return Judgement(numbers, microstructure, copies, by_class)


def _compared(
    real: np.ndarray,
    other: np.ndarray,
    config: JudgeConfig,
    extractor: FeatureExtractor | None,
    seed: int,
    pixel_size_A: float | None,
    draws: int,
) -> tuple[dict[str, Any], MicrostructureComparison | None]:
    """Every measure of how alike two sets are, with noise floors, and the curves of their phases."""
    grey_real, grey = _grey(real), _grey(other)
    numbers = compare_sets(grey_real, grey, FEATURE_PIXEL_A, extractor, seed, n_bootstrap=draws)
    numbers |= compare_levels(real, other, seed, n_bootstrap=draws)
    if not config.phases:
        return numbers, None
    microstructure = compare_micrographs(
        grey_real,
        grey,
        config.threshold_each,
        pixel_size_A=pixel_size_A,
        n_bootstrap=draws,
        seed=seed,
    )
    return numbers | {k: v for k, v in microstructure.numbers().items() if k not in numbers}, microstructure


def _grey(images: np.ndarray) -> np.ndarray:
    """The mean of the channels ``[N, H, W]``; of one channel no copy."""
    return images[:, 0] if images.shape[1] == 1 else images.mean(axis=1)


def _extractor(config: JudgeConfig) -> FeatureExtractor | None:
    return inception_extractor(config.inception_weights) if config.inception_weights else None


def draw_for_judging(
    model: Synthesizer, like: TrainingSet, n: int, device: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw `n` samples; return them, their classes (each as often as among the images `like`), and their seeds."""
    seeds = np.arange(JUDGED_FROM, JUDGED_FROM + n)
    if not model.classes or like.labels is None:
        return model.sample(seeds.tolist(), device=device), np.zeros(n, int), seeds
    share = np.bincount(like.labels, minlength=len(model.classes)) / len(like)
    ends = np.round(np.cumsum(share) * n).astype(int)
    labels = np.searchsorted(ends, np.arange(n), side="right")
    parts = [
        model.sample(seeds[labels == k].tolist(), label=int(k), device=device) for k in np.unique(labels)
    ]
    order = np.random.default_rng(0).permutation(n)  # the first few show all classes
    return np.concatenate(parts)[order], labels[order], seeds[order]


def write_sheet(path: Path, picture: np.ndarray, provenance: dict[str, Any]) -> None:
    """Write a picture ``[h, w]`` or ``[h, w, 3]``, 0 to 1, of generated images; it says that they are."""
    picture = enlarged(picture[None], PICTURE_PX)[0]
    images = picture[None] if picture.ndim == 2 else np.moveaxis(picture, -1, 0)
    write_samples(path, 2 * images[None] - 1, Window(0.0, 255.0, "uint8"), provenance)


def provenance_of(model: Synthesizer, path: Path, label: str | None = None) -> dict[str, Any]:
    """What every generated file says about its model, and the class that was asked for."""
    told = {
        "generator": model.config.network, "model": "/".join(path.resolve().parts[-2:]),
        "trained_with_seed": model.seed,
    }  # fmt: skip
    told |= {"class": label} if label is not None else {}
    return told | {"weights": weights_key(model.generator)} if model.generator is not None else told


def read_images_of(recipe: SynthesizeRecipe, images: Sequence[Path | str], say: Say) -> TrainingSet:
    """Read files, folders or patterns as a recipe has it."""
    config, edge = recipe.images, recipe.gan.resolution
    return read_training_set(
        list(images), edge, config.channels, config.fit, config.crops_per_image or None, config.classes, recipe.seed,
        (config.height_px or edge, config.width_px or edge), config.binning, say, recipe.pixel_size_A or None,
        config.scale_each,
    )  # fmt: skip


@dataclass(frozen=True)
class Division:
    """Images to learn from, and others to judge by: the same where none can be held out."""

    training: TrainingSet
    real: TrainingSet
    held_out_by: Way | Literal[""]
    """What was held out as a whole; empty = nothing."""

    @property
    def unseen(self) -> TrainingSet | None:
        """Held-out images that tell whether others are known by heart; neighbours in time of what is learnt do not."""
        if not self.held_out_by:
            return None
        if self.held_out_by != "frames":
            return self.real
        learnt_from = {_file_and_frame(name)[0] for name in self.training.names}
        return self.real.part(np.array([_file_and_frame(n)[0] not in learnt_from for n in self.real.names]))


def divide(images: TrainingSet, recipe: SynthesizeRecipe) -> Division:
    """Hold a share of the images out, of classes the same share of each.

    Files are held out as wholes (frames of one are near copies of each other) where there are `_MANY`, and enough of each
    class; else places, else successive frames. An image under two names is held out, or learnt from, under both, and
    judges once; blank patches are not taken for one image.
    """
    _, first, which = np.unique(pixel_keys(images.images), return_index=True, return_inverse=True)
    if len(first) == 1 < len(images):
        told = f"{images.names[0]}, {images.names[-1]}"
        raise UserError(f"All {len(images)} images are the same, pixel by pixel ({told}): give others.")
    if len(first) < _MANY:
        told = f"{len(first)} different images" if len(first) < len(images) else f"{len(first)} images"
        raise UserError(
            f"{told} are too few to judge a model by: give at least {_MANY}, or cut more patches of each "
            "(images.crops_per_image)."
        )
    share, labels = recipe.images.hold_out, images.class_numbers
    nothing = Division(images, images, "")
    if share == 0:
        return nothing
    blank = (images.images.min(axis=(2, 3)) == images.images.max(axis=(2, 3))).all(axis=1)
    first_of_twins = first[which] == np.arange(len(images))
    files, frames = map(np.array, zip(*map(_file_and_frame, images.names), strict=True))
    found, served = nothing, 0
    for way, unit in _units(images, files, frames, share):
        unit = np.where(blank, unit, unit[first[which]])
        held = _chosen(unit, labels, share, np.random.default_rng([recipe.seed, 11]))
        kept = ~held
        if way == "places":
            kept &= ~_overlapping(images, files, held)
        judges = held & (first_of_twins | blank)
        different = [len(np.unique(which[some])) for some in (judges, kept)]
        fair = kept.sum() >= len(images) / 2 and set(labels[kept]) == set(labels)
        serves = len(np.unique(labels[judges]))
        if len(np.unique(unit)) >= _MANY and min(different) >= _MANY and fair and serves > served:
            found, served = Division(images.part(kept), images.part(judges), way), serves
        if served == len(np.unique(labels)):
            break
    return found


def _file_and_frame(name: str) -> tuple[str, int]:
    """The file that an image is from, and its number among its frames."""
    file, frame, *_ = [*re.split(r"#(\d+)\Z", name), "0"]
    return file, int(frame)


def _units(
    images: TrainingSet, files: np.ndarray, frames: np.ndarray, share: float
) -> Iterator[tuple[Way, np.ndarray]]:
    """What each image is held out with, coarse to fine; the fine ones only where they are asked for."""
    yield "files", files
    yield "places", np.array([f"{f} {x} {y}" for f, (x, y) in zip(files, images.corners_px, strict=True)])
    table = pd.DataFrame({"label": images.class_numbers, "file": files, "frame": frames})
    of_file = table.groupby(["label", "file"])["frame"]
    in_block = table.groupby("label")["file"].transform("size") / max(_MANY, 1 / share)
    parts = np.ceil(of_file.transform("size") / in_block)
    block = (of_file.rank("dense") - 1) * parts // of_file.transform("nunique")
    yield "frames", np.array([f"{f} {int(k)}" for f, k in zip(files, block, strict=True)])


def _chosen(units: np.ndarray, labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Which images are held out: a share of the units of each class, at random."""
    held: list[str] = []
    for label in np.unique(labels):
        own = np.unique(units[labels == label])
        held += rng.choice(own, round(share * len(own)), replace=False).tolist()
    return np.isin(units, held)


def _overlapping(images: TrainingSet, files: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Which patches share pixels with one of those that are `out`, be it in other frames of their files."""
    corners = images.corners_px
    height, width = images.images.shape[-2:]
    found = np.zeros(len(images), bool)
    for k in np.flatnonzero(out):
        near = (np.abs(corners - corners[k]) < (width, height)).all(axis=1)
        found |= near & (files == files[k])
    return found


def _by_class(
    real: np.ndarray,
    generated: np.ndarray,
    real_labels: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    seed: int,
) -> pd.DataFrame:
    """Fréchet distance class by class, beside that of two halves of the real images of the class."""
    a, b = standardise(
        physical_features(real, FEATURE_PIXEL_A), physical_features(generated, FEATURE_PIXEL_A)
    )
    rng = np.random.default_rng([seed, 13])
    rows = []
    for k, name in enumerate(names):
        own, drawn = a[real_labels == k], b[labels == k]
        distance = floor = np.nan
        if len(own) >= 4 and len(drawn) >= 2:
            one, two = np.array_split(own[rng.permutation(len(own))], [len(own) // 2])
            distance, floor = frechet_distance(own, drawn), frechet_distance(one, two)
        rows.append((name, len(own), len(drawn), distance, floor))
    return pd.DataFrame(rows, columns=["class", "real", "generated", "frechet", "floor"])


def load_model(path: Path) -> tuple[Synthesizer, Path]:
    """Load a model file, or that of a run folder; return it and the file's path."""
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path}: neither a model file nor a run folder with model.safetensors.")
    return Synthesizer.load(file), file
