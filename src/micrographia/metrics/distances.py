"""Distances between a set of real images and another one, with what is needed to read them.

A distance alone says nothing: `compare_sets` gives the feature extractor, the numbers of samples, the same
distance between halves of the real set (the noise floor) and intervals beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from micrographia.errors import UserError
from micrographia.metrics.features import (
    FeatureExtractor,
    band_centres,
    band_powers,
    check_images,
    check_pixel_size,
    physical_extractor,
)
from micrographia.micrograph import robust_scale

#: Of `compare_sets`, what neighbours among the features tell: the larger the better.
NEIGHBOUR_MEASURES = ("precision", "recall", "density", "coverage")
#: From so many images in each set on, they tell how sure a number is.
ENOUGH = 20


def _features(a, b) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise UserError(f"Features must be [N, D] with one D for both sets, got {a.shape} and {b.shape}.")
    if min(len(a), len(b)) < 2:
        raise UserError(
            f"A distance between sets needs at least 2 images in each, got {len(a)} and {len(b)}."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError("The features hold NaN or infinite values; repair the images or the extractor.")
    return a, b


def standardise(reference: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Centre and scale features by the mean and standard deviation of the first (real) set.

    Features that are constant there are only centred.
    """
    mean, std = reference.mean(0), reference.std(0)
    std = np.where(std > 1e-12 * (1 + np.abs(mean)), std, 1.0)
    return tuple((x - mean) / std for x in (reference, *others))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of two Gaussians fitted to features (Heusel et al. 2017), the "FID".

    ``|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`` with unbiased covariances.

    Parameters
    ----------
    a, b : array, ``[N_a, D]`` and ``[N_b, D]``

    Notes
    -----
    No matrix square root is taken: with S_a = A^T A, S_b = B^T B, the trace is the sum of the singular values
    of A B^T (few samples), or the sum of the roots of the eigenvalues of L^T S_b L, S_a = L L^T (many).
    """
    a, b = _features(a, b)
    shift = a.mean(0) - b.mean(0)
    a = (a - a.mean(0)) / np.sqrt(len(a) - 1)
    b = (b - b.mean(0)) / np.sqrt(len(b) - 1)
    if min(len(a), len(b)) < a.shape[1]:
        cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    else:
        values, vectors = np.linalg.eigh(a.T @ a)
        root = vectors * np.sqrt(np.clip(values, 0, None))
        cross = np.sqrt(np.clip(np.linalg.eigvalsh(root.T @ (b.T @ b) @ root), 0, None)).sum()
    return float(max(shift @ shift + (a**2).sum() + (b**2).sum() - 2 * cross, 0.0))


def kernel_distance(
    a: np.ndarray, b: np.ndarray, subset_size: int = 1000, subsets: int = 100, seed: int = 0
) -> tuple[float, float]:
    """Kernel distance (KID, Binkowski et al. 2018): unbiased squared MMD with ``(x.y / D + 1)^3``.

    Returns
    -------
    mean, std : float
        Over random subsets of at most `subset_size` samples of each set. The mean is unbiased for any number
        of samples, and may be negative for equal sets. When everything fits one subset, it is used once: std
        is NaN.
    """
    a, b = _features(a, b)
    size = min(len(a), len(b), subset_size)
    if max(len(a), len(b)) <= subset_size:
        return _mmd2(*_kernels(a, b)), float("nan")
    rng = np.random.default_rng(seed)
    values = [
        _mmd2(*_kernels(a[rng.choice(len(a), size, False)], b[rng.choice(len(b), size, False)]))
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def _kernels(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    dimension = a.shape[1]
    return (a @ a.T / dimension + 1) ** 3, (b @ b.T / dimension + 1) ** 3, (a @ b.T / dimension + 1) ** 3


def _mmd2(kaa: np.ndarray, kbb: np.ndarray, kab: np.ndarray) -> float:
    """Unbiased squared MMD."""
    within = ((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kaa, kbb))
    return float(sum(within) - 2 * kab.mean())


def precision_recall(real: np.ndarray, other: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019).

    A set's manifold is the union of balls around its features that reach to the `k`-th nearest neighbour.

    Returns
    -------
    precision : float
        Fraction of `other` inside the manifold of `real`: does each look real?
    recall : float
        Fraction of `real` inside the manifold of `other`: is everything real covered?
    """
    real, other = _features(real, other)
    if min(len(real), len(other)) <= k:
        raise UserError(f"Precision and recall with k = {k} need more than {k} images in each set.")
    return _precision_recall(cdist(real, real), cdist(other, other), cdist(other, real), k)


