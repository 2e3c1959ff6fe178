import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from micrographia.detect.peaks import find_peaks, suppress_neighbours
from micrographia.simulate.imaging import disc_maps
from micrographia.sites import SITE_COLUMNS, make_sites

SHAPE = (48, 56)


def _discs(x, y, radius_px: float, shape=SHAPE) -> np.ndarray:
    """One map with a soft disc at each place, as the labels are drawn."""
    x, y = np.atleast_1d(x), np.atleast_1d(y)
    return disc_maps(x, y, np.zeros(len(x), int), 1, shape, radius_px).numpy()


@settings(max_examples=60, deadline=None)
@given(
    st.floats(10, 45, allow_nan=False), st.floats(10, 37, allow_nan=False), st.sampled_from([2.0, 3.5, 5.0])
)
def test_a_disc_is_found_to_a_fraction_of_a_pixel(x, y, radius_px):
    sites = find_peaks(_discs(x, y, radius_px), ["a"], radius_px, image="picture")
    assert list(sites.columns) == list(SITE_COLUMNS)
    assert len(sites) == 1
    assert np.hypot(sites["x_px"][0] - x, sites["y_px"][0] - y) < 0.12
    assert (sites["kind"][0], sites["image"][0]) == ("a", "picture")
    assert sites["confidence"][0] == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(st.floats(12, 40), st.floats(12, 34), st.floats(1.3, 3.0))
def test_a_smooth_spot_is_found_to_a_twentieth_of_a_pixel(x, y, sigma):
    v, u = np.indices(SHAPE)
    spot = 0.8 * np.exp(-((u - x) ** 2 + (v - y) ** 2) / 2 / sigma**2)
    sites = find_peaks(spot[None], ["a"], 1.5 * sigma, threshold=0.1)
    assert len(sites) == 1
    assert np.hypot(sites["x_px"][0] - x, sites["y_px"][0] - y) < 0.05


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(1.5, 6))
def test_no_two_sites_lie_within_a_radius_whatever_the_map(seed, radius_px):
    rng = np.random.default_rng(seed)
    sites = find_peaks(rng.random((2, *SHAPE), dtype=np.float32), ["a", "b"], radius_px)
    xy = sites[["x_px", "y_px"]].to_numpy()
    distance = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1)) + 1e3 * np.eye(len(xy))
    assert len(sites) > 0
    assert distance.min() >= radius_px
    assert sites["confidence"].is_monotonic_decreasing
    assert sites["x_px"].between(0, SHAPE[1] - 1).all()
    assert sites["y_px"].between(0, SHAPE[0] - 1).all()


def test_every_disc_of_a_lattice_is_found_once():
    x, y = (g.ravel() + 0.37 for g in np.meshgrid(np.arange(8, 50, 8.0), np.arange(8, 42, 8.0)))
    sites = find_peaks(_discs(x, y, 3.0), ["a"], 3.0)
    assert len(sites) == len(x)
    nearest = np.hypot(x[:, None] - sites["x_px"].to_numpy(), y[:, None] - sites["y_px"].to_numpy()).min(
        axis=1
    )
    assert nearest.max() < 0.25


def test_of_two_kinds_at_one_place_the_more_confident_stands_for_both():
    maps = np.concatenate([0.6 * _discs(20.0, 20.0, 3.0), 0.9 * _discs(21.0, 20.0, 3.0)])
    sites = find_peaks(maps, ["weak", "strong"], 3.0)
    assert list(sites["kind"]) == ["strong"]


@pytest.mark.parametrize("level", [0.0, 0.04, 0.5, 1.0])
def test_a_flat_map_has_no_peaks(level):
    assert len(find_peaks(np.full((1, 128, 128), level, np.float32), ["a"], 3.5)) == 0


def test_what_stays_below_the_threshold_is_not_a_site():
    maps = 0.3 * _discs(20.0, 20.0, 3.0)
    assert len(find_peaks(maps, ["a"], 3.0, threshold=0.31)) == 0
    assert len(find_peaks(maps, ["a"], 3.0, threshold=0.29)) == 1


@pytest.mark.parametrize("place", [(0.0, 20.0), (1.5, 20.0), (55.0, 20.0), (20.0, 0.4), (20.0, 47.0)])
def test_sites_cut_by_the_border_are_left_out(place):
    assert len(find_peaks(_discs(*place, 3.5), ["a"], 3.5)) == 0


@pytest.mark.parametrize("place", [(6.0, 20.0), (20.3, 6.2), (49.0, 41.0)])
def test_sites_a_little_further_in_are_kept(place):
    sites = find_peaks(_discs(*place, 3.5), ["a"], 3.5)
    assert len(sites) == 1
    assert np.hypot(sites["x_px"][0] - place[0], sites["y_px"][0] - place[1]) < 0.12


@pytest.mark.parametrize("shape", [(4, 4), (1, 30), (7, 7)])
def test_maps_smaller_than_a_site_hold_none(shape):
    assert len(find_peaks(np.random.default_rng(0).random((1, *shape)), ["a"], 4.0)) == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 30), st.floats(0, 1)), max_size=25))
def test_suppression_keeps_the_best_and_only_drops_neighbours_of_better_ones(points):
    assume(len({p[2] for p in points}) == len(points))
    x, y, confidence = np.array(points).reshape(-1, 3).T
    kept = suppress_neighbours(make_sites("i", x, y, "a", confidence), 4.0)
    assert len(kept) == 0 if not points else kept["confidence"].iloc[0] == confidence.max()
    for px, py, c in points:
        if not ((kept["x_px"] == px) & (kept["y_px"] == py)).any():
            better = kept[kept["confidence"] > c]
            assert (np.hypot(better["x_px"] - px, better["y_px"] - py) < 4 + 1e-9).any()


def test_suppression_of_many_sites_is_quick():
    rng = np.random.default_rng(0)
    sites = make_sites("i", rng.uniform(0, 4000, 20000), rng.uniform(0, 4000, 20000), "a", rng.random(20000))
    kept = suppress_neighbours(sites, 3.5)
    assert isinstance(kept, pd.DataFrame)
    assert 19000 < len(kept) < 20000


def test_saturated_discs_from_a_network_are_found():
    logits = torch.from_numpy(80 * (_discs([20.2, 35.6], [20.4, 25.1], 3.5) - 0.5))
    sites = find_peaks(logits.sigmoid().numpy(), ["a"], 3.5)
    assert len(sites) == 2
    for x, y in ((20.2, 20.4), (35.6, 25.1)):
        assert np.hypot(sites["x_px"] - x, sites["y_px"] - y).min() < 0.15
