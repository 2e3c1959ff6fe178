"""Physical features: invariances, the quantities their names promise; guards of the network extractors."""

import hashlib
import sys
import time

import numpy as np
import pytest
import torch
from scipy import ndimage

from micrographia.errors import UserError
from micrographia.metrics import features
from micrographia.metrics.features import (
    PHYSICAL_FEATURE_NAMES,
    band_centres,
    band_powers,
    inception_extractor,
    module_extractor,
    physical_features,
    to_8bit,
)

PIXEL_A = 0.2


def noise(n=8, size=64, seed=0):
    return np.random.default_rng(seed).normal(size=(n, size, size)).astype(np.float32)


def column(values, name):
    return values[:, PHYSICAL_FEATURE_NAMES.index(name)]


def lattice(n=8, size=96, period_A=2.0):
    y, x = np.mgrid[:size, :size] * PIXEL_A
    wave = np.cos(2 * np.pi * x / period_A) + np.cos(2 * np.pi * y / period_A)
    return np.repeat(wave[None].astype(np.float32), n, axis=0)


def test_shape_names_and_gain_invariance():
    images = lattice() + noise(size=96)
    values = physical_features(images, PIXEL_A)
    assert values.shape == (8, len(PHYSICAL_FEATURE_NAMES))
    assert values.dtype == np.float64
    assert len(set(PHYSICAL_FEATURE_NAMES)) == len(PHYSICAL_FEATURE_NAMES)
    np.testing.assert_allclose(physical_features(images * 37 + 1000, PIXEL_A), values, atol=5e-3)


def test_order_and_batches_do_not_matter():
    images = noise(12)
    values = physical_features(images, PIXEL_A)
    np.testing.assert_allclose(physical_features(images[::-1].copy(), PIXEL_A)[::-1], values, atol=1e-5)
    np.testing.assert_allclose(physical_features(images[3:4], PIXEL_A), values[3:4], atol=1e-5)


def test_white_noise_has_a_flat_spectrum_and_a_lattice_its_peak():
    np.testing.assert_allclose(band_powers(3 * noise(64), PIXEL_A).mean(0), 9, rtol=0.15)
    powers = band_powers(lattice(1), PIXEL_A)[0]
    assert abs(band_centres(PIXEL_A)[powers.argmax()] - 0.5) < 0.06


@pytest.mark.parametrize("pixel_size_A", [0.05, 0.2, 0.8, 50.0])
def test_every_band_is_filled(pixel_size_A):
    powers = band_powers(noise(4, 32), pixel_size_A)
    assert np.isfinite(powers).all()
    assert (powers > 0).all()
    assert band_centres(pixel_size_A)[-1] <= 0.5 / pixel_size_A * (1 + 1e-9)


def test_noise_features_measure_noise():
    white = physical_features(noise(32), PIXEL_A)
    np.testing.assert_allclose(column(white, "noise_level").mean(), 0, atol=0.03)
    np.testing.assert_allclose(column(white, "noise_correlation_x").mean(), 0, atol=0.02)
    np.testing.assert_allclose(column(white, "noise_signal").mean(), 0, atol=0.05)
    blurred = ndimage.gaussian_filter(noise(32), (0, 0, 0.7))
    correlated = physical_features(blurred, PIXEL_A)
    assert column(correlated, "noise_correlation_x").mean() > 0.2
    assert abs(column(correlated, "noise_correlation_y").mean()) < 0.03
    rng = np.random.default_rng(1)
    smooth = lattice(8, 96, period_A=6.0) * 40 + 100
    poisson = rng.poisson(smooth).astype(np.float32)
    constant = smooth + rng.normal(0, 10, smooth.shape).astype(np.float32)
    assert column(physical_features(poisson, PIXEL_A), "noise_signal").mean() > 0.2
    assert abs(column(physical_features(constant, PIXEL_A), "noise_signal").mean()) < 0.1


def test_line_jitter_shows_across_lines_only():
    rng = np.random.default_rng(2)
    images = lattice(8) + 0.05 * noise(8, 96)
    moved = np.stack([[np.roll(row, rng.integers(-2, 3)) for row in image] for image in images])
    still, jittered = (physical_features(x, PIXEL_A) for x in (images, moved))
    assert abs(column(still, "anisotropy_1").mean()) < 0.1
    assert column(jittered, "anisotropy_1").mean() > 0.5
    offsets = images + rng.normal(0, 1.0, (8, 96, 1)).astype(np.float32)
    stripes = physical_features(offsets, PIXEL_A)
    assert (column(stripes, "line_offset_y") > column(still, "line_offset_y") + 0.5).all()
    np.testing.assert_allclose(column(stripes, "line_offset_x"), column(still, "line_offset_x"), atol=0.5)


def test_contamination_raises_the_background():
    cloud = ndimage.gaussian_filter(noise(8, 96, seed=5), (0, 25, 25))
    cloud *= 1 / cloud.std()
    clean, cloudy = (physical_features(lattice() + x, PIXEL_A) for x in (0, cloud))
    assert (column(cloudy, "background") > column(clean, "background") + 0.5).all()


def test_hostile_inputs():
    assert np.isfinite(physical_features(np.ones((2, 16, 16)), PIXEL_A)).all()
    empty = np.zeros((1, 64, 64), np.float32)
    empty[0, 5, 5] = 1e6
    assert np.isfinite(physical_features(empty, PIXEL_A)).all()
    with pytest.raises(UserError, match="number 1"):
        physical_features(np.stack([np.ones((16, 16)), np.full((16, 16), np.nan)]), PIXEL_A)
    for shape in [(64, 64), (2, 8, 8), (0, 64, 64)]:
        with pytest.raises(UserError, match="stack"):
            physical_features(np.zeros(shape), PIXEL_A)
    with pytest.raises(UserError, match="pixel size"):
        physical_features(noise(), 0.0)


def test_a_thousand_patches_are_fast():
    images = noise(256, 128)
    physical_features(images[:8], PIXEL_A)
    start = time.process_time()
    physical_features(images, PIXEL_A)
    assert (time.process_time() - start) * 1000 / 256 < 6  # 1.4 s on an idle core; slack for a busy machine


def test_module_extractor_pools_and_keeps_the_mode():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.Dropout(0.5))
    network.train()
    extractor = module_extractor(network, "tiny", channels=3)
    first = extractor.function(noise(4), (-1.0, 1.0))
    assert first.shape == (4, 5)
    np.testing.assert_array_equal(first, extractor.function(noise(4), (-1.0, 1.0)))
    assert network.training


def test_one_window_makes_8_bit():
    images = np.array([[-5.0, -1, 0, 1, 5]], np.float32)
    np.testing.assert_array_equal(to_8bit(images, (-1, 1)), [[0, 0, 128, 255, 255]])


def test_inception_weights_are_checked(tmp_path):
    with pytest.raises(UserError, match="do not exist"):
        inception_extractor(tmp_path / "none.pth")
    fake = tmp_path / "weights.pth"
    fake.write_bytes(b"not weights")
    with pytest.raises(UserError, match="SHA-256"):
        inception_extractor(fake)


def test_a_broken_torch_fidelity_is_a_clear_message(tmp_path, monkeypatch):
    fake = tmp_path / "weights.pth"
    fake.write_bytes(b"not weights")
    monkeypatch.setattr(features, "INCEPTION_SHA256", hashlib.sha256(b"not weights").hexdigest())
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)  # import raises ImportError
    with pytest.raises(UserError, match="physical features"):
        inception_extractor(fake)
