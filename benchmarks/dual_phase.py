"""Did the GAN learn the population? StyleGAN2-ADA, R3GAN and DCGAN after the same time, and with fifty images.

Microstructures of known truth (Gaussian random fields cut at a level, 64 px, grey): 2000 to learn from, 1000 others to
judge by. Each model trains for the same wall time. For the same number of steps: with 50 images StyleGAN2 with and
without adaptive augmentation; StyleGAN2-ADA with 200 of the 2000 held out to steer it, and on elongated fields. Every
finished training is in a CSV file and is not run again; one that was stopped goes on from its checkpoints, in the folder
beside that file. Trainings of one length make one page, with their rows beside it: a copy of those is a file to go on from.

python dual_phase.py [minutes of a training] [seeds, 0: only publish] [results.csv] [names of runs ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import DOCS, environment, publish, table
from matplotlib.figure import Figure

from micrographia.errors import UserError, did_you_mean
from micrographia.io import atomic_path
from micrographia.metrics.distances import compare_sets
from micrographia.metrics.microstructure import phase_masks, phase_threshold, two_point_correlation
from micrographia.nets.weights import load_tree
from micrographia.plots.synthesis import rows_figure
from micrographia.simulate.microstructures import DualPhaseSet, field_microstructures, field_two_point
from micrographia.synthesize.augment import AugmentConfig
from micrographia.synthesize.gan import GanConfig
from micrographia.synthesize.images import TrainingSet, Window
from micrographia.synthesize.synthesizer import FEATURE_PIXEL_A, Synthesizer
from micrographia.training.device import set_threads
from micrographia.workflows.recipe import built_in
from micrographia.workflows.report import figure_png
from micrographia.workflows.synthesize import JUDGED_FROM, judge
from micrographia.workflows.synthesize_recipe import JudgeConfig


@dataclass(frozen=True)
class Run:
    """What is learnt, by what."""

    config: GanConfig
    images: int = 2000
    unseen: int = 0
    """Of these images, not learnt from: they tell augmentation when the critic knows the others by heart."""
    anisotropy: float = 1.0

    @property
    def real(self) -> str:
        """What the population is called."""
        return "real" + f", anisotropy {self.anisotropy:g}" * (self.anisotropy != 1)

    def population(self, n: int, seed: int) -> DualPhaseSet:
        return field_microstructures(n, anisotropy=self.anisotropy, seed=seed)


ADA, FEW, FEW_PLAIN = "StyleGAN2-ADA", "StyleGAN2-ADA, 50 images", "StyleGAN2, 50 images"
STEERED, ELONGATED = "StyleGAN2-ADA, 200 unseen", "StyleGAN2-ADA, anisotropy 2"
_ADA = built_in("stylegan2-ada").gan
RUNS = {
    ADA: Run(_ADA),
    "R3GAN": Run(built_in("r3gan").gan),
    "DCGAN": Run(built_in("dcgan").gan),
    STEERED: Run(_ADA, unseen=200),
    ELONGATED: Run(_ADA, anisotropy=2.0),
    FEW: Run(_ADA, 50, unseen=8),
    FEW_PLAIN: Run(replace(_ADA, augment=AugmentConfig(target=0.0)), 50),
}
#: What these differ by is not the number of steps.
STEPS_OF = {FEW_PLAIN: FEW, STEERED: ADA, ELONGATED: ADA}
SHOWN = (
    "fid",
    "phase_fraction_error",
    "two_point_rms",
    "precision",
    "recall",
    "density",
    "coverage",
    "memorisation_score",
    "truth_phase_error",
    "truth_two_point_rms",
    "anisotropy",
    "augment_p_most",
    "augment_p_last",
)
#: What tells one training from another; each has a row for the best kept state and one for the last.
KEYS = ["run", "minutes", "seed"]
COLUMNS = [*KEYS, "state", "took", "steps", "best_step", "kimg", "date", "code", "where", *SHOWN]
LOOKS, JUDGES, HELD_OUT_SEED = 20, 1000, 900


def commit() -> str:
    """Which code runs, and whether it was changed since; the pages that benchmarks write do not count."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", "../src")
        return (git("describe", "--always") or "unknown") + "-changed" * bool(changed)
    except OSError:  # no git
        return "unknown"


