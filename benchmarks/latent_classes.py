"""Unsupervised classes: the joint rVAE on four card suits, rotated, sheared and shifted.

`python benchmarks/latent_classes.py [seeds, default 3] [epochs, default 20]`
"""

from __future__ import annotations

import sys

import numpy as np
from common import clock, publish, table
from latent import angle_error
from scipy.optimize import linear_sum_assignment

from micrographia.latent.model import VaeConfig
from micrographia.latent.presets import joint_rvae
from micrographia.simulate.shapes import SUITS, cards

PATCHES, RANGE_DEG, SHEAR, SHIFT_PX = 1000, 120, 0.2, 2.0


def clustering_accuracy(found: np.ndarray, truth: np.ndarray, k: int) -> float:
    """Share of patches in the right class under the best pairing of classes."""
    counts = np.zeros((k, k))
    np.add.at(counts, (found, truth), 1)
    return float(counts[linear_sum_assignment(-counts)].sum() / len(truth))


def main(seeds: int, epochs: int) -> None:
    rows = []
    for seed in range(seeds):
        truth = cards(PATCHES, rotation_deg=RANGE_DEG, shear=SHEAR, shift_px=SHIFT_PX, seed=seed)
        model = joint_rvae(4, range_deg=RANGE_DEG, config=VaeConfig(epochs=epochs), seed=seed)
        with clock() as spent:
            model.fit(truth.images)
        accuracy = clustering_accuracy(model.predict(truth.images), truth.kind, 4)
        angle = model.transform(truth.images)[:, 0]
        errors = []
        for kind in range(4):
            some = truth.kind == kind
            fold = int(truth.symmetry[some][0])
            errors.append(f"{np.median(angle_error(angle[some], truth.angle_deg[some], fold)):.1f}")
        rows.append([seed, f"{accuracy:.3f}", *errors, f"{1000 * spent['cpu'] / PATCHES / epochs:.2f}"])
    header = ["seed", "clustering accuracy", *(f"{suit}, °" for suit in SUITS), "ms CPU per image"]
    text = (
        f"{PATCHES} cards of 48² px, rotated by up to ± {RANGE_DEG}°, sheared by up to ± {SHEAR}, shifted by up to "
        f"± {SHIFT_PX:g} px; `joint_rvae` without labels, {epochs} epochs. By suit: median error of the angle, modulo "
        "the suit's offset and symmetry (a shear of 0.2 can itself pass for a rotation of up to 6 to 11°)."
    )
    publish(
        "latent_classes", "Classes without labels", [text, table(header, rows)], ["torch", "scikit-learn"]
    )


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*(numbers + [3, 20][len(numbers) :]))
