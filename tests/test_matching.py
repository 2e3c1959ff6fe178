"""Matching: against brute force, and where conventions matter."""

import itertools
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micrographia.errors import UserError
from micrographia.metrics.matching import (
    average_precision,
    best_threshold,
    bootstrap,
    match_sites,
    precision_recall_curve,
    score_sites,
)


def table(points, image="a", kind="v", confidence=None):
    points = np.asarray(points, float).reshape(-1, 2)
    frame = pd.DataFrame({"image": image, "x_px": points[:, 0], "y_px": points[:, 1], "kind": kind})
    return frame if confidence is None else frame.assign(confidence=np.asarray(confidence, float))


def brute_force(predicted, truth, tolerance):
    """Best (size, -distance) over every injective assignment, by enumeration."""
    best = (0, 0.0)
    options = [*range(len(truth)), None]
    for choice in itertools.product(options, repeat=len(predicted)):
        used = [c for c in choice if c is not None]
        if len(set(used)) < len(used):
            continue
        d = [np.hypot(*(predicted[i] - truth[c])) for i, c in enumerate(choice) if c is not None]
        if all(v <= tolerance for v in d):
            best = max(best, (len(d), -sum(d)))
    return best


coordinates = st.lists(st.tuples(st.floats(0, 6, width=32), st.floats(0, 6, width=32)), max_size=5)


@settings(max_examples=150, deadline=None)
@given(coordinates, coordinates)
def test_matching_is_optimal(predicted, truth):
    predicted, truth = np.reshape(predicted, (-1, 2)), np.reshape(truth, (-1, 2))
    i, j, d = match_sites(predicted, truth, 2.0)
    size, negative = brute_force(predicted, truth, 2.0)
    assert len(set(i)) == len(i) == len(set(j)) == size
    assert (d <= 2.0 + 1e-9).all()
    assert d.sum() == pytest.approx(-negative, abs=1e-6)


def test_more_matches_beat_shorter_ones():
    # Greedy takes the pair at distance 0.1 and loses one match.
    predicted, truth = [[0, 0], [1, 0]], [[0.9, 0], [1.9, 0]]
    i, j, _ = match_sites(np.array(predicted, float), np.array(truth, float), 1.0)
    assert list(zip(i, j, strict=True)) == [(0, 0), (1, 1)]


points = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 4)), max_size=9)


@settings(max_examples=50, deadline=None)
@given(points, points, st.sampled_from([0, 3]))
def test_curve_equals_scores_at_every_threshold(predicted, truth, border):
    predicted = table([p[:2] for p in predicted], confidence=[p[2] / 4 for p in predicted])
    truth = table([p[:2] for p in truth])
    options = {"tolerance_px": 2.5, "border_px": border, "shapes": {"a": (13, 13)}}
    curve = precision_recall_curve(predicted, truth, **options)
    assert sorted(curve["threshold"]) == sorted(predicted["confidence"].unique())
    for row in curve.itertuples():
        score = score_sites(predicted[predicted.confidence >= row.threshold], truth, n_bootstrap=0, **options)
        assert (row.tp, row.fp, row.fn) == (score.tp, score.fp, score.fn)
        np.testing.assert_allclose(
            [row.precision, row.recall, row.f1], [score.precision, score.recall, score.f1]
        )


def test_counts_and_displacement():
    truth = table([[10, 10], [20, 20], [30, 30]])
    predicted = table([[10.3, 10.4], [20, 20], [50, 50]])
    score = score_sites(predicted, truth, 1.0)
    assert (score.tp, score.fp, score.fn) == (2, 1, 1)
    assert score.precision == score.recall == score.f1 == pytest.approx(2 / 3)
    assert score.rms_displacement_px == pytest.approx(np.sqrt(0.25 / 2))
    assert sorted(score.outcomes["outcome"]) == ["fn", "fp", "tp", "tp"]


def test_a_duplicated_prediction_is_a_false_positive():
    score = score_sites(table([[5, 5], [5, 5]]), table([[5, 5]]), 1.0)
    assert (score.tp, score.fp, score.fn) == (1, 1, 0)


