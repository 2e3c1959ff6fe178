"""Confidence that means what it says: of the peaks with confidence 0.8, four in five are real."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from sklearn.isotonic import isotonic_regression

from micrographia.errors import UserError

#: Share of the raw log odds in the calibrated ones. It keeps the order of peaks that the fit makes equal: where no
#: false peak was met, all would have one confidence, and nothing could be ranked by it.
_ORDER = 0.01
#: No peak is surer than this: a few hundred peaks with known truth tell no more.
_SUREST = 0.999


@dataclass(frozen=True)
class Calibration:
    """A non-decreasing, piecewise linear map from raw confidence to the probability of being right.

    Within its flat stretches the order of the raw confidences is kept: they change the odds by a few per cent. No
    probability is nearer to 0 or 1 than about 0.001.

    Parameters
    ----------
    confidence, probability : tuple of float
        Knots of the map, both non-decreasing; beyond the ends it is constant.
    """

    confidence: tuple[float, ...]
    probability: tuple[float, ...]

    def apply(self, confidence) -> np.ndarray:
        """Return the calibrated probability of each raw confidence, the same shape."""
        raw = np.asarray(confidence, float)
        fitted = np.interp(raw, self.confidence, self.probability).clip(1 - _SUREST, _SUREST)
        return expit(logit(fitted) + _ORDER * logit(np.clip(raw, 1e-7, 1 - 1e-7)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, for JSON."""
        return {"confidence": list(self.confidence), "probability": list(self.probability)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """Restore what `to_dict` gave.

        Raises
        ------
        UserError
            The lists are missing, of different length, or not non-decreasing.
        """
        try:
            knots = tuple(tuple(float(v) for v in values[name]) for name in ("confidence", "probability"))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"This is not a stored calibration ({error!r}); fit it again.") from error
        if not knots[0] or len(knots[0]) != len(knots[1]) or any((np.diff(k) < 0).any() for k in knots):
            raise UserError(
                "This is not a stored calibration (knots must be non-decreasing lists); fit it again."
            )
        return cls(*knots)


def _checked(confidence, is_true) -> tuple[np.ndarray, np.ndarray]:
    confidence, is_true = np.asarray(confidence, float).ravel(), np.asarray(is_true).ravel()
    if len(confidence) != len(is_true):
        raise UserError(f"{len(confidence)} confidences but {len(is_true)} truths; give one truth for each.")
    if not np.isfinite(confidence).all():
        raise UserError("A confidence is NaN or infinite; drop those rows.")
    return confidence, is_true.astype(bool).astype(float)


def fit_calibration(confidence, is_true) -> Calibration:
    """Fit the calibration by isotonic regression (Zadrozny and Elkan 2002).

    Parameters
    ----------
    confidence : array of float
        Of peaks in images whose truth is known and which were not trained on.
    is_true : array of bool
        Whether each peak is a real site.

    Notes
    -----
    The outcomes are shrunk towards the fraction of true peaks with the weight of one peak, so that no
    confidence, however high, becomes an exact 0 or 1 from a handful of examples.

    Raises
    ------
    UserError
        No peaks, or lengths that differ.
    """
    confidence, is_true = _checked(confidence, is_true)
    if not len(confidence):
        raise UserError(
            "A calibration needs peaks whose truth is known; none was given. Lower the threshold."
        )
    x, which, n = np.unique(confidence, return_inverse=True, return_counts=True)
    fitted = isotonic_regression(np.bincount(which, is_true) / n, sample_weight=n)
    # Each flat stretch of the fit is the mean of its members: add one peak of the overall rate to each.
    _, stretch = np.unique(fitted, return_inverse=True)
    size = np.bincount(stretch, n)[stretch]
    shrunk = (fitted * size + is_true.mean()) / (size + 1)
    # The shrinkage of short stretches may reverse neighbours; the second fit mends it.
    shrunk = np.clip(isotonic_regression(shrunk, sample_weight=n), 0, 1)
    # Only the ends of flat stretches are knots.
    step = np.diff(shrunk) != 0
    edge = np.r_[True, step] | np.r_[step, True]
    return Calibration(tuple(x[edge].tolist()), tuple(shrunk[edge].tolist()))


def reliability_curve(confidence, is_true, bins: int = 10) -> pd.DataFrame:
    """Fraction of true peaks against stated confidence.

    Parameters
    ----------
    bins : int
        Equal bins of [0, 1]; empty ones are left out.

    Returns
    -------
    DataFrame
        low, high (of the bin), confidence (mean), fraction_true, standard_error (binomial, Wilson-like: one
        success and one failure added), n.
    """
    confidence, is_true = _checked(confidence, is_true)
    if len(confidence) and (confidence.min() < 0 or confidence.max() > 1):
        raise UserError(
            "Confidences must lie between 0 and 1 for a reliability curve; calibrate or rescale them."
        )
    which = np.clip((confidence * bins).astype(int), 0, bins - 1)
    n = np.bincount(which, minlength=bins)
    used = n > 0
    count = np.where(used, n, 1)
    true = np.bincount(which, is_true, minlength=bins)
    p = (true + 1) / (n + 2)
    frame = pd.DataFrame(
        {
            "low": np.arange(bins) / bins,
            "high": (np.arange(bins) + 1) / bins,
            "confidence": np.bincount(which, confidence, minlength=bins) / count,
            "fraction_true": true / count,
            "standard_error": np.sqrt(p * (1 - p) / count),
            "n": n,
        }
    )
    return frame[used].reset_index(drop=True)


def expected_calibration_error(confidence, is_true, bins: int = 10) -> float:
    """Mean |fraction true - confidence| over the peaks, in bins (Naeini et al. 2015); NaN without peaks."""
    curve = reliability_curve(confidence, is_true, bins)
    if not len(curve):
        return float("nan")
    return float(np.average((curve["fraction_true"] - curve["confidence"]).abs(), weights=curve["n"]))


def held_out_calibration_error(confidence, is_true, folds: int = 5, seed: int = 0) -> float:
    """`expected_calibration_error` of calibrations fitted to the other peaks; NaN with fewer peaks than folds.

    The error of a calibration on the peaks that it was fitted to is near zero by construction.
    """
    confidence, is_true = _checked(confidence, is_true)
    if len(confidence) < folds:
        return float("nan")
    fold = np.random.default_rng(seed).permutation(len(confidence)) % folds
    chance = np.empty(len(confidence))
    for f in range(folds):
        own = fold == f
        chance[own] = fit_calibration(confidence[~own], is_true[~own]).apply(confidence[own])
    return expected_calibration_error(chance, is_true)
