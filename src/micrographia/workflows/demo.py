"""The whole journey on a generated case with known truth: the virtual microscope plays the experiment.

Each row of the table is one way to make training images; the same network is trained on each and judged on the
same test images, whose truth no row but the oracle's sees anything of (the oracle is trained on labelled images of
the same day: the upper bound).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from micrographia.detect.finder import DefectFinder
from micrographia.metrics.distances import compare_sets
from micrographia.metrics.matching import precision_recall_curve, score_sites
from micrographia.micrograph import Micrograph
from micrographia.plots import figures
from micrographia.simulate.fit import cut_patches
from micrographia.simulate.scenes import Specimen
from micrographia.simulate.virtual import DAYS, record
from micrographia.training.device import set_threads
from micrographia.training.distributed import alone
from micrographia.workflows.find import distance_table, fidelity_table
from micrographia.workflows.recipe import Recipe, built_in
from micrographia.workflows.report import Report
from micrographia.workflows.runfolder import RunFolder, versions
from micrographia.workflows.stages import (
    HAND_TUNED,
    LabelledSet,
    apply_stage,
    detect_stage,
    fidelity_numbers,
    fit_stage,
    home_reference,
    images_key,
    simulate_stage,
    translate_stage,
)

Say = Callable[[str], None]
#: Real crystals hold fewer vacancies than training images.
EXPERIMENT = Specimen(defects={"vacancy-1Se": 0.03, "vacancy-2Se": 0.01})
FIELD_PX = 256
UNLABELLED, TESTED = 12, 16
BORDER_A = 1.0
ROWS = ("noise-free", "hand-tuned noise", "fitted physics", "CycleGAN", "fitted physics + CycleGAN", "oracle")
QUICK_ROWS = ("noise-free", "fitted physics + CycleGAN", "oracle")
DEFAULT_WAY = "fitted physics + CycleGAN"


@dataclass(frozen=True)
class DayResult:
    """One day, one seed: a table row per way of training, and the pictures' material."""

    day: str
    seed: int
    rows: pd.DataFrame
    distances: dict[str, dict[str, Any]]
    fidelity: dict[str, dict[str, Any]]
    sets: dict[str, LabelledSet]
    tests: list[Micrograph]
    truth: pd.DataFrame
    found: pd.DataFrame
    curves: dict[str, pd.DataFrame]
    histories: dict[str, pd.DataFrame]
    finder: DefectFinder
    domain: Any
    conditions: pd.DataFrame


def demo_recipe(seed: int) -> Recipe:
    """Return the recipe of the demo: that of WSe2, sized for minutes on two cores."""
    return replace(built_in("wse2"), name="demo", seed=seed)


def run_demo(
    out: str | Path, full: bool = False, seeds: int = 1, resume: bool = False, say: Say = print
) -> pd.DataFrame:
    """Run the demo and write ``report.html``, ``table.csv`` and ``metrics.json``; return the table.

    Parameters
    ----------
    full : bool
        Every way of training, both days, and each day's detector applied to the other day.
    seeds : int
        Independent repetitions, from the virtual microscope's images on.
    """
    alone("The demo")
    set_threads()
    run = RunFolder(out, demo_recipe(0), resume)
    days = list(DAYS) if full else ["day-a"]
    results: list[DayResult] = []
    for seed in range(seeds):
        for day in days:
            result = one_day(run, day, demo_recipe(seed), ROWS if full else QUICK_ROWS, say)
            if seed:  # the report shows the images of the first seed; those of all would fill the memory
                result = replace(result, sets={})
            results.append(result)
            table = pd.concat([r.rows for r in results], ignore_index=True)
            run.write_text("table.csv", table.to_csv(index=False))
    across = across_days(results, say) if full else pd.DataFrame()
    summary = summarise(table)
    metrics = {
        "table": table.to_dict("records"),
        "across_days": across.to_dict("records"),
        "label_fidelity": {f"{r.day}, seed {r.seed}": r.fidelity for r in results},
        "distances": {f"{r.day}, seed {r.seed}": r.distances for r in results},
        "versions": versions(),
    }
    run.write_json("metrics.json", metrics)
    _write_report(run, results, summary, across)
    return table


