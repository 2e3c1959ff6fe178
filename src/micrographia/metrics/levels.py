"""Grey levels of a population of images: how bright each is, how much contrast it has, which levels occur.

The other distances scale every image by itself, so that detector gain and offset do not count. Images that are to be
drawn like those of one window must have its brightness, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import wasserstein_distance

from micrographia.errors import UserError
from micrographia.metrics.distances import ENOUGH, counts_kl, shifted_interval

#: Bins of the histogram over -1 ... 1.
_BINS = 100


def compare_levels(
    real: np.ndarray, generated: np.ndarray, seed: int = 0, splits: int = 10, n_bootstrap: int = 100
) -> dict[str, Any]:
    """Compare the grey levels of two sets of images ``[N, C, H, W]`` in one window, -1 ... 1.

    Returns
    -------
    dict
        ``levels_kl``: Kullback-Leibler divergence of the histograms of all pixels (of the channels, the mean), nats;
        ``brightness_distance``, ``contrast_distance``: Wasserstein distance between the distributions over the
        images of their mean and of their standard deviation, in units of the window's half width; and of each
        ``NAME_floor``, the same between random halves of the real images (mean over `splits`), and
        ``NAME_interval`` (95 %, resampling both sets, see `shifted_interval`; NaN below `ENOUGH` images).

    Raises
    ------
    UserError
        Fewer than two real images, or none generated.
    """
    if len(real) < 2 or not len(generated) or real.shape[1] != generated.shape[1]:
        raise UserError(
            f"Grey levels of {len(real)} real and {len(generated)} generated images of {real.shape[1]} and "
            f"{generated.shape[1]} channels cannot be compared."
        )
    a, b = _levels(real), _levels(generated)
    found = _distances(a, b)
    rng = np.random.default_rng(seed)
    floors, resampled = [], []
    for _ in range(splits):
        one, two = np.array_split(rng.permutation(len(real)), 2)
        floors.append(_distances(_part(a, one), _part(a, two)))
    for _ in range(n_bootstrap if min(len(real), len(generated)) >= ENOUGH else 0):
        drawn = (_part(x, rng.integers(len(x[0]), size=len(x[0]))) for x in (a, b))
        resampled.append(_distances(*drawn))
    return (
        found
        | {f"{k}_floor": float(np.mean([f[k] for f in floors])) for k in found}
        | {f"{k}_interval": shifted_interval(v, np.array([r[k] for r in resampled]), 0.0) for k, v in found.items()}
    )  # fmt: skip


def _part(levels: tuple[np.ndarray, ...], images: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(x[images] for x in levels)


def _levels(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts ``[N, C, bins]``, means and standard deviations ``[N, C]``."""
    flat = images.reshape(*images.shape[:2], -1)
    counts = np.empty((*flat.shape[:2], _BINS), np.int64)
    for where in np.ndindex(flat.shape[:2]):  # one by one: sets of large images hardly fit into memory once
        at = np.clip((flat[where] + 1) * (_BINS / 2), 0, _BINS - 1)
        counts[where] = np.bincount(at.astype(np.int64), minlength=_BINS)
    return counts, flat.mean(axis=2), np.stack([image.std(axis=1) for image in flat])


def _distances(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> dict[str, float]:
    channels = range(a[0].shape[1])
    return {
        "levels_kl": float(np.mean([counts_kl(a[0][:, c], b[0][:, c]) for c in channels])),
        "brightness_distance": float(
            np.mean([wasserstein_distance(a[1][:, c], b[1][:, c]) for c in channels])
        ),
        "contrast_distance": float(np.mean([wasserstein_distance(a[2][:, c], b[2][:, c]) for c in channels])),
    }
