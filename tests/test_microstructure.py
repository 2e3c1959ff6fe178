"""Measures of two-phase images: against patterns whose every curve is known."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from micrographia.errors import UserError
from micrographia.io import read_images
from micrographia.metrics.microstructure import (
    chord_lengths,
    compare_micrographs,
    compare_microstructures,
    lineal_path,
    particle_sizes,
    phase_fraction,
    phase_masks,
    phase_threshold,
    two_point_correlation,
)

MASKS = arrays(bool, st.tuples(st.integers(1, 3), st.integers(8, 13), st.integers(8, 13)))


def stripes(width_px: int, size: int = 48) -> np.ndarray:
    """Vertical stripes, bright and dark of equal width."""
    return np.broadcast_to((np.arange(size) // width_px % 2 == 0)[None, None], (1, size, size))


def bernoulli(n, size, p, seed=0):
    return np.random.default_rng(seed).random((n, size, size)) < p


def blobs(n: int, size: int = 64, sigma=(3.0, 3.0), p: float = 0.4, seed: int = 0) -> np.ndarray:
    """Level cuts of Gaussian random fields at the population's (not the image's) level."""
    noise = np.random.default_rng(seed).normal(size=(n, size + 40, size + 40))
    field = ndimage.gaussian_filter(noise, (0, *sigma))[:, 20:-20, 20:-20]
    level = np.quantile(np.random.default_rng(9).normal(size=100_000), 1 - p)
    return field > level / np.sqrt(4 * np.pi * sigma[0] * sigma[1])


def test_two_point_correlation_of_stripes():
    s2 = two_point_correlation(stripes(4), 16)
    r = np.arange(17)
    triangle = 0.5 * np.abs(1 - (r % 8) / 4)  # overlap of the stripes with themselves, moved by r
    # 48 - r columns hold whole periods only where r is a multiple of 8; elsewhere the count is exact, not periodic
    np.testing.assert_allclose(s2.x[0, ::8], triangle[::8], atol=1e-12)
    columns = stripes(4)[0, 0].astype(int)
    exact = [(columns[: 48 - k] * columns[k:]).sum() / (48 - k) for k in r]
    np.testing.assert_allclose(s2.x[0], exact, atol=1e-12)
    np.testing.assert_allclose(s2.x[0], triangle, atol=0.06)
    np.testing.assert_allclose(s2.y[0], 0.5, atol=1e-12)  # along the stripes nothing changes


def test_two_point_correlation_of_a_checkerboard():
    board = np.indices((32, 32)).sum(0)[None] % 2 == 0
    s2 = two_point_correlation(board, 8)
    np.testing.assert_allclose(s2.x[0], [0.5, 0] * 4 + [0.5], atol=1e-12)
    np.testing.assert_allclose(s2.y[0], s2.x[0], atol=1e-12)
    # Rings: r = 1 holds 4 edges and 4 corners (sqrt 2), each weighted by its number of pairs.
    edges, corners = 2 * 32 * 31, 2 * 31 * 31
    assert s2.all[0, 1] == pytest.approx(0.5 * corners / (edges + corners))


def test_two_point_correlation_does_not_wrap_around():
    mask = np.zeros((1, 16, 16), bool)
    mask[0, :, [0, -1]] = True  # only the first and the last column: 15 px apart, not 1
    s2 = two_point_correlation(mask, 14)
    assert (s2.x[0, 1:] == 0).all()
    assert two_point_correlation(mask, 14).y[0] == pytest.approx(np.full(15, 2 / 16))


def test_correlations_of_a_random_field_without_memory():
    p = 0.3
    masks = bernoulli(200, 64, p)
    s2, path, chords = two_point_correlation(masks), lineal_path(masks), chord_lengths(masks)
    r = np.arange(33)
    for curve in s2:
        np.testing.assert_allclose(curve.mean(0), np.where(r == 0, p, p**2), atol=0.003)
    for curve in path:
        np.testing.assert_allclose(curve.mean(0), p ** (r + 1), atol=0.003)
    density = chords.all.mean(0) / chords.all.mean(0).sum()
    np.testing.assert_allclose(density[1:6], (1 - p) * p ** np.arange(5), rtol=0.03)
    # Of one pixel: (1 - p)^4 p in 4-connection.
    singles = particle_sizes(masks, smallest_px=1)
    single = singles.weight[singles.diameter_px < 1.2].sum() / len(masks)
    assert single == pytest.approx(p * (1 - p) ** 4, rel=0.02)


def test_lineal_path_and_chords_of_stripes():
    path, chords = lineal_path(stripes(6), 12), chord_lengths(stripes(6), 12)
    np.testing.assert_allclose(path.y[0], 0.5)
    # 4 stripes of 6 px in 48: each holds 6 - r places for r + 1 pixels.
    r = np.arange(13)
    np.testing.assert_allclose(path.x[0], 4 * np.clip(6 - r, 0, None) / (48 - r))
    # The stripe at the border is not a chord, three are, each seen from 48 - 6 - 1 places.
    np.testing.assert_allclose(chords.x[0], np.where(r == 6, 3 / 41, 0))
    assert not chords.y.any()  # uncut chords do not exist along the stripes


def test_chords_are_counted_without_bias_in_small_windows():
    """Cut into small windows, long chords are lost more often; their weight makes up for that."""
    line = np.repeat([True, False] * 2000, np.random.default_rng(0).integers(2, 12, 4000))
    true = np.bincount(np.diff(np.flatnonzero(np.diff(line.astype(int))))[1::2], minlength=13)[:13]
    windows = np.lib.stride_tricks.sliding_window_view(line, 16)
    rates = chord_lengths(
        np.stack([windows[k : k + 16] for k in range(0, len(windows) - 16, 16)]), 12
    ).x.mean(0)
    np.testing.assert_allclose(rates / rates.sum(), true / true.sum(), atol=0.003)


def test_particles_of_known_diameter():
    y, x = np.mgrid[:96, :96]
    centres = [(20, 20, 8.0), (20, 70, 12.0), (70, 30, 20.0), (70, 95, 9.0)]  # the last at the border
    mask = np.any([np.hypot(y - a, x - b) <= d / 2 for a, b, d in centres], axis=0)
    mask[45, 45] = True  # a speck
    found = particle_sizes(np.stack([np.zeros_like(mask), mask]))
    order = np.argsort(found.diameter_px)
    np.testing.assert_allclose(found.diameter_px[order], [8, 12, 20], rtol=0.05)
    np.testing.assert_array_equal(found.image, 1)
    widths = np.array([9, 13, 21])
    np.testing.assert_allclose(found.weight[order], 1 / (96 - widths - 1.0) ** 2)
    assert len(particle_sizes(mask[None], smallest_px=1).image) == 4
    assert len(particle_sizes(mask[None], max_px=15).image) == 2


def test_neighbouring_images_do_not_touch():
    masks = np.zeros((3, 12, 12), bool)
    masks[:, 4:7, 4:7] = True
    np.testing.assert_array_equal(particle_sizes(masks).image, [0, 1, 2])
    full = np.ones((2, 8, 8), bool)
    assert not chord_lengths(full).all.any()
    np.testing.assert_allclose(lineal_path(full).all, 1)
    assert len(particle_sizes(full).image) == 0


@settings(max_examples=40, deadline=None)
@given(MASKS)
def test_what_holds_for_every_mask(masks):
    s2, path, chords = two_point_correlation(masks), lineal_path(masks), chord_lengths(masks)
    fraction = phase_fraction(masks)
    np.testing.assert_allclose(s2.all[:, 0], fraction)
    np.testing.assert_allclose(path.all[:, 0], fraction)
    assert (path.x <= s2.x + 1e-12).all()
    assert (path.y <= s2.y + 1e-12).all()
    # Pairs are bright-bright, dark-dark or mixed.
    mixed = 1 - s2.all - two_point_correlation(~masks).all
    assert (mixed > -1e-12).all()
    assert (mixed < 1 + 1e-12).all()
    for curves in (s2, path, chords):
        assert np.isfinite(np.stack(curves)).all()


@settings(max_examples=25, deadline=None)
@given(MASKS)
def test_mirrors_and_transposition(masks):
    for measure in (two_point_correlation, lineal_path, chord_lengths):
        original, mirrored, turned = (measure(m) for m in (masks, masks[:, ::-1], masks.transpose(0, 2, 1)))
        np.testing.assert_allclose(original, mirrored, atol=1e-12)
        np.testing.assert_allclose(original, (turned.all, turned.y, turned.x), atol=1e-12)
    sizes = [sorted(particle_sizes(m, 1).diameter_px) for m in (masks, masks[:, :, ::-1])]
    np.testing.assert_allclose(*sizes)


def test_threshold_parts_two_grey_levels():
    masks = blobs(20)
    rng = np.random.default_rng(1)
    images = 100 + 40 * masks + 12 * rng.normal(size=masks.shape)
    assert 110 < phase_threshold(images) < 130
    assert (phase_masks(images, phase_threshold(images)) == masks).mean() > 0.96
    uneven = images * rng.uniform(0.3, 3, size=(20, 1, 1))  # gains differ: only a threshold of its own helps
    assert (phase_masks(uneven) == masks).mean() > 0.95
    assert (phase_masks(uneven, phase_threshold(uneven)) == masks).mean() < 0.9
    hot = images.copy()
    hot[0, 3, 3] = 1e6
    assert phase_threshold(hot) == pytest.approx(phase_threshold(images), abs=3)


def test_comparison_tells_the_different_from_the_equal():
    real = blobs(150)
    equal = compare_microstructures(real, blobs(150, seed=1))
    finer = compare_microstructures(real, blobs(150, sigma=(1.5, 1.5), seed=1))
    table = equal.table().set_index("measure")
    assert (table["value"] < 2.5 * table["floor"]).all()
    for name in ("two_point_rms", "two_point_x_rms", "lineal_path_rms", "chord_length_distance_px"):
        assert finer.numbers()[name] > 3 * finer.numbers()[f"{name}_floor"]
    more = compare_microstructures(real, blobs(150, p=0.5, seed=1))
    assert more.fraction_error == pytest.approx(0.1, abs=0.02)
    assert more.real_fraction_interval[0] < 0.4 < more.real_fraction_interval[1]
    assert more.generated_fraction_interval[0] < 0.5 < more.generated_fraction_interval[1]
    assert compare_microstructures(real, blobs(150, seed=1)).numbers() == equal.numbers()  # seeded
    for found in (equal, finer, more):
        table = found.table().dropna()
        assert (table["low"] <= table["value"]).all()
        assert (table["value"] <= table["high"]).all()


def test_intervals_of_differences_hold_what_more_images_show():
    """Of twenty pairs of small sets, whose difference large sets know, few intervals may miss it."""
    many = compare_microstructures(
        blobs(800), blobs(800, sigma=(2.0, 2.0), p=0.5, seed=1), n_bootstrap=10
    ).numbers()
    names = ("phase_fraction_error", "phase_fraction_distance", "two_point_rms", "lineal_path_rms")
    held = dict.fromkeys(names, 0)
    for k in range(20):
        real, other = blobs(40, seed=10 + k), blobs(40, sigma=(2.0, 2.0), p=0.5, seed=50 + k)
        few = compare_microstructures(real, other, seed=k).numbers()
        for name in names:
            low, high = few[f"{name}_interval"]
            held[name] += low <= many[name] <= high
            assert high - low < many[name]  # wide enough by being narrow, too
    assert min(held.values()) >= 16, held


def test_few_particles_have_no_interval():
    stripes = np.zeros((40, 32, 32), bool)
    stripes[:, :, 8:20] = True
    stripes[::2, :, 8:14] = False
    dotted = stripes.copy()
    dotted[:5, 12:16, 24:28] = True  # the only whole particles
    found = compare_microstructures(stripes | dotted, dotted).measures
    assert np.isfinite(found["chord_length"].interval).all()
    assert np.isfinite(found["particle_diameter"].difference)
    assert np.isnan(found["particle_diameter"].interval).all()


def test_comparison_sees_anisotropy_and_lost_variety():
    real = blobs(100)
    stretched = compare_microstructures(real, blobs(100, sigma=(6.0, 1.5), seed=1)).numbers()
    for name in ("two_point_x_rms", "two_point_y_rms", "lineal_path_y_rms", "chord_length_x_distance_px"):
        assert stretched[name] > 3 * stretched[f"{name}_floor"]
    # The mean image copied: no error of the mean fraction, but the distribution collapses.
    fraction = phase_fraction(real)
    typical = real[np.argsort(np.abs(fraction - fraction.mean()))[0]]
    collapsed = compare_microstructures(real, np.repeat(typical[None], 100, axis=0)).numbers()
    assert collapsed["phase_fraction_error"] < 0.01
    assert collapsed["phase_fraction_distance"] > 3 * collapsed["phase_fraction_distance_floor"]


def test_bands_cover_the_population():
    masks = blobs(400, size=32, sigma=(2.0, 2.0))
    truth = two_point_correlation(masks).all.mean(0)
    part = compare_microstructures(masks[:60], masks[60:120]).measures["two_point"]
    for band in (part.real, part.generated):
        assert (band.low <= band.value).all()
        assert (band.value <= band.high).all()
        assert ((band.low <= truth) & (truth <= band.high)).mean() > 0.6
    assert (part.real.high - part.real.low)[0] > 0.005


def test_measures_that_are_not_defined_are_left_out():
    all_bright = np.ones((10, 32, 32), bool)
    result = compare_microstructures(blobs(20, size=32), all_bright)
    numbers = result.numbers()
    assert "particle_diameter_distance_px" not in numbers
    assert numbers["two_point_rms"] > 0.3
    assert np.isnan(result.measures["chord_length"].difference)
    json.loads(json.dumps(numbers, allow_nan=False))
    assert np.isnan(
        compare_microstructures(blobs(20), blobs(20), n_bootstrap=0).measures["two_point"].real.low
    ).all()


def test_images_are_cut_at_the_threshold_of_the_real_ones():
    rng = np.random.default_rng(0)
    masks = blobs(40)
    real = masks + 0.2 * rng.normal(size=masks.shape)
    darker = real - 0.5  # a generator that misses the brightness misses the population
    assert compare_micrographs(real, real, n_bootstrap=0).fraction_error == 0
    assert compare_micrographs(real, darker, n_bootstrap=0).fraction_error > 0.15
    assert compare_micrographs(real, darker, per_image=True, n_bootstrap=0).fraction_error < 1e-3
    darker[3] = darker.min()  # a constant sample has no threshold of its own, and is dark
    assert 0 < compare_micrographs(real, darker, per_image=True, n_bootstrap=0).fraction_error < 0.05


def test_bad_input():
    images = np.random.default_rng(0).normal(size=(9, 16, 16))
    with pytest.raises(UserError, match="constant"):
        phase_threshold(np.ones((3, 16, 16)))
    flat = images.copy()
    flat[4] = 2
    with pytest.raises(UserError, match="first is number 4"):
        phase_masks(flat)
    assert not phase_masks(flat, 5.0)[4].any()
    flat[2, 0, 0] = np.nan
    with pytest.raises(UserError, match="NaN"):
        phase_threshold(flat)
    with pytest.raises(UserError, match="at least 8 x 8"):
        phase_threshold(images[:, :7])
    with pytest.raises(UserError, match="number"):
        phase_masks(images, float("nan"))
    with pytest.raises(UserError, match="smoothing"):
        phase_masks(images, 0.0, -1)
    with pytest.raises(UserError, match="True and False"):
        two_point_correlation(images)
    with pytest.raises(UserError, match=r"\[N, H, W\]"):
        lineal_path(images[0] > 0)
    with pytest.raises(UserError, match="longest length"):
        chord_lengths(images > 0, 15)
    with pytest.raises(UserError, match="at least 8 images"):
        compare_microstructures(images[:5] > 0, images > 0)
    with pytest.raises(UserError, match="pixel size"):
        compare_microstructures(images > 0, images > 0, pixel_size_A=-1)


@pytest.mark.shared_data
def test_phase_fractions_of_real_images_against_masks_drawn_by_hand(shared_data):
    """12 SEM images of a superalloy: cut automatically, the fraction is off by 0.07 on average."""
    files = sorted((shared_data / "sem-two-phase").glob("*_phases.tif"))
    truth = np.stack([read_images(f)[0].data for f in files]) == 0  # the matrix is bright
    images = np.stack([read_images(f.with_name(f.name.replace("_phases", "")))[0].data for f in files])
    masks = phase_masks(images)
    error = np.abs(phase_fraction(masks) - phase_fraction(truth))
    assert len(files) == 12
    assert error.mean() < 0.08
    assert error.max() < 0.15
    assert (masks == truth).mean() > 0.8
