"""Did the GAN learn the population? StyleGAN2-ADA and DCGAN after the same time, and with fifty images.

Microstructures of known truth (Gaussian random fields cut at a level, 64 px, grey): 2000 to learn from, 1000 others to
judge by. Each model trains for the same wall time; with 50 images, StyleGAN2 with and without adaptive augmentation.
Every finished training is a line of a CSV file, and is not run again; its model lies in a folder beside that.

python dual_phase.py [minutes of a training] [seeds, 0: only publish] [results.csv] [names of runs ...]
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import DOCS, publish, table
from matplotlib.figure import Figure

from micrographia.plots.synthesis import rows_figure
from micrographia.simulate.microstructures import field_microstructures
from micrographia.synthesize.augment import AugmentConfig
from micrographia.synthesize.gan import GAN, GanConfig
from micrographia.synthesize.images import TrainingSet, Window
from micrographia.synthesize.synthesizer import Synthesizer
from micrographia.training.device import set_threads
from micrographia.workflows.recipe import built_in
from micrographia.workflows.report import figure_png
from micrographia.workflows.synthesize import JUDGED_FROM, judge
from micrographia.workflows.synthesize_recipe import JudgeConfig

STYLEGAN = built_in("stylegan2-ada").gan
NO_ADA = AugmentConfig(target=0.0)
#: Name -> (training images, configuration).
RUNS: dict[str, tuple[int, GanConfig]] = {
    "StyleGAN2-ADA": (2000, STYLEGAN),
    "DCGAN": (2000, built_in("dcgan").gan),
    "StyleGAN2-ADA, 50 images": (50, built_in("stylegan2-few").gan),
    "StyleGAN2, 50 images": (50, replace(STYLEGAN, augment=NO_ADA)),
}
SHOWN = (
    "fid",
    "phase_fraction_error",
    "two_point_rms",
    "precision",
    "recall",
    "density",
    "coverage",
    "memorisation_score",
)


def training_set(n: int, seed: int) -> TrainingSet:
    """8-bit images, as a microscope's software saves them."""
    images = field_microstructures(n, seed=seed).images
    levels = np.round(255 * images.clip(0, 1)).astype(np.uint8)[:, None]
    return TrainingSet(levels, Window(0.0, 255.0, "uint8"), tuple(map(str, range(n))), np.zeros((n, 2), int))


def steps_in(config: GanConfig, minutes: float) -> int:
    """Steps of this configuration that take so long here: measured on a step of each kind."""
    model = GAN(config, 1, 0, (config.resolution,) * 2, 0)
    for network in model.networks.values():
        network.train()
    batch = (
        torch.rand(config.batch, 1, config.resolution, config.resolution),
        torch.zeros(config.batch, dtype=torch.int64),
    )
    model.training_step(batch, 1, torch.Generator())
    spent = []
    for step in (0, *range(1, 12)):  # every penalty is due at step 0
        start = time.perf_counter()
        model.training_step(batch, step, torch.Generator())
        spent.append(time.perf_counter() - start)
    plain = float(np.median(spent[1:]))
    rest = (spent[0] - plain) / config.r1_every if config.r1 else 0.0
    # Looks, checkpoints and augmentation take a little.
    return int(0.9 * 60 * minutes / (plain + max(rest, 0.0)))