def test_kinds_and_images_must_agree():
    truth = pd.concat([table([[5, 5]], kind="v"), table([[5, 5]], image="b", kind="s")])
    predicted = pd.concat([table([[5, 5]], kind="s"), table([[5, 5]], image="c", kind="s")])
    score = score_sites(predicted, truth, 1.0)
    assert (score.tp, score.fp, score.fn) == (0, 2, 2)
    assert list(score.per_image["image"]) == ["a", "b", "c"]
    free = score_sites(predicted, truth, 1.0, ignore_kind=True)
    assert (free.tp, free.fp, free.fn) == (1, 1, 1)
    only = score_sites(predicted, truth, 1.0, kinds=["v"], images=["a"])
    assert (only.tp, only.fp, only.fn) == (0, 0, 1)


def test_border_sites_are_neither_required_nor_punished():
    shapes = {"a": (64, 64)}
    truth = table([[2, 30], [6, 10], [30, 30]])
    predicted = table(
        [
            [2, 30],  # matches a site in the border: ignored
            [1, 50],  # alone in the border: ignored
            [30, 30],  # right
            [7, 30],  # outside the border, nothing near: wrong
            [4, 10],  # in the border, matches a required site: right
        ]
    )
    score = score_sites(predicted, truth, 3.0, border_px=5, shapes=shapes)
    assert (score.tp, score.fp, score.fn) == (2, 1, 0)
    # A prediction inside that reaches both a border site and a required site serves the required one.
    both = score_sites(table([[5, 40]]), table([[4, 40], [6.5, 40]]), 3.0, border_px=5, shapes=shapes)
    assert (both.tp, both.fp, both.fn) == (1, 0, 0)
    with pytest.raises(UserError, match="shapes"):
        score_sites(predicted, truth, 3.0, border_px=5)


def test_empty_tables_are_not_perfect_scores():
    empty, one = table([]), table([[1, 1]])
    both = score_sites(empty, empty, 1.0)
    assert np.isnan([both.precision, both.recall, both.f1, both.rms_displacement_px]).all()
    nothing_found = score_sites(empty, one, 1.0)
    assert np.isnan(nothing_found.precision)
    assert (nothing_found.recall, nothing_found.f1) == (0, 0)
    all_wrong = score_sites(one, empty, 1.0)
    assert np.isnan(all_wrong.recall)
    assert (all_wrong.precision, all_wrong.f1) == (0, 0)
    assert len(precision_recall_curve(empty.assign(confidence=[]), one, 1.0)) == 0
    with pytest.raises(UserError, match="threshold"):
        best_threshold(precision_recall_curve(one.assign(confidence=0.5), empty, 1.0))


def test_intervals_cover_and_are_seeded():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(60):
        found = rng.binomial(20, 0.8, size=25)
        counts = np.column_stack([found, np.zeros(25, int), 20 - found])
        low, high = bootstrap(counts, 500, seed)["recall"]
        hits += low <= 0.8 <= high
    assert hits >= 50  # 95 % nominal; 50 of 60 has a probability of 1e-3 at a coverage of 0.93
    assert bootstrap(counts, 500, 3) == bootstrap(counts, 500, 3)
    assert np.isnan(bootstrap(counts[:1])["f1"]).all()


def test_one_image_is_resampled_in_blocks():
    rng = np.random.default_rng(1)
    truth = rng.uniform(0, 500, (200, 2))
    score = score_sites(table(truth[:150]), table(truth), 1.0)
    low, high = score.intervals["recall"]
    assert score.interval_unit == "blocks"
    assert low < 0.75 < high


def test_average_precision_and_best_threshold():
    truth = table([[10, 10], [20, 20]])
    predicted = table([[10, 10], [40, 40], [20, 20], [60, 60]], confidence=[0.9, 0.8, 0.7, 0.1])
    curve = precision_recall_curve(predicted, truth, 1.0)
    assert average_precision(curve) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert best_threshold(curve) == 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="kind"), "kind"),
        (lambda t: t.drop(columns="image"), "image"),
        (lambda t: t.assign(x_px=np.nan), "finite"),
    ],
)
def test_bad_tables(change, message):
    with pytest.raises(UserError, match=message):
        score_sites(change(table([[1, 1]])), table([[1, 1]]), 1.0)
    with pytest.raises(UserError, match="tolerance"):
        score_sites(table([[1, 1]]), table([[1, 1]]), 0.0)


def test_ten_thousand_sites_are_fast():
    rng = np.random.default_rng(2)
    truth = rng.uniform(0, 2000, (10_000, 2))
    predicted = truth + rng.normal(0, 3, truth.shape)
    start = time.process_time()
    i, _, _ = match_sites(predicted, truth, 10.0)
    assert time.process_time() - start < 5
    assert len(i) > 9_500
