"""Grey levels of populations: known differences are found, equal populations lie at the floor."""

from __future__ import annotations

import numpy as np
import pytest

from micrographia.errors import UserError
from micrographia.metrics.levels import compare_levels


def population(n: int, brightness: float, contrast: float, seed: int, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    means = brightness + 0.05 * rng.normal(size=(n, channels, 1, 1))
    return (means + contrast * rng.normal(size=(n, channels, 16, 16))).clip(-1, 1)


def test_equal_populations_lie_at_the_floor() -> None:
    found = compare_levels(population(300, 0.1, 0.2, 0), population(300, 0.1, 0.2, 1))
    for name in ("levels_kl", "brightness_distance", "contrast_distance"):
        assert found[name] < 2.5 * found[f"{name}_floor"]


@pytest.mark.parametrize("channels", [1, 3])
def test_known_differences(channels: int) -> None:
    real = population(300, 0.0, 0.2, 0, channels)
    brighter = compare_levels(real, population(300, 0.3, 0.2, 1, channels))
    assert brighter["brightness_distance"] == pytest.approx(0.3, abs=0.02)
    assert brighter["contrast_distance"] < 0.01
    # Two Gaussians of one width: KL = (difference / width)² / 2.
    spread = 0.05**2 + 0.2**2
    assert brighter["levels_kl"] == pytest.approx(0.3**2 / 2 / spread, rel=0.15)
    harder = compare_levels(real, population(300, 0.0, 0.1, 1, channels))
    assert harder["contrast_distance"] == pytest.approx(0.1, abs=0.01)
    assert harder["brightness_distance"] < 0.02


def test_a_colour_that_is_wrong_is_seen() -> None:
    real = population(100, 0.0, 0.2, 0, 3)
    swapped = real.copy()
    swapped[:, 0] += 0.4
    swapped[:, 1] -= 0.4  # the mean over the channels stays
    assert compare_levels(real, swapped.clip(-1, 1))["brightness_distance"] > 0.2


def test_few_images_have_no_intervals() -> None:
    for n, known in ((19, False), (20, True)):
        found = compare_levels(population(40, 0, 0.1, 0), population(n, 0, 0.1, 1))
        for name in ("levels_kl", "brightness_distance", "contrast_distance"):
            assert np.isfinite(found[f"{name}_interval"]).all() == known


def test_what_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="cannot be compared"):
        compare_levels(population(1, 0, 0.1, 0), population(5, 0, 0.1, 1))


def test_intervals_are_as_wide_as_new_images_scatter_the_numbers():
    found = [
        compare_levels(population(60, 0.1, 0.2, 2 * i), population(60, 0.3, 0.1, 2 * i + 1))
        for i in range(20)
    ]
    for name in ("levels_kl", "brightness_distance", "contrast_distance"):
        values = np.array([f[name] for f in found])
        low, high = np.transpose([f[f"{name}_interval"] for f in found])
        assert ((low <= values) & (values <= high)).all()
        assert 0.6 < (high - low).mean() / (2 * 1.96 * values.std()) < 2
