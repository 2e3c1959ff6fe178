"""Speed of the latent models on the CPU beside AtomAI and pyroVED: training and encoding.

`python benchmarks/latent_speed.py`; it is run where they are installed (`benchmarks/latent_peers.py` says how).
"""

from __future__ import annotations

import sys
from functools import partial

import latent_peers
import numpy as np
from common import cpu_seconds, publish, table

from micrographia.latent.model import VaeConfig
from micrographia.latent.presets import joint_rvae, rvae, semi_supervised_rvae
from micrographia.simulate.shapes import cards

TIMED, EPOCHS = 400, 4
#: AtomAI has no semi-supervised model that takes the rotation out.
LACKS = {("AtomAI", "semi")}


def speed(peers: list[str]) -> str:
    """Table of CPU times per image."""
    rows = []
    ours = {"rvae": rvae, "joint": partial(joint_rvae, 4), "semi": partial(semi_supervised_rvae, 4)}
    for size in (28, 48):
        truth = cards(TIMED, size_px=size, rotation_deg=120)
        labels = np.where(np.arange(TIMED) % 4 == 0, truth.kind, -1)
        for kind, make in ours.items():
            told = labels if kind == "semi" else None
            model = make(range_deg=120, config=VaeConfig(epochs=EPOCHS, batch=latent_peers.BATCH))
            model.fit(truth.images, told)  # the first run of a process warms up
            own = cpu_seconds(partial(model.fit, truth.images, told), 2) / TIMED / EPOCHS
            encoding = cpu_seconds(partial(model.transform, truth.images), 3) / TIMED
            theirs = {
                peer: min(latent_peers.epoch_seconds(peer, kind, truth.images, 120, EPOCHS, labels)) / TIMED
                for peer in peers
                if (peer, kind) not in LACKS
            }
            cells = [
                f"{1000 * theirs[p]:.1f} ({theirs[p] / own:.1f} x)" if p in theirs else "" for p in peers
            ]
            least = f"{min(theirs.values()) / encoding:.0f} x" if theirs else ""
            rows.append([kind, f"{size}²", f"{1000 * own:.2f}", *cells, f"{1000 * encoding:.2f}", least])
            print(rows[-1], file=sys.stderr, flush=True)
    header = [
        "model",
        "patch, px",
        "training, ms",
        *(f"{p}, ms" for p in peers),
        "encoding, ms",
        "against the faster peer's training",
    ]
    return table(header, rows)


def main() -> None:
    peers = latent_peers.present()
    absent = sorted({"AtomAI", "pyroVED"} - set(peers))
    text = (
        f"CPU time per image on {TIMED} cards, batches of {latent_peers.BATCH}, hidden layers of 128 units in all: training "
        f"(ours: a whole training of {EPOCHS} epochs with all that belongs to it, the faster of two after a first one; the peers: the fastest of {EPOCHS} epochs, taken "
        "inside their trainers, without their start) and encoding. `joint`: 4 unknown classes; `semi`: one of four patches "
        "labelled, which AtomAI has not. In brackets: how many times faster ours is."
        + (f" Not installed, left out: {', '.join(absent)}." if absent else "")
    )
    publish(
        "latent_speed", "Speed of the latent models", [text, speed(peers)], ["torch", "atomai", "pyroved"]
    )


if __name__ == "__main__":
    main()
