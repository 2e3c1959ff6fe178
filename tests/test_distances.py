"""Distances: against independent formulas, known values, and their own noise."""

import numpy as np
import pytest
import torch
from scipy import linalg, ndimage

from micrographia.errors import UserError
from micrographia.metrics.distances import (
    NEIGHBOUR_MEASURES,
    compare_sets,
    density_coverage,
    frechet_distance,
    histogram_kl,
    kernel_distance,
    precision_recall,
    radial_power_spectrum,
    radial_spectrum_distance,
    shifted_interval,
    standardise,
)
from micrographia.metrics.features import module_extractor


def features(n, d, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def frechet_by_sqrtm(a, b):
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * linalg.sqrtm(s @ t).real)


def frechet_by_eigenvalues(a, b):
    """The other common formula: eigenvalues of the (unsymmetric) product of the covariances."""
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = np.sqrt(np.linalg.eigvals(s @ t).astype(complex)).real.sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * cross


@pytest.mark.parametrize("n", [200, 57])
def test_frechet_equals_independent_formulas(n):
    a, b = features(n, 20), features(150, 20, seed=1, scale=0.7)
    value = frechet_distance(a, b)
    assert value == pytest.approx(frechet_by_sqrtm(a, b), rel=1e-8)
    assert value == pytest.approx(frechet_by_eigenvalues(a, b), rel=1e-8)


def test_frechet_with_fewer_samples_than_features():
    # Rank-deficient: compare with the formula in the space the samples span, where covariances are regular.
    a, b = features(12, 40), features(9, 40, seed=1)
    basis = np.linalg.qr(np.concatenate([a - a.mean(0), b - b.mean(0), [a.mean(0) - b.mean(0)]]).T)[0]
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(a @ basis, b @ basis), rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_by_sqrtm(a, b), rel=1e-5)  # sqrtm is at its limit


def test_frechet_known_values():
    a = features(300, 8)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 2) == pytest.approx(8 * 4, rel=1e-9)
    x = np.array([[-1.0], [1.0]])  # one dimension: (difference of the standard deviations)^2
    assert frechet_distance(x, 3 * x) == pytest.approx((np.sqrt(2) * 2) ** 2)


def test_kernel_distance_is_unbiased():
    values = [kernel_distance(features(40, 6, 0)[k::2], features(40, 6, 0)[1 - k :: 2])[0] for k in (0, 1)]
    assert values[0] == pytest.approx(values[1])
    rng = np.random.default_rng(0)
    same = [kernel_distance(rng.normal(size=(20, 4)), rng.normal(size=(30, 4)))[0] for _ in range(400)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(400)
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    direct = (
        np.mean([k(a[i], a[j]) for i in range(5) for j in range(5) if i != j])
        + np.mean([k(b[i], b[j]) for i in range(4) for j in range(4) if i != j])
        - 2 * np.mean([k(x, y) for x in a for y in b])
    )
    assert kernel_distance(a, b)[0] == pytest.approx(direct)
    mean, std = kernel_distance(rng.normal(size=(300, 4)), rng.normal(size=(300, 4)) + 1, 100, 20)
    assert mean > 5 * std > 0


def test_precision_and_recall_tell_mode_loss_from_bad_samples():
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.normal(size=(200, 3)), rng.normal(size=(200, 3)) + 20])
    one_mode = rng.normal(size=(400, 3))
    precision, recall = precision_recall(real, one_mode)
    assert precision > 0.8
    assert 0.35 < recall < 0.55
    precision, recall = precision_recall(one_mode, real)
    assert 0.35 < precision < 0.55
    assert precision_recall(real, real + 1000) == (0, 0)
    with pytest.raises(UserError, match="k = 3"):
        precision_recall(real[:3], one_mode)


def test_density_and_coverage_by_hand():
    # On a line: real samples at 0, 1, 3, 7 with k = 1 have radii 1, 1, 2, 4.
    real, other = np.array([[0.0], [1.0], [3.0], [7.0]]), np.array([[0.5], [2.5], [20.0]])
    # 0.5 lies in the balls of 0 and 1; 2.5 in those of 3 (1 to 5) only, as 7 begins at 3; 20 in none.
    density, coverage = density_coverage(real, other, k=1)
    assert density == pytest.approx((2 + 1 + 0) / 3)
    assert coverage == pytest.approx(3 / 4)
    # With k = 2 the radii are 3, 2, 3, 6: 0.5 in 0, 1, 3; 2.5 in 0, 1, 3, 7 (from 1); 20 in none.
    density, coverage = density_coverage(real, other, k=2)
    assert density == pytest.approx((3 + 4 + 0) / (2 * 3))
    assert coverage == 1
    with pytest.raises(UserError, match="more than 4 real"):
        density_coverage(real, other, k=4)