def one_day(run: RunFolder, day: str, recipe: Recipe, ways: Sequence[str], say: Say) -> DayResult:
    """Train every way on one day's unlabelled images and judge all on labelled test images of that day."""
    seed = recipe.seed

    def recorded(n: int, number: int, specimen: Specimen = EXPERIMENT, size: int = FIELD_PX):
        return record(day, specimen, recipe.optics, n, (size, size), recipe.sampling_A, 1000 * seed + number)

    experiment, _ = recorded(UNLABELLED, 1)
    tests, truth = recorded(TESTED, 2)
    truth = truth[truth["kind"].isin(recipe.specimen.defects)].reset_index(drop=True)

    def told(message: str) -> None:
        say(f"[{day}, seed {seed}] {message}")

    training, fidelity, histories, conditions = _training_sets(run, recipe, experiment, recorded, ways, told)
    finders, found, curves, rows = {}, {}, {}, []
    for way in ways:
        finder, histories[f"detector, {way}"] = detect_stage(
            run, training[way], recipe, told, f"detect-{_slug(way)}"
        )
        finders[way] = finder
        found[way], candidates, threshold = finder.find_all(tests, recipe.device)
        curves[way] = precision_recall_curve(candidates, truth, recipe.tolerance_A / recipe.sampling_A)
        rows.append(
            {"day": day, "seed": seed, "way": way, "threshold": threshold}
            | _scores(found[way], truth, tests, recipe)
        )
        told(f"{way}: F1 {rows[-1]['f1']:.3f}")
    real = cut_patches(experiment, 96, 120)
    distances = {}
    for way in ways:
        other = cut_patches(
            [Micrograph(i, recipe.sampling_A) for s in training[way] for i in s.images], 96, 240
        )
        distances[way] = compare_sets(real, other, recipe.sampling_A, seed=seed)
    table = pd.DataFrame(rows)
    for key in ("fid", "kid", "histogram_kl"):
        table[key] = [distances[way][key] for way in table["way"]]
    shown = {way: training[way][-1] for way in ways}
    return DayResult(
        day, seed, table, distances, fidelity, shown, tests, truth, found[DEFAULT_WAY], curves, histories,
        finders[DEFAULT_WAY], home_reference(experiment, recipe), conditions,
    )  # fmt: skip


def _training_sets(
    run: RunFolder, recipe: Recipe, experiment: list[Micrograph], recorded, ways: Sequence[str], say: Say
):
    """Make the labelled sets of every way (a list each), the fidelity of the translation and the histories."""
    training: dict[str, list[LabelledSet]] = {}
    fidelity: dict[str, dict[str, Any]] = {}
    histories: dict[str, pd.DataFrame] = {}
    free, _ = simulate_stage(run, recipe, "noise-free", None, say)
    training["noise-free"] = [free]
    if "hand-tuned noise" in ways:
        training["hand-tuned noise"] = [simulate_stage(run, recipe, "hand-tuned", HAND_TUNED, say)[0]]
    fitted = fit_stage(run, experiment, recipe, say)
    simulated, _ = simulate_stage(run, recipe, "fitted", fitted, say)
    training["fitted physics"] = [simulated]
    if "CycleGAN" in ways:
        translator, histories["CycleGAN"] = translate_stage(
            run, free, experiment, recipe, say, "translate-noise-free"
        )
        training["CycleGAN"] = [apply_stage(run, translator, free, recipe, say, "translated-noise-free")]
        fidelity["CycleGAN"] = fidelity_numbers(free, training["CycleGAN"][0], recipe.sampling_A)
    translator, histories[DEFAULT_WAY] = translate_stage(run, simulated, experiment, recipe, say)
    translated = apply_stage(run, translator, simulated, recipe, say)
    training[DEFAULT_WAY] = [simulated, translated]
    fidelity[DEFAULT_WAY] = fidelity_numbers(simulated, translated, recipe.sampling_A)
    labelled, sites = recorded(recipe.library.images, 3, recipe.specimen, recipe.library.size_px)
    order = {m.name: i for i, m in enumerate(labelled)}
    sites = sites.assign(index=sites["image"].map(order))
    training["oracle"] = [
        LabelledSet("oracle", np.stack([m.data for m in labelled]), sites, images_key(labelled))
    ]
    return training, fidelity, histories, fitted.table()


def _scores(
    found: pd.DataFrame, truth: pd.DataFrame, tests: Sequence[Micrograph], recipe: Recipe
) -> dict[str, float]:
    """Score found sites; sites within `BORDER_A` of an edge are not judged."""
    shapes = {m.name: m.shape for m in tests}
    px = recipe.sampling_A
    score = score_sites(found, truth, recipe.tolerance_A / px, BORDER_A / px, shapes, images=list(shapes))
    out: dict[str, float] = {}
    for name in ("precision", "recall", "f1"):
        out[name] = getattr(score, name)
        out[f"{name}_low"], out[f"{name}_high"] = score.intervals[name]
    return out | {"true_sites": score.tp + score.fn}


