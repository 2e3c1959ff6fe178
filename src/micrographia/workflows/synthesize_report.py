"""The report of `synthesize`: real and generated images, how alike they are, and how the training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from micrographia.metrics.memorisation import Memorisation
from micrographia.plots.microstructure import microstructure_figure, neighbours_figure
from micrographia.plots.synthesis import adversarial_figure, rows_figure, sheet_figure
from micrographia.workflows.report import Report
from micrographia.workflows.synthesize import JUDGED_FROM, Judgement, Synthesis, provenance_of

#: Images of a set that are shown.
SHEET = 36
COLOURS = " Of colours the mean is judged; only the KL of grey levels, brightness and contrast are measured in each channel."
LEARNT = (
    " Beside it, the images that the model learnt from: held-out micrographs are others, and no model can be "
    "expected to come nearer to them than the images it was shown."
)


def write_synthesis_report(found: Synthesis) -> None:
    """Write ``report.html``."""
    recipe, gan = found.recipe, found.recipe.gan
    report = Report(
        f"{gan.network} at {gan.resolution} px from {len(found.training)} images",
        f"recipe {recipe.name}, {gan.loss} loss, {gan.steps} steps of {gan.batch} images, seed {recipe.seed}",
    )
    made = provenance_of(found.model, found.folder / "model.safetensors")
    drawn = made | {"first_seed": JUDGED_FROM}
    judgement_sections(
        report, found.judgement, found.real, found.samples, found.learnt, drawn, found.training.pixel_size_A
    )
    if not found.held_out_by:
        report.sections[0].warning(
            "The images that judge are those that the model learnt from: none could be held out (images.hold_out, too few "
            "files, or frames and patches of them that overlap). Copies would score best of all; look at the samples, and "
            "at more images."
        )
    if found.held_out_by == "frames":
        report.sections[0].warning(
            "Images that judge are frames of the very movies that the model learnt from. Where a movie hardly changes, "
            "they are near copies of what was learnt: copies then score best of all, and pass for chance under Copies."
        )
    warn_of_left_out(report, found.training.failures)
    if len(found.training) < 500 and not gan.augment.acts:
        report.sections[0].warning(
            f"{len(found.training)} images without augmentation: the critic may learn them by heart (see Training, where "
            "real images are held out); gan.augment is against that."
        )
    _paths(report, found, made)
    _training(report, found, made)
    report.write(found.folder / "report.html")


def warn_of_left_out(report: Report, failures: Sequence[Sequence[Any]]) -> None:
    """Say which files could not be used, given with the reason of each."""
    if failures:
        some = "; ".join(why for _, why in failures[:5])
        report.sections[0].warning(
            f"Left out: {len(failures)} files or frames: {some}{' ... All are in metrics.json.' * (len(failures) > 5)}"
        )


def judgement_sections(
    report: Report,
    found: Judgement,
    real: np.ndarray,
    generated: np.ndarray,
    training: np.ndarray | None,
    synthetic: Mapping[str, Any],
    pixel_size_A: float | None = None,
) -> None:
    """Add what `judge` found, with pictures; `synthetic` tells how the generated images were made."""
    rng = np.random.default_rng(0)
    top = report.section("Real and generated")
    shown = min(SHEET, len(real), len(generated))
    some = real[rng.choice(len(real), shown, replace=False)]
    top.figure(
        "sheets",
        sheet_figure(
            {"real": some, "generated (not measured images)": generated[:shown]}, pixel_size_A=pixel_size_A
        ),
        "Drawn at random, all in the grey levels of the training images",
        synthetic,
    )
    close = report.section("How close")
    n = found.numbers
    close.text(
        f"{n['n_other']} generated against {n['n_real']} real images; features: {n['extractor']}, a nominal pixel. Low and "
        "high: 95 %, as the number scatters over images, not over trainings. The last column is the same number between "
        "two halves of the real images: what chance alone makes of a distance, and about what precision, recall, density "
        "and coverage are of two sets of one population."
        + (COLOURS if real.shape[1] > 1 else "")
        + (LEARNT if "fid_training" in n else "")
    )
    close.table(numbers_table(found), "Distances, and shares (precision, recall, density, coverage)")
    for warning in n["warnings"]:
        close.warning(warning)
    if found.by_class is not None:
        close.table(
            found.by_class, "Class by class: the hard ones have the largest distance over their floor"
        )
    if found.microstructure is not None:
        phases = report.section("Microstructure")
        phases.text(
            "Phases are told apart by one rule for real and generated images. Bands: 95 % by resampling the images."
        )
        differences = found.microstructure.table()
        learnt = [n.get(f"{name}_training", np.nan) for name in differences["measure"]]
        if np.isfinite(learnt).any():
            differences.insert(4, "training images", learnt)
        phases.table(differences, "Differences, and the same between halves of the real images")
        phases.figure(
            "microstructure",
            microstructure_figure(found.microstructure),
            "Real and generated, statistically",
            synthetic,
        )
    if found.memorisation is not None:
        copies = report.section("Copies?")
        copies.text(copies_told(found.memorisation))
        if training is not None:
            copies.figure(
                "neighbours",
                neighbours_figure(generated, training, found.memorisation),
                "The samples that are most like a training image, and that image",
                synthetic,
            )


def numbers_table(found: Judgement) -> pd.DataFrame:
    """Every number beside the same of the training images, and between halves of the real ones."""
    names = {
        "fid": "Fréchet distance", "kid": "kernel distance", "histogram_kl": "KL of histograms, each image scaled (nats)",
        "spectrum_distance": "power spectrum (decades)", "levels_kl": "KL of grey levels (nats)",
        "brightness_distance": "brightness of the images", "contrast_distance": "contrast of the images",
        "precision": "precision", "recall": "recall", "density": "density", "coverage": "coverage",
    }  # fmt: skip
    n = found.numbers
    rows = []
    for key, name in names.items():
        low, high = n.get(f"{key}_interval", (np.nan, np.nan))
        learnt = {"training images": n[f"{key}_training"]} if f"{key}_training" in n else {}
        rows.append(
            {"measure": name, "value": n[key], "low": low, "high": high}
            | learnt
            | {"real, half against half": n[f"{key}_floor"]}
        )
    return pd.DataFrame(rows)


def copies_told(copies: Memorisation) -> str:
    """Whether samples are copies of training images, in a sentence or two."""
    others = "training images" if copies.by_training else "real images"
    too_few = "; too few others are there to compare with" if copies.by_training else " and left out here"
    known = f"{copies.known} of the real images are training images themselves{too_few}. "
    return (
        (known if copies.known else "")
        + f"{100 * copies.score:.1f} % of the samples are more like some training image than all but the likest other "
        f"{others} are; {100 * copies.chance:.1f} % would be by chance. Many more mean that the "
        "model repeats what it was shown. Likeness is the correlation under shifts, turns and mirrors (1 = a copy): "
        f"median {np.median(copies.generated.similarity):.2f}, of those {others} "
        f"{np.median(copies.reference.similarity):.2f}."
    )


def _paths(report: Report, found: Synthesis, made: dict[str, Any]) -> None:
    section = report.section("Between images")
    model, start = found.model, JUDGED_FROM
    drawn: dict[str, Any] = {"label": 0 if model.classes else None, "device": found.recipe.device}
    rows = {"along a great circle of codes z": model.interpolate(start, start + 1, 10, "z", **drawn)}
    if model.config.network == "dcgan":  # StyleGAN2 normalises codes: its line is the circle at another pace
        rows["along a straight line"] = model.interpolate(start, start + 1, 10, "z", False, **drawn)
    else:
        rows["along a straight line of styles w"] = model.interpolate(start, start + 1, 10, "w", **drawn)
        rows["towards the mean image (truncation 1 to 0)"] = np.concatenate(
            [model.sample([start + 2], t, **drawn) for t in np.linspace(1, 0, 10)]
        )
    told = made | {"from_seed": start, "to_seed": start + 1}
    section.figure(
        "paths", rows_figure(rows, model.pixel_size_A), "Two samples and what lies between them", told
    )


def _training(report: Report, found: Synthesis, made: dict[str, Any]) -> None:
    section = report.section("Training")
    section.text(
        f"The state kept is that of step {found.best_step}, nearest to the training images (Fréchet distance)."
    )
    gan = found.recipe.gan
    section.figure("training", adversarial_figure(found.history, gan.batch), "Course of the training")
    if found.looks:
        some = [found.looks[i] for i in np.unique(np.linspace(0, len(found.looks) - 1, 6).astype(int))]
        rows = {f"step {step} ({step * gan.batch / 1000:g} thousand images)": images for step, images in some}
        told = made | {"model": f"{found.folder.name}, in training", "steps": [step for step, _ in some]}
        told.pop("weights", None)
        section.figure(
            "looks",
            rows_figure(rows, found.model.pixel_size_A),
            "The same eight codes as the training went on",
            told,
        )