def run(name: str, seed: int, minutes: float, models: Path) -> dict[str, float | str]:
    n, config = RUNS[name]
    steps = steps_in(config, minutes)
    config = replace(config, steps=steps, evaluate_every=max(steps // 20, 1))
    images = training_set(n, seed=100 + seed)
    model = Synthesizer(config)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        result = model.fit(images, folder, seed)
        wall = (time.perf_counter() - begun) / 60
    models.mkdir(parents=True, exist_ok=True)
    model.save(model_file(models, name, seed))
    held_out = training_set(1000, seed=900).batch(slice(None)).numpy()
    samples = model.sample(range(JUDGED_FROM, JUDGED_FROM + 1000))
    numbers = judge(held_out, samples, images.batch(slice(None)).numpy(), JudgeConfig(), 0).numbers
    keep = [k for key in SHOWN for k in (key, f"{key}_floor") if k in numbers]
    return {
        "run": name, "seed": seed, "minutes": round(wall, 1), "steps": steps, "best_step": result.best_step or steps,
        "kimg": round(steps * config.batch / 1000, 1), **{k: float(numbers[k]) for k in keep},
    }  # fmt: skip


def model_file(models: Path, name: str, seed: int) -> Path:
    return models / f"{name.lower().replace(', ', '-').replace(' ', '-')}-{seed}.safetensors"


def picture(models: Path, n: int = 10) -> Figure:
    """A row of real images, and one of samples of each model, of its first seed."""
    rows = {"real": training_set(n, seed=900).batch(slice(None)).numpy()}
    for name in RUNS:
        trained = [f for f in (model_file(models, name, seed) for seed in range(10)) if f.exists()]
        if trained:
            rows[name] = Synthesizer.load(trained[0]).sample(range(JUDGED_FROM, JUDGED_FROM + n))
    return rows_figure(rows)


def summary(results: pd.DataFrame) -> str:
    """Mean and standard deviation over the seeds."""
    rows = []
    for name in [n for n in RUNS if (results["run"] == n).any()]:
        own = results[results["run"] == name]
        cells = [
            f"{own[k].mean():.3g} ± {own[k].std():.2g}" if len(own) > 1 else f"{own[k].mean():.3g}"
            for k in SHOWN
        ]
        rows.append([name, len(own), f"{own['minutes'].mean():.0f}", f"{own['kimg'].mean():.0f}", *cells])
    floors = [f"{results[f'{k}_floor'].mean():.2g}" if f"{k}_floor" in results else "" for k in SHOWN]
    rows.append(["real, half against half", "", "", "", *floors])
    return table(["model", "seeds", "minutes", "kimg", *(k.replace("_", " ") for k in SHOWN)], rows)


def main(minutes: float = 60.0, seeds: int = 3, path: str = "dual_phase.csv", *names: str) -> None:
    set_threads()
    file = Path(path)
    results = pd.read_csv(file) if file.exists() else pd.DataFrame({"run": [], "seed": []})
    for seed in range(seeds):
        for name in names or RUNS:
            if ((results["run"] == name) & (results["seed"] == seed)).any():
                continue
            results = pd.concat(
                [results, pd.DataFrame([run(name, seed, minutes, file.with_suffix(""))])], ignore_index=True
            )
            results.to_csv(file, index=False)
            print(results.iloc[-1].to_string(), flush=True)
    drawn = picture(file.with_suffix(""))
    about = {"synthetic": True, "generator": "benchmarks/dual_phase.py"}
    (DOCS.parent / "images" / "dual-phase.png").write_bytes(figure_png(drawn, about))
    publish(
        "dual_phase", "Did the GAN learn the population?", [
            "Dual-phase microstructures (Gaussian random fields), 64 px, grey; every training has the same wall time on two "
            "cores; the state kept is the one nearest to the training images. 1000 samples against 1000 images that no "
            "model has seen. *fid*: Fréchet distance of 55 physical statistics, in units of their spread over the real "
            "images. *phase fraction error*: difference of the mean bright area. *two point rms*: of the two-point "
            "correlation up to half the edge. *memorisation score*: share of samples more like a training image than all "
            "but the likest 1 % of unseen ones. The last line is the noise floor.",
            summary(results),
            "![Real fields, and samples of each model](../images/dual-phase.png)",
        ], ["torch"],
    )  # fmt: skip


if __name__ == "__main__":
    given = sys.argv[1:]
    main(float(given[0]) if given else 60.0, int(given[1]) if given[1:] else 3, *given[2:])
