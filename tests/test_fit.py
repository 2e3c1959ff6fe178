import json
from dataclasses import replace

import numpy as np
import pytest

from micrographia.errors import UserError
from micrographia.micrograph import Micrograph
from micrographia.simulate.degrade import NAMES, Conditions, draw_conditions, from_unit, narrowed
from micrographia.simulate.fit import FitConfig, FittedConditions, cut_patches, fit_conditions, usable_patch
from micrographia.simulate.probe import Optics
from micrographia.simulate.scenes import Specimen, simulate_series

PIXEL_A = 0.2
TRUTH = {
    "counts_per_A2": 150.0, "source_size_A": 0.9, "background": 0.3, "readout": 0.1, "contamination": 0.2,
    "line_jitter_A": 0.08, "slow_jitter_A": 0.2, "blur_px": 0.3, "afterglow_px": 0.5, "defocus_A": 0.0,
    "coma_A": 100.0, "threefold_A": 100.0, "astigmatism_A": 5.0, "line_gain": 0.02, "speckle": 0.1,
}  # fmt: skip


SOUGHT = ("counts_per_A2", "source_size_A", "readout", "background", "blur_px", "afterglow_px")


@pytest.fixture(scope="module")
def fitted():
    """Conditions sought in the full prior; those that a few simulations cannot settle are given."""
    drawn = draw_conditions(narrowed(Conditions(), **TRUTH), 16, np.random.default_rng(3))
    images, _, _ = simulate_series(Specimen(), Optics(), 16, (64, 64), PIXEL_A, 5, drawn)
    micrographs = [Micrograph(image, PIXEL_A, f"{i}.tif") for i, image in enumerate(images)]
    told: list[str] = []
    prior = narrowed(Conditions(), **{k: v for k, v in TRUTH.items() if k not in SOUGHT})
    config = FitConfig(prior, simulations=150, rounds=4, patch_px=64)
    return fit_conditions(micrographs, Specimen(), Optics(), config, seed=1, progress=told.append), told


def test_known_conditions_are_recovered(fitted):
    median = fitted[0].table().set_index("condition")["median"]
    assert 1 / 1.6 < median["counts_per_A2"] / TRUTH["counts_per_A2"] < 1.6
    for name, tolerance in (("source_size_A", 0.15), ("blur_px", 0.15), ("afterglow_px", 0.25)):
        assert median[name] == pytest.approx(TRUTH[name], abs=tolerance), name


def test_the_noise_of_a_pixel_is_recovered_although_its_sources_trade_places(fitted):
    def variance(c):
        counts = c["counts_per_A2"] * PIXEL_A**2
        return (1 + c["background"]) / counts + c["readout"] ** 2

    drawn = from_unit(fitted[0].unit, fitted[0].prior)
    assert np.median(variance(drawn)) == pytest.approx(variance(TRUTH), rel=0.25)


def test_the_fitted_images_are_nearer_to_the_experiment_than_the_prior(fitted):
    result, told = fitted
    assert result.distance_after < 0.1 * result.distance_before
    assert result.noise_floor > 0
    assert len(told) == 3
    assert told[-1].startswith("fit round 4 of 4")


def test_what_cannot_be_told_from_an_image_is_said_to_be_so(fitted):
    r2 = fitted[0].identifiability
    assert all(0 <= r2[name] <= 1 for name in NAMES)
    assert r2["counts_per_A2"] > 0.4
    assert r2["threefold_A"] < 0.2


def test_the_fit_survives_json(fitted):
    result, _ = fitted
    again = FittedConditions.from_dict(json.loads(json.dumps(result.to_dict())))
    assert np.array_equal(again.unit, result.unit)
    assert again.prior == result.prior
    one, two = (f.draw(5, np.random.default_rng(0)) for f in (result, again))
    assert all(np.array_equal(one[name], two[name]) for name in NAMES)


def test_draws_stay_in_the_prior_and_vary_more_with_a_wider_kernel(fitted):
    result, _ = fitted
    drawn = result.draw(400, np.random.default_rng(0))
    for name in NAMES:
        low, high = getattr(result.prior, name)
        assert drawn[name].min() >= low - 1e-9
        assert drawn[name].max() <= high + 1e-9
    wide = replace(result, widen=0.3).draw(400, np.random.default_rng(0))
    assert wide["blur_px"].std() > drawn["blur_px"].std()


def test_the_same_seed_fits_the_same():
    images = [Micrograph(np.random.default_rng(i).random((48, 48)), PIXEL_A) for i in range(2)]
    config = FitConfig(simulations=100, rounds=1, patch_px=48)
    one, two = (fit_conditions(images, Specimen(), Optics(), config, seed=3) for _ in range(2))
    assert np.array_equal(one.unit, two.unit)
    assert one.distance_after == two.distance_after
    assert np.isnan(one.noise_floor)  # two patches have no halves to speak of


def test_patches_are_spread_over_images_and_come_from_them():
    images = [Micrograph(np.arange(100 * 130).reshape(100, 130) + 1e5 * k, 0.2) for k in range(4)]
    patches = cut_patches(images, 32, 12)
    assert patches.shape == (12, 32, 32)
    assert sorted((patches[:, 0, 0] // 1e5).astype(int)) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert np.all(patches[:, 0, 1] - patches[:, 0, 0] == 1)
    assert len({float(p[0, 0]) for p in patches}) == 12


def test_of_more_images_than_patches_not_only_the_first_count():
    images = [Micrograph(np.eye(40) + k, 0.2) for k in range(30)]
    assert [round(float(p.min())) for p in cut_patches(images, 32, 4)] == [0, 9, 19, 29]


def test_an_image_smaller_than_a_patch_is_passed_over():
    small, large = Micrograph(np.eye(20), 0.2), Micrograph(np.eye(64), 0.2)
    assert len(cut_patches([small, large], 32, 100)) == 4


@pytest.mark.parametrize(
    ("edges", "patch"), [([200] * 5, 96), ([90] * 5, 88), ([50] + [200] * 9, 96), ([64, 70, 80], 64)]
)
def test_the_patch_is_as_wanted_or_what_most_images_hold(edges, patch):
    assert usable_patch([Micrograph(np.eye(edge), 0.2) for edge in edges], 96) == patch


def test_images_smaller_than_a_patch_are_refused_with_their_names():
    small = [Micrograph(np.eye(40), 0.2, "tiny.tif")]
    with pytest.raises(UserError, match=r"tiny\.tif 40 x 40"):
        cut_patches(small, 64, 10)
    with pytest.raises(UserError, match=r"smaller than 48 px.*40 px"):
        fit_conditions(small, Specimen(), Optics(), FitConfig(), 0)


def test_a_single_patch_is_no_distribution():
    with pytest.raises(UserError, match="single patch"):
        fit_conditions([Micrograph(np.eye(64), 0.2)], Specimen(), Optics(), FitConfig(patch_px=64), 0)


@pytest.mark.parametrize("sizes", [(0.2, 0.3), (0.2, None), (None,), ()])
def test_images_without_one_common_pixel_size_are_refused(sizes):
    images = [Micrograph(np.eye(64), size) for size in sizes]
    with pytest.raises(UserError, match="pixel size"):
        fit_conditions(images, Specimen(), Optics(), FitConfig(), 0)


@pytest.mark.parametrize(
    "change",
    [
        {"simulations": 10},
        {"rounds": 0},
        {"neighbours": 0},
        {"patch_px": 0},
        {"max_patches": 0},
        {"max_patches": 1},
        {"widen": -1.0},
        {"widen": float("nan")},
    ],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(UserError, match=f"fit.{next(iter(change))}"):
        FitConfig(**change)
