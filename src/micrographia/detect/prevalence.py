"""Confidence and threshold for images whose defects are rarer, or more frequent, than in training.

A detector learns best from many defects; real crystals hold few. The chance that a site is real changes with
that, and so does the threshold that serves F1 best. Both follow without labels: expectation-maximisation over
the found sites estimates how frequent each kind is (Saerens, Latinne & Decaestecker, Neural Comput. 14, 21,
2002), the odds of every site are multiplied by the ratio to training, and the threshold maximises the
expected F1 (Lipton, Elkan & Naryanaswamy, ECML 2014).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

#: Bounds of a kind's frequency in the images relative to training; beyond them the images are another matter.
RATIO_BOUNDS = (0.02, 2.0)
#: No site below this chance is reported, however few there are.
LEAST_CHANCE = 0.3


def adapt(
    sites: pd.DataFrame, area_A2: float, training_density_per_A2: Mapping[str, float]
) -> tuple[pd.DataFrame, float, dict[str, float]]:
    """Adapt calibrated confidences to the images they come from, and choose the threshold.

    Parameters
    ----------
    sites : DataFrame
        All candidates of a set of images, with calibrated ``confidence``.
    area_A2 : float
        Area of the images in Å².
    training_density_per_A2 : mapping
        Sum of the calibrated confidences per area in the validation images, by kind.

    Returns
    -------
    sites : DataFrame
        With the new confidence.
    threshold : float
    ratios : dict
        Estimated frequency relative to training, by kind.
    """
    prior = np.clip(sites["confidence"].to_numpy(float), 1e-6, 1 - 1e-6)
    odds = prior / (1 - prior)
    chance = prior.copy()
    ratios: dict[str, float] = {}
    for kind, density in training_density_per_A2.items():
        own = (sites["kind"] == kind).to_numpy()
        ratio = 1.0
        for _ in range(200):
            chance[own] = odds[own] * ratio / (1 + odds[own] * ratio)
            expected = chance[own].sum() / max(density * area_A2, 1e-9)
            new = float(np.clip(expected, *RATIO_BOUNDS))
            if abs(new - ratio) < 1e-4 * ratio:
                break
            ratio = new
        ratios[kind] = ratio
    return sites.assign(confidence=chance), best_expected_f1(chance), ratios


def best_expected_f1(chance: np.ndarray) -> float:
    """Return the threshold on calibrated chances with the best expected F1, ``2 E[TP] / (n + E[all])``."""
    if len(chance) == 0:
        return 0.5
    ordered = np.sort(chance)[::-1]
    expected = 2 * np.cumsum(ordered) / (np.arange(1, len(ordered) + 1) + ordered.sum())
    return float(max(ordered[int(np.argmax(expected))], LEAST_CHANCE))
