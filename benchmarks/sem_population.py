"""How near does a GAN come to real SEM images? Every measure of a run on a superalloy, and how sure its phases are.

    micrographia synthesize fit "../shared/data/sem-two-phase/Super1_*[0-9].tif" --set images.binning=2 \\
        --set images.crops_per_image=120 --set images.scale_each=true --set judge.threshold_each=true --out runs/sem
    python benchmarks/sem_population.py runs/sem

The hand-drawn phases are read here for the first time: a run sees images only.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

import numpy as np
from common import DOCS, environment, publish, table

from micrographia.io import atomic_path, read_stored
from micrographia.metrics.microstructure import phase_masks
from micrographia.plots.synthesis import sheet_figure
from micrographia.synthesize.images import fitted
from micrographia.training.device import set_threads
from micrographia.workflows.recipe import load_recipe
from micrographia.workflows.report import figure_png
from micrographia.workflows.synthesize import (
    divide,
    draw_for_judging,
    judge,
    load_model,
    provenance_of,
    read_images_of,
)
from micrographia.workflows.synthesize_recipe import SynthesizeRecipe

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "sem-two-phase"
#: The three images of other alloys (Super2) are another population: other magnifications, and other precipitates.
IMAGES = "Super1_*[0-9].tif"
SHOWN = 36


def by_hand(binning: int, edge: int) -> np.ndarray:
    """Area of the bright phase, the matrix, by hand and by the threshold of each patch, ``[images, 2]``."""
    areas = []
    for path in sorted(DATA.glob(IMAGES)):
        image = fitted(read_stored(path)[0].data.astype(np.float32), binning, "crop", (edge, edge))
        hand = read_stored(path.with_name(f"{path.stem}_phases.tif"))[0].data == 0
        rows, columns = (n // edge for n in image.shape)
        patches = image[: rows * edge, : columns * edge].reshape(rows, edge, columns, edge).swapaxes(1, 2)
        cut = phase_masks(patches.reshape(-1, edge, edge))
        areas.append((hand[: rows * edge * binning, : columns * edge * binning].mean(), cut.mean()))
    return np.array(areas)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    arguments = parser.parse_args()
    set_threads()
    recipe = load_recipe(str(arguments.run / "recipe.toml"))
    assert isinstance(recipe, SynthesizeRecipe)
    found = divide(read_images_of(recipe, [DATA / IMAGES], print), recipe)
    if found.held_out_by not in ("files", "places"):
        parser.error(f"{arguments.run}: held nothing out to judge by.")
    model, file = load_model(arguments.run)
    samples, _, _ = draw_for_judging(model, found.training, recipe.judge.samples, recipe.device)
    real, learnt = (part.batch(slice(None)).numpy() for part in (found.real, found.training))
    numbers = judge(real, samples, learnt, recipe.judge, recipe.seed).numbers
    rows = []
    for name in (key.removesuffix("_floor") for key in numbers if key.endswith("_floor")):
        if not {name, f"{name}_training"} <= set(numbers):  # not defined: no whole particle, say
            continue
        low, high = numbers.get(f"{name}_interval", (None, None))
        interval = "" if low is None else f"{low:.3g} to {high:.3g}"
        rows.append(
            [name.replace("_", " "), f"{numbers[name]:.3g}", interval]
            + [f"{numbers[name + ending]:.3g}" for ending in ("_training", "_floor")]
        )
    areas = by_hand(recipe.images.binning, recipe.gan.resolution)
    off = areas[:, 1] - areas[:, 0]
    some = np.random.default_rng(0).permutation(len(real))[:SHOWN]
    drawn = sheet_figure({"real": real[some], "generated (not measured images)": samples[:SHOWN]})
    with atomic_path(DOCS.parent / "images" / "synthesize-sem.png") as temporary:
        temporary.write_bytes(figure_png(drawn, None, provenance_of(model, file)))
    copies = 100 * numbers["memorisation_score"]
    chance = 100 * numbers["memorisation_chance"]
    publish(
        "sem_population", "How near does a GAN come to real SEM images?", [
            f"{len(np.unique(found.training.names))} SEM images of one superalloy, {len(found.training)} patches of "
            f"{recipe.gan.resolution} px, binned by {recipe.images.binning}; {len(samples)} samples against the {len(real)} "
            f"patches of {len(np.unique(found.real.names))} images that were held out. One training, "
            f"{recipe.gan.steps} steps, seed {recipe.seed}. *training*: the images learnt from, compared with the held-out "
            "ones as the samples are. *half against half*: of the held-out ones. Intervals are 95 %, by resampling images; "
            "patches of one image are not independent, so that they are too narrow.",
            "[What the measures are](../howto/synthesize.md). *rms*: root mean square difference of curves; *distance*: Wasserstein "
            "distance, in px where it says so; *kl*: divergence in nats.",
            table(["measure", "samples", "interval", "training", "half against half"], rows),
            f"{copies:.1f} % of the samples are more like a training image than all but the likest 1 % of held-out ones "
            f"({chance:.1f} % by chance).",
            f"The phases of the {len(areas)} images were also drawn by hand: they hold {areas[:, 0].mean():.3f} of the bright "
            f"one, the matrix, by hand and {areas[:, 1].mean():.3f} by each patch's own threshold, which is off by {np.abs(off).mean():.3f} on "
            f"average ({off.min():+.3f} to {off.max():+.3f}): a smaller difference of phase fractions is a fair comparison of two "
            "sets that are cut alike, but no statement about the alloy.",
            "![Real and generated patches](../images/synthesize-sem.png)",
        ], [],
        f"Trained until {date.fromtimestamp(file.stat().st_mtime)}, judged on {date.today()} with: {environment(['torch'])}. RUN is the "
        "folder of the training that the script's first lines give.",
        "RUN",
    )  # fmt: skip


if __name__ == "__main__":
    main()
