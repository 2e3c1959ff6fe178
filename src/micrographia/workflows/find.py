"""Journey 1: from a folder of unlabelled STEM images to located defects and a report of how far to trust them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from micrographia.detect.finder import DefectFinder
from micrographia.metrics.calibration import held_out_calibration_error, reliability_curve
from micrographia.metrics.distances import compare_sets
from micrographia.metrics.features import FeatureExtractor, inception_extractor
from micrographia.micrograph import Micrograph
from micrographia.plots import figures
from micrographia.plots.inspection import inspection_figure
from micrographia.simulate.fit import FittedConditions, cut_patches, patches_to_fit, usable_patch
from micrographia.sites import read_sites, write_sites
from micrographia.training.device import choose_device, set_threads
from micrographia.training.distributed import by_first
from micrographia.workflows.annotate import annotate
from micrographia.workflows.recipe import Recipe
from micrographia.workflows.report import Report
from micrographia.workflows.runfolder import RunFolder, versions
from micrographia.workflows.scale import (
    Scaled,
    ScaleRule,
    decide_scale,
    matched,
    read_experiment,
    scale_table,
)
from micrographia.workflows.stages import (
    LabelledSet,
    apply_stage,
    detect_stage,
    domain_reference,
    fidelity_numbers,
    fit_stage,
    home_reference,
    images_key,
    simulate_stage,
    translate_stage,
    translation_patch_px,
)

Say = Callable[[str], None]
#: Annotated pictures shown in the report; all are written to the run folder.
SHOWN = 6
#: Rows of long tables in the report.
LISTED = 40


@dataclass(frozen=True)
class Training:
    """Everything that was learnt from one set of unlabelled images."""

    experiment: list[Micrograph]
    """The images at the working sampling."""
    fitted: FittedConditions
    clean: np.ndarray
    sets: dict[str, LabelledSet]
    """``simulated`` (fitted physics) and ``translated``."""
    finder: DefectFinder
    histories: dict[str, pd.DataFrame]


@dataclass(frozen=True)
class FindResult:
    """What a run found."""

    sites: pd.DataFrame
    metrics: dict[str, Any]
    folder: Path


def find_defects(
    images: Sequence[Path | str],
    recipe: Recipe,
    out: str | Path,
    resume: bool = False,
    say: Say = print,
    extractor: FeatureExtractor | None = None,
) -> FindResult:
    """Locate point defects in unlabelled images.

    Parameters
    ----------
    images : files, folders or patterns
    recipe : Recipe
    out : path
        The run folder; see `runfolder`. Afterwards it holds ``defects.csv``, ``metrics.json``, ``report.html``,
        ``recipe.toml``, annotated images and the trained models.
    resume : bool
        Continue an earlier run of the same recipe.
    say : callable
        Told what is going on.
    extractor : FeatureExtractor, optional
        What the distances to the experiment compare, such as `metrics.features.module_extractor` of a network of yours;
        the recipe's by default.

    Raises
    ------
    UserError
        Nothing readable, no pixel size, images too small, or a run folder of something else.
    """
    set_threads()
    device = choose_device(recipe.device)
    if extractor is None and recipe.inception_weights:
        extractor = inception_extractor(recipe.inception_weights)
    micrographs, failures = read_experiment(images, recipe.pixel_size_A, say)
    scaled, unusable = decide_scale(micrographs, ScaleRule.of(recipe), say, recipe.sampling_A)
    failures += unusable
    experiment = [s.image.resampled(recipe.sampling_A) for s in scaled]
    _check_before(experiment, recipe)
    run = RunFolder(out, recipe, resume)
    run.require_inputs({"images": images_key([s.image for s in scaled])})
    say(f"{len(scaled)} images, device {device}, run folder {run.path}")
    for s in scaled:
        say(f"{s.image.name}: {s.image.pixel_size_A:.4g} Å per pixel, {s.why}")
    recipe = replace(recipe, specimen=matched(recipe.specimen, scaled))
    strain = " ".join(f"{100 * e:+.1f}" for e in recipe.specimen.mean_strain)
    say(f"simulated lattices are strained like the measured ones: xx yy xy = {strain} %")
    low, high = recipe.specimen.angle_deg
    say(f"simulated lattices are turned to {low:.1f} to {high:.1f}°")
    training = learn(run, experiment, recipe, say)
    found: list[FindResult] = []
    by_first(lambda: found.append(_report_on(run, scaled, training, failures, recipe, say, extractor)))
    if found:
        return found[0]
    metrics = json.loads((run.path / "metrics.json").read_text("utf-8"))
    return FindResult(read_sites(run.path / "defects.csv"), metrics, run.path)


def _report_on(
    run: RunFolder,
    scaled: list[Scaled],
    training: Training,
    failures: list[tuple[Path, str]],
    recipe: Recipe,
    say: Say,
    extractor: FeatureExtractor | None,
) -> FindResult:
    """Find the sites in the images; write all that a run leaves behind."""
    sites, candidates, threshold = training.finder.find_all([s.image for s in scaled], recipe.device)
    order = {s.image.name: float(s.image.pixel_size_A or np.nan) for s in scaled}
    sites = sites.assign(pixel_size_A=sites["image"].map(order)).sort_values(
        ["image", "confidence"], ascending=[True, False], ignore_index=True
    )
    write_sites(sites, run.path / "defects.csv")
    write_sites(candidates, run.path / "candidates.csv")
    metrics = judge(training, recipe, extractor)
    metrics |= {
        "sites": len(sites),
        "sites_by_kind": sites["kind"].value_counts().to_dict(),
        "threshold": threshold,
        "threshold_chosen": "maximises the expected F1 of the adapted confidences; no labels of the experiment used",
        "border": f"sites within {recipe.detect.radius_A} Å of an image's edge are not reported",
        "images_left_out": [[str(p), reason] for p, reason in failures],
        "mean_strain_matched": recipe.specimen.mean_strain,
        "angle_deg_matched": recipe.specimen.angle_deg,
        "versions": versions(),
        "seed": recipe.seed,
    }
    run.write_json("metrics.json", metrics)
    annotate(run.path / "annotated", [s.image for s in scaled], sites, {"recipe": recipe.name})
    write_report(run, scaled, sites, training, metrics, recipe)
    for name in metrics["outside_domain"]:
        say(f"warning: {name} is unlike the images the detector was trained on; see the report")
    say(f"{len(sites)} sites found; open {run.path / 'report.html'}")
    return FindResult(sites, metrics, run.path)


def _check_before(experiment: Sequence[Micrograph], recipe: Recipe) -> None:
    """What can be known to be impossible before a run folder is begun: images or a library too small."""
    patches_to_fit(experiment, recipe.fit)
    if recipe.library.train_on != "fitted":
        translation_patch_px(experiment, recipe)


def learn(run: RunFolder, experiment: list[Micrograph], recipe: Recipe, say: Say) -> Training:
    """Fit the physics to images at the working sampling, translate what it does not explain, and train the detector.

    No label is needed.
    """
    fitted = fit_stage(run, experiment, recipe, say)
    simulated, clean = simulate_stage(run, recipe, "fitted", fitted, say)
    sets = {"simulated": simulated}
    histories = {}
    if recipe.library.train_on != "fitted":
        translator, histories["CycleGAN"] = translate_stage(run, simulated, experiment, recipe, say)
        sets["translated"] = apply_stage(run, translator, simulated, recipe, say)
    used = {"both": list(sets), "fitted": ["simulated"], "translated": ["translated"]}[
        recipe.library.train_on
    ]
    finder, histories["detector"] = detect_stage(run, [sets[name] for name in used], recipe, say)
    finder.home = home_reference(experiment, recipe)
    finder.scale = ScaleRule.of(recipe).of_others()
    by_first(lambda: finder.save(run.path / "detector.safetensors"))
    return Training(experiment, fitted, clean, sets, finder, histories)


def judge(training: Training, recipe: Recipe, extractor: FeatureExtractor | None = None) -> dict[str, Any]:
    """Measure realism, label fidelity, calibration and whether the images are like those trained on."""
    patch = _compared_px(training, recipe)
    real = cut_patches(training.experiment, patch, 300)
    sets = {"noise-free": training.clean, **{k: s.images for k, s in training.sets.items()}}
    distances = {}
    for name, stack in sets.items():
        other = cut_patches([Micrograph(image, recipe.sampling_A) for image in stack], patch, 300)
        if min(len(real), len(other)) >= 8:
            distances[name] = compare_sets(real, other, recipe.sampling_A, extractor, recipe.seed)
    domain = domain_reference(list(training.sets.values()), recipe)
    domains = {}
    if domain is not None:
        domains = {m.name: asdict(domain.distance(m)) for m in training.experiment if min(m.shape) >= 64}
    fidelity = {}
    if "translated" in training.sets:
        before, after = training.sets["simulated"], training.sets["translated"]
        fidelity = fidelity_numbers(before, after, recipe.sampling_A)
    validation = training.finder.validation
    calibration = {}
    if validation is not None and training.finder.calibration is not None:
        error = held_out_calibration_error(validation["confidence"], validation["true"], seed=recipe.seed)
        calibration = {"expected_calibration_error": error}
    return {
        "distance_to_experiment": distances,
        "domain_distance": domains,
        "outside_domain": [name for name, d in domains.items() if d["outside"]],
        "label_fidelity": fidelity,
        "score_on_training_domain": training.finder.validation_scores,
        "recall_on_training_domain": training.finder.recall,
        "calibration": calibration,
        "fit": {
            "frechet_prior": training.fitted.distance_before,
            "frechet_fitted": training.fitted.distance_after,
            "frechet_noise_floor": training.fitted.noise_floor,
        },
    }


def _compared_px(training: Training, recipe: Recipe) -> int:
    """Edge of the patches in which training images and experiment are compared: no larger than the fit could use."""
    return usable_patch(training.experiment, min(96, recipe.fit.patch_px))


def write_report(
    run: RunFolder,
    scaled: Sequence[Scaled],
    sites: pd.DataFrame,
    training: Training,
    metrics: dict[str, Any],
    recipe: Recipe,
) -> None:
    """Write the page that says what was found, how, and how far to trust it."""
    report = Report(
        f"Defects in {len(scaled)} images",
        f"recipe {recipe.name}, {recipe.specimen.material}, seed {recipe.seed}",
    )
    found = report.section("What was found")
    kinds = ", ".join(f"{n} {kind}" for kind, n in metrics["sites_by_kind"].items()) or "nothing"
    found.text(
        f"{kinds}. The threshold ({metrics['threshold']:.2f} on the confidence) was chosen without labels: it "
        f"{metrics['threshold_chosen'].split(';')[0]}. {metrics['border'].capitalize()}."
    )
    outside = metrics["outside_domain"]
    if outside:
        found.warning(
            f"{len(outside)} of {len(scaled)} images are unlike the images the detector was trained on: "
            f"{', '.join(outside[:5])}. Do not trust what was found in them without a look."
        )
    if not metrics["domain_distance"]:
        found.text(
            "Whether these images are like those trained on is not known: too few or too small images."
        )
    for i, s in list(enumerate(scaled))[:: -(-len(scaled) // SHOWN)]:
        own = sites[sites["image"] == s.image.name]
        found.figure(
            f"found-{i}-{_slug(s.image.name)}", figures.detections_figure(s.image, own), s.image.name
        )
    counts = sites.groupby(["image", "kind"]).size().rename("sites").reset_index()
    told = f"Sites by image and kind{f': the first {LISTED}, all are in defects.csv' if len(counts) > LISTED else ''}"
    found.table(counts.head(LISTED), told)

    real = report.section("Does the training data look like the experiment?")
    first = training.experiment[0].data
    rows = {
        "noise-free": training.clean[0],
        **{k: s.images[0] for k, s in training.sets.items()},
        "experiment": first,
    }
    generator = "simulation, CycleGAN" if "translated" in training.sets else "simulation"
    made = {"generator": generator, "recipe": recipe.name, "seed": recipe.seed}
    sheet = figures.comparison_sheet(rows, recipe.sampling_A)
    real.figure("comparison", sheet, "Images and their power spectra", made)
    patch = _compared_px(training, recipe)
    stacks = {"noise-free": training.clean, **{k: s.images for k, s in training.sets.items()}}
    stacks["experiment"] = cut_patches(training.experiment, patch, 200)
    real.figure("histograms", figures.histogram_figure(stacks), "Intensity histograms")
    real.figure("spectra", figures.radial_spectrum_figure(stacks, recipe.sampling_A), "Radial power spectra")
    if metrics["distance_to_experiment"]:
        real.table(
            distance_table(metrics["distance_to_experiment"]),
            "Distance to the experiment; the floor is real against real",
        )
    if metrics["label_fidelity"]:
        real.table(fidelity_table(metrics["label_fidelity"]), "What the translation did to the labels")

    fit = report.section("Fitted imaging conditions")
    fit.text(
        f"Fréchet distance of the physical features to the experiment: {training.fitted.distance_before:.0f} before, "
        f"{training.fitted.distance_after:.0f} after the fit; between two halves of the experiment "
        f"{training.fitted.noise_floor:.0f}."
    )
    fit.figure("conditions", figures.conditions_figure(training.fitted.table()), "Sought and fitted ranges")
    fit.table(training.fitted.table(), "r2: how well a condition can be told from a patch at all")

    learning = report.section("Training")
    for name, history in training.histories.items():
        learning.figure(f"training-{_slug(name)}", figures.loss_figure(history), name)
    validation = training.finder.validation
    scores = training.finder.validation_scores
    if validation is not None and scores:
        learning.text(
            f"On simulated images held out: precision {scores['precision']:.3f}, recall {scores['recall']:.3f}, "
            f"F1 {scores['f1']:.3f}. This is the score at home; it says little about the experiment by itself."
        )
        curve = reliability_curve(validation["confidence"].to_numpy(), validation["true"].to_numpy())
        learning.figure(
            "reliability", figures.reliability_figure(curve), "Raw confidence against the truth, held out"
        )

    looked = report.section("The images")
    looked.table(scale_table(scaled[:LISTED]), "Scale, lattice, resolution")
    doubtful = [s.image.name for s in scaled if s.doubtful]
    if doubtful:
        looked.warning(
            f"The pixel size of {', '.join(doubtful[:5])}{' and others' if len(doubtful) > 5 else ''} is far from what the "
            "lattice says (below). If the file is wrong, nothing here is right: run again with --pixel-size."
        )
    for i, s in enumerate(scaled[:2]):
        if s.inspection is not None:
            looked.figure(
                f"inspection-{i}-{_slug(s.image.name)}",
                inspection_figure(s.image, s.inspection),
                s.image.name,
            )
    report.write(run.path / "report.html")


def distance_table(distances: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """One row per training set: FID, KID, KL, spectrum distance, precision, recall, with their floors."""
    rows = []
    for name, d in distances.items():
        rows.append(
            {"training set": name}
            | {k: d[k] for k in ("fid", "kid", "histogram_kl", "spectrum_distance", "precision", "recall")}
        )
    last = next(iter(distances.values()))
    floor = {
        k: last.get(f"{k}_floor")
        for k in ("fid", "kid", "histogram_kl", "spectrum_distance", "precision", "recall")
    }
    rows.append({"training set": f"noise floor (n = {last['n_real']}, {last['extractor']})"} | floor)
    return pd.DataFrame(rows)


def fidelity_table(fidelity: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """One row per kind of defect: displacements and the fractions filled in or invented."""
    names = (
        "median_displacement_pm", "displacement_95_pm", "contrast_kept",
        "filled_in_before", "filled_in", "invented_before", "invented",
    )  # fmt: skip
    return pd.DataFrame([{"kind": kind} | {n: f[n] for n in names if n in f} for kind, f in fidelity.items()])


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name).strip("-")
