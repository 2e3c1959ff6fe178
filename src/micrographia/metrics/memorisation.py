"""Are generated images copies of training images?

A copy is a training image again, turned, mirrored, moved by some pixels, noisier or smoother. Whether a
generated image is nearer to a training image than chance has it, only other real images can tell:
`memorisation` takes the same similarity of held-out real images to the training images as its reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import fft

from micrographia.errors import UserError
from micrographia.metrics.features import check_images
from micrographia.patches import dihedral, dihedral_inverse

#: Edges of the shrunken images: of the first look at every training image, and of the second at the best.
COARSE_PX, FINE_PX = 16, 32
#: Candidates (training image, symmetry) of each image that get the second look.
CANDIDATES = 32
#: Of the held-out images, this share is nearest to the training images and sets the threshold.
NEAREST_SHARE = 0.01
#: Pairs of images compared at most: of more generated (or held-out) images, a random choice is judged.
MOST_PAIRS = 1_000_000


@dataclass(frozen=True)
class Neighbours:
    """The most similar training image of each judged image."""

    index: np.ndarray
    """Which images were judged, ``[Q]``: all of them, unless there were too many."""
    nearest: np.ndarray
    """Index of the training image, ``[Q]``."""
    similarity: np.ndarray
    """Largest correlation over symmetries and shifts, ``[Q]``: 1 for an exact copy."""
    symmetry: np.ndarray
    """Which symmetry of the square (`patches.dihedral`) turns the image like that training image, ``[Q]``."""


@dataclass(frozen=True)
class Memorisation:
    """Whether generated images are copies of training images."""

    score: float
    """Share of generated images nearer to a training image than the nearest 1 % of the `reference`."""
    chance: float
    """What `score` is on average if nothing was copied."""
    threshold: float
    """The similarity above which an image counts."""
    generated: Neighbours
    reference: Neighbours
    """Of the held-out real images; of the training images, each with all others, where fewer than 8 are left."""
    known: int = 0
    """Images held out in name only: they are among the training images, and no reference."""
    by_training: bool = False
    """Whether `reference` are the training images, there being fewer than 8 others."""

    def numbers(self) -> dict[str, float]:
        """Plain numbers for a file of metrics."""
        return {
            "memorisation_score": self.score,
            "memorisation_chance": self.chance,
            "memorisation_threshold": self.threshold,
            "memorisation_similarity": float(np.median(self.generated.similarity)),
            "memorisation_similarity_held_out": float(np.median(self.reference.similarity)),
            "memorisation_n_generated": float(len(self.generated.index)),
            "memorisation_n_held_out": 0.0 if self.by_training else float(len(self.reference.index)),
            "memorisation_n_known": float(self.known),
        }

    def closest(self, n: int = 6) -> np.ndarray:
        """Places in `generated` of the `n` images most similar to a training image, the nearest first."""
        return np.argsort(-self.generated.similarity, kind="stable")[:n]


def memorisation(
    generated: np.ndarray, training: np.ndarray, held_out: np.ndarray | None = None, seed: int = 0
) -> Memorisation:
    """Look for copies of training images among generated ones.

    Parameters
    ----------
    generated, training : array, ``[N, H, W]`` and ``[M, H, W]``
        Of one size.
    held_out : array, ``[K, H, W]``, optional
        Real images that were not trained on; not from the same fields of view, or they are neighbours of
        training images themselves. Those that are training images are left out. Without (and if no 8 are left), each
        training image is compared with all others instead.
    seed : int
        Of the choice among more than `MOST_PAIRS` / M images of a set; training images are never left out.

    Returns
    -------
    Memorisation
        `score` against `chance`: with K held-out images the threshold is the similarity of the k-th nearest of
        them, k = 1 % of K and at least 1. An image drawn from the same population, independently, is nearer
        with probability k / (K + 1).

    Raises
    ------
    UserError
        Images of different size, fewer than 8 held-out (without them: different training) images.

    Notes
    -----
    Similarity is the largest normalised cross-correlation over all shifts (cyclic, so a shift by s of W px
    costs about s / W of the correlation) and the eight symmetries of the square (of other images the four that
    keep the shape). Before, images are averaged down to 32 x 32 px, which removes noise and fine detail, and
    their spectrum is half whitened, that is, divided by the fourth root of the mean power spectrum of the
    training images: of two-phase images with a few grains each, many are alike in their longest waves.
    Candidates are found at 16 x 16 px. The mean and the contrast of an image do not matter. Training images
    that resemble each other (noisy twins, overlapping patches) hide copies only without held-out images.
    """
    training = check_images(training)
    generated = check_images(generated)
    others = training if held_out is None else check_images(held_out)
    if not training.shape[1:] == generated.shape[1:] == others.shape[1:]:
        raise UserError(
            f"Images must have one size to be compared, got {generated.shape[1:]} (generated), "
            f"{training.shape[1:]} (training) and {others.shape[1:]} (held out); crop them."
        )
    if len(others) < 8:
        what = "training images without held-out ones" if held_out is None else "held-out images"
        raise UserError(f"A reference for copies needs at least 8 {what}, got {len(others)}.")
    keys, other_keys = pixel_keys(training), pixel_keys(others)
    strange = ~np.isin(other_keys, keys)
    new = _first(other_keys)
    new = new[strange[new]]
    by_training = len(new) < 8
    if not by_training:
        reference = nearest_images(others[new], training, seed)
    else:
        distinct = training[_first(keys)]
        if len(distinct) < 8:
            raise UserError(
                f"A reference for copies needs at least 8 different training images, got {len(distinct)}, or as many "
                "other real ones."
            )
        reference = nearest_images(distinct, distinct, seed, leave_out_itself=True)
    blank = np.ptp(others, axis=(1, 2)) == 0  # which many images are without being copies
    known = 0 if held_out is None else int((~strange & ~blank).sum())
    found = nearest_images(generated, training, seed)
    n = len(reference.index)
    rank = max(1, int(NEAREST_SHARE * n))
    threshold = float(np.sort(reference.similarity)[-rank])
    score = float((found.similarity > threshold).mean())
    return Memorisation(score, rank / (n + 1), threshold, found, reference, known, by_training)


def nearest_images(
    images: np.ndarray, training: np.ndarray, seed: int = 0, leave_out_itself: bool = False
) -> Neighbours:
    """Find the training image most similar to each image, as `memorisation` says.

    Parameters
    ----------
    images, training : float32 array, ``[N, H, W]`` and ``[M, H, W]``
    leave_out_itself : bool
        `images` are the training images: each is compared with all others.
    """
    most = max(8, MOST_PAIRS // len(training))
    index = np.arange(len(images))
    if len(images) > most:
        index = np.sort(np.random.default_rng(seed).choice(len(images), most, replace=False))
    height, width = images.shape[1:]
    symmetries = range(8) if height == width else (0, 2, 4, 6)
    fine = min(FINE_PX, height, width)
    coarse_training, coarse_whitening = _prepared(training, COARSE_PX, symmetries)
    fine_training, fine_whitening = _prepared(training, fine, symmetries)
    # Every symmetry and shift of a small image as an order of its pixels: one product compares them all.
    orders = np.stack([_orders(k) for k in symmetries])
    count = min(CANDIDATES, len(symmetries) * len(training))

    nearest, symmetry = np.zeros(len(index), int), np.zeros(len(index), int)
    similarity = np.zeros(len(index), np.float32)
    for q, i in enumerate(index):
        coarse = _standardised(_shrunk(images[i][None], COARSE_PX), coarse_whitening).ravel()
        alike = np.stack([(coarse[o] @ coarse_training.T).max(0) for o in orders])
        if leave_out_itself:
            alike[:, i] = -np.inf
        best = np.argpartition(alike.ravel(), -count)[-count:]
        turn, candidate = np.unravel_index(best, alike.shape)
        detailed = _standardised(_shrunk(images[i][None], fine), fine_whitening)[0]
        views = fft.rfft2(np.stack([_turned(detailed, k) for k in symmetries]))
        against = fft.rfft2(fine_training[candidate].reshape(-1, fine, fine))
        correlation = fft.irfft2(views[turn] * against.conj(), (fine, fine)).max((1, 2))
        correlation[~np.isfinite(alike.ravel()[best])] = -np.inf
        k = int(correlation.argmax())
        nearest[q], symmetry[q], similarity[q] = candidate[k], symmetries[turn[k]], correlation[k]
    return Neighbours(index, nearest, similarity, symmetry)


def aligned_neighbours(training: np.ndarray, found: Neighbours, which: np.ndarray) -> np.ndarray:
    """Return the nearest training images of some judged images, turned as these are (not moved).

    Parameters
    ----------
    which : int array, ``[P]``
        Places in `found`, for example of `Memorisation.closest`.

    Returns
    -------
    float32 array, ``[P, H, W]``
    """
    return np.stack(
        [
            dihedral_inverse(torch.from_numpy(np.asarray(training[j], np.float32)), int(k)).numpy()
            for j, k in zip(found.nearest[which], found.symmetry[which], strict=True)
        ]
    )


def pixel_keys(images: np.ndarray) -> list[int]:
    """The same number for images whose pixels are the same."""
    return [hash(image.tobytes()) for image in images]


def _first(keys: list[int]) -> np.ndarray:
    """Where each key stands first, in this order."""
    return np.sort(np.unique(keys, return_index=True)[1])


def _turned(image: np.ndarray, k: int) -> np.ndarray:
    return dihedral(torch.from_numpy(image), k).numpy()


def _orders(k: int) -> np.ndarray:
    """Pixels of a small image under symmetry `k` and then every cyclic shift, ``[shifts, pixels]``."""
    turned = _turned(np.arange(COARSE_PX**2).reshape(COARSE_PX, COARSE_PX), k)
    moved = [np.roll(turned, (y, x), (0, 1)) for y in range(COARSE_PX) for x in range(COARSE_PX)]
    return np.stack(moved).reshape(len(moved), -1)


def _shrunk(images: np.ndarray, edge: int) -> np.ndarray:
    """Average a stack down to ``[N, edge, edge]``."""
    down, across = (_averaging(length, edge) for length in images.shape[1:])
    return down @ images @ across.T


def _averaging(length: int, edge: int) -> np.ndarray:
    """Means over `edge` equal parts of a line of `length` pixels, ``[edge, length]``."""
    ends = np.linspace(0, length, edge + 1)
    pixel = np.arange(length)
    overlap = np.minimum(ends[1:, None], pixel + 1) - np.maximum(ends[:-1, None], pixel)
    return (np.clip(overlap, 0, None) * edge / length).astype(np.float32)


def _prepared(training: np.ndarray, edge: int, symmetries) -> tuple[np.ndarray, np.ndarray]:
    """Small, whitened, standardised training images ``[M, edge**2]``, and the whitening of the spectrum."""
    small = _shrunk(training, edge)
    small = small - small.mean((1, 2), keepdims=True)
    # Each image has the same say in the mean power, whatever its contrast; white for constant images.
    power = np.abs(fft.fft2(small)) ** 2
    total = power.sum((1, 2), keepdims=True)
    power = (power / np.where(total > 0, total, 1)).mean(0)
    # The whitening treats all views of an image alike (frequency 0 stays in its place).
    grid = np.roll(power, edge // 2, (0, 1))
    if edge % 2 == 0:  # the Nyquist row and column exist once: mirror them to both sides
        grid = np.pad(grid, ((0, 1), (0, 1)), mode="wrap")
    grid = np.mean([_turned(grid, k) for k in symmetries], axis=0)[:edge, :edge]
    power = np.roll(grid, -(edge // 2), (0, 1))
    whitening = (power + 0.01 * max(power.mean(), 1e-12)) ** -0.25
    return _standardised(small, whitening).reshape(len(small), -1), whitening


def _standardised(small: np.ndarray, whitening: np.ndarray) -> np.ndarray:
    """Whitened, of mean 0 and norm 1; a constant image becomes zero and resembles nothing."""
    spectrum = fft.fft2(small) * whitening
    spectrum[:, 0, 0] = 0
    out = fft.ifft2(spectrum).real.astype(np.float32)
    norm = np.sqrt((out**2).sum((1, 2), keepdims=True))
    return out / np.where(norm > 1e-6 * np.abs(small).max(initial=1e-30), norm, np.inf)