#: What is measured, which may change while it is.
CODE = commit()


def training_set(made: DualPhaseSet) -> TrainingSet:
    """8-bit images, as a microscope's software saves them."""
    levels = np.round(255 * made.images.clip(0, 1)).astype(np.uint8)[:, None]
    n = len(levels)
    return TrainingSet(levels, Window(0.0, 255.0, "uint8"), tuple(map(str, range(n))), np.zeros((n, 2), int))


def shown(made: DualPhaseSet) -> np.ndarray:
    """Fields as networks see them, ``[N, 1, H, W]``."""
    return training_set(made).batch(slice(None)).numpy()


# ------------------------------------------------------------------------------- trainings


def steps_in(config: GanConfig, minutes: float) -> int:
    """Steps of this configuration that take so long here, looks, checkpoints and augmentation included.

    Measured on a short training, whose augmentation is as frequent as it may become. A tenth of the time is left, for
    what else the machine may do meanwhile.
    """
    pilot = replace(config, steps=48, evaluate_every=48, augment=config.augment.at_most)
    images = training_set(field_microstructures(64, seed=100))
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        seconds = Synthesizer(pilot).fit(images, folder).history.set_index("step")["seconds"]
        whole = time.perf_counter() - begun
    # Penalties came at steps 16 and 32 of these thirty.
    each = (seconds[40] - seconds[10]) / 30
    look = whole - seconds[40] - 8 * each
    steps = int((0.9 * 60 * minutes - (LOOKS + 1) * look) / each)
    if steps < LOOKS:
        raise UserError(f"{minutes:g} minutes are too short for the looks alone; give more.")
    return steps


def planned_steps(name: str, minutes: float, results: pd.DataFrame, folder: Path) -> int:
    """Steps of all trainings of this name and time: measured once, so that seeds and resumed trainings agree."""
    name = STEPS_OF.get(name, name)
    finished = of_length(results[results["run"] == name], minutes)
    if not finished.empty:
        return int(finished["steps"].iloc[0])
    file = folder / f"{_word(name)}-{minutes:g}min.json"
    if not file.exists():
        steps = steps_in(RUNS[name].config, minutes)
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps({"steps": steps, "measured": environment(["torch"])}))
    return int(json.loads(file.read_text())["steps"])


