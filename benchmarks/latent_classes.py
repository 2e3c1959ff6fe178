"""Unsupervised classes: the joint rVAE on four card suits, rotated, sheared and shifted; does an ensemble know its mistakes?

`python benchmarks/latent_classes.py [seeds, default 3] [epochs, default 20]`
"""

from __future__ import annotations

import sys

import numpy as np
from common import clock, publish, table
from latent import angle_error
from sklearn.metrics import roc_auc_score

from micrographia.latent.compare import clustering_accuracy, match_classes
from micrographia.latent.ensemble import Ensemble
from micrographia.latent.model import VaeConfig
from micrographia.latent.presets import joint_rvae, semi_supervised_rvae
from micrographia.simulate.shapes import SUITS, PoseSet, cards

PATCHES, SHIFT_PX = 1000, 2.0
#: Range of the rotations in degrees, and of the shear.
SETS = ((120, 0.0), (120, 0.2), (180, 0.0), (180, 0.2))
#: Share of labelled cards.
LABELLED = 0.05
#: Small cards with so much noise (a card's contrast is 1) that some are put into a wrong class.
DOUBTFUL, DOUBTFUL_PX, NOISES, MEMBERS = 500, 24, (0.5, 0.7, 1.0), 5


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


def doubts(seeds: int) -> str:
    """Table of how well an ensemble's uncertainty tells the cards in a wrong class from the others."""
    rows = []
    for noise in NOISES:
        found = []
        for seed in range(seeds):
            truth = cards(
                DOUBTFUL, DOUBTFUL_PX, rotation_deg=120, shear=0.2, shift_px=1.0, noise=noise, seed=seed
            )
            model = joint_rvae(4, range_deg=120, config=VaeConfig(epochs=30), seed=seed)
            ensemble = Ensemble(model, members=MEMBERS).fit(truth.images)
            classes = ensemble.predict(truth.images)
            _, true, matched = match_classes(classes, truth.kind)
            suit = dict(zip(matched.tolist(), true.tolist(), strict=True))
            wrong = np.array([suit.get(k, -1) for k in classes.tolist()]) != truth.kind
            doubt = ensemble.uncertainty(truth.images)
            names = ("entropy", "mutual_information")
            found.append((wrong.mean(), *(roc_auc_score(wrong, doubt[name]) for name in names)))
        mean, spread = np.mean(found, axis=0), np.std(found, axis=0, ddof=min(1, seeds - 1))
        rows.append([noise, *(f"{m:.3f} ± {s:.3f}" for m, s in zip(mean, spread, strict=True))])
    return table(["noise", "in a wrong class", "AUROC of the entropy", "of the mutual information"], rows)


def told(seeds: int, epochs: int) -> str:
    """Table of the suits of cards of which few are labelled."""
    rows = []
    for seed in range(seeds):
        truth = cards(PATCHES, rotation_deg=120, shear=0.2, shift_px=SHIFT_PX, seed=seed)
        known = np.random.default_rng(seed).random(PATCHES) < LABELLED
        model = semi_supervised_rvae(4, range_deg=120, config=VaeConfig(epochs=epochs), seed=seed)
        found = model.fit(truth.images, np.where(known, truth.kind, -1)).predict(truth.images)
        right = (found == truth.kind)[~known].mean()
        rows.append([seed, known.sum(), f"{right:.3f}"])
    return table(["seed", "labelled", "of the others in the right class"], rows)


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
    doubtful = (
        f"{DOUBTFUL} cards of {DOUBTFUL_PX}² px at ± 120° with shear 0.2 and noise of this standard deviation; ensembles of "
        f"{MEMBERS}, 30 epochs; mean and standard deviation of {seeds} seeds. AUROC: the probability that a card in a wrong "
        "class is less certain than one in the right class."
    )
    few = f"`semi_supervised_rvae` on the cards at ± 120° with shear 0.2, {100 * LABELLED:g} % of them labelled, {epochs} epochs."
    sections = [text, table(header, rows), few, told(seeds, epochs), doubtful, doubts(seeds)]
    publish("latent_classes", "Classes without labels", sections, ["torch", "scikit-learn"])


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*(numbers + [3, 20][len(numbers) :]))
