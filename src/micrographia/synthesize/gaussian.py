"""A GAN small enough to watch: a straight line learns a Gaussian.

The teaching example of P. Pelz, "Data Science in Electron Microscopy", after Zhang, Lipton, Li and Smola, "Dive
into Deep Learning", section 20.1. Points ``X = Z A + b`` with Z standard normal have the mean b and the covariance
AᵀA. The generator is one linear layer of the same form, so that what it has learnt can be read from its weights:
its points have the mean `bias` and the covariance ``weightᵀ weight``. (Only AᵀA can be learnt, not A: a turn
of Z before A changes nothing that a discriminator could see.)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from micrographia.errors import UserError
from micrographia.io import StoredImage, write_stored
from micrographia.training.distributed import optimizer_step
from micrographia.training.loop import TrainConfig, train
from micrographia.video import write_video

#: A and b of the data, ``X = Z A + b``.
MIXING = np.array([[1.0, 2.0], [-0.1, 0.5]])
SHIFT = np.array([1.0, 2.0])
#: Points of the data, and how many of them a step learns from.
POINTS, BATCH = 1000, 8
#: Adam's learning rates of discriminator and generator.
LEARNING_RATES = (0.05, 0.005)
#: Region that is looked at, ``(x0, x1, y0, y1)``: four standard deviations about the mean.
EXTENT = (-3.0, 5.0, -6.25, 10.25)
#: Points of a snapshot, and edge of its map of probabilities.
_SHOWN, _GRID = 500, 48


@dataclass(frozen=True)
class Snapshot:
    """What the training looks like after some steps; the fields are what `gaussian_gan_figure` draws."""

    step: int
    """Steps taken."""
    real: np.ndarray
    """``[1000, 2]``, the data."""
    generated: np.ndarray
    """``[500, 2]``, from the same codes in every snapshot."""
    probability: np.ndarray
    """``[48, 48]``, what the discriminator takes for the chance that a point there is real; rows are y, upwards."""
    extent: tuple[float, float, float, float]
    """Region of `probability`: x0, x1, y0, y1."""
    courses: pd.DataFrame
    """Up to now: step, the losses `discriminator` and `generator`, and what :func:`agreement` measures."""


@dataclass(frozen=True)
class GaussianGAN:
    """A trained GAN on the Gaussian, beside the truth."""

    weight: np.ndarray
    """``[2, 2]``: generated points are ``z @ weight + bias``."""
    bias: np.ndarray
    """``[2]``."""
    data: np.ndarray
    """``[1000, 2]``, what was learnt from."""
    history: pd.DataFrame
    """Rows of the training: step, seconds, and what `Snapshot.courses` holds."""

    @property
    def mean(self) -> np.ndarray:
        """Mean of the generated points, exactly."""
        return self.bias

    @property
    def covariance(self) -> np.ndarray:
        """Covariance of the generated points, exactly."""
        return self.weight.T @ self.weight

    def draw(self, n: int, seed: int = 0) -> np.ndarray:
        """Generate points ``[n, 2]``."""
        return np.random.default_rng([seed, n]).standard_normal((n, 2)) @ self.weight + self.bias

    def table(self) -> pd.DataFrame:
        """Mean, covariance and :func:`agreement`: the truth, the 1000 points learnt from, the generator."""
        sets = {
            "truth": (SHIFT, MIXING.T @ MIXING),
            "data": (self.data.mean(axis=0), np.cov(self.data.T)),
            "generator": (self.mean, self.covariance),
        }
        names = ["mean_x", "mean_y", "cov_xx", "cov_xy", "cov_yy"]
        columns = {
            name: dict(zip(names, [*m, c[0, 0], c[0, 1], c[1, 1]], strict=True)) | agreement(m, c)
            for name, (m, c) in sets.items()
        }
        return pd.DataFrame(columns)


def fit_gaussian_gan(
    seed: int = 0,
    epochs: int = 20,
    beta1: float = 0.5,
    spread: float = 0.5,
    watch: Callable[[Snapshot], None] | None = None,
    watch_every: int = 50,
) -> GaussianGAN:
    """Let a linear generator learn the Gaussian from a discriminator of 2-5-3-1 units (tanh).

    1000 points, batches of 8, Adam with the learning rates 0.05 and 0.005, the non-saturating loss of Goodfellow
    et al. (2014): the lecture's setting, in the project's own training loop. But not
    its momentum and initial weights (``beta1=0.9, spread=0.02``), with which the outcome is a matter of luck.
    Median (and worst) of 16 seeds, in the terms of :func:`agreement` (``benchmarks/gaussian_gan.py``):

    ====================================  ============  ============  ============
    after 20 epochs                       mean_error    narrowest     widest
    ====================================  ============  ============  ============
    ``beta1=0.9, spread=0.02``, lecture   0.20 (0.65)   0.93 (0.22)   1.14 (2.25)
    ``beta1=0.5, spread=0.02``            0.09 (0.54)   0.84 (0.02)   1.10 (1.46)
    ``beta1=0.5, spread=0.5``             0.12 (0.24)   0.92 (0.37)   1.04 (1.32)
    the 1000 points themselves            0.04 (0.10)   0.97 (0.94)   1.01 (1.08)
    ====================================  ============  ============  ============

    Parameters
    ----------
    seed : int
        Of the data, of the weights and of the codes.
    epochs : int
        Passes over the data, of 125 steps.
    beta1 : float
        Adam's first momentum; the lecture leaves it at PyTorch's 0.9.
    spread : float
        Standard deviation of all weights at the start; the lecture's is 0.02.
    watch : callable, optional
        Takes a `Snapshot` before the first step and after every `watch_every`.
    watch_every : int
        Steps.

    Raises
    ------
    UserError
        No epochs, or a momentum or spread that cannot be.
    """
    if epochs < 1 or watch_every < 1:
        raise UserError(f"epochs = {epochs}, watch_every = {watch_every}: give at least 1.")
    if not 0 <= beta1 < 1:
        raise UserError(f"beta1 = {beta1} is not possible; give a number from 0 to below 1.")
    if not spread > 0:
        raise UserError(f"spread = {spread} is not possible: of equal weights none learns; give more than 0.")
    rng = np.random.default_rng([seed, 0])
    data = rng.standard_normal((POINTS, 2)) @ MIXING + SHIFT
    points = torch.from_numpy(data.astype(np.float32))
    codes = rng.standard_normal((_SHOWN, 2))
    game = _Game(seed, beta1, spread)
    courses: list[dict[str, float]] = []
    steps_per_epoch = POINTS // BATCH

    def batches(step: int) -> Tensor:
        epoch, k = divmod(step, steps_per_epoch)
        order = np.random.default_rng([seed, 1, epoch]).permutation(POINTS)
        return points[order[k * BATCH : (k + 1) * BATCH]]

    def look(step: int) -> dict[str, float]:
        weight, bias = game.line()
        found = agreement(bias, weight.T @ weight)
        if watch is not None:
            courses.append({"step": step, **game.recent_losses(), **found})
            probability = game.probability(EXTENT)
            table = pd.DataFrame(courses)
            watch(Snapshot(step, data, codes @ weight + bias, probability, EXTENT, table))
        return found

    look(0)
    config = TrainConfig(
        steps=epochs * steps_per_epoch,
        log_every=watch_every,
        evaluate_every=watch_every,
        checkpoint_every=1000,
        seed=seed,
        device="cpu",
    )
    with tempfile.TemporaryDirectory() as scratch:  # seconds of work: nothing to resume
        result = train(game, batches, config, scratch, look, label="Gaussian GAN")
    if result.stopped == "interrupted":
        raise KeyboardInterrupt
    weight, bias = game.line()
    return GaussianGAN(weight, bias, data, result.history)


def film_gaussian_gan(
    path: str | Path, seed: int = 0, epochs: int = 20, beta1: float = 0.5, spread: float = 0.5
) -> GaussianGAN:
    """Train as :func:`fit_gaussian_gan`, draw the training while it happens, and leave a movie.

    Parameters
    ----------
    path : path
        ``.gif`` or ``.mp4``. Beside it a PNG of the same name shows the latest state: a viewer that reloads
        shows the training live.
    """
    from micrographia.plots.gaussian_gan import gaussian_gan_figure, pixels

    path = Path(path)
    made = {"step": "fit_gaussian_gan", "seed": seed, "epochs": epochs, "beta1": beta1, "spread": spread}
    frames = []

    def watch(snapshot: Snapshot) -> None:
        frame = pixels(gaussian_gan_figure(**vars(snapshot)))
        write_stored(path.with_suffix(".png"), StoredImage(frame), made)
        frames.append(frame)

    write_video(path, np.zeros((1, 2, 2), np.uint8))  # what cannot be written shows now
    result = fit_gaussian_gan(seed, epochs, beta1, spread, watch, watch_every=100)
    frames += frames[-1:] * 10  # time to look at the end
    write_video(path, np.stack(frames), 5, made)
    return result


def agreement(mean: np.ndarray, covariance: np.ndarray) -> dict[str, float]:
    """How well a Gaussian agrees with the true one, measured in the true one's own standard deviations.

    Returns
    -------
    dict
        ``mean_error``: distance of the means (Mahalanobis), 0 is right. ``narrowest`` and ``widest``: the ratio
        of its standard deviation to the true one in the directions where this is smallest and largest, 1 is
        right; a generator whose points have collapsed to a line has ``narrowest`` 0, which the entries of its
        covariance hardly show.
    """
    whiten = np.linalg.inv(np.linalg.cholesky(MIXING.T @ MIXING))
    ratios = np.sqrt(np.maximum(np.linalg.eigvalsh(whiten @ covariance @ whiten.T), 0))
    distance = np.linalg.norm(whiten @ (mean - SHIFT))
    return {"mean_error": float(distance), "narrowest": float(ratios[0]), "widest": float(ratios[1])}


class _Game:
    """Generator and discriminator, and one step of each (see `training.loop.Trainable`)."""

    def __init__(self, seed: int, beta1: float, spread: float) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.generator = nn.Linear(2, 2)
            self.discriminator = nn.Sequential(
                nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)
            )
            self.networks: dict[str, nn.Module] = {
                "generator": self.generator,
                "discriminator": self.discriminator,
            }
            for parameter in [p for network in self.networks.values() for p in network.parameters()]:
                nn.init.normal_(parameter, 0, spread)
        rates = dict(zip(("discriminator", "generator"), LEARNING_RATES, strict=True))
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(self.networks[name].parameters(), rate, betas=(beta1, 0.999), fused=True)
            for name, rate in rates.items()
        }
        self._losses: list[tuple[float, float]] = []

    def training_step(self, batch: Tensor, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """``L_D = ½ [softplus(-D x) + softplus(D(G z))]``, ``L_G = softplus(-D(G z))``."""
        fake = self.generator(torch.randn(batch.shape, generator=generator))
        on_real, on_fake = self.discriminator(torch.cat([batch, fake.detach()])).chunk(2)
        told = (F.softplus(-on_real).mean() + F.softplus(on_fake).mean()) / 2
        self._learn("discriminator", told)
        fooled = F.softplus(-self.discriminator(fake)).mean()
        self._learn("generator", fooled)
        self._losses.append((float(told.detach()), float(fooled.detach())))
        return {"discriminator": told, "generator": fooled}

    def _learn(self, name: str, loss: Tensor) -> None:
        parameters = list(self.networks[name].parameters())
        for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = slope
        optimizer_step(self.optimizers[name])

    def line(self) -> tuple[np.ndarray, np.ndarray]:
        """The generator as ``z @ weight + bias``."""
        weight, bias = (p.detach().double().numpy() for p in (self.generator.weight, self.generator.bias))
        return weight.T.copy(), bias.copy()

    def recent_losses(self) -> dict[str, float]:
        """Means since the last call."""
        means = np.mean(self._losses, axis=0) if self._losses else (np.nan, np.nan)
        self._losses.clear()
        return dict(zip(("discriminator", "generator"), map(float, means), strict=True))

    @torch.no_grad()
    def probability(self, extent: tuple[float, float, float, float]) -> np.ndarray:
        x0, x1, y0, y1 = extent
        y, x = torch.meshgrid(torch.linspace(y0, y1, _GRID), torch.linspace(x0, x1, _GRID), indexing="ij")
        return torch.sigmoid(self.discriminator(torch.stack([x, y], dim=-1)))[..., 0].numpy()
