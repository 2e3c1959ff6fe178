"""Is this image like those that a model was trained on, or made for?

The physical features of patches of the reference images are described by their mean and (shrunk) covariance.
The domain distance of an image is the median Mahalanobis distance of its patches, read against the same
number for reference images that were left out of the fit. A model applied to an image outside what it saw is
not to be trusted. One Gaussian describes the training set: a set of several quite different kinds of images
has wide limits, and what lies between its kinds passes for inside.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.covariance import ledoit_wolf

from micrographia.errors import UserError
from micrographia.metrics.features import PHYSICAL_FEATURE_NAMES, check_pixel_size, physical_features
from micrographia.micrograph import Micrograph

_LEVELS = np.linspace(0, 1, 201)  # stored quantiles of the distance
_FOLDS = 5
#: A reference needs this many images, and this many pixels along an edge of each.
LEAST_IMAGES, LEAST_PATCH_PX = 10, 32


@dataclass(frozen=True)
class DomainDistance:
    """How far an image lies from the training images.

    Parameters
    ----------
    value : float
        Median over its patches of the Mahalanobis distance, divided by the limit: outside means above 1.
    quantile : float
        Fraction of left-out reference images that are nearer.
    outside : bool
        Whether the image lies beyond the limit.
    deviations : tuple of (feature name, standard deviations)
        The features that deviate most, the largest first.
    message : str
        All this in one sentence.
    """

    value: float
    quantile: float
    outside: bool
    deviations: tuple[tuple[str, float], ...]
    message: str


@dataclass(frozen=True)
class DomainReference:
    """What the images of a model look like; made by `fit`, kept with the model as a plain dictionary.

    Parameters
    ----------
    mean : array, ``[D]``
    covariance : array, ``[D, D]``
    distance_quantiles : array, ``[201]``
        Quantiles 0, 0.005, ... 1 of the same median for reference images left out of the fit.
    pixel_size_A : float
    patch_px : int
    limit_quantile : float
        An image is outside if it is further away than this quantile of reference images.
    of : str
        What the reference images are, for messages.
    """

    mean: np.ndarray
    covariance: np.ndarray
    distance_quantiles: np.ndarray
    pixel_size_A: float
    patch_px: int
    limit_quantile: float = 0.99
    of: str = "the training images"

    @classmethod
    def fit(
        cls,
        images: Iterable[np.ndarray],
        pixel_size_A: float,
        patch_px: int = 128,
        max_patches: int = 4000,
        limit_quantile: float = 0.99,
        seed: int = 0,
        of: str = "the training images",
    ) -> DomainReference:
        """Describe the reference images.

        Parameters
        ----------
        images : stack ``[N, H, W]`` or iterable of arrays ``[H, W]``
            As the model sees them, of one pixel size.
        patch_px : int
            Edge of the patches; lowered to the smallest image.
        max_patches : int
            Take no more than these, chosen at random.
        of : str
            What the images are, for messages.

        Raises
        ------
        UserError
            Fewer than ten images, or images smaller than 32 pixels.

        Notes
        -----
        Covariance: Ledoit and Wolf (2004) on standardised features. The left-out distances come from five
        folds of whole images, because patches of one image resemble each other.
        """
        check_pixel_size(pixel_size_A)
        stack = [np.asarray(image, np.float32) for image in images]
        if len(stack) < LEAST_IMAGES:
            raise UserError(
                f"A domain reference needs at least {LEAST_IMAGES} training images, got {len(stack)}."
            )
        patch_px = min(patch_px, *(min(image.shape) for image in stack))
        if patch_px < LEAST_PATCH_PX:
            raise UserError(
                f"A training image has only {patch_px} pixels along an edge; at least {LEAST_PATCH_PX} are needed."
            )
        rng = np.random.default_rng(seed)
        places = [(k, y, x) for k, image in enumerate(stack) for y, x in _grid(image.shape, patch_px)]
        if len(places) > max_patches:
            places = [places[i] for i in np.sort(rng.choice(len(places), max_patches, replace=False))]
        patches = np.stack([stack[k][y : y + patch_px, x : x + patch_px] for k, y, x in places])
        features = physical_features(patches, pixel_size_A)

        owner = np.array([k for k, _, _ in places])
        fold = rng.permutation(len(stack))[owner] % _FOLDS
        distances = np.empty(len(features))
        for f in np.unique(fold):
            distances[fold == f] = _mahalanobis(features[fold == f], *_mean_covariance(features[fold != f]))
        medians = [np.median(distances[owner == k]) for k in np.unique(owner)]
        mean, covariance = _mean_covariance(features)
        return cls(
            mean,
            covariance,
            np.quantile(medians, _LEVELS),
            float(pixel_size_A),
            patch_px,
            float(limit_quantile),
            of,
        )

    def distance(self, image: Micrograph | np.ndarray, top: int = 3) -> DomainDistance:
        """Compare one image with the reference images.

        Parameters
        ----------
        image : Micrograph or array ``[H, W]``
            A Micrograph of known, other pixel size is resampled first; an array must have the reference's.
        top : int
            How many deviating features to name.

        Raises
        ------
        UserError
            The image is smaller than a patch of the reference.
        """
        name = "The image"
        if isinstance(image, Micrograph):
            name = image.name
            image = image.resampled(self.pixel_size_A).data if image.pixel_size_A is not None else image.data
        data = np.asarray(image, np.float32)
        if data.ndim != 2 or min(data.shape) < self.patch_px:
            raise UserError(
                f"{name}: shape {data.shape} at {self.pixel_size_A:.4g} Å/px is smaller than the patches of "
                f"{self.patch_px} px that the domain distance compares; use a larger image."
            )
        patches = np.stack(
            [data[y : y + self.patch_px, x : x + self.patch_px] for y, x in _grid(data.shape, self.patch_px)]
        )
        features = physical_features(patches, self.pixel_size_A)
        distance = float(np.median(_mahalanobis(features, self.mean, self.covariance)))
        quantile = float(np.interp(distance, self.distance_quantiles, _LEVELS))
        limit = float(np.interp(self.limit_quantile, _LEVELS, self.distance_quantiles))
        sigma = (np.median(features, axis=0) - self.mean) / np.sqrt(np.diag(self.covariance))
        order = np.argsort(-np.abs(sigma))[:top]
        deviations = tuple((PHYSICAL_FEATURE_NAMES[k], float(sigma[k])) for k in order)
        value = distance / limit
        outside = value > 1
        largest = ", ".join(f"{feature} ({s:+.1f} sigma)" for feature, s in deviations)
        if outside:
            message = (
                f"{name} is unlike {self.of}: domain distance {value:.2f} (limit 1; beyond {quantile:.1%} of "
                f"them); largest deviations: {largest}. Do not trust the result; train on images like this one."
            )
        else:
            message = f"{name} is like {self.of}: domain distance {value:.2f} (limit 1)."
        return DomainDistance(value, quantile, outside, deviations, message)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, lists and names, for JSON."""
        return {
            "features": list(PHYSICAL_FEATURE_NAMES),
            "mean": self.mean.tolist(),
            "covariance": self.covariance.tolist(),
            "distance_quantiles": self.distance_quantiles.tolist(),
            "pixel_size_A": self.pixel_size_A,
            "patch_px": self.patch_px,
            "limit_quantile": self.limit_quantile,
            "of": self.of,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DomainReference:
        """Restore what `to_dict` gave.

        Raises
        ------
        UserError
            Something is missing, or it was made with other features.
        """
        try:
            if tuple(values["features"]) != PHYSICAL_FEATURE_NAMES:
                raise UserError("The stored domain reference uses other features; train or fit it again.")
            mean, covariance, quantiles = (
                np.array(values[name], float) for name in ("mean", "covariance", "distance_quantiles")
            )
            n = len(PHYSICAL_FEATURE_NAMES)
            if (mean.shape, covariance.shape, quantiles.shape) != ((n,), (n, n), _LEVELS.shape):
                raise ValueError("wrong shapes")
            pixel_size_A, limit_quantile = float(values["pixel_size_A"]), float(values["limit_quantile"])
            patch_px, of = int(values["patch_px"]), str(values["of"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"This is not a stored domain reference ({error!r}); fit it again.") from error
        return cls(mean, covariance, quantiles, pixel_size_A, patch_px, limit_quantile, of)


def _grid(shape: tuple[int, ...], patch_px: int) -> list[tuple[int, int]]:
    """Corners of the fewest patches that cover an image; the last ones overlap."""
    rows, columns = (
        np.linspace(0, n - patch_px, -(-n // patch_px)).round().astype(int).tolist() for n in shape
    )
    return [(y, x) for y in rows for x in columns]


def _mean_covariance(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, std = features.mean(0), features.std(0)
    # Noise-free training images have features without any spread; 1e-3 is far below what differs visibly.
    std = np.maximum(std, 1e-3)
    covariance, _ = ledoit_wolf((features - mean) / std, assume_centered=True)
    # The floor keeps directions that the training set never explored from dominating everything.
    return mean, (covariance + 1e-3 * np.eye(len(std))) * np.outer(std, std)


def _mahalanobis(features: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    std = np.sqrt(np.diag(covariance))
    whitened = np.linalg.solve(
        np.linalg.cholesky(covariance / np.outer(std, std)), ((features - mean) / std).T
    )
    return np.linalg.norm(whitened, axis=0)