def density_coverage(real: np.ndarray, other: np.ndarray, k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020), which outliers of the real set do not inflate.

    With r_i the distance of the real sample X_i to its `k`-th nearest neighbour among the N real ones, and the
    M other samples Y_j:

    - density ``= sum_j sum_i [|Y_j - X_i| <= r_i] / (k M)``: in how many real balls a sample lies, over k. It
      may exceed 1; sets of one distribution have 1 on average.
    - coverage ``= sum_i [min_j |Y_j - X_i| <= r_i] / N``: the share of real samples with another in their ball.
      Sets of one distribution have ``1 - (N - 1) ... (N - k) / ((M + N - 1) ... (M + N - k))``, about
      ``1 - 2^-k`` for M = N.

    Returns
    -------
    density, coverage : float
    """
    real, other = _features(real, other)
    if len(real) <= k:
        raise UserError(f"Density and coverage with k = {k} need more than {k} real images, got {len(real)}.")
    return _density_coverage(cdist(real, real), cdist(other, real), k)


def _radii(within: np.ndarray, k: int) -> np.ndarray:
    # The nearest of all is the point itself, hence index k.
    return np.partition(within, k, axis=1)[:, k]


def _precision_recall(
    real: np.ndarray, other: np.ndarray, across: np.ndarray, k: int = 3
) -> tuple[float, float]:
    """From the distances within both sets and of other (rows) to real samples (columns)."""
    precision = (across <= _radii(real, k)).any(1).mean()
    recall = (across <= _radii(other, k)[:, None]).any(0).mean()
    return float(precision), float(recall)


def _density_coverage(real: np.ndarray, across: np.ndarray, k: int = 5) -> tuple[float, float]:
    inside = across <= _radii(real, k)
    return float(inside.sum(1).mean() / k), float(inside.any(0).mean())


def scale_each(images: np.ndarray) -> np.ndarray:
    """`robust_scale` every image of a stack ``[N, H, W]``; constant images become zero."""
    images = check_images(images, smallest=2)
    return np.stack([robust_scale(x)[0] if np.ptp(x) > 0 else np.zeros_like(x) for x in images])


def intensity_window(real_scaled: np.ndarray) -> tuple[float, float]:
    """The one intensity window for real and other images: 0.1 % and 99.9 % quantiles of the real ones.

    Parameters
    ----------
    real_scaled : array, ``[N, H, W]``
        After `scale_each`.
    """
    # Every image keeps its weight when the set is thinned to what quantiles need.
    step = max(1, real_scaled.size // 2_000_000)
    low, high = np.quantile(real_scaled.ravel()[::step], [0.001, 0.999])
    if not high > low:
        raise UserError("The real images are constant: there is nothing to compare with.")
    return float(low), float(high)


def histogram_kl(real: np.ndarray, other: np.ndarray, bins: int = 100, smoothing: float = 1e-3) -> float:
    """Kullback-Leibler divergence KL(real || other) of the intensity histograms, in nats.

    Parameters
    ----------
    real, other : array, ``[N, H, W]``
        Each image is scaled by `robust_scale`; the bins divide `intensity_window` of the real set, values
        beyond it fall into the outermost bins.
    smoothing : float
        This fraction of both distributions is spread evenly over the bins, which keeps empty bins finite.
    """
    real, other = scale_each(real), scale_each(other)
    window = intensity_window(real)
    return counts_kl(_histograms(real, window, bins), _histograms(other, window, bins), smoothing)


def _histograms(images: np.ndarray, window: tuple[float, float], bins: int = 100) -> np.ndarray:
    """Counts in the bins of the window for each image, ``[N, bins]``."""
    return np.stack([np.histogram(np.clip(x, *window), bins=bins, range=window)[0] for x in images])


def counts_kl(real_counts: np.ndarray, other_counts: np.ndarray, smoothing: float = 1e-3) -> float:
    """Kullback-Leibler divergence (nats) of histograms, from the counts of each image ``[N, bins]``; see `histogram_kl`."""
    p, q = (
        (1 - smoothing) * counts.sum(0) / counts.sum() + smoothing / counts.shape[1]
        for counts in (real_counts, other_counts)
    )
    return float((p * np.log(p / q)).sum())


def radial_power_spectrum(images: np.ndarray, pixel_size_A: float) -> tuple[np.ndarray, np.ndarray]:
    """Radial, Hann-windowed power spectrum of one image ``[H, W]`` or the mean over a stack ``[N, H, W]``.

    Returns
    -------
    frequency_per_A, power : float arrays, ``[B]``
        White noise of variance v has power v in every band (see `features.band_powers`).
    """
    check_pixel_size(pixel_size_A)
    images = np.asarray(images)
    images = images[None] if images.ndim == 2 else images
    return band_centres(pixel_size_A), band_powers(images, pixel_size_A).mean(0)


def radial_spectrum_distance(real: np.ndarray, other: np.ndarray, pixel_size_A: float) -> float:
    """Root mean square difference over frequency of the mean log10 power of scaled images (decades)."""
    check_pixel_size(pixel_size_A)
    a, b = (np.log10(band_powers(scale_each(x), pixel_size_A) + 1e-9).mean(0) for x in (real, other))
    return float(rms_difference(a, b))


def rms_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square difference along the last axis."""
    return np.sqrt(np.mean((a - b) ** 2, axis=-1))