def across_days(results: Sequence[DayResult], say: Say) -> pd.DataFrame:
    """Apply each day's detector to the other day's images: F1, and whether the domain warning fires."""
    rows = []
    for trained in results:
        for applied in results:
            if trained.seed != applied.seed or trained.day == applied.day:
                continue
            recipe = demo_recipe(trained.seed)
            found, _, _ = trained.finder.find_all(applied.tests, recipe.device)
            warned = [trained.domain.distance(m).outside for m in applied.tests]
            at_home = [trained.domain.distance(m).outside for m in trained.tests]
            rows.append(
                {
                    "trained on": trained.day, "applied to": applied.day, "seed": trained.seed,
                    "f1": _scores(found, applied.truth, applied.tests, recipe)["f1"],
                    "warned": float(np.mean(warned)), "warned at home": float(np.mean(at_home)),
                }
            )  # fmt: skip
            say(
                f"[seed {trained.seed}] trained on {trained.day}, applied to {applied.day}: F1 {rows[-1]['f1']:.3f}"
            )
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds: one row per day and way, with F1's spread (if there is any) and its part of the oracle's."""
    rows = []
    for (day, way), own in table.groupby(["day", "way"], sort=False):
        row = {"day": day, "training images": way, "seeds": len(own)}
        row |= {k: own[k].mean() for k in ("precision", "recall", "f1")}
        row["f1_spread"] = own["f1"].std(ddof=1) if len(own) > 1 else float("nan")
        row["f1_low"], row["f1_high"] = own["f1_low"].mean(), own["f1_high"].mean()
        oracle = table[(table["day"] == day) & (table["way"] == "oracle")]["f1"].mean()
        row["of_oracle"] = row["f1"] / oracle
        row |= {k: own[k].mean() for k in ("fid", "kid", "histogram_kl")}
        rows.append(row)
    return pd.DataFrame(rows).dropna(axis="columns", how="all")


def _write_report(
    run: RunFolder, results: Sequence[DayResult], summary: pd.DataFrame, across: pd.DataFrame
) -> None:
    report = Report("Finding vacancies without labels", "WSe2 on a virtual microscope, with known truth")
    table = report.section("How good it is")
    first = results[0]
    table.text(
        "The same network, trained on different images, finds selenium vacancies in test images of the virtual "
        f"microscope. Sites match within {demo_recipe(0).tolerance_A} Å (optimal assignment, kinds must agree); sites "
        f"within {BORDER_A} Å of an edge are not judged. Intervals: 95 %, bootstrap over images. The threshold of every "
        "row is chosen without labels of the test images. 'oracle' is trained on labelled images of the same day."
    )
    table.table(summary, f"Means over {summary['seeds'].max()} seed(s)")
    bars = first.rows.set_index("way")
    table.figure("scores", figures.score_bars(bars), f"{first.day}, seed {first.seed}")
    if len(across):
        table.table(across, "Trained on one day, applied to the other: does the domain warning fire?")
    pixel = demo_recipe(0).sampling_A
    for r in [r for r in results if r.seed == results[0].seed]:
        section = report.section(f"Pictures of {r.day}")
        section.figure(
            f"{r.day}-detections",
            figures.detections_figure(
                r.tests[0],
                _judged(r.found, r.tests[0]),
                _judged(r.truth, r.tests[0]),
                demo_recipe(0).tolerance_A,
            ),
            f"{DEFAULT_WAY}, test image {r.tests[0].name}",
        )
        rows = {k: v.images[0] for k, v in r.sets.items() if k != "oracle"} | {"experiment": r.tests[0].data}
        section.figure(
            f"{r.day}-comparison",
            figures.comparison_sheet(rows, pixel),
            "Images and power spectra",
            {"generator": "simulation, CycleGAN", "seed": r.seed},
        )
        stacks = {k: v.images for k, v in r.sets.items() if k != "oracle"}
        stacks["experiment"] = np.stack([m.data for m in r.tests])
        section.figure(f"{r.day}-histograms", figures.histogram_figure(stacks), "Intensity histograms")
        section.figure(
            f"{r.day}-spectra", figures.radial_spectrum_figure(stacks, pixel), "Radial power spectra"
        )
        section.figure(
            f"{r.day}-precision-recall", figures.precision_recall_figure(r.curves), "Precision and recall"
        )
        section.table(distance_table(r.distances), "Distance of the training images to the experiment")
        for way, fidelity in r.fidelity.items():
            section.table(fidelity_table(fidelity), f"Label fidelity of the translation: {way}")
        section.figure(f"{r.day}-conditions", figures.conditions_figure(r.conditions), "Fitted conditions")
        for name, history in r.histories.items():
            section.figure(f"{r.day}-training-{_slug(name)}", figures.loss_figure(history), name)
    report.write(run.path / "report.html")


def _judged(sites: pd.DataFrame, image: Micrograph) -> pd.DataFrame:
    """Sites of one image that are not too near its edges to be judged."""
    own = sites[sites["image"] == image.name]
    border = BORDER_A / float(image.pixel_size_A or np.nan)
    rows, columns = image.shape
    inside = own["x_px"].between(border, columns - 1 - border) & own["y_px"].between(
        border, rows - 1 - border
    )
    return own[inside]


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).replace("---", "-")