def run(name: str, minutes: float, seed: int, steps: int, folder: Path) -> list[dict[str, Any]]:
    """Train, or go on with it; judge the state nearest to the training images, and the last one."""
    asked = RUNS[name]
    config = replace(asked.config, steps=steps, evaluate_every=max(steps // LOOKS, 1))
    images = training_set(asked.population(asked.images, 100 + seed))
    model, own = Synthesizer(config), training_folder(folder, name, minutes, seed)
    learnt, unseen = np.arange(asked.images - asked.unseen), None
    if asked.unseen:
        images, unseen = images.part(learnt), images.part(np.arange(len(learnt), asked.images))
    result = model.fit(images, own, seed, unseen=unseen)
    about = {
        "run": name, "minutes": minutes, "seed": seed, "took": round(result.history["seconds"].iloc[-1] / 60, 1),
        "steps": steps, "best_step": result.best_step or steps, "kimg": round(steps * config.batch / 1000, 1),
        "date": str(date.today()), "code": CODE, "where": environment(["torch"]),
    }  # fmt: skip
    model.save(own / "model.safetensors")
    made = asked.population(JUDGES, HELD_OUT_SEED)
    return [about | numbers for numbers in judged(own, made, images.batch(slice(None)).numpy())]


def judged(own: Path, made: DualPhaseSet, learnt: np.ndarray) -> list[dict[str, Any]]:
    """Every number of the best kept state and the last of a training in the folder `own`, by images it has not seen."""
    model = Synthesizer.load(own / "model.safetensors")
    held_out = shown(made)
    level = phase_threshold(held_out[:, 0])
    floors = against_truth(held_out, level, made)
    p = pd.read_csv(own / "metrics.csv").get("augment_p", pd.Series([0.0])).fillna(0.0)
    rows = []
    for state in ("best", "last"):
        if state == "last":
            _load_last(model, own)
        samples = model.sample(range(JUDGED_FROM, JUDGED_FROM + JUDGES))
        numbers = judge(held_out, samples, learnt, JudgeConfig(), 0).numbers
        numbers |= against_truth(samples, level, made) | {f"{k}_floor": v for k, v in floors.items()}
        numbers |= {"augment_p_most": p.max(), "augment_p_last": p.iloc[-1]}
        keep = [k for key in SHOWN for k in (key, f"{key}_floor") if k in numbers]
        rows.append({"state": state} | {k: float(numbers[k]) for k in keep})
    return rows


def against_truth(images: np.ndarray, level: float, made: DualPhaseSet) -> dict[str, float]:
    """How far images ``[N, 1, H, W]``, cut at a level, are off what theory says of the population; and their anisotropy."""
    masks = phase_masks(images[:, 0], level)
    measured = two_point_correlation(masks)
    along = measured.x.mean(axis=0), measured.y.mean(axis=0)
    r, none = np.arange(len(along[0])), np.zeros(len(along[0]))
    told = field_two_point(r, none, **made.parameters), field_two_point(none, r, **made.parameters)
    return {
        "truth_phase_error": abs(float(masks.mean()) - made.parameters["phase_fraction"]),
        "truth_two_point_rms": float(np.sqrt(np.mean((np.array(along) - told) ** 2))),
        "anisotropy": _half_way(along[0]) / _half_way(along[1]),
    }


def _half_way(two_point: np.ndarray) -> float:
    """Distance in px over which a two-point function first falls half-way from f to f²; NaN if it does not."""
    level = (two_point[0] + two_point[0] ** 2) / 2
    if not (two_point < level).any():
        return float("nan")
    k = int(np.argmax(two_point < level))
    return k - (level - two_point[k]) / (two_point[k - 1] - two_point[k])


def _load_last(model: Synthesizer, folder: Path) -> None:
    """Give the model the weights with which its training ended, or their running mean where there is one."""
    tree = load_tree(folder / "last.safetensors", "gan")
    weights = tree["ema"].get("generator", tree["networks"]["generator"])
    own = {k.removeprefix("module."): v for k, v in weights.items() if k != "n_averaged"}
    model.generator.load_state_dict(own)


def training_folder(folder: Path, name: str, minutes: float, seed: int) -> Path:
    return folder / f"{_word(name)}-{minutes:g}min-{seed}"


def _word(name: str) -> str:
    return name.lower().replace(", ", "-").replace(" ", "-")


# ------------------------------------------------------------------------------- the table of results


def read_results(file: Path) -> pd.DataFrame:
    """Rows of finished trainings, none where there is no file."""
    if not file.exists():
        return pd.DataFrame(columns=COLUMNS)
    try:
        results = pd.read_csv(file, dtype={"code": str})  # a commit may look like a number
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise UserError(
            f"{file}: not a readable table ({error}); move it away, or name another file."
        ) from error
    if missing := [c for c in COLUMNS if c not in results]:
        raise UserError(
            f"{file}: no table of this benchmark, it has no column {missing[0]}; name another file."
        )
    return results


def of_length(results: pd.DataFrame, minutes: float) -> pd.DataFrame:
    return results[results["minutes"] == minutes]


def is_done(results: pd.DataFrame, name: str, minutes: float, seed: int) -> bool:
    return bool((results[KEYS] == [name, minutes, seed]).all(axis=1).any())


# ------------------------------------------------------------------------------- the page


def summary(results: pd.DataFrame) -> str:
    """Mean and standard deviation over the seeds; of few images also the last state."""
    rows = []
    for name in RUNS:
        for state in ("best", "last") if name in (FEW, FEW_PLAIN) else ("best",):
            own = results[(results["run"] == name) & (results["state"] == state)]
            if own.empty:
                continue
            spread = len(own) > 1
            # Twice through a number: 130, not 1.3e+02; and what is rounding is 0.
            stds = {k: float(f"{round(own[k].std(), 9):.2g}") for k in SHOWN}
            cells = [f"{own[k].mean():.3g}" + spread * f" ± {stds[k]:g}" for k in SHOWN]
            told = name + (", last state" if state == "last" else "")
            rows.append([told, len(own), f"{own['took'].mean():.0f}", f"{own['kimg'].mean():.0f}", *cells])
    for real, own in results.groupby(results["run"].map(lambda name: RUNS[name].real)):
        floors = [f"{own[f'{k}_floor'].mean():.2g}" if f"{k}_floor" in own else "" for k in SHOWN]
        rows.append([f"{real}, half against half", "", "", "", *floors])
    return table(["model", "seeds", "minutes", "kimg", *(k.replace("_", " ") for k in SHOWN)], rows)


def known_truth() -> str:
    """How far the measured phase fraction is off by itself."""
    made = RUNS[ADA].population(JUDGES, HELD_OUT_SEED)
    images = shown(made)[:, 0]
    otsu = phase_masks(images, phase_threshold(images)).mean()
    return (
        f"The bright area that was asked for is {made.parameters['phase_fraction']:.4f}; the masks from which the held-out "
        f"images were drawn hold {made.masks.mean():.4f}, and the threshold that cuts real and generated images alike finds "
        f"{otsu:.4f} in them: phase fractions are no more certain than that difference."
    )


def fifty_themselves(seeds: int = 3) -> str:
    """How far the few images that are learnt from lie from the population: what perfect copies of them would have."""
    few = RUNS[FEW]
    real = shown(few.population(JUDGES, HELD_OUT_SEED))[:, 0]
    found = []
    for seed in range(seeds):
        own = shown(few.population(few.images, 100 + seed))[:, 0]
        turned = np.concatenate([np.rot90(x, k, (1, 2)) for x in (own, own[:, :, ::-1]) for k in range(4)])
        found.append(
            [compare_sets(real, x, FEATURE_PIXEL_A, splits=1, n_bootstrap=0)["fid"] for x in (own, turned)]
        )
    each = [", ".join(f"{x:.3g}" for x in column) for column in zip(*found, strict=True)]
    return (
        f"Perfect copies of the {few.images} images would have a *fid* of {each[0]} (seeds 0 to {seeds - 1}), turned and "
        f"mirrored copies {each[1]}."
    )


def picture(folder: Path, results: pd.DataFrame, n: int = 10) -> Figure:
    """A row of real images, and of each kind of training one of samples of its first seed that is there."""
    rows: dict[str, np.ndarray] = {}
    ordered = results.sort_values(["state", "seed"])
    for name, asked in RUNS.items():
        if (ordered["run"] == name).any():
            rows.setdefault(asked.real, shown(asked.population(n, HELD_OUT_SEED)))
        for minutes, seed, state in ordered[ordered["run"] == name][[*KEYS[1:], "state"]].itertuples(
            index=False
        ):
            own = training_folder(folder, name, minutes, seed)
            told = name + ", last state" * (state == "last")
            if told in rows or (state == "last" and name not in (FEW, FEW_PLAIN)):
                continue
            try:
                model = Synthesizer.load(own / "model.safetensors")
                if state == "last":
                    _load_last(model, own)
                rows[told] = model.sample(range(JUDGED_FROM, JUDGED_FROM + n))
            except UserError as error:
                print(f"not in the picture: {error}", file=sys.stderr)
    return rows_figure(rows)


def publish_page(results: pd.DataFrame, minutes: float, file: Path) -> None:
    """Write the page of all trainings that were given so many minutes, their rows and their picture."""
    own = of_length(results, minutes)
    if own.empty:
        raise UserError(f"{file}: nothing to publish, it has no training of {minutes:g} minutes.")
    page = f"dual_phase_{minutes:g}min"
    image = page.replace("_", "-") + ".png"
    about = {"synthetic": True, "generator": "benchmarks/dual_phase.py"}
    with atomic_path(DOCS.parent / "images" / image) as temporary:
        temporary.write_bytes(figure_png(picture(file.with_suffix(""), own), about))
    with atomic_path(DOCS / f"{page}.csv") as temporary:
        own.to_csv(temporary, index=False)
    seeds, days = sorted(own["seed"].unique().tolist()), sorted(own["date"].unique())
    names = [f'"{name}"' for name in RUNS if name in set(own["run"])]
    publish(
        "dual_phase", f"Did the GAN learn the population? {minutes:g} minutes a training", [
            f"Dual-phase microstructures (Gaussian random fields), 64 px, grey; every training was given {minutes:g} minutes of the "
            "machine on which its steps were planned. With 50 images, the one without augmentation takes the steps of the one "
            f"with it, which learns from {50 - RUNS[FEW].unseen} of them and lets the others tell it how much the critic knows by heart; so do "
            "200 of the 2000 in *200 unseen*. *Anisotropy 2* is another population: elongated along x. The state kept is the one nearest "
            "to the training images. 1000 samples against 1000 images of the population that no "
            "model has seen. *fid*: Fréchet distance of 55 physical statistics, in units of their spread over the real "
            "images. *phase fraction error*: difference of the mean bright area. *two point rms*: of the two-point "
            "correlation up to half the edge. *memorisation score*: share of samples more like a training image than all "
            "but the likest 1 % of unseen ones. *truth*: both errors against what theory says of the population, instead of "
            "the held-out images, the second along x and y. *anisotropy*: ratio of the distances along x and y over which the "
            "two-point function falls half-way. *augment p*: probability of augmentation, largest and at the end. The last lines are the "
            "noise floor, and in *truth* and *anisotropy* what cutting and measuring finds in real images.",
            known_truth(),
            fifty_themselves(),
            summary(own),
            f"Mean and standard deviation over the seeds; [each training by itself]({page}.csv).",
            f"![Real fields, and samples of each model](../images/{image})",
        ], [],
        f"Measured from {days[0]} to {days[-1]}, seeds {', '.join(map(str, seeds))}, with "
        f"{', '.join(sorted(own['code'].unique()))}: {'; '.join(own['where'].unique())}. Minutes are wall times.",
        " ".join([f"{minutes:g}", str(max(seeds) + 1), file.name, *names]),
        page,
    )  # fmt: skip


def main(minutes: float = 60.0, seeds: int = 3, path: str = "dual_phase.csv", *names: str) -> None:
    for name in names:
        if name not in RUNS:
            raise UserError(f"There is no run '{name}'.{did_you_mean(name, RUNS)}")
    set_threads()
    file = Path(path)
    results, folder = read_results(file), file.with_suffix("")
    for seed in range(seeds):
        for name in names or RUNS:
            if is_done(results, name, minutes, seed):
                continue
            steps = planned_steps(name, minutes, results, folder)
            rows = pd.DataFrame(run(name, minutes, seed, steps, folder))
            results = rows if results.empty else pd.concat([results, rows], ignore_index=True)
            with atomic_path(file) as temporary:
                results.to_csv(temporary, index=False)
            print(rows.T.to_string(), flush=True)
    publish_page(results, minutes, file)


if __name__ == "__main__":
    given = sys.argv[1:]
    try:
        main(float(given[0]) if given else 60.0, int(given[1]) if given[1:] else 3, *given[2:])
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
