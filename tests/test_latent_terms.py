"""Physics terms and known values: what is known beyond the patches changes what is learnt, as it should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from micrographia.errors import UserError
from micrographia.latent import presets
from micrographia.latent.blocks import Capacity, Classes, Continuous, Discrete, Rotation, Values, gather
from micrographia.latent.ensemble import Ensemble
from micrographia.latent.manifold import draw_manifold
from micrographia.latent.model import LatentNetwork, VaeConfig
from micrographia.latent.terms import follows, symmetric
from micrographia.latent.vae import VAE
from micrographia.simulate.shapes import cards, motifs

QUICK = VaeConfig(epochs=2, batch=20, hidden=16, detail=4)


def square_lattice(n, noise, seed=0):
    """Atoms at the corners and the centre of a square, drawn noisy at random angles."""
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[:14, :14] - 6.5) / 7
    images = np.zeros((n, 14, 14))
    for i, angle in enumerate(rng.uniform(-np.pi, np.pi, n)):
        for place in [0, *(0.55 * np.exp(1j * (angle + np.pi / 2 * np.arange(4))))]:
            images[i] += np.exp(-((x - np.real(place)) ** 2 + (y - np.imag(place)) ** 2) / (2 * 0.14**2))
    return images + noise * rng.standard_normal(images.shape)


def template(model):
    upright = model.inverse_transform(np.zeros((1, len(model.get_feature_names_out()))))[0]
    y, x = np.mgrid[:14, :14] - 6.5
    return np.where(x**2 + y**2 < 40, upright - upright.mean(), 0)


def test_a_known_symmetry_of_the_lattice_is_obeyed(tmp_path):
    images = square_lattice(120, noise=1.0)
    config = VaeConfig(epochs=10, batch=30, hidden=32, detail=5)
    asymmetry = {}
    for terms in ((), (symmetric(4, weight=3.0),)):
        model = VAE([Rotation(), Continuous(1)], config, terms=terms).fit(images)
        picture = template(model)
        asymmetry[len(terms)] = np.var(picture - np.rot90(picture)) / np.var(picture)
    assert asymmetry[1] < 0.1 * asymmetry[0]
    assert model.history_["term1"].iloc[-1] < model.history_["term1"].max()
    model.save(tmp_path / "m.safetensors")  # a saved model needs no terms
    again = VAE.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(again.transform(images[:9]), model.transform(images[:9]))
    assert again.terms == ()


def test_a_latent_follows_the_dose():
    truth = motifs(200, size_px=12, rotation_deg=0, noise=0.1, seed=5)
    dose = np.exp(3 * truth.content[:, 0])  # one factor grows with dose, the other does not
    config = VaeConfig(epochs=12, batch=20, hidden=32, detail=4)
    for sign in (1, -1):  # left alone, which latent it is and which way it points is chance
        model = VAE([Continuous(2)], config, terms=[follows(sign * dose, latent=1)]).fit(truth.images)
        assert sign * spearmanr(model.transform(truth.images)[:, 1], dose).statistic > 0.85


def test_terms_see_which_patches_a_batch_holds():
    images, seen = motifs(40, size_px=12).images, []

    def watch(sample):
        seen.extend(sample.index.tolist())
        assert sample.upright.shape == sample.drawn.shape == (20, 1, 12, 12)
        assert sample.pose.angle.shape == (20,)
        return sample.code.square().sum(1)

    presets.rvae(config=QUICK).set_params(terms=[watch]).fit(images)
    assert sorted(seen) == sorted(2 * list(range(40)))


def test_terms_that_cannot_be_are_refused():
    for wrong in (
        lambda: symmetric(1),
        lambda: symmetric(4, 0),
        lambda: follows([1, 1]),
        lambda: follows([1, np.nan]),
    ):
        with pytest.raises(UserError):
            wrong()
    images = motifs(40, size_px=12).images
    with pytest.raises(UserError, match="more patches"):
        VAE([Continuous(1)], QUICK, terms=[follows([1, 2, 3])]).fit(images)
    with pytest.raises(UserError, match="no latent 3; the code has 1"):
        VAE([Continuous(1)], QUICK, terms=[follows(np.arange(40), latent=3)]).fit(images)


def test_a_folder_is_not_resumed_with_other_terms(tmp_path):
    images, dose = motifs(40, size_px=12).images, np.arange(40.0)
    for terms in ([], [follows(dose)], [follows(dose, weight=3.0)], [follows(dose[::-1])], [symmetric(4)]):
        if terms:
            with pytest.raises(UserError, match="other settings"):
                VAE([Continuous(1)], QUICK, terms=terms).fit(images, folder=tmp_path)
        else:
            VAE([Continuous(1)], QUICK, terms=terms).fit(images, folder=tmp_path)


def test_few_known_values_teach_to_predict_the_others(tmp_path):
    truth = motifs(400, size_px=12, rotation_deg=60, noise=0.05, seed=4)
    thickness = 50 + 20 * truth.content[:, 0]
    known = np.where(np.arange(400) % 10 == 0, thickness, np.nan)
    config = VaeConfig(epochs=25, batch=40, hidden=64, detail=6)
    model = presets.regression_rvae(n=1, range_deg=60, prior_px=0.5, config=config).fit(truth.images, known)
    unknown = np.isnan(known)
    found = model.predict(truth.images)
    residual = np.var(found - thickness, where=unknown) / np.var(thickness, where=unknown)
    assert residual < 0.2
    names = list(model.get_feature_names_out())
    assert names == ["angle_deg", "shift_x_px", "shift_y_px", "z1", "value1"]
    codes = model.transform(truth.images)
    np.testing.assert_array_equal(codes[:, -1], found)
    low, high = codes[:1].copy(), codes[:1].copy()
    low[0, -1], high[0, -1] = 50, 70  # the neighbour whose brightness it is
    assert model.inverse_transform(high).max() - model.inverse_transform(low).max() > 0.1
    drawn = draw_manifold(model, 3, codes, axes=("z1", "value1"))
    assert 45 < drawn.values[..., 0].min() < 60 < drawn.values[..., 0].max() < 75  # thickness, as it was told
    assert draw_manifold(model, 3, codes, axes=("value1", "z1")).images.max() < 1.5
    assert np.ptp(draw_manifold(model, 3, axes=("value1", "z1")).values[..., 1]) > 10
    model.save(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(VAE.load(tmp_path / "m.safetensors").predict(truth.images), found)


def test_the_members_of_an_ensemble_average_their_values():
    images = motifs(40, size_px=12).images
    ensemble = Ensemble(presets.regression_rvae(n=1, config=QUICK), 2).fit(images, np.arange(40.0))
    expected = np.mean([member.predict(images) for member in ensemble.members_], axis=0)
    np.testing.assert_allclose(ensemble.predict(images), expected)


def test_a_batch_smaller_than_the_number_of_classes():
    config = VaeConfig(epochs=1, hidden=8, batch=3)
    VAE([Discrete(4), Continuous(1, capacity=Capacity())], config).fit(motifs(12, size_px=12).images)


def test_values_go_with_classes_to_be_found_and_several_at_once():
    images = motifs(40, size_px=12).images
    y = np.stack([np.arange(40.0), np.where(np.arange(40) % 2, np.nan, np.arange(40.0) ** 2)], axis=1)
    model = VAE([Discrete(2), Values(2)], QUICK).fit(images, y)
    assert model.predict(images).shape == (40, 2)
    assert model.predict_proba(images).shape == (40, 2)
    assert model.inverse_transform(model.transform(images)).shape == images.shape


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "needs y"),
        (np.full(40, np.nan), "Fewer than two"),
        (np.where(np.arange(40) == 3, 1.0, np.nan), "Fewer than two"),
        (np.where(np.arange(40) == 3, np.inf, 1.0), "finite"),
        (np.zeros((40, 2)), "Values"),
        (["a"] * 40, "numbers"),
    ],
)
def test_values_that_cannot_be_learnt_are_explained(y, message):
    with pytest.raises(UserError, match=message):
        presets.regression_rvae(config=QUICK).fit(motifs(40, size_px=12).images, y)


def test_impossible_values_are_refused():
    for wrong in (lambda: Values(0), lambda: Values(1, weight=0), lambda: gather([Values(), Classes(2)])):
        with pytest.raises(UserError):
            wrong()


@pytest.mark.parametrize("loss", ["gaussian", "bernoulli", "poisson"])
def test_sums_of_misfits_are_the_misfits_summed(loss):
    torch.manual_seed(0)
    network = LatentNetwork(gather([Rotation(), Discrete(3)]), (2, 12, 10), VaeConfig(loss=loss))
    network.variance.fill_(0.3)
    target, weight = torch.rand(6, 2, 12, 10), torch.rand(12, 10)
    for drawn in (torch.randn(6, 3, 2, 12, 10), torch.randn(1, 3, 2, 12, 10)):
        one_by_one = (network.misfit(drawn, target[:, None]) * weight).sum((2, 3, 4))
        torch.testing.assert_close(network.misfits(drawn, target, weight), one_by_one)


@pytest.mark.parametrize("size", [(14, 14), (13, 11), (25, 24)])
@pytest.mark.parametrize("pool", [1, 2])
def test_a_posed_drawing_without_a_turn_is_the_upright_one(size, pool):
    from micrographia.latent.networks import FourierDecoder
    from micrographia.latent.pose import Pose

    torch.manual_seed(0)
    decoder = FourierDecoder((2, *size), 3, 16, 1.6, 4)
    code = 10 * torch.randn(4, 3)
    still = Pose(torch.zeros(4), torch.zeros(4, 2), torch.zeros(4))
    torch.testing.assert_close(decoder(code, still, pool), decoder(code, None, pool), rtol=1e-3, atol=1e-4)


def test_patches_of_several_channels_keep_their_pose_and_class():
    truth = cards(300, size_px=16, rotation_deg=60, seed=6)
    two = np.stack([truth.images, 3 - truth.images**2], axis=1)
    two += 0.1 * np.random.default_rng(0).standard_normal(two.shape)
    config = VaeConfig(epochs=15, batch=30, hidden=48, detail=5)
    model = presets.joint_rvae(4, n=1, range_deg=60, prior_px=0.3, config=config).fit(two)
    found = model.predict(two)
    assert sum(np.bincount(truth.kind[found == c], minlength=4).max() for c in range(4)) / 300 >= 0.9
    assert model.reconstruct(two).shape == two.shape
    assert np.var(model.reconstruct(two) - two) < 0.5 * np.var(two - two.mean((0, 2, 3), keepdims=True))
