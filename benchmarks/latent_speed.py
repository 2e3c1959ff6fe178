"""Speed of the latent models on the CPU beside pyroVED: training and encoding.

`python benchmarks/latent_speed.py`; it is run where it is installed (`benchmarks/latent_peers.py` says how).
"""

from __future__ import annotations

from functools import partial

import latent_peers
import numpy as np
from common import clock, publish, table

from micrographia.latent.model import VaeConfig
from micrographia.latent.presets import joint_rvae, rvae, semi_supervised_rvae
from micrographia.simulate.shapes import cards

TIMED, TIMED_EPOCHS = 100, 5
#: Epochs by which a long training of a peer is longer than a short one. AtomAI cannot be timed so: its start takes tens of
#: seconds, and varies by more than twenty epochs take.
FURTHER = {"pyroVED": 4}


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
                seconds = []
                for epochs in (1, 1 + FURTHER[peer]):  # the difference leaves the start out
                    with clock() as spent:
                        latent_peers.trained(peer, kind, truth.images, 120, epochs, labels)
                    seconds.append(spent["cpu"])
                theirs[peer] = 1000 * (seconds[1] - seconds[0]) / FURTHER[peer] / TIMED
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


def main() -> None:
    peers = [p for p in latent_peers.present() if p in FURTHER]
    absent = [p for p in FURTHER if p not in peers]
    text = (
        f"CPU time per image on {TIMED} cards, batches of {latent_peers.BATCH}, hidden layers of 128 units in all: training "
        f"(ours: all of {TIMED_EPOCHS} epochs; pyroVED: what {FURTHER['pyroVED']} further epochs take, "
        "without its start) and encoding. `joint`: 4 unknown classes; `semi`: one of four patches "
        "labelled. In brackets: how many times faster ours is."
        + (f" Not installed, left out: {', '.join(absent)}." if absent else "")
    )
    publish("latent_speed", "Speed of the latent models", [text, speed(peers)], ["torch", "pyroved"])


if __name__ == "__main__":
    main()
