"""Domain distance: quiet on images like those of the training, loud on others, and stored as JSON."""

import json

import numpy as np
import pytest
from scipy import ndimage

from micrographia.errors import UserError
from micrographia.metrics.domain import DomainReference
from micrographia.metrics.features import PHYSICAL_FEATURE_NAMES
from micrographia.micrograph import Micrograph

PIXEL_A = 0.2


def microscope(n, seed, noise=(0.3, 0.8), blur=(0.8, 1.4), size=128, period_px=14.0):
    """Lattices of random angle with random blur and noise: a microscope's day."""
    images = []
    for k in range(n):
        rng = np.random.default_rng([seed, k])
        y, x = np.mgrid[:size, :size]
        image = np.zeros((size, size))
        angle = rng.uniform(0, np.pi)
        for third in range(3):
            c, s = np.cos(angle + third * np.pi / 3), np.sin(angle + third * np.pi / 3)
            image += np.cos(2 * np.pi * (c * x + s * y) / period_px + rng.uniform(0, 6))
        image = ndimage.gaussian_filter(np.exp(image), rng.uniform(*blur))
        image = image / image.std() + rng.normal(0, rng.uniform(*noise), image.shape)
        images.append(image.astype(np.float32))
    return np.stack(images)


@pytest.fixture(scope="module")
def reference():
    return DomainReference.fit(microscope(80, 0), PIXEL_A, patch_px=64)


def test_images_of_the_same_day_are_inside(reference):
    fresh = [reference.distance(image) for image in microscope(60, 1)]
    assert sum(d.outside for d in fresh) <= 3
    assert np.mean([d.quantile for d in fresh]) < 0.75
    assert "like the training images" in fresh[0].message


@pytest.mark.parametrize(
    "change",
    [
        {"noise": (2.0, 2.5)},
        {"noise": (0.0, 0.02)},
        {"blur": (4.0, 4.5)},
        {"period_px": 9.0},
    ],
)
def test_another_day_is_outside(reference, change):
    found = [reference.distance(image) for image in microscope(10, 2, **change)]
    assert all(d.outside and d.value > 1 and d.quantile > 0.99 for d in found)
    assert "unlike" in found[0].message


def test_the_deviating_features_are_named(reference):
    image = microscope(1, 3)[0]
    image = image + np.random.default_rng(0).normal(0, 2, (128, 1))  # line offsets
    found = reference.distance(image)
    assert found.outside
    assert any(name in ("line_offset_y", "correlation_x1", "anisotropy_1") for name, _ in found.deviations)
    assert found.deviations[0][0] in found.message


def test_gain_and_offset_are_not_another_domain(reference):
    image = microscope(1, 4)[0]
    assert reference.distance(1000 * image + 500).value == pytest.approx(
        reference.distance(image).value, rel=0.02
    )


def test_a_micrograph_is_resampled_first(reference):
    data = microscope(1, 5, size=256)[0]
    zoomed = ndimage.zoom(data, 2, order=1)
    fine = Micrograph(zoomed, pixel_size_A=PIXEL_A / 2, name="fine.tif")
    right, wrong = reference.distance(fine), reference.distance(zoomed)
    assert wrong.value > 2 * right.value
    assert "fine.tif" in right.message


def test_stored_and_restored(reference):
    restored = DomainReference.from_dict(json.loads(json.dumps(reference.to_dict())))
    image = microscope(1, 6)[0]
    assert restored.distance(image) == reference.distance(image)
    stored = reference.to_dict()
    with pytest.raises(UserError, match="other features"):
        DomainReference.from_dict(stored | {"features": ["a"]})
    for broken in ({}, stored | {"mean": [1.0]}, {k: v for k, v in stored.items() if k != "patch_px"}):
        with pytest.raises(UserError, match="domain reference"):
            DomainReference.from_dict(broken)
    assert stored["features"] == list(PHYSICAL_FEATURE_NAMES)


def test_noise_free_training_does_not_divide_by_zero():
    clean = microscope(20, 7, noise=(0, 0))
    found = DomainReference.fit(clean, PIXEL_A, patch_px=64).distance(microscope(1, 8)[0])
    assert np.isfinite(found.value)
    assert found.outside
    same = DomainReference.fit(np.repeat(clean[:1], 12, axis=0), PIXEL_A, patch_px=64)
    assert not same.distance(clean[0]).outside


def test_bad_input(reference):
    with pytest.raises(UserError, match="at least 10"):
        DomainReference.fit(microscope(3, 0), PIXEL_A)
    with pytest.raises(UserError, match="at least 32"):
        DomainReference.fit(np.zeros((12, 20, 20)), PIXEL_A)
    with pytest.raises(UserError, match="smaller than the patches"):
        reference.distance(np.zeros((40, 200)))
    with pytest.raises(UserError, match="NaN"):
        reference.distance(np.full((64, 64), np.nan))