def test_density_and_coverage_of_equal_sets_have_their_expectation():
    rng = np.random.default_rng(0)
    values = np.mean([density_coverage(*rng.normal(size=(2, 60, 4))) for _ in range(100)], axis=0)
    none = np.prod([(60 - j) / (120 - j) for j in range(1, 6)])  # the 5 nearest of a sample are all real
    assert values == pytest.approx([1, 1 - none], abs=0.03)


def test_one_outlier_inflates_precision_but_not_density():
    rng = np.random.default_rng(0)
    real, bad = rng.normal(size=(2, 200, 2))
    bad += [30, 0]
    outlier = np.concatenate([real, [[60.0, 0]]])
    assert precision_recall(real, bad)[0] == 0
    assert precision_recall(outlier, bad)[0] == 1  # all lie in the outlier's huge ball
    assert density_coverage(outlier, bad)[0] == pytest.approx(1 / 5)
    assert density_coverage(outlier, bad)[1] < 0.01
    # Coverage of one mode of two is a half.
    modes = np.concatenate([real, real + 100])
    assert density_coverage(modes, rng.normal(size=(400, 2)))[1] == pytest.approx(0.5, abs=0.05)


def test_histogram_kl():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(8, 64, 64))
    assert histogram_kl(real, real) == 0
    assert histogram_kl(real, 5 * real + 3) == pytest.approx(0, abs=1e-3)  # gain and offset do not count
    assert histogram_kl(real, rng.normal(size=real.shape)) < 0.01
    assert histogram_kl(real, rng.uniform(size=real.shape)) > 0.2
    with pytest.raises(UserError, match="constant"):
        histogram_kl(np.ones((2, 32, 32)), real)


def test_spectra():
    rng = np.random.default_rng(0)
    white = rng.normal(size=(16, 64, 64))
    q, power = radial_power_spectrum(2 * white[0], 0.2)
    assert q.shape == power.shape
    assert power.mean() == pytest.approx(4, rel=0.15)
    blurred = ndimage.gaussian_filter(white, (0, 1, 1))
    assert radial_spectrum_distance(white, rng.normal(size=white.shape), 0.2) < 0.1
    assert radial_spectrum_distance(white, blurred, 0.2) > 0.5


def test_compare_sets_tells_the_different_from_the_equal():
    rng = np.random.default_rng(0)
    real, same = rng.normal(size=(2, 60, 32, 32)).astype(np.float32)
    blurred = ndimage.gaussian_filter(same, (0, 0.8, 0.8))
    equal = compare_sets(real, same, 0.2, n_bootstrap=30)
    different = compare_sets(real, blurred, 0.2, n_bootstrap=30)
    assert "physical" in equal["extractor"]
    assert (equal["n_real"], equal["n_other"]) == (60, 60)
    for name in ("fid", "kid", "spectrum_distance"):  # not the histogram: blurred noise is Gaussian, too
        assert different[name] > different[f"{name}_floor"]
    for name in ("density", "coverage"):
        assert different[name] < 0.5 * different[f"{name}_floor"]
        assert equal[name] > 0.8 * equal[f"{name}_floor"]
    assert equal["kid_interval"][0] < 0 < equal["kid_interval"][1]
    assert different["kid_interval"][0] > 0
    assert different["fid_interval"][0] <= different["fid"] <= different["fid_interval"][1]
    assert equal["fid"] < 2 * equal["fid_floor"]
    assert any("2048" in w for w in equal["warnings"])
    assert compare_sets(real, same, 0.2, n_bootstrap=30) == equal  # seeded


