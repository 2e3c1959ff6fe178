"""The latent models beside AtomAI and pyroVED: angle, shift, leak, and speed.

`python benchmarks/latent.py [seeds, default 3] [epochs, default 15] [epochs of the peers, default 60; 0 = speed only]`

Peers are run where they are installed (`benchmarks/latent_peers.py` says how), else left out.
"""

from __future__ import annotations

import sys
from functools import partial

import latent_peers
import numpy as np
from common import clock, publish, table
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsRegressor

from micrographia.latent.model import VaeConfig
from micrographia.latent.presets import joint_rvae, rvae, semi_supervised_rvae
from micrographia.simulate.shapes import cards, motifs

PATCHES, SIZE_PX, RANGES_DEG, SHIFT_PX = 1000, 16, (12, 60, 120, 180), 1.0
#: Patches and epochs of the measurements of speed.
TIMED, TIMED_EPOCHS = 100, 5


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
        for peer in peers:
            with clock() as spent:
                codes = latent_peers.trained(peer, "rvae", images, range_deg, epochs)(images)
            angle = np.rad2deg(codes[:, 0])  # either sense of rotation counts as right
            error = min(angle_error(sign * angle, truth.angle_deg).mean() for sign in (1, -1))
            rows.append(
                [
                    f"± {range_deg}°",
                    peer,
                    f"{error:.1f}",
                    f"{leak(codes[:, 3:], truth.angle_deg):.2f}",
                    f"{spent['cpu']:.0f}",
                ]
            )
    return table(["rotations", "", "mean angle error, °", "leak R²", "CPU s"], rows)


def speed(peers: list[str]) -> str:
    """Table of CPU times per image."""
    rows = []
    ours = {"rvae": rvae, "joint": partial(joint_rvae, 4), "semi": partial(semi_supervised_rvae, 4)}
    for size in (28, 48):
        truth = cards(TIMED, size_px=size, rotation_deg=120)
        labels = np.where(np.arange(TIMED) % 4 == 0, truth.kind, -1)
        for kind, make in ours.items():
            told = labels if kind == "semi" else None
            model = make(range_deg=120, config=VaeConfig(epochs=TIMED_EPOCHS, batch=latent_peers.BATCH))
            model.fit(truth.images, told)  # the first run of a process warms up
            with clock() as spent:
                model.fit(truth.images, told)
            own = 1000 * spent["cpu"] / TIMED / TIMED_EPOCHS
            with clock() as spent:
                model.transform(truth.images)
            encoding = 1000 * spent["cpu"] / TIMED
            theirs = {}
            for peer in peers:
                if peer == "AtomAI" and kind == "semi":
                    continue  # it has none with rotations
                seconds = []
                for epochs in (1, 3):  # the difference: a start costs AtomAI up to half a minute
                    with clock() as spent:
                        latent_peers.trained(peer, kind, truth.images, 120, epochs, labels)
                    seconds.append(spent["cpu"])
                theirs[peer] = 1000 * (seconds[1] - seconds[0]) / 2 / TIMED
            cells = [f"{theirs[p]:.1f} ({theirs[p] / own:.0f} x)" if p in theirs else "" for p in peers]
            least = f"{min(theirs.values()) / encoding:.0f} x" if theirs else ""
            rows.append([kind, f"{size}²", f"{own:.2f}", *cells, f"{encoding:.2f}", least])
    header = [
        "model",
        "patch, px",
        "training, ms",
        *(f"{p}, ms" for p in peers),
        "encoding, ms",
        "against the peers' training",
    ]
    return table(header, rows)


def _to_one(images: np.ndarray) -> np.ndarray:
    low, high = np.quantile(images, [0.001, 0.999])
    return np.clip((images - low) / (high - low), 0, 1).astype(np.float32)


def main(seeds: int, epochs: int, peer_epochs: int) -> None:
    peers = latent_peers.present()
    about = (
        f"{PATCHES} patches of {SIZE_PX}² px (an atom with three unlike neighbours, two continuous factors, shifts "
        f"up to ± {SHIFT_PX:g} px, noise 5 %), `rvae`, {epochs} epochs; one value for each of {seeds} seeds (data and "
        "model). Errors are of the patches trained on, modulo one common offset. Leak: R² of the angle predicted from "
        "the content code by nearest neighbours; at or below zero means that there is nothing to predict from. CPU "
        "seconds are of training and encoding."
    )
    sections = [about, angles(seeds, epochs)]
    if peers and peer_epochs:
        sections += [
            f"The peers on the same patches (seed 0, scaled to 0..1): {peer_epochs} epochs, cross-entropy, batches of 50, "
            "AtomAI's rotation prior set to the range; either sense of rotation counts as right.",
            peers_angles(peers, peer_epochs),
        ]
    absent = [p for p in ("AtomAI", "pyroVED") if p not in peers]
    sections += [
        f"CPU time per image on {TIMED} cards, batches of {latent_peers.BATCH}, hidden layers of 128 units in all: training "
        f"(ours: all of {TIMED_EPOCHS} epochs; the peers: two further epochs, without their start) and encoding. `joint`: 4 unknown classes; `semi`: one of "
        "four patches labelled. In brackets: how many times faster ours is."
        + (f" Not installed, left out: {', '.join(absent)}." if absent else ""),
        speed(peers),
    ]
    publish(
        "latent", "Rotation-invariant latent models", sections, ["torch", "scikit-learn", "atomai", "pyroved"]
    )


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*(numbers + [3, 15, 60][len(numbers) :]))
