"""AtomAI and pyroVED behind the calls that `benchmarks/latent.py` makes; a peer that is absent is skipped.

Install beside this package (not needed otherwise):
`pip install atomai` and `pip install --no-deps pyroved pyro-ppl pyro-api opt_einsum`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from math import radians
from unittest.mock import patch

import numpy as np
import torch
from common import clock, stand_in_for_torchvision

BATCH = 50


def present() -> list[str]:
    """Names of the peers that can be imported; says which cannot, and why."""
    stand_in_for_torchvision()
    vars(np).setdefault("product", np.prod)  # AtomAI 0.8.1 was written for NumPy 1
    found = []
    for name, module in (("AtomAI", "atomai"), ("pyroVED", "pyroved")):
        try:
            importlib.import_module(module)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
        else:
            found.append(name)
    return found


def trained(
    name: str,
    kind: str,
    images: np.ndarray,
    range_deg: float,
    epochs: int,
    labels: np.ndarray | None = None,
    rate: float | None = None,
) -> Callable[[np.ndarray], np.ndarray]:
    """Train the peer's `kind` ("rvae", "joint" or "semi") on images scaled to 0..1; return its encoder.

    Cross-entropy loss, batches of 50, everything else as the peer has it by default, but for AtomAI's learning `rate`.
    The encoder's columns: angle (radians), shift, code.
    """
    make = partial(_atomai, rate=rate) if name == "AtomAI" else _pyroved
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(scratch)  # AtomAI writes a file after every epoch
        try:
            return make(kind, images, range_deg, epochs, labels)
        finally:
            os.chdir(here)


def epoch_seconds(
    name: str, kind: str, images: np.ndarray, range_deg: float, epochs: int, labels: np.ndarray | None = None
) -> list[float]:
    """CPU seconds of each epoch of the peer, taken inside its trainer: AtomAI's start alone takes tens of seconds."""
    if name == "AtomAI":
        from atomai.trainers.vitrainer import viBaseTrainer

        trainer, method = viBaseTrainer, "train_epoch"
    else:
        from pyroved.trainers import SVItrainer, auxSVItrainer

        trainer, method = auxSVItrainer if kind == "semi" else SVItrainer, "step"
    plain, seconds = getattr(trainer, method), []

    def timed(*given):
        with clock() as spent:
            out = plain(*given)
        seconds.append(spent["cpu"])
        return out

    with patch.object(trainer, method, timed):
        trained(name, kind, images, range_deg, epochs, labels)
    return seconds


def _atomai(
    kind: str,
    images: np.ndarray,
    range_deg: float,
    epochs: int,
    labels: np.ndarray | None,
    rate: float | None,
) -> Callable[[np.ndarray], np.ndarray]:
    from atomai.models import jrVAE, rVAE

    size = images.shape[1:]
    options = {"latent_dim": 2, "seed": 0}
    model = rVAE(size, **options) if kind == "rvae" else jrVAE(size, discrete_dim=[4], **options)
    model.fit(
        images, training_cycles=epochs, batch_size=BATCH, loss="ce", rotation_prior=radians(range_deg),
        optimizer=partial(torch.optim.Adam, lr=rate) if rate else None,
    )  # fmt: skip

    def encode(x: np.ndarray) -> np.ndarray:
        with contextlib.redirect_stdout(io.StringIO()):
            return np.asarray(model.encode(x)[0])

    return encode


def _pyroved(
    kind: str, images: np.ndarray, range_deg: float, epochs: int, labels: np.ndarray | None
) -> Callable[[np.ndarray], np.ndarray]:
    import pyroved

    size, X = images.shape[1:], torch.from_numpy(images)
    X = X.flatten(1) if kind == "semi" else X
    loader = pyroved.utils.init_dataloader(X, batch_size=BATCH)
    if kind == "rvae":
        model = pyroved.models.iVAE(size, latent_dim=2, invariances=["r", "t"])
        trainer = pyroved.trainers.SVItrainer(model)
    elif kind == "joint":
        model = pyroved.models.jiVAE(size, latent_dim=2, discrete_dim=4, invariances=["r", "t"])
        trainer = pyroved.trainers.SVItrainer(model, enumerate_parallel=True)
    else:
        assert labels is not None
        model = pyroved.models.ssiVAE(size, latent_dim=2, num_classes=4, invariances=["r", "t"])
        trainer = pyroved.trainers.auxSVItrainer(model, task="classification")
        told = labels >= 0
        one_hot = torch.eye(4)[torch.from_numpy(labels[told])]
        some = pyroved.utils.init_dataloader(X[told], one_hot, sampler=True, batch_size=BATCH)
    for _ in range(epochs):
        trainer.step(loader, some) if kind == "semi" else trainer.step(loader)

    return lambda x: np.asarray(model.encode(torch.from_numpy(x))[0])
