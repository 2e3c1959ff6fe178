"""The imaging conditions of real images, fitted without labels.

Approximate Bayesian computation by population Monte Carlo (Beaumont et al., Biometrika 96, 983, 2009): simulate
patches under conditions drawn from the prior, keep for every patch of the experiment the simulations whose
physical features are nearest, draw new conditions around those, and repeat. Distances shrink from round to round
with the spread of the simulations. The result is no single best value but the distribution of conditions over
the experiment's patches: training images are drawn from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_predict

from micrographia.errors import UserError, check_ranges
from micrographia.metrics.distances import frechet_distance, standardise
from micrographia.metrics.features import physical_features
from micrographia.micrograph import Micrograph
from micrographia.simulate.degrade import NAMES, Conditions, from_unit
from micrographia.simulate.probe import Optics
from micrographia.simulate.scenes import Specimen, simulate_series


@dataclass(frozen=True)
class FitConfig:
    """How the imaging conditions are fitted."""

    prior: Conditions = field(default_factory=Conditions)
    """Ranges within which the conditions are sought."""
    simulations: int = 600
    """Patches simulated in each round; the first round, which covers the whole prior, takes twice as many."""
    rounds: int = 5
    """Rounds of simulating and selecting."""
    patch_px: int = 96
    """Edge of the patches that are compared."""
    max_patches: int = 96
    """Experimental patches used at most (spread evenly over the images)."""
    neighbours: int = 3
    """Simulations kept for each experimental patch."""
    widen: float = 0.03
    """Kernel added to every draw, as a fraction of the prior range: training should see a little more than the
    experiment showed."""

    def __post_init__(self) -> None:
        check_ranges(
            "fit",
            self,
            simulations=(100, math.inf),
            rounds=(1, math.inf),
            patch_px=(16, math.inf),
            max_patches=(2, math.inf),
            neighbours=(1, math.inf),
            widen=(0, 1),
        )


@dataclass(frozen=True)
class FittedConditions:
    """A sample of imaging conditions that reproduce the experiment."""

    unit: np.ndarray
    """``[M, P]`` in the prior's unit cube."""
    prior: Conditions
    widen: float
    identifiability: dict[str, float]
    """R² with which each condition can be told from a patch's features, on held-out simulations."""
    distance_before: float
    """Fréchet distance of the features, experiment to prior simulations."""
    distance_after: float
    """The same to simulations under the fitted conditions."""
    noise_floor: float
    """The same between two halves of the experiment's patches."""

    def draw(self, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw the conditions of `n` images from the fitted distribution."""
        rows = rng.integers(len(self.unit), size=n)
        unit = self.unit[rows] + self.widen * rng.standard_normal((n, self.unit.shape[1]))
        return from_unit(_reflect(unit), self.prior)

    def table(self) -> pd.DataFrame:
        """Summarise: condition, prior range, fitted 5 %, 50 % and 95 % quantiles, identifiability."""
        values = from_unit(self.unit, self.prior)
        rows = []
        for name in NAMES:
            low, mid, high = np.quantile(values[name], [0.05, 0.5, 0.95])
            prior = getattr(self.prior, name)
            rows.append((name, *prior, low, mid, high, self.identifiability[name]))
        return pd.DataFrame(
            rows, columns=["condition", "prior_low", "prior_high", "q05", "median", "q95", "r2"]
        )

    def to_dict(self) -> dict:
        """Return plain JSON-ready values; :meth:`from_dict` is the inverse."""
        return {
            "unit": self.unit.tolist(),
            "prior": {name: list(getattr(self.prior, name)) for name in NAMES},
            "widen": self.widen,
            "identifiability": self.identifiability,
            "distance_before": self.distance_before,
            "distance_after": self.distance_after,
            "noise_floor": self.noise_floor,
        }

    @classmethod
    def from_dict(cls, values: dict) -> FittedConditions:
        """Rebuild from :meth:`to_dict`."""
        prior = Conditions(**{k: tuple(v) for k, v in values["prior"].items()})
        return cls(**{**values, "unit": np.asarray(values["unit"]), "prior": prior})


def cut_patches(images: Sequence[Micrograph], patch_px: int, most: int) -> np.ndarray:
    """Cut ``[N, patch, patch]`` from all images on regular grids, at most `most`, evenly over the images.

    Raises
    ------
    UserError
        No image is as large as a patch.
    """
    per_image = max(1, most // max(len(images), 1))
    patches: list[np.ndarray] = []
    for image in images:
        height, width = image.shape
        if min(height, width) < patch_px:
            continue
        rows = np.unique(np.linspace(0, height - patch_px, max(1, height // patch_px)).astype(int))
        cols = np.unique(np.linspace(0, width - patch_px, max(1, width // patch_px)).astype(int))
        corners = [(r, c) for r in rows for c in cols]
        chosen = np.linspace(0, len(corners) - 1, min(per_image, len(corners))).astype(int)
        patches += [image.data[r : r + patch_px, c : c + patch_px] for r, c in (corners[i] for i in chosen)]
    if not patches:
        sizes = ", ".join(f"{m.name} {m.shape[1]} x {m.shape[0]}" for m in images[:3])
        raise UserError(
            f"No image is as large as a patch of {patch_px} x {patch_px} px at the working sampling "
            f"({sizes}); use a smaller patch or a finer sampling_A."
        )
    # Of more images than patches, not the first only.
    spread = np.linspace(0, len(patches) - 1, min(most, len(patches))).astype(int)
    return np.stack([patches[i] for i in spread])


def usable_patch(images: Sequence[Micrograph], wanted: int) -> int:
    """Return the patch edge: as wanted, or the largest multiple of 8 that four fifths of the images hold.

    Raises
    ------
    UserError
        Most images are smaller than 48 pixels.
    """
    edges = np.sort([min(m.shape) for m in images])
    held = int(edges[len(edges) // 5]) if len(edges) else 0
    if held >= wanted:
        return wanted
    if held < 48:
        raise UserError(
            f"Most images are smaller than 48 px at the working sampling (the typical one is {held} px wide); "
            "use larger images or a finer sampling_A."
        )
    return held // 8 * 8


def patches_to_fit(images: Sequence[Micrograph], config: FitConfig) -> np.ndarray:
    """Return the patches ``[N, H, W]`` whose statistics the conditions are fitted to.

    Raises
    ------
    UserError
        The images are smaller than a patch, or hold only one.
    """
    patch_px = usable_patch(images, config.patch_px)
    patches = cut_patches(images, patch_px, config.max_patches)
    if len(patches) < 2:
        raise UserError(
            f"fit: the images hold a single patch of {patch_px} x {patch_px} px, and a distribution needs at "
            "least 2; give more or larger images, or a smaller fit.patch_px."
        )
    return patches


def fit_conditions(
    experiment: Sequence[Micrograph],
    specimen: Specimen,
    optics: Optics,
    config: FitConfig,
    seed: int,
    progress: Callable[[str], None] = lambda message: None,
) -> FittedConditions:
    """Fit the distribution of imaging conditions to unlabelled images.

    Parameters
    ----------
    experiment : Micrographs, all at the working pixel size
    specimen, optics
        What is simulated; `optics` holds the nominal settings about which the conditions vary.
    progress : callable, optional
        Told what is going on, one line at a time.

    Raises
    ------
    UserError
        The images are smaller than a patch, hold only one, or have no common pixel size.
    """
    sizes = {m.pixel_size_A for m in experiment}
    if len(sizes) != 1 or None in sizes:
        raise UserError("fit: the images must share one known pixel size; resample them first.")
    pixel_size_A = float(sizes.pop())  # type: ignore[arg-type]
    patches = patches_to_fit(experiment, config)
    patch_px = patches.shape[-1]
    real = physical_features(patches, pixel_size_A)

    rng = np.random.default_rng([seed, 77])

    def simulated(unit: np.ndarray, number: int) -> np.ndarray:
        conditions = from_unit(unit, config.prior)
        own_seed = int(np.random.default_rng([seed, number]).integers(2**31))
        shape = (patch_px, patch_px)
        images, _, _ = simulate_series(specimen, optics, len(unit), shape, pixel_size_A, own_seed, conditions)
        return physical_features(images, pixel_size_A)

    unit = rng.random((2 * config.simulations, len(NAMES)))
    features = simulated(unit, 0)
    distance_before = _standardised_frechet(real, features)
    identifiability = _identifiability(unit, features)
    kept = unit[_nearest(features, real, config.neighbours)]
    for number in range(1, config.rounds):
        rows = rng.integers(len(kept), size=config.simulations)
        kernel = 0.5 * kept.std(axis=0) * rng.standard_normal((config.simulations, len(NAMES)))
        unit = _reflect(kept[rows] + kernel)
        features = simulated(unit, number)
        kept = unit[_nearest(features, real, config.neighbours)]
        progress(
            f"fit round {number + 1} of {config.rounds}: Fréchet {_standardised_frechet(real, features):.0f}"
        )
    rows = rng.integers(len(kept), size=300)
    check = _reflect(kept[rows] + config.widen * rng.standard_normal((300, len(NAMES))))
    features = simulated(check, 99)
    order = rng.permutation(len(real))
    half = len(real) // 2
    floor = _standardised_frechet(real[order[:half]], real[order[half:]]) if half >= 4 else float("nan")
    return FittedConditions(
        unit=kept,
        prior=config.prior,
        widen=config.widen,
        identifiability={name: float(r) for name, r in zip(NAMES, identifiability, strict=True)},
        distance_before=distance_before,
        distance_after=_standardised_frechet(real, features),
        noise_floor=floor,
    )


def _nearest(features: np.ndarray, real: np.ndarray, neighbours: int) -> np.ndarray:
    """Return the indices of the simulations nearest to each experimental patch.

    Features count in units of the experiment's spread, widened by part of the simulations' spread: far away, what
    differs a little must not drown what differs much.
    """
    scale = np.sqrt(real.var(axis=0) + 0.1 * features.var(axis=0)) + 1e-9
    distance = cdist(real / scale, features / scale, "cityblock")
    return np.argsort(distance, axis=1)[:, :neighbours].ravel()


def _identifiability(unit: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return R² of each condition from the features by ridge regression, cross-validated over the prior."""
    scaled = (features - np.median(features, axis=0)) / (features.std(axis=0) + 1e-9)
    inputs = np.concatenate([scaled, scaled**2], axis=1).clip(-10, 10)
    predicted = cross_val_predict(RidgeCV(np.logspace(-1, 4, 6)), inputs, unit, cv=5)
    return np.clip(1 - (unit - predicted).var(axis=0) / unit.var(axis=0), 0, 1)


def _reflect(unit: np.ndarray) -> np.ndarray:
    """Fold values back into [0, 1]."""
    return 1 - np.abs(1 - np.abs(unit) % 2)


def _standardised_frechet(real: np.ndarray, other: np.ndarray) -> float:
    return float(frechet_distance(*standardise(real, other)))