def compare_sets(
    real: np.ndarray,
    other: np.ndarray,
    pixel_size_A: float,
    extractor: FeatureExtractor | None = None,
    seed: int = 0,
    splits: int = 10,
    n_bootstrap: int = 100,
) -> dict[str, Any]:
    """Every distance between a real and another set of patches, with noise floors and intervals.

    Parameters
    ----------
    real, other : array, ``[N, H, W]``
        Patches of one pixel size; each is scaled by `robust_scale` before anything else.
    extractor : FeatureExtractor, optional
        `physical_extractor` by default.
    splits : int
        Random halvings of the real set for the noise floors (their mean). Where halves have fewer samples than the
        sets, the floor of the (biased) Fréchet distance is on the high side; where the other set is smaller than they
        are, on the low side.
    n_bootstrap : int
        Random halves of both sets for the intervals. With a 2048-dimensional extractor and thousands of images each
        costs seconds.

    Returns
    -------
    dict
        extractor, n_real, n_other, n_features, window; fid, kid, precision, recall, density, coverage,
        histogram_kl, spectrum_distance; ``NAME_floor`` of each (precision, recall, density and coverage
        between halves are what equal sets of half the size have: the ceiling, not the floor);
        ``NAME_interval`` of each (95 %); warnings (list of str).

    Notes
    -----
    Intervals: 1.96 standard deviations, as the numbers scatter over random halves of both sets. Patches cut from one
    image are not independent: intervals are then too narrow. Below 20 images in a set they are NaN.
    """
    check_pixel_size(pixel_size_A)
    real, other = scale_each(real), scale_each(other)
    if min(len(real), len(other)) < 8:
        raise UserError(f"Comparing sets needs at least 8 images in each, got {len(real)} and {len(other)}.")
    extractor = extractor or physical_extractor(pixel_size_A)
    window = intensity_window(real)
    a, b = _features(extractor.function(real, window), extractor.function(other, window))
    if extractor.standardise:
        a, b = standardise(a, b)
    one, two = (
        _Measured(f, _histograms(x, window), np.log10(band_powers(x, pixel_size_A) + 1e-9))
        for f, x in ((a, real), (b, other))
    )
    k = min(5, len(a) // 2 - 1)  # the same for the sets and for the halves of small ones
    apart = _Apart.of(a, b)
    found = _measures(one, two, apart, k, seed)
    rng = np.random.default_rng(seed)
    floors = []
    for _ in range(splits):
        half, rest = np.array_split(rng.permutation(len(a)), [len(a) // 2])
        halves = _Apart(apart.real, apart.real, apart.real).part(half, rest)
        floors.append(_measures(one.part(half), one.part(rest), halves, k, seed, subsets=10))
    draws = n_bootstrap if min(len(a), len(b)) >= ENOUGH else 0
    intervals = _intervals(one, two, None if extractor.standardise else apart, found, k, draws, rng)

    result: dict[str, Any] = {
        "extractor": extractor.name,
        "n_real": len(a),
        "n_other": len(b),
        "n_features": a.shape[1],
        "window": window,
    }
    result |= found
    result |= {f"{name}_floor": float(np.mean([f[name] for f in floors])) for name in found}
    result |= intervals
    result["warnings"] = _warnings(len(a), len(b), a.shape[1])
    return result


@dataclass(frozen=True)
class _Measured:
    """What of a set of images distances are taken of."""

    features: np.ndarray
    """``[N, D]``"""
    histograms: np.ndarray
    """``[N, bins]``"""
    spectra: np.ndarray
    """``[N, bands]``, log10 of the power."""

    def part(self, images: np.ndarray) -> _Measured:
        return _Measured(self.features[images], self.histograms[images], self.spectra[images])


@dataclass(frozen=True)
class _Apart:
    """Distances between all features of two sets."""

    real: np.ndarray
    """``[N, N]``, within the real set."""
    other: np.ndarray
    """``[M, M]``, within the other one."""
    across: np.ndarray
    """``[M, N]``, of other to real images."""

    @classmethod
    def of(cls, real: np.ndarray, other: np.ndarray) -> _Apart:
        return cls(cdist(real, real), cdist(other, other), cdist(other, real))

    def part(self, real: np.ndarray, other: np.ndarray) -> _Apart:
        return _Apart(
            self.real[np.ix_(real, real)],
            self.other[np.ix_(other, other)],
            self.across[np.ix_(other, real)],
        )


def _measures(
    real: _Measured, other: _Measured, apart: _Apart, k: int, seed: int, subsets: int = 100
) -> dict[str, float]:
    """Every number of `compare_sets`; `k` is of density and coverage, `subsets` of the kernel distance."""
    neighbours = (
        *_precision_recall(apart.real, apart.other, apart.across),
        *_density_coverage(apart.real, apart.across, k),
    )
    return {
        "fid": frechet_distance(real.features, other.features),
        "kid": kernel_distance(real.features, other.features, subsets=subsets, seed=seed)[0],
        "histogram_kl": counts_kl(real.histograms, other.histograms),
        "spectrum_distance": float(rms_difference(real.spectra.mean(0), other.spectra.mean(0))),
    } | dict(zip(NEIGHBOUR_MEASURES, neighbours, strict=True))


def _intervals(
    real: _Measured,
    other: _Measured,
    apart: _Apart | None,
    found: dict[str, float],
    k: int,
    draws: int,
    rng: np.random.Generator,
) -> dict[str, tuple[float, float]]:
    """95 % intervals of what was found; without distances the features are standardised, each half by itself.

    The mean over a random half, drawn without replacement, scatters about that of the whole set as this does about the
    population's (delete-half jackknife; Shao and Wu, Ann. Stat. 17, 1176 (1989)); what counts neighbours depends on the
    number of images besides, but little of that is scatter. An image drawn twice would be its own neighbour. A share
    of 0 or 1 has no scatter: nothing seen in n images may still be 3 in n.
    """
    if draws < 2:
        return {f"{name}_interval": (float("nan"), float("nan")) for name in found}
    resampled = []
    for _ in range(draws):
        i, j = (rng.choice(len(x.features), len(x.features) // 2, replace=False) for x in (real, other))
        one, two = real.part(i), other.part(j)
        if apart is not None:
            resampled.append(_measures(one, two, apart.part(i, j), k, 0))
            continue
        a, b = standardise(one.features, two.features)
        one, two = replace(one, features=a), replace(two, features=b)
        resampled.append(_measures(one, two, _Apart.of(a, b), k, 0))
    counted = {"precision": len(other.features), "recall": len(real.features), "coverage": len(real.features)}
    out = {}
    for name, value in found.items():
        wide = 1.96 * float(np.std([r[name] for r in resampled], ddof=1))
        least, most = (-np.inf if name == "kid" else 0.0), np.inf
        if name in counted:
            wide, most = float(np.hypot(wide, 3 / counted[name])), 1.0
        out[f"{name}_interval"] = (max(value - wide, least), min(value + wide, most))
    return out


def shifted_interval(distance: float, resampled: np.ndarray, least: float = -np.inf) -> tuple[float, float]:
    """95 % interval of a distance, from those of resampled sets, which are on the high side: shifted to the distance.

    NaN of fewer than two that are finite; `least` is the smallest that a distance can be. It holds the distance.
    """
    resampled = resampled[np.isfinite(resampled)]
    if len(resampled) < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(resampled - resampled.mean() + distance, [0.025, 0.975])
    return float(min(max(low, least), distance)), float(max(high, distance))


def _warnings(n_real: int, n_other: int, dimension: int) -> list[str]:
    out, n = [], min(n_real, n_other)
    if n < dimension:
        out.append(
            f"Only {n} images for {dimension} features: the covariances are singular and the Fréchet "
            "distance means little; read the kernel distance."
        )
    if n < 2048:
        out.append(
            f"{n} images, fewer than 2048: the Fréchet distance is biased upwards; compare it with its "
            "noise floor, and only with values from as many images."
        )
    if n < ENOUGH:
        out.append(f"{n} images, fewer than {ENOUGH}: too few for intervals of these distances and shares.")
    return out
