"""Unsupervised classes: the joint rVAE on four card suits, rotated, sheared and shifted.

`python benchmarks/latent_classes.py [seeds, default 3] [epochs, default 20]`
"""

from __future__ import annotations

import sys

import numpy as np
from common import clock, publish, table
from latent import angle_error

from micrographia.latent.compare import clustering_accuracy
from micrographia.latent.model import VaeConfig
from micrographia.latent.presets import joint_rvae
from micrographia.simulate.shapes import SUITS, PoseSet, cards

PATCHES, SHIFT_PX = 1000, 2.0
#: Range of the rotations in degrees, and of the shear.
SETS = ((120, 0.0), (120, 0.2), (180, 0.0), (180, 0.2))


def angle_errors(truth: PoseSet, angle_deg: np.ndarray) -> list[str]:
    """Mean error of each suit, modulo its offset and symmetry, and the share of patches off by more than 20 degrees.

    A shear contains a rotation by ``atan(shear / 2)``, the rotation of its polar decomposition. The angle of a sheared
    card is that of the whole rotation: what a rigid template aligns to.
    """
    whole = truth.angle_deg + np.rad2deg(np.arctan(truth.content[:, 0] / 2))
    out = []
    for kind in range(len(SUITS)):
        some = truth.kind == kind
        error = angle_error(angle_deg[some], whole[some], int(truth.symmetry[some][0]))
        out.append(f"{error.mean():.1f} ({100 * (error > 20).mean():.0f} %)")
    return out


def main(seeds: int, epochs: int) -> None:
    rows = []
    for range_deg, shear in SETS:
        for seed in range(seeds):
            truth = cards(PATCHES, rotation_deg=range_deg, shear=shear, shift_px=SHIFT_PX, seed=seed)
            model = joint_rvae(4, range_deg=range_deg, config=VaeConfig(epochs=epochs), seed=seed)
            with clock() as spent:
                codes = model.fit(truth.images).transform(truth.images)
            accuracy = clustering_accuracy(codes[:, -4:].argmax(axis=1), truth.kind)
            row = [f"± {range_deg}°", shear, seed, f"{accuracy:.3f}", *angle_errors(truth, codes[:, 0])]
            rows.append([*row, f"{1000 * spent['cpu'] / PATCHES / epochs:.2f}"])
    header = [
        "rotations",
        "shear",
        "seed",
        "clustering accuracy",
        *(f"{suit}, °" for suit in SUITS),
        "ms CPU",
    ]
    text = (
        f"{PATCHES} cards of 48² px, rotated and sheared, shifted by up to ± {SHIFT_PX:g} px; `joint_rvae` without labels, "
        f"{epochs} epochs. By suit: mean error of the angle, modulo the suit's offset and symmetry, and the share of "
        "patches that are off by more than 20° (a sheared heart or spade resembles its mirror image turned by a large angle, "
        "and the model may take it for that). A shear contains a rotation by atan(shear / 2), which counts to the angle. Last: "
        "CPU time per image and epoch."
    )
    publish(
        "latent_classes", "Classes without labels", [text, table(header, rows)], ["torch", "scikit-learn"]
    )


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*(numbers + [3, 20][len(numbers) :]))
