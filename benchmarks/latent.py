"""The rotation-invariant VAE beside AtomAI and pyroVED: angle, shift and leak.

`python benchmarks/latent.py [seeds, default 3] [epochs, default 15] [epochs of the peers, default 60; 0 = ours alone]`

Peers are run where they are installed (`benchmarks/latent_peers.py` says how), else left out.
"""

from __future__ import annotations

import sys

import latent_peers
import numpy as np
from common import clock, publish, table
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsRegressor

from micrographia.latent.model import VaeConfig
from micrographia.latent.presets import rvae
from micrographia.simulate.shapes import motifs

#: AtomAI learns at 1e-4 by itself, which is slow for so few steps.
RATES = {"AtomAI": (None, 1e-3), "pyroVED": (None,)}
PATCHES, SIZE_PX, RANGES_DEG, SHIFT_PX = 1000, 16, (12, 60, 120, 180), 1.0


def angle_error(found_deg: np.ndarray, true_deg: np.ndarray, symmetry: int = 1) -> np.ndarray:
    """Error of each angle, modulo one offset common to all (what is upright is the model's choice)."""
    turns = np.exp(1j * np.deg2rad(symmetry * (found_deg - true_deg)))
    return np.rad2deg(np.abs(np.angle(turns / turns.mean()))) / symmetry


def shift_error(found_px: np.ndarray, true_px: np.ndarray, angle_deg: np.ndarray) -> float:
    """Mean distance, modulo one offset in the objects' own frame (where their origin lies)."""
    own = ((found_px - true_px) @ np.array([1, 1j])) * np.exp(1j * np.deg2rad(angle_deg))
    return float(np.abs(own - own.mean()).mean())


def leak(content: np.ndarray, angle_deg: np.ndarray) -> float:
    """R² of (cos, sin) of the angle predicted from the content by 15 nearest neighbours, cross-validated."""
    angle = np.deg2rad(angle_deg)
    target = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    content = content / np.maximum(content.std(axis=0), 1e-9)
    predicted = cross_val_predict(KNeighborsRegressor(15), content, target, cv=5)
    return float(1 - ((predicted - target) ** 2).sum() / ((target - target.mean(axis=0)) ** 2).sum())


def angles(seeds: int, epochs: int) -> str:
    """Table of our own errors."""
    rows = []
    for range_deg in RANGES_DEG:
        found = []
        for seed in range(seeds):
            truth = motifs(PATCHES, SIZE_PX, range_deg, SHIFT_PX, seed=seed)
            model = rvae(range_deg=range_deg, config=VaeConfig(epochs=epochs), seed=seed)
            with clock() as spent:
                codes = model.fit(truth.images).transform(truth.images)
            error = angle_error(codes[:, 0], truth.angle_deg)
            found.append(
                (
                    error.mean(),
                    error.max(),
                    shift_error(codes[:, 1:3], truth.shift_px, truth.angle_deg),
                    leak(codes[:, 3:], truth.angle_deg),
                    spent["cpu"],
                )
            )
        each = list(zip(*found, strict=True))
        rows.append([f"± {range_deg}°", *(", ".join(f"{v:.2f}" for v in values) for values in each)])
    return table(
        ["rotations", "mean angle error, °", "largest, °", "shift error, px", "leak R²", "CPU s"], rows
    )


def peers_angles(peers: list[str], epochs: int) -> str:
    """Table of the peers' errors on the same patches, seed 0."""
    rows = []
    for range_deg in RANGES_DEG:
        truth = motifs(PATCHES, SIZE_PX, range_deg, SHIFT_PX, seed=0)
        images = _to_one(truth.images)
        for peer, rate in ((p, r) for p in peers for r in RATES[p]):
            with clock() as spent:
                codes = latent_peers.trained(peer, "rvae", images, range_deg, epochs, rate=rate)(images)
            angle = np.rad2deg(codes[:, 0])  # either sense of rotation counts as right
            error = min(angle_error(sign * angle, truth.angle_deg).mean() for sign in (1, -1))
            rows.append(
                [
                    f"± {range_deg}°",
                    f"{peer}, rate {rate:g}" if rate else peer,
                    f"{error:.1f}",
                    f"{leak(codes[:, 3:], truth.angle_deg):.2f}",
                    f"{spent['cpu']:.0f}",
                ]
            )
    return table(["rotations", "", "mean angle error, °", "leak R²", "CPU s"], rows)


def _to_one(images: np.ndarray) -> np.ndarray:
    low, high = np.quantile(images, [0.001, 0.999])
    return np.clip((images - low) / (high - low), 0, 1).astype(np.float32)


def main(seeds: int, epochs: int, peer_epochs: int) -> None:
    about = (
        f"{PATCHES} patches of {SIZE_PX}² px (an atom with three unlike neighbours, two continuous factors, shifts "
        f"up to ± {SHIFT_PX:g} px, noise 5 %), `rvae`, {epochs} epochs; one value for each of {seeds} seeds (data and "
        "model). Errors are of the patches trained on, modulo one common offset. Leak: R² of the angle predicted from "
        "the content code by nearest neighbours; at or below zero means that there is nothing to predict from. CPU "
        "seconds are of training and encoding."
    )
    sections = [about, angles(seeds, epochs)]
    peers = latent_peers.present() if peer_epochs else []
    if peers:
        sections += [
            f"The peers on the same patches (seed 0, scaled to 0..1): {peer_epochs} epochs, cross-entropy, batches of 50, "
            "AtomAI's rotation prior set to the range, at its own learning rate (1e-4) and at a tenfold one; either sense of rotation counts as right.",
            peers_angles(peers, peer_epochs),
        ]
    publish(
        "latent", "Rotation-invariant latent models", sections, ["torch", "scikit-learn", "atomai", "pyroved"]
    )


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*(numbers + [3, 15, 60][len(numbers) :]))