def test_intervals_are_as_wide_as_new_images_scatter_the_numbers():
    rng = np.random.default_rng(0)

    def pair():
        real, other = rng.normal(size=(2, 60, 32, 32))
        return real, ndimage.gaussian_filter(other, (0, 0.4, 0.4)) + rng.uniform(-0.5, 0.5, size=other.shape)

    found = [compare_sets(*pair(), 0.2, n_bootstrap=100, splits=1) for _ in range(30)]
    for name in ("fid", "kid", "histogram_kl", "spectrum_distance", *NEIGHBOUR_MEASURES):
        values = np.array([f[name] for f in found])
        low, high = np.transpose([f[f"{name}_interval"] for f in found])
        assert (low <= values).all()
        assert (values <= high).all()
        # Halves that were not standardised anew would be half as wide for the kernel distance.
        assert 0.6 < (high - low).mean() / (2 * 1.96 * values.std()) < 2


def test_intervals_of_shares_at_their_ends_and_of_small_sets():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(40, 32, 32))
    found = compare_sets(real, real, 0.2, n_bootstrap=20)
    for name in ("precision", "recall", "coverage"):
        low, high = found[f"{name}_interval"]
        assert 0.5 < low <= 1 - 3 / 40 + 1e-9
        assert (found[name], high) == (1, 1)
    found = compare_sets(real, ndimage.gaussian_filter(real[:25], (0, 2, 2)), 0.2, n_bootstrap=20)
    assert found["precision"] == 0
    assert found["precision_interval"] == pytest.approx((0, 3 / 25))  # none among 25 may be three in 25
    few = compare_sets(real, real[:19], 0.2, n_bootstrap=20)
    assert np.isnan(few["fid_interval"]).all()
    assert any("fewer than 20" in w for w in few["warnings"])


def test_coverage_near_its_ceiling_has_an_interval_of_its_scatter():
    """Images drawn twice, their own neighbours, would make it more than twice as wide."""
    rng = np.random.default_rng(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 32, 10))
    found = [
        compare_sets(
            *rng.normal(size=(2, 60, 32, 32)),
            0.2,
            module_extractor(network, "tiny"),
            splits=1,
            n_bootstrap=60,
        )
        for _ in range(30)
    ]
    low, high = np.transpose([f["coverage_interval"] for f in found])
    values = np.array([f["coverage"] for f in found])
    assert values.mean() > 0.9
    assert 0.5 < (high - low).mean() / (2 * 1.96 * values.std()) < 1.7
    assert (high <= 1).all()


def test_a_shifted_interval_holds_its_number():
    assert shifted_interval(0.0, np.array([0.0] * 99 + [0.01]), 0.0) == (0.0, 0.0)
    low, high = shifted_interval(1.0, np.array([0.9] + [0.998] * 99))
    assert low <= 1 <= high
    low, high = shifted_interval(2.0, np.linspace(2.5, 3.5, 101), 0.0)
    assert (low, high) == pytest.approx((1.525, 2.475))
    assert np.isnan(shifted_interval(1.0, np.array([np.nan, 1.0]))).all()


def test_compare_sets_warns_when_features_outnumber_images():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 32, 100))
    images = np.random.default_rng(0).normal(size=(20, 32, 32))
    result = compare_sets(images, images, 0.2, module_extractor(network, "tiny"), n_bootstrap=0)
    assert result["extractor"] == "tiny"
    assert any("singular" in w for w in result["warnings"])
    assert np.isnan(result["fid_interval"]).all()


def test_smallest_sets_are_compared():
    images = np.random.default_rng(0).normal(size=(2, 8, 32, 32))
    result = compare_sets(*images, 0.2, n_bootstrap=0)
    assert all(np.isfinite([result[name], result[f"{name}_floor"]]).all() for name in ("recall", "coverage"))


def test_standardise_leaves_constant_features_alone():
    a = np.column_stack([np.arange(5.0), np.full(5, 3.0)])
    scaled, moved = standardise(a, a + 1)
    np.testing.assert_allclose(scaled.std(0), [1, 0])
    np.testing.assert_allclose(moved[:, 1], 1)


def test_bad_sets():
    with pytest.raises(UserError, match="one D"):
        frechet_distance(np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(UserError, match="at least 2"):
        kernel_distance(np.zeros((1, 2)), np.zeros((4, 2)))
    with pytest.raises(UserError, match="NaN"):
        frechet_distance(np.full((4, 2), np.nan), np.zeros((4, 2)))
    with pytest.raises(UserError, match="at least 8"):
        compare_sets(np.ones((3, 32, 32)), np.ones((9, 32, 32)), 0.2)
