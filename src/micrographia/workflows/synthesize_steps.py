"""Single steps of `micrographia synthesize`: sample, interpolate, project, evaluate, generate a test set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from micrographia.errors import UserError
from micrographia.files import atomic_path, find_files, json_text
from micrographia.formats import FOLDER_SUFFIXES
from micrographia.io import read_provenance, read_stored, write_array, write_image
from micrographia.micrograph import Micrograph
from micrographia.nets.weights import weights_key
from micrographia.plots.synthesis import as_pictures, enlarged, seeds_figure, sheet
from micrographia.simulate.microstructures import field_microstructures, grain_microstructures
from micrographia.synthesize.images import (
    TrainingSet,
    Window,
    compact,
    fitted,
    read_training_set,
    sample_suffix,
    write_samples,
)
from micrographia.synthesize.resolution import RESOLUTIONS
from micrographia.synthesize.synthesizer import Synthesizer
from micrographia.training.device import set_threads
from micrographia.video import write_video
from micrographia.workflows.report import Report, figure_png
from micrographia.workflows.synthesize import (
    JUDGED_FROM,
    PICTURE_PX,
    Judgement,
    draw_for_judging,
    judge,
    load_model,
    provenance_of,
    write_sheet,
)
from micrographia.workflows.synthesize_recipe import JudgeConfig
from micrographia.workflows.synthesize_report import judgement_sections, warn_of_left_out

Say = Callable[[str], None]


def sample(
    model: Path,
    n: int,
    first_seed: int,
    out: Path,
    truncation: float = 1.0,
    label: str | None = None,
    suffix: Literal[".png", ".tif"] = ".png",
    device: str = "auto",
) -> list[Path]:
    """Write `n` samples, of the seeds from `first_seed` on, and a sheet of them with their seeds; return the files.

    A single sample may go to a file instead of a folder.
    """
    set_threads()
    _require_room(out)
    synthesizer, file = load_model(model)
    seeds = range(first_seed, first_seed + n)
    images = synthesizer.sample(seeds, truncation, label, device)
    provenance = provenance_of(synthesizer, file, label) | {"truncation": truncation}
    files = write_samples(
        out, images, synthesizer.window, provenance, seeds, None, synthesizer.pixel_size_A, suffix
    )
    if files == [out]:  # one image, to a file
        return files
    shown = seeds[:64]
    told = provenance | {"seeds": [shown[0], shown[-1]]}
    overview = out / "overview" / "seeds.png"
    with atomic_path(overview) as temporary:
        temporary.write_bytes(figure_png(seeds_figure(images[:64], shown), None, told))
    return [*files, overview]


def interpolate(
    model: Path,
    start: int | Path,
    end: int | Path,
    out: Path,
    steps: int = 60,
    space: Literal["z", "w"] | None = None,
    linear: bool | None = None,
    truncation: float = 1.0,
    label: str | None = None,
    frames_per_second: int = 20,
    device: str = "auto",
) -> Path:
    """Write the way between two images: a folder of images, or a video if `out` ends with ``.gif`` or ``.mp4``.

    `start`, `end`: seeds, or what `project` wrote of a real image (``style.npy``, or its folder).
    `space`, `linear`: between codes or styles, along a straight line or a great circle; None: see `Synthesizer.path`.
    """
    set_threads()
    _require_room(out)
    synthesizer, file = load_model(model)
    space, spherical = synthesizer.path(space, None if linear is None else not linear)
    told: dict[str, Any] = {
        "space": space, "path": "great circle" if spherical else "straight", "truncation": truncation,
    }  # fmt: skip
    ends: list[int | torch.Tensor] = []
    for name, given in (("from", start), ("to", end)):
        if isinstance(given, int):
            ends.append(given)
            told[f"{name}_seed"] = given
        else:
            style, projected = _read_style(given, synthesizer)
            ends.append(style)
            told[f"{name}_projection_of"] = projected
    images = synthesizer.interpolate(ends[0], ends[1], steps, space, spherical, truncation, label, device)
    provenance = provenance_of(synthesizer, file, label) | told
    if out.suffix.lower() in (".gif", ".mp4"):
        frames = enlarged(np.round(255 * as_pictures(images)).astype(np.uint8), PICTURE_PX)
        write_video(out, np.concatenate([frames, frames[-2:0:-1]]), frames_per_second, provenance)
        return out
    each = [{"position": float(t)} for t in np.linspace(0, 1, steps)]
    write_samples(out, images, synthesizer.window, provenance, None, each, synthesizer.pixel_size_A)
    return out


def project(model: Path, image: Path, out: Path, steps: int, device: str, say: Say) -> float:
    """Find the style nearest to a real image; write both beside each other, and the style; return the difference."""
    set_threads()
    synthesizer, file = load_model(model)
    goal = _read(image, synthesizer)
    _require_room(out)

    def watch(step: int, loss: float) -> None:
        if step % 100 == 0 or step == steps:
            say(f"projection: step {step}/{steps}, loss {loss:.4f}")

    style, drawn, difference = synthesizer.project(goal, steps, device, watch)
    provenance = provenance_of(synthesizer, file) | {
        "projection_of": image.name,
        "rms_difference": difference,
    }
    write_samples(
        out / f"projected{sample_suffix(synthesizer.window, synthesizer.channels)}",
        drawn[None],
        synthesizer.window,
        provenance,
        None,
        None,
        synthesizer.pixel_size_A,
    )
    write_sheet(
        out / "beside.png",
        sheet(np.stack([goal, drawn]), 2),
        provenance | {"left": "real", "right": "projected"},
    )
    write_array(out / "style.npy", style.numpy(), provenance)
    return difference


def evaluate(
    generated: Path,
    real: Sequence[Path],
    out: Path | None,
    training: Sequence[Path] = (),
    config: JudgeConfig | None = None,
    label: str | None = None,
    device: str = "auto",
    say: Say = print,
) -> Judgement:
    """Compare a model's samples, or a folder of generated images, with real ones; report in `out` if given.

    Images are compared as the model sees them, or at the size of the generated images. Of a model that knows classes
    either one is judged (`label`), or all: `real` is then one folder with a folder of each.
    """
    set_threads()
    if out is not None:
        _require_room(out)
    config = config or JudgeConfig()
    left_out: list[list[str]] = []
    model: Synthesizer | None = None
    fit: Literal["crop", "resize"]
    if generated.is_file() or (generated / "model.safetensors").is_file():
        model, file = load_model(generated)
        made = provenance_of(model, file, label) | {"first_seed": JUDGED_FROM}
        shape_px, channels, fit, binning = model.shape_px, model.channels, model.fit_by, model.binning
        scale_each = model.scale_each
    else:
        if label is not None:
            raise UserError(f"{generated}: images know no classes; give the folder of class {label} alone.")
        shape_px, channels, made = _first_of(generated)
        fit, binning, scale_each = "crop", 1, False
    edge = next(r for r in RESOLUTIONS if r >= max(shape_px))
    by_class = bool(model and model.classes and label is None)

    def read(which: str, paths: Sequence[Path], classes: bool = False) -> TrainingSet:
        try:
            found = read_training_set(
                list(paths), edge, channels, fit, classes=classes, shape_px=shape_px, binning=binning,
                say=lambda told: say(f"{which}: {told}"), scale_each=scale_each,
            )  # fmt: skip
        except UserError as error:
            hint = " Or judge one class alone, with --class." if classes else ""
            raise UserError(f"{which}: {error}{hint}") from error
        left_out.extend([str(path), why] for path, why in found.failures)
        if classes and model and found.classes != model.classes:
            raise UserError(
                f"The folders {', '.join(found.classes)} are not the classes of the model: {', '.join(model.classes)}."
            )
        return found

    real_set = read("real", real, by_class)
    window = model.window if model else real_set.window
    if model and not by_class:
        seeds = range(JUDGED_FROM, JUDGED_FROM + config.samples)
        drawn, labels = model.sample(seeds, label=label, device=device), np.zeros(config.samples, int)
    elif model:
        drawn, labels, _ = draw_for_judging(model, real_set, config.samples, device)
    else:
        drawn = _in_window(read("generated", [generated]), window)
        some = np.random.default_rng(0).permutation(len(drawn))[: config.samples]
        drawn = drawn[np.sort(some)]
        labels = np.zeros(len(drawn), int)
    known = _in_window(read("training", training, by_class), window) if training else None
    judged_by = _in_window(real_set, window)
    say(f"judging {len(drawn)} images by {len(judged_by)} real ones")
    found = judge(
        judged_by,
        drawn,
        known,
        config,
        0,
        (real_set.class_numbers, labels, real_set.classes),
        real_set.pixel_size_A,
    )
    found.numbers["images_left_out"] = left_out
    if found.memorisation is not None and found.memorisation.known:
        say(
            f"note: {found.memorisation.known} of {len(judged_by)} real images are training images, which no model is to "
            "be judged by; give others with --real."
        )
    if out is not None:
        report = Report("Generated against real images", f"{generated} against {', '.join(map(str, real))}")
        judgement_sections(report, found, judged_by, drawn, known, made, real_set.pixel_size_A)
        warn_of_left_out(report, left_out)
        report.write(out / "report.html")
        with atomic_path(out / "metrics.json") as temporary:
            temporary.write_text(json_text(found.numbers) + "\n", "utf-8")
    return found


def make_microstructures(
    kind: Literal["field", "grains"],
    n: int,
    size_px: int,
    fraction: float,
    anisotropy: float,
    seed: int,
    out: Path,
) -> pd.DataFrame:
    """Write dual-phase microstructures whose truth is known: images, masks and a table of phase fractions."""
    _require_room(out)
    make = field_microstructures if kind == "field" else grain_microstructures
    made = make(n, size_px, phase_fraction=fraction, anisotropy=anisotropy, seed=seed)
    provenance = {"generator": f"{kind} microstructure", **made.parameters, "size_px": size_px, "seed": seed}
    window = Window(0.0, 255.0, "uint8")
    digits = len(str(n - 1))
    names = [f"{kind}-{i:0{digits}d}" for i in range(n)]
    for i, (name, image, mask) in enumerate(zip(names, made.images, made.masks, strict=True)):
        told = provenance | {"number": i}
        write_samples(out / f"{name}.png", 2 * image - 1, window, told)
        masked = Micrograph(mask.astype(np.float32), None, f"{name}.tif")
        write_image(out / "masks" / f"{name}.tif", masked, told | {"shows": "1 = islands, 0 = matrix"})
    table = pd.DataFrame({"image": [f"{name}.png" for name in names], "phase_fraction": made.phase_fraction})
    with atomic_path(out / "truth.csv") as temporary:
        table.to_csv(temporary, index=False)
    return table


def learn_gaussian(seed: int, out: Path, say: Say) -> None:
    """Train the smallest GAN; write the film of its training and what it has learnt."""
    from micrographia.synthesize.gaussian import film_gaussian_gan

    set_threads()
    _require_room(out)
    found = film_gaussian_gan(out / "training.gif", seed)
    say(found.table().round(3).to_string())


def _read(path: Path, synthesizer: Synthesizer) -> np.ndarray:
    """One real image as the model sees it, ``[C, H, W]``: the centre of a larger one."""
    stored = read_stored(path, colours=synthesizer.channels == 3)[0]
    if stored.data.min() == stored.data.max():
        raise UserError(f"{path}: is constant; there is nothing to find a style of.")
    data = compact(np.atleast_3d(stored.data), synthesizer.scale_each)
    _require_same_depth(str(data.dtype), synthesizer.window)
    height, width = synthesizer.shape_px
    data = fitted(data, synthesizer.binning, synthesizer.fit_by, (height, width))
    if data.shape[0] < height or data.shape[1] < width:
        raise UserError(
            f"{path}: is {data.shape[1]} x {data.shape[0]} px, smaller than the {width} x {height} px of the model."
        )
    top, left = (data.shape[0] - height) // 2, (data.shape[1] - width) // 2
    patch = np.moveaxis(data[top : top + height, left : left + width], -1, 0)[None]
    return synthesizer.window.scale(torch.from_numpy(patch.astype(np.float32)))[0].numpy()


def _read_style(path: Path, synthesizer: Synthesizer) -> tuple[torch.Tensor, str]:
    """The style ``[latent]`` that `project` wrote, and the name of the image that it is of."""
    path = path / "style.npy" if path.is_dir() else path
    made = read_provenance(path) or {}
    if path.suffix != ".npy" or "projection_of" not in made:
        raise UserError(f"{path}: is no style; give a seed, or what 'micrographia synthesize project' wrote.")
    if made.get("weights") != weights_key(synthesizer.generator):
        raise UserError(
            f"{path}: is a style of another model ({made.get('model')}); project the image with this one."
        )
    return torch.from_numpy(np.load(path)), str(made["projection_of"])


def _in_window(images: TrainingSet, window: Window) -> np.ndarray:
    """``[N, C, H, W]``, -1 ... 1 by another set's window."""
    _require_same_depth(images.window.dtype, window)
    return replace(images, window=window).batch(slice(None)).numpy()


