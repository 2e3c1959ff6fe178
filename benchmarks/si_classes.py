"""Unsupervised classes of real Si atoms in graphene, rotation taken out or not, against the given classes.

`python benchmarks/si_classes.py [seeds, default 5] [epochs, default 60]`
Reads `../shared/data/graphene-si/frames`: 107 frames of the classes Si1C3, Si1C4, Si3C6 (Si bonded to m C).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from common import clock, publish, table
from scipy import ndimage

from micrographia.latent.compare import adjusted_rand_index, clustering_accuracy, gmm, match_classes, pca
from micrographia.latent.model import VaeConfig
from micrographia.latent.presets import joint_rvae, rvae, vae
from micrographia.micrograph import robust_scale

FRAMES = Path(__file__).parents[2] / "shared" / "data" / "graphene-si" / "frames"
CLASSES = ("Si1C3", "Si1C4", "Si3C6")
WINDOW_A, PIXEL_A, BLUR_A, PRIOR_PX, BATCH = 5.0, 0.25, 0.3, 0.75, 25


def si_patches() -> tuple[np.ndarray, np.ndarray]:
    """Patches around every Si ``[N, 20, 20]``, all of one pixel size, from robustly scaled frames; classes."""
    frames = pd.read_csv(FRAMES / "frames.csv").set_index("image")
    sites = pd.read_csv(FRAMES / "sites.csv")
    patches, truth = [], []
    for name, frame in frames[frames["defect_class"].isin(CLASSES)].iterrows():
        pixel = frame["pixel_size_angstrom"]
        image = robust_scale(tifffile.imread(FRAMES / str(name)).astype(np.float32))[0]
        image = ndimage.gaussian_filter(image, BLUR_A / pixel)
        n = round(WINDOW_A / PIXEL_A)
        grid = (np.arange(n) - (n - 1) / 2) * PIXEL_A / pixel
        for site in sites[(sites["image"] == name) & (sites["species"] == "Si")].itertuples():
            at = np.meshgrid(site.y_px + grid, site.x_px + grid, indexing="ij")
            patches.append(ndimage.map_coordinates(image, at, order=1, mode="reflect"))
            truth.append(frame["defect_class"])
    return np.stack(patches).astype(np.float32), np.array(truth)


def main(seeds: int, epochs: int) -> None:
    as_cut, truth = si_patches()
    patches = as_cut - as_cut.mean(axis=(1, 2), keepdims=True)
    patches /= patches.std(axis=(1, 2), keepdims=True)
    config = VaeConfig(epochs=epochs, batch=BATCH)

    def plain(seed: int) -> np.ndarray:
        return gmm(vae(2, config, seed).fit_transform(patches), 3, seed).labels

    def invariant(seed: int, patches: np.ndarray = patches) -> np.ndarray:
        frame = rvae(2, 180, PRIOR_PX, config, seed).set_output(transform="pandas").fit_transform(patches)
        return gmm(frame[["z1", "z2"]].to_numpy(), 3, seed).labels

    methods: dict[str, Callable[[int], np.ndarray]] = {
        "GMM on the patches": lambda seed: gmm(patches, 3, seed).labels,
        "PCA (4) + GMM": lambda seed: gmm(pca(patches, 4).codes, 3, seed).labels,
        "`vae` + GMM": plain,
        "`rvae` + GMM": invariant,
        "`rvae` + GMM, contrast as cut": lambda seed: invariant(seed, as_cut),
        "`joint_rvae`": lambda seed: (
            joint_rvae(3, 2, 180, PRIOR_PX, config, seed).fit(patches).predict(patches)
        ),
    }
    rows, spread = [], []
    for name, labels_of in methods.items():
        accuracy, rand, recall = [], [], []
        with clock() as spent:
            for seed in range(seeds):
                labels = labels_of(seed)
                counts, true_names, _ = match_classes(labels, truth)
                right = dict(zip(true_names, np.diag(counts) / counts.sum(axis=1), strict=True))
                accuracy.append(clustering_accuracy(labels, truth))
                rand.append(adjusted_rand_index(labels, truth))
                recall.append([right[c] for c in CLASSES])
                print(name, seed, f"{accuracy[-1]:.3f} {rand[-1]:.3f}", counts.tolist(), flush=True)
        rows.append(
            [
                name,
                f"{np.mean(accuracy):.3f} ± {np.std(accuracy, ddof=min(seeds - 1, 1)):.3f}",
                f"{np.mean(rand):.3f}",
                *(f"{r:.2f}" for r in np.mean(recall, axis=0)),
                f"{spent['cpu'] / seeds:.0f}",
            ]
        )
        spread.append([name, *(f"{a:.3f}" for a in accuracy)])
    sizes = {c: int((truth == c).sum()) for c in CLASSES}
    text = (
        f"{len(patches)} patches of {patches.shape[1]}² px ({WINDOW_A:g} Å, {PIXEL_A:g} Å/px; each set to mean 0 and "
        f"deviation 1 except in one row) around the Si atoms of {', '.join(f'{c} ({n})' for c, n in sizes.items())}, three classes "
        f"asked for, no labels, {epochs} epochs, {seeds} seeds. The largest class alone would score "
        f"{max(sizes.values()) / len(patches):.3f}. Accuracy under the best pairing of classes, mean ± standard "
        "deviation over the seeds; share of each class that is right; CPU seconds per seed."
    )
    caution = (
        "Neighbouring frames come from one movie, so the patches are fewer independent samples than their number. "
        "Si1C4 is 11 patches only, 6 of its 10 frames were taken at another pixel size: what sets "
        "it apart may in part be how it was recorded."
    )
    publish(
        "si_classes",
        "Real Si atoms in graphene, without labels",
        [
            text,
            table(["method", "accuracy", "adjusted Rand", *CLASSES, "CPU, s"], rows),
            "Accuracy of every seed:",
            table(["method", *(f"seed {s}" for s in range(seeds))], spread),
            caution,
        ],
        ["torch", "scikit-learn"],
    )


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*(numbers + [5, 60][len(numbers) :]))
