"""Dual-phase microstructures are the populations that they are said to be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm

from micrographia.errors import UserError
from micrographia.simulate.microstructures import (
    SemContrast,
    field_microstructures,
    field_two_point,
    grain_microstructures,
)

#: (dx, dy) displacements in pixels, x right and y down.
LAGS = [(0, 0), (1, 0), (3, 0), (0, 3), (6, 0), (0, 6), (4, 4), (4, -4), (15, 0), (-9, 14)]


def two_point(masks: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """Share of pairs of pixels (dx, dy) apart that both are second phase, for each mask: counted, not transformed."""
    height, width = masks.shape[1:]
    first = masks[:, max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
    second = masks[:, max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]
    return (first & second).mean(axis=(1, 2))


@pytest.mark.parametrize(
    "settings_of_field",
    [
        {"phase_fraction": 0.35, "length_px": 5.0},
        {"phase_fraction": 0.6, "length_px": 4.0, "anisotropy": 3.0, "angle_deg": 30.0},
        {"phase_fraction": 0.3, "length_px": 4.0, "fraction_spread": 0.1},
    ],
)
def test_fields_have_the_two_point_function_of_the_theory(settings_of_field):
    made = field_microstructures(400, size_px=48, seed=4, **settings_of_field)
    for dx, dy in LAGS:
        counted = two_point(made.masks, dx, dy)
        expected = field_two_point(np.array(dx), np.array(dy), **made.parameters)
        error = counted.std() / np.sqrt(len(counted))
        assert error < 0.008  # the test is as sharp as this
        assert abs(counted.mean() - expected) < 4 * error, (dx, dy)


def test_elongation_points_where_it_is_said_to():
    made = field_microstructures(100, size_px=48, length_px=5, anisotropy=4, angle_deg=45, seed=2)
    up_right, down_right = (two_point(made.masks, 4, dy).mean() for dy in (-4, 4))  # y is down
    assert up_right > down_right + 0.05
    rolled = grain_microstructures(60, size_px=48, grain_px=10, anisotropy=4, angle_deg=90, seed=2)
    assert two_point(rolled.masks, 0, 8).mean() > two_point(rolled.masks, 8, 0).mean() + 0.05


@given(st.floats(0.02, 0.98), st.floats(0.0, 0.98))
@settings(max_examples=30, deadline=None)
def test_two_point_function_is_the_bivariate_normal_integral(fraction, distance):
    rho = np.exp(-(distance**2))
    level = norm.ppf(1 - fraction)
    expected = multivariate_normal([0, 0], [[1, rho], [rho, 1]], allow_singular=True).cdf([-level, -level])
    found = field_two_point(np.array(10 * distance), np.array(0.0), fraction, length_px=10)
    assert found == pytest.approx(expected, abs=2e-5)


def test_two_point_function_starts_at_the_fraction_and_ends_at_its_square():
    near, far = field_two_point(np.array([0.0, 100.0]), np.zeros(2), 0.4, length_px=5)
    assert near == pytest.approx(0.4)
    assert far == pytest.approx(0.16)
    # Between specimens of unlike fractions even distant points are correlated: E[f²] = mean² + spread².
    near, far = field_two_point(np.array([0.0, 100.0]), np.zeros(2), 0.4, length_px=5, fraction_spread=0.1)
    assert near == pytest.approx(0.4)
    assert far == pytest.approx(0.17)


def test_windows_fluctuate_as_the_two_point_function_says():
    size = 32
    made = field_microstructures(1500, size_px=size, length_px=6, phase_fraction=0.35, seed=5)
    lag = np.arange(-size + 1, size)
    dx, dy = np.meshgrid(lag, lag)
    pairs = (size - np.abs(dx)) * (size - np.abs(dy)) / size**4
    variance = (pairs * (field_two_point(dx, dy, **made.parameters) - 0.35**2)).sum()
    assert made.phase_fraction.std() == pytest.approx(np.sqrt(variance), rel=0.08)
    assert made.phase_fraction.mean() == pytest.approx(0.35, abs=4 * np.sqrt(variance / 1500))


@pytest.mark.parametrize("fraction", [0.2, 0.7])
def test_grains_have_the_asked_fraction_and_size(fraction):
    grain = 9.0
    made = grain_microstructures(300, size_px=48, phase_fraction=fraction, grain_px=grain, seed=6)
    share = made.phase_fraction
    assert abs(share.mean() - fraction) < 4 * share.std() / np.sqrt(len(share))
    # Independent grains: the variance of a window is f (1 - f) P averaged over it, and P integrates to
    # E[A²]/E[A] = grain² (1 + cv²); windows of 5 grains across lose some 15 % of it at their edges.
    expected = np.sqrt(fraction * (1 - fraction)) * grain / 48
    assert 0.9 * expected < share.std() < 1.2 * expected


def test_anisotropic_grains_have_the_same_area():
    """Stretched by the anisotropy at constant area, and met by it more often across than along."""
    round_, rolled = (
        grain_microstructures(150, size_px=48, grain_px=10, irregularity=0.4, anisotropy=a, seed=3)
        for a in (1, 4)
    )
    assert rolled.phase_fraction.std() == pytest.approx(round_.phase_fraction.std(), rel=0.25)
    crossings = [
        (m.masks[:, :, 1:] ^ m.masks[:, :, :-1]).mean() / (m.masks[:, 1:] ^ m.masks[:, :-1]).mean()
        for m in (round_, rolled)
    ]
    assert crossings[0] == pytest.approx(1, abs=0.08)
    assert 0.2 < crossings[1] < 0.35  # 1/4 for stretched cells


def test_spread_of_the_fraction_is_that_between_specimens():
    narrow, wide = (
        grain_microstructures(
            400, size_px=32, grain_px=4, lath_px=2, fraction_spread=s, seed=1
        ).phase_fraction
        for s in (0.0, 0.12)
    )
    assert np.sqrt(wide.var() - narrow.var()) == pytest.approx(0.12, rel=0.15)
    assert wide.mean() == pytest.approx(0.35, abs=0.03)


@pytest.mark.parametrize("make", [field_microstructures, grain_microstructures])
def test_images_show_their_masks(make):
    made = make(30, size_px=64, seed=8)
    contrast = SemContrast()
    shown = made.images > (contrast.matrix + contrast.islands) / 2
    assert (shown == made.masks).mean() > 0.97
    assert shown.mean() == pytest.approx(made.masks.mean(), abs=0.006)
    assert made.images.dtype == np.float32
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    np.testing.assert_allclose(made.phase_fraction, made.masks.mean(axis=(1, 2)))


def test_noise_is_that_of_the_counted_electrons():
    quiet = {"variation": 0.0, "edge": 0.0, "groove": 0.0, "gain": 0.0}
    contrast = SemContrast(matrix=0.3, islands=0.3, electrons=200, readout=0.02, **quiet)
    images = field_microstructures(40, contrast=contrast, seed=3).images
    assert images.mean() == pytest.approx(0.3, abs=1e-3)
    assert images.std() == pytest.approx(np.sqrt(0.3 / 200 + 0.02**2), rel=0.02)


@pytest.mark.parametrize("make", [field_microstructures, grain_microstructures])
def test_an_image_does_not_depend_on_how_many_are_made(make):
    few, many = make(3, size_px=32, seed=7), make(6, size_px=32, seed=7)
    np.testing.assert_array_equal(few.images, many.images[:3])
    np.testing.assert_array_equal(few.masks, many.masks[:3])
    assert (make(3, size_px=32, seed=8).masks != few.masks).any()


def test_edges_of_the_image_are_like_its_middle():
    for make in (field_microstructures, grain_microstructures):
        masks = make(500, size_px=24, seed=9).masks
        column = masks.mean(axis=(0, 1))
        assert np.abs(column - 0.35).max() < 0.06  # about 4 standard errors
        wrap = (masks[:, :, 0] == masks[:, :, -1]).mean() - (1 - 2 * 0.35 * 0.65)
        assert abs(wrap) < 0.05  # opposite edges know nothing of each other


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 0},
        {"size_px": 4},
        {"seed": -1},
        {"phase_fraction": 0.0},
        {"phase_fraction": float("nan")},
        {"fraction_spread": 0.6},
        {"fraction_spread": float("nan")},
        {"anisotropy": 0.5},
        {"angle_deg": float("inf")},
    ],
)
def test_impossible_populations_are_explained(wrong):
    for make in (field_microstructures, grain_microstructures):
        with pytest.raises(UserError):
            make(**{"n": 2, **wrong})


def test_impossible_details_are_explained():
    for wrong in (
        lambda: field_microstructures(2, length_px=0.5),
        lambda: field_microstructures(2, length_px=1e6),
        lambda: grain_microstructures(2, grain_px=0),
        lambda: grain_microstructures(2, lath_px=1),
        lambda: grain_microstructures(2, irregularity=-1),
        lambda: SemContrast(electrons=0),
        lambda: SemContrast(islands=1.5),
        lambda: SemContrast(gain=float("nan")),
    ):
        with pytest.raises(UserError):
            wrong()
