"""How well the same network finds rhenium when it learns from the hand labels: what their scatter allows.

Two folds: trained on every second image with its labels, judged on the others. Nothing else in the project
learns from these labels. `OMP_NUM_THREADS=2 python benchmarks/label_ceiling.py`, ten minutes on one core.
"""

from __future__ import annotations

import tempfile

import numpy as np
import pandas as pd
from common import publish, table
from real_data import HERE, re_single_atoms, read_images

from micrographia.detect.finder import DefectFinder, DetectConfig
from micrographia.metrics.matching import best_threshold, precision_recall_curve, score_sites
from micrographia.sites import concat_sites
from micrographia.training.device import set_threads

PIXEL_A, QUARTER_PX, STEPS = 0.2, 256, 800


def main() -> None:
    """Train, judge, write the table."""
    set_threads()
    truth, tolerance_px, names, folder = re_single_atoms(HERE.parent / "shared" / "data")
    images = [read_images(folder / n)[0].with_pixel_size(PIXEL_A, "assumed") for n in sorted(names)]
    candidates = []
    for fold in (0, 1):
        pieces, sites = [], []
        for image in images[1 - fold :: 2]:
            own = truth[truth["image"] == image.name]
            for top in range(0, image.shape[0], QUARTER_PX):
                for left in range(0, image.shape[1], QUARTER_PX):
                    x, y = own["x_px"] - left, own["y_px"] - top
                    inside = x.between(0, QUARTER_PX - 1) & y.between(0, QUARTER_PX - 1)
                    sites.append(
                        pd.DataFrame(
                            {"index": len(pieces), "x_px": x[inside], "y_px": y[inside], "kind": "Re"}
                        )
                    )
                    pieces.append(image.data[top : top + QUARTER_PX, left : left + QUARTER_PX])
        finder = DefectFinder(["Re"], [], PIXEL_A, DetectConfig(steps=STEPS))
        with tempfile.TemporaryDirectory() as scratch:
            finder.fit(
                np.stack(pieces), pd.concat(sites, ignore_index=True), scratch, fold,
                tolerance_A=tolerance_px * PIXEL_A,
            )  # fmt: skip
        candidates += [finder.candidates(image) for image in images[fold::2]]
    every = concat_sites(candidates)
    best = best_threshold(precision_recall_curve(every, truth, tolerance_px))
    score = score_sites(every[every["confidence"] >= best], truth, tolerance_px, images=list(names))
    low, high = score.intervals["f1"]
    per_image = score.per_image.sort_values("f1")[["image", "precision", "recall", "f1"]]
    text = (
        f"The detector's network trained for {STEPS} steps on every second image with its hand labels and judged on "
        f"the others, then the other way round; tolerance {tolerance_px:g} px; at the threshold that is best by the "
        "labels. Trained with labels it need not bridge any gap between simulation and experiment: what it misses is "
        "the scatter of the labels, the noise, and the small number of images.\n\n"
    )
    rows = [[f"{score.precision:.3f}", f"{score.recall:.3f}", f"{score.f1:.3f} ({low:.3f} to {high:.3f})"]]
    section = text + table(["precision", "recall", "F1 (95 %)"], rows)
    section += "\n\n" + table(
        list(per_image), [[r.image, *(f"{v:.2f}" for v in r[2:])] for r in per_image.itertuples()]
    )
    publish("label-ceiling", "Rhenium on carbon, learnt from the hand labels", [section], ["torch"])


if __name__ == "__main__":
    main()
