"""Calibration: monotone, honest on fresh data, and stored as plain lists."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from micrographia.errors import UserError
from micrographia.metrics.calibration import (
    Calibration,
    expected_calibration_error,
    fit_calibration,
    held_out_calibration_error,
    reliability_curve,
)


def overconfident(n, seed):
    """Peaks whose real probability is the square of what they claim."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(size=n)
    return confidence, rng.uniform(size=n) < confidence**2


def test_calibration_holds_on_fresh_data():
    calibration = fit_calibration(*overconfident(3000, 0))
    confidence, is_true = overconfident(3000, 1)
    assert expected_calibration_error(confidence, is_true) > 0.14
    assert expected_calibration_error(calibration.apply(confidence), is_true) < 0.04
    np.testing.assert_allclose(calibration.apply([0.3, 0.5, 0.8]), [0.09, 0.25, 0.64], atol=0.08)


def test_error_of_a_calibration_is_told_on_peaks_it_was_not_fitted_to():
    rng = np.random.default_rng(0)
    confidence, is_true = rng.uniform(size=400), rng.uniform(size=400) < 0.5  # nothing to be learnt
    at_home = expected_calibration_error(fit_calibration(confidence, is_true).apply(confidence), is_true)
    assert at_home < 0.02 < held_out_calibration_error(confidence, is_true)
    assert held_out_calibration_error(*overconfident(3000, 0)) < 0.04
    assert np.isnan(held_out_calibration_error([0.5], [1]))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_calibration_is_monotone_and_never_certain(peaks):
    confidence, is_true = zip(*peaks, strict=True)
    calibration = fit_calibration(confidence, is_true)
    p = calibration.apply(np.linspace(-1, 2, 50))
    assert (np.diff(p) >= 0).all()
    assert (p >= 0).all()
    assert (p <= 1).all()
    if 0 < np.mean(is_true) < 1:
        assert p.min() > 0
        assert p.max() < 1
    restored = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    assert restored == calibration


def test_order_is_kept_where_no_false_peak_was_met():
    raw = np.array([0.1, 0.2, 0.6, 0.7, 0.8, 0.9, 0.99, 0.9999])
    calibration = fit_calibration(raw, raw > 0.5)
    p = calibration.apply(raw)
    assert (np.diff(p) > 0).all()
    assert np.ptp(p[raw > 0.5]) < 0.02
    many = fit_calibration(np.linspace(0, 1, 100_000), np.linspace(0, 1, 100_000) > 0.5)
    assert 0.998 < many.apply(1 - 1e-6) < 0.9995


def test_reliability_curve_counts_everything_once():
    curve = reliability_curve([0.0, 0.05, 0.95, 1.0], [0, 0, 1, 0])
    assert curve["n"].tolist() == [2, 2]
    assert curve["fraction_true"].tolist() == [0, 0.5]
    assert curve["confidence"].tolist() == pytest.approx([0.025, 0.975])
    assert (curve["standard_error"] > 0).all()
    assert expected_calibration_error([0.0, 0.05, 0.95, 1.0], [0, 0, 1, 0]) == pytest.approx(0.25)
    assert np.isnan(expected_calibration_error([], []))


def test_bad_input():
    for call, message in [
        (lambda: fit_calibration([], []), "none"),
        (lambda: fit_calibration([0.1], [1, 0]), "one truth"),
        (lambda: fit_calibration([np.nan], [1]), "NaN"),
        (lambda: reliability_curve([1.5], [1]), "between 0 and 1"),
        (lambda: Calibration.from_dict({"confidence": [0]}), "fit it again"),
        (lambda: Calibration.from_dict({"confidence": [1, 0], "probability": [0, 1]}), "non-decreasing"),
    ]:
        with pytest.raises(UserError, match=message):
            call()