def _require_same_depth(dtype: str, window: Window) -> None:
    if dtype != window.dtype:
        raise UserError(
            f"These images are {dtype}, those to compare with {window.dtype}: their grey levels cannot be compared; "
            "judge the model itself instead of its samples, or convert one of them (of a model of float images, samples "
            "keep their levels as TIFF: sample --tif)."
        )


def _first_of(folder: Path) -> tuple[tuple[int, int], int, dict[str, Any]]:
    """Height and width (as far as they can be compared at once) and channels of the first readable image in a folder, and what
    made them all, as far as it tells."""
    if not folder.exists():
        raise UserError(f"{folder}: no such file or folder.")
    files = find_files([folder], FOLDER_SUFFIXES)
    if not files:
        raise UserError(f"{folder}: holds neither a model nor images.")
    for file in files:
        for colours in (False, True):
            try:
                data = read_stored(file, colours=colours)[0].data
            except UserError:
                continue
            height, width = (min(n, RESOLUTIONS[-1]) for n in data.shape[:2])
            told = read_provenance(file) or {}
            shared = {k: told[k] for k in ("generator", "model", "weights", "trained_with_seed") if k in told}
            return (height, width), 3 if data.ndim == 3 else 1, shared | {"images": str(folder)}
    raise UserError(
        f"{folder}: none of its {len(files)} files can be read as an image, such as {files[0].name}."
    )


def _require_room(out: Path) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} exists{'' if out.is_file() else ' and is not empty'}; choose another --out.")
