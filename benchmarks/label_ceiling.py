"""How good a score the hand labels of rhenium on carbon allow: their gaps, and a network that learns from them.

Nothing else in the project uses these labels before the score is taken. The network: two folds, trained on every
second image with its labels, judged on the others. `OMP_NUM_THREADS=2 python benchmarks/label_ceiling.py`, ten
minutes on one core.
"""

from __future__ import annotations

import tempfile

import numpy as np
import pandas as pd
from common import publish, table
from real_data import HERE, re_single_atoms, read_images
from scipy import ndimage

from micrographia.detect.finder import DefectFinder, DetectConfig
from micrographia.detect.peaks import suppress_neighbours
from micrographia.metrics.matching import best_threshold, match_sites, precision_recall_curve, score_sites
from micrographia.micrograph import Micrograph
from micrographia.sites import concat_sites, make_sites
from micrographia.training.device import set_threads

PIXEL_A, QUARTER_PX, STEPS = 0.2, 256, 800
#: Gaussians (px) whose difference is the band-pass, and the least distance of its peaks.
BAND_PX, APART_PX = (2.0, 5.0), 5.0
#: As far as a click may miss a spot when the question is whether there is one at all.
CLICK_PX = 4


def response(data: np.ndarray) -> np.ndarray:
    """Band-pass an image; in units of the result's robust standard deviation."""
    narrow, wide = (ndimage.gaussian_filter(data.astype(float), sigma) for sigma in BAND_PX)
    band = narrow - wide
    centre = np.median(band)
    return (band - centre) / (1.4826 * np.median(np.abs(band - centre)))


def band_pass_peaks(image: Micrograph) -> pd.DataFrame:
    """Return the maxima of the band-passed image as sites, the response as their confidence."""
    band = response(image.data)
    row, col = np.nonzero((band == ndimage.maximum_filter(band, 3)) & (band > 1))
    sites = make_sites(image.name, col.astype(float), row.astype(float), "Re", band[row, col])
    return suppress_neighbours(sites, APART_PX)


def gaps(image: Micrograph, own: pd.DataFrame) -> tuple[int, int, int]:
    """Count labels where there is less to see than at half of all places, certain atoms, and those without a label.

    Certain is a peak as strong as half of the labelled ones.
    """
    reach = np.hypot(*np.mgrid[-CLICK_PX : CLICK_PX + 1, -CLICK_PX : CLICK_PX + 1]) <= CLICK_PX
    nearby = ndimage.maximum_filter(response(image.data), footprint=reach)
    row, col = (
        own[c].round().astype(int).clip(0, n - 1) for c, n in zip(("y_px", "x_px"), image.shape, strict=True)
    )
    at_labels = nearby[row, col]
    peaks = band_pass_peaks(image)
    certain = peaks.loc[peaks["confidence"] >= np.median(at_labels), ["x_px", "y_px"]].to_numpy()
    hits, _, _ = match_sites(certain, own[["x_px", "y_px"]].to_numpy(float), 6.0)
    return int((at_labels < np.median(nearby)).sum()), len(certain), len(certain) - len(hits)


def learnt_from_labels(images: list[Micrograph], truth: pd.DataFrame, tolerance_px: float) -> pd.DataFrame:
    """Return candidates in every image, from a network that learnt from the labels of every second other one."""
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
        # The raw confidence: the calibration is coarse, and ties would cost the curve its best point.
        tables = [finder.candidates(image) for image in images[fold::2]]
        candidates += [t.assign(confidence=t["raw_confidence"]) for t in tables]
    return concat_sites(candidates)


def main() -> None:
    """Measure, write the page."""
    set_threads()
    truth, tolerance_px, names, folder = re_single_atoms(HERE.parent / "shared" / "data")
    images = [read_images(folder / n)[0].with_pixel_size(PIXEL_A, "assumed") for n in sorted(names)]
    counted = np.array([gaps(image, truth[truth["image"] == image.name]) for image in images])
    labels = np.array([(truth["image"] == image.name).sum() for image in images])
    resampled = np.random.default_rng(0).integers(0, len(images), (2000, len(images)))

    # First of all the images, then of the resampled ones.
    rows = np.concatenate([[np.arange(len(images))], resampled])
    weak, certain, bare = (counted[rows, k].sum(axis=1) for k in range(3))
    recall, precision = 1 - 2 * weak / labels[rows].sum(axis=1), 1 - bare / certain

    def told(values: np.ndarray) -> str:
        low, high = np.quantile(values[1:], [0.025, 0.975])
        return f"{values[0]:.3f} ({low:.3f} to {high:.3f})"

    habits = (
        "What the labels miss, by a band-pass (difference of Gaussians of 2 and 5 px). A label that was put down anywhere "
        "has an even chance to lie where there is less to see (within 4 px) than at half of all places; one on an atom has "
        f"next to none. So twice the labels at such places are astray, a share of {told(1 - recall)} of all. Of the certain "
        f"atoms, peaks as strong as half of the labelled ones, a share of {told(1 - precision)} has no label within "
        f"{tolerance_px:g} px. A detector that finds every atom, and nothing else, would have a recall of {told(recall)}, a "
        f"precision of {told(precision)} if faint atoms are labelled as often as strong ones, and so an F1 of "
        f"{told(2 * precision * recall / (precision + recall))}. (95 %, bootstrap over images.)\n\n"
    )
    habits += table(
        ["image", "labels", "astray (twice those at weak places)", "certain atoms", "of them unlabelled"],
        [
            [i.name, n, 2 * a, c, u]
            for i, n, (a, c, u) in zip(images, labels.tolist(), counted.tolist(), strict=True)
        ],
    )
    every = {
        "band-pass": concat_sites([band_pass_peaks(image) for image in images]),
        "network": learnt_from_labels(images, truth, tolerance_px),
    }
    scored, per_image = [], {}
    for name, candidates in every.items():
        best = best_threshold(precision_recall_curve(candidates, truth, tolerance_px))
        score = score_sites(
            candidates[candidates["confidence"] >= best], truth, tolerance_px, images=list(names)
        )
        low, high = score.intervals["f1"]
        scores = f"{score.precision:.3f}", f"{score.recall:.3f}", f"{score.f1:.3f} ({low:.3f} to {high:.3f})"
        scored.append([name, *scores])
        per_image[name] = score.per_image.set_index("image")["f1"]
    learnt = (
        f"Best possible scores at one threshold, chosen with the labels: the band-pass, and the detector's network trained for "
        f"{STEPS} steps on every second image with its hand labels and judged on the others, then the other way round. "
        "Trained with labels it need not bridge any gap between simulation and experiment: what it misses is the "
        "scatter of the labels, the noise, and the small number of images.\n\n"
    )
    learnt += table(["detector", "precision", "recall", "F1 (95 %)"], scored) + "\n\n"
    learnt += table(
        ["image", *per_image],
        [[i.name, *(f"{f1[i.name]:.2f}" for f1 in per_image.values())] for i in images],
    )
    title = "Rhenium on carbon: what the hand labels allow"
    publish("label_ceiling", title, [f"Tolerance {tolerance_px:g} px.", habits, learnt], ["torch"])


if __name__ == "__main__":
    main()
