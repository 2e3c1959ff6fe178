"""Latent models: known angles, shifts and classes come back; resume, files and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from micrographia.errors import UserError
from micrographia.latent import presets
from micrographia.latent.blocks import (
    Capacity,
    Classes,
    Condition,
    Continuous,
    Discrete,
    Rotation,
    Scale,
    Translation,
    gather,
)
from micrographia.latent.ensemble import Ensemble
from micrographia.latent.model import VaeConfig, responsibilities
from micrographia.latent.networks import ConvDecoder, FourierDecoder
from micrographia.latent.pose import Pose, upright
from micrographia.latent.vae import VAE
from micrographia.simulate.shapes import cards, motifs

QUICK = VaeConfig(epochs=2, batch=20, hidden=16, detail=4)


def small(n=40, **ranges):
    return motifs(n, size_px=12, **ranges).images


def circular_error(found_deg, true_deg, symmetry=1):
    """Mean error modulo a common offset and the objects' symmetry."""
    turns = np.exp(1j * np.deg2rad(symmetry * (found_deg - true_deg)))
    return np.rad2deg(np.abs(np.angle(turns / turns.mean()))).mean() / symmetry


@pytest.fixture(scope="module")
def turned():
    truth = motifs(600, size_px=12, shift_px=0.7, seed=3)
    model = presets.rvae(prior_px=1.0, config=VaeConfig(epochs=20, batch=40, hidden=64, detail=6), seed=1)
    return truth, model.fit(truth.images)


def test_angle_and_shift_come_back_over_the_whole_circle(turned):
    truth, model = turned
    codes = model.transform(truth.images)
    assert circular_error(codes[:, 0], truth.angle_deg) < 3
    # A common offset of the shift is a vector of the object's own frame: turn it with the object.
    difference = (codes[:, 1:3] - truth.shift_px) @ [1, 1j] * np.exp(1j * np.deg2rad(truth.angle_deg))
    assert np.abs(difference - difference.mean()).mean() < 0.3


def test_angles_are_counter_clockwise_on_the_screen(turned):
    _, model = turned
    patch = motifs(1, size_px=13, noise=0, rotation_deg=0).images[:, :12, :12]
    quarter = np.rot90(patch, axes=(1, 2)).copy()  # counter-clockwise on the screen
    difference = (model.transform(quarter) - model.transform(patch))[0, 0]
    assert abs((difference - 90 + 180) % 360 - 180) < 5


def test_the_content_follows_the_factors_and_not_the_angle(turned):
    from sklearn.model_selection import cross_val_score
    from sklearn.neighbors import KNeighborsRegressor

    truth, model = turned
    codes = model.transform(truth.images)[:, 3:]
    angle = np.deg2rad(truth.angle_deg)
    regressor = KNeighborsRegressor(15)
    assert cross_val_score(regressor, codes, np.stack([np.cos(angle), np.sin(angle)], 1)).mean() < 0.05
    assert cross_val_score(regressor, codes, truth.content).mean() > 0.6


def test_reconstruction_beats_the_mean_by_far_and_keeps_units(turned):
    truth, model = turned
    images = truth.images * 50 + 1000
    assert model.reconstruct(truth.images).shape == truth.images.shape
    residual = np.var(model.reconstruct(truth.images) - truth.images) / np.var(truth.images)
    assert residual < 0.2
    assert images.min() > 900


def test_save_and_load_give_the_same_codes(turned, tmp_path):
    truth, model = turned
    model.save(tmp_path / "m.safetensors")
    again = VAE.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(again.transform(truth.images[:20]), model.transform(truth.images[:20]))
    assert again.get_params()["seed"] == 1


def test_pandas_output_has_named_columns(turned):
    truth, model = turned
    table = model.set_output(transform="pandas").transform(truth.images[:5])
    model.set_output(transform="default")
    assert list(table.columns) == ["angle_deg", "shift_x_px", "shift_y_px", "z1", "z2"]


def test_unknown_suits_are_told_apart():
    truth = cards(320, size_px=24, rotation_deg=60, seed=2)
    config = VaeConfig(epochs=20, batch=40, hidden=64)
    model = presets.joint_rvae(4, n=1, range_deg=60, prior_px=0.5, config=config, seed=0).fit(truth.images)
    found = model.predict(truth.images)
    purity = sum(np.bincount(truth.kind[found == c], minlength=4).max() for c in range(4)) / len(found)
    assert purity >= 0.95
    np.testing.assert_allclose(model.predict_proba(truth.images[:9]).sum(axis=1), 1, rtol=1e-5)


def test_few_labels_name_the_classes():
    truth = cards(400, size_px=24, rotation_deg=30, seed=4)
    labels = np.where(np.arange(400) % 10 == 0, truth.kind, -1)
    config = VaeConfig(epochs=12, batch=40, hidden=64)
    model = presets.semi_supervised_rvae(4, n=1, range_deg=30, prior_px=0.5, config=config)
    assert (model.fit(truth.images, labels).predict(truth.images) == truth.kind).mean() >= 0.95


def test_labels_of_upright_patches_serve_turned_ones():
    truth = cards(500, size_px=16, rotation_deg=180, shear=0.2, seed=5)
    labelled = (np.abs(truth.angle_deg) < 15) & (np.arange(500) % 2 == 0)
    config = VaeConfig(epochs=10, hidden=64)
    model = presets.semi_supervised_rvae(4, n=1, prior_px=0.5, config=config)
    found = model.fit(truth.images, np.where(labelled, truth.kind, -1)).predict(truth.images)
    assert labelled.sum() < 30
    assert (found == truth.kind)[np.abs(truth.angle_deg) > 60].mean() >= 0.95


def test_magnification_comes_back():
    truth = motifs(400, size_px=24, rotation_deg=30, seed=6)
    log_scale = np.random.default_rng(6).normal(0, 0.15, 400)
    none = torch.zeros(400)
    pose = Pose(none, torch.zeros(400, 2), torch.from_numpy(-log_scale).float())
    larger = upright(torch.from_numpy(truth.images)[:, None], pose)[:, 0].numpy()
    model = presets.rvae(range_deg=30, scale=0.15, config=VaeConfig(epochs=25, batch=40, hidden=64))
    codes = model.fit(larger).transform(larger)
    found = np.log(codes[:, list(model.get_feature_names_out()).index("scale")])
    assert np.corrcoef(found, log_scale)[0, 1] > 0.9


def test_a_refused_fit_leaves_the_model_as_it_was():
    def fail(sample):
        raise RuntimeError("a term that fails")

    images, values = small(), np.linspace(0, 1, 40)
    model = presets.regression_rvae(config=QUICK).fit(images, values)
    before = model.predict(images)
    with pytest.raises(UserError, match="fewer than a batch"):
        model.fit(images[:5, None], values[:5])
    model.terms = (fail,)
    with pytest.raises(RuntimeError, match="a term that fails"):
        model.fit(images, 1000 * values)
    np.testing.assert_array_equal(model.predict(images), before)
    assert model.reconstruct(images).shape == images.shape


@pytest.mark.parametrize(
    "make", [lambda: Continuous(2.5), lambda: Discrete(3.0), lambda: Classes(2.5), lambda: Condition("1")]
)
def test_blocks_count_in_whole_numbers(make):
    with pytest.raises(UserError, match="whole"):
        make()


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (np.where(np.arange(40) == 3, np.nan, 1.0), "1 of the conditions are NaN"),
        (np.array(["low", "high"] * 20), "number classes from 0"),
    ],
)
def test_conditions_that_are_no_numbers_are_explained(condition, message):
    with pytest.raises(UserError, match=message):
        presets.conditional_vae(config=QUICK).fit(small(), condition=condition)


def test_interrupted_training_ends_bit_for_bit_the_same(tmp_path):
    class Stop(Exception):
        pass

    import micrographia.latent.model as module

    images, step = small(), module.LatentTraining.training_step
    blocks = [Rotation(), Translation(), Discrete(2), Continuous(2)]
    whole = VAE(blocks, QUICK).fit(images, folder=tmp_path / "whole").transform(images)

    def stopping(self, batch, number, generator):
        if number == 3:
            raise Stop
        return step(self, batch, number, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.LatentTraining, "training_step", stopping)
        with pytest.raises(Stop):
            VAE(blocks, QUICK).fit(images, folder=tmp_path / "cut")
    resumed = VAE(blocks, QUICK).fit(images, folder=tmp_path / "cut").transform(images)
    np.testing.assert_array_equal(resumed, whole)


@pytest.mark.parametrize("loss", ["gaussian", "bernoulli", "poisson"])
@pytest.mark.parametrize(("encoder", "decoder"), [("mlp", "conv"), ("conv", "fourier")])
def test_every_loss_encoder_and_decoder_learns(loss, encoder, decoder):
    rng = np.random.default_rng(0)
    clean = cards(60, size_px=13, rotation_deg=20).images
    images = rng.poisson(5 * clean) if loss == "poisson" else clean
    config = VaeConfig(loss=loss, encoder=encoder, decoder=decoder, epochs=40, batch=20, hidden=32, detail=4)
    model = presets.rvae(range_deg=20, config=config).fit(images)
    misfit = model.history_["misfit"]
    assert model.reconstruct(images).shape == images.shape
    if loss != "gaussian":  # whose misfit is in units of a noise that it learns
        assert misfit.iloc[-1] < misfit.iloc[0]
    else:
        assert model.history_["variance"].iloc[-1] < 0.8


@pytest.mark.parametrize(
    "model",
    [
        presets.ae(config=QUICK),
        presets.vae(config=QUICK),
        presets.shift_vae(config=QUICK, scale=0.1),
        presets.joint_vae(config=QUICK),
        VAE([Scale(), Rotation(30)], QUICK),
        VAE([Discrete(3), Rotation(30)], QUICK),
    ],
    ids=lambda m: "+".join(type(b).__name__ for b in m.blocks),
)
def test_other_latent_spaces_work_with_channels_and_oblong_patches(model, tmp_path):
    images = np.stack([small(), 2 - small()], axis=1)[:, :, :, 1:-1]
    codes = model.fit(images).transform(images)
    assert codes.shape == (40, len(model.get_feature_names_out()))
    assert np.isfinite(codes).all()
    assert model.inverse_transform(codes).shape == images.shape
    model.save(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(VAE.load(tmp_path / "m.safetensors").transform(images), codes)


@pytest.mark.parametrize("labels", [True, False])
def test_conditions_are_labels_or_values(labels, tmp_path):
    images = small()
    given = np.arange(40) % 3 if labels else np.linspace(60, 300, 40)
    model = presets.conditional_rvae(3 if labels else 1, range_deg=30, config=QUICK)
    codes = model.fit(images, condition=given).transform(images, given)
    assert not np.array_equal(
        model.inverse_transform(codes, given), model.inverse_transform(codes, given[::-1].copy())
    )
    with pytest.raises(UserError, match="condition"):
        model.transform(images)


@pytest.mark.parametrize("decoder", [FourierDecoder, ConvDecoder])
def test_a_decoder_draws_in_a_pose_what_turned_upright_it_draws_without(decoder):
    torch.manual_seed(0)
    network = decoder((1, 32, 24), 3, 32, 1.8, 3)
    network.start_at(torch.tensor([2.0]))
    code = 30 * torch.randn(2, 3)
    pose = Pose(
        torch.tensor([0.7, -2.5]), torch.tensor([[0.1, -0.05], [0.0, 0.1]]), torch.tensor([0.1, -0.1])
    )
    plain, posed = network(code, None), network(code, pose)
    back = upright(posed, pose)[:, :, 10:-10, 8:-8]
    assert (plain - posed).std() > 0.1 * plain.std()
    assert (back - plain[:, :, 10:-10, 8:-8]).std() < 0.05 * plain.std()


def test_responsibilities_carry_no_more_than_their_capacity():
    cost = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * 100
    cost[:10, 4:] = torch.inf
    for nats in (0.0, 0.5, 1.5):
        r = responsibilities(cost, nats)
        possible = torch.isfinite(cost).sum(1)
        carried = (torch.special.xlogy(r, r).sum(1) + possible.log()).mean()
        assert float(carried) == pytest.approx(nats, abs=0.02)
    assert (r[:10, 4:] == 0).all()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([np.zeros((8, 8)), np.zeros((9, 8))], "differ in size"),
        (np.where(np.arange(40)[:, None, None] == 7, np.nan, small()), "patch 7"),
        (np.where(np.arange(40)[:, None, None] == 5, 1.0, small()), "constant"),
        (np.ones((40, 12, 12)), "constant"),
        (small(12), "fewer than a batch"),
        (np.zeros((40, 12)), r"\[N, H, W\]"),
        (np.zeros((0, 12, 12)), "not empty"),
        (small()[:, :4, :4], "at least 6"),
        ([["a", "b"]], "numbers"),
        (np.stack([small(), np.ones((40, 12, 12))], axis=1), "Channel 1"),
    ],
)
def test_patches_that_cannot_be_learnt_from_are_explained(images, message):
    with pytest.raises(UserError, match=message):
        presets.rvae(config=QUICK).fit(images)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "needs labels"),
        (np.full(40, -1), "All labels are missing"),
        (np.arange(40) % 5 - 1, r"\[3\]"),
        (np.arange(40) % 2, "class 2"),
        (np.zeros(39), "40 whole numbers"),
        (np.arange(40) / 2, "whole"),
        (np.array(["a"] * 40), "whole numbers"),
        ([[0], [1, 2]], "whole numbers"),
    ],
)
def test_labels_that_do_not_fit_are_explained(labels, message):
    with pytest.raises(UserError, match=message):
        presets.semi_supervised_rvae(3, config=QUICK).fit(small(), labels)


def test_losses_refuse_intensities_out_of_their_range():
    for loss in ("bernoulli", "poisson"):
        with pytest.raises(UserError, match="Gaussian"):
            presets.vae(config=VaeConfig(loss=loss, batch=20)).fit(small() - 5)


def test_a_model_refuses_other_patches_and_says_what_it_knows():
    model = presets.vae(config=QUICK)
    with pytest.raises(UserError, match="not trained"):
        model.transform(small())
    model.fit(small())
    for other in (small()[:, 1:], np.stack([small()] * 2, axis=1)):
        with pytest.raises(UserError, match="12 x 12 px"):
            model.transform(other)
    with pytest.raises(UserError, match="no classes"):
        model.predict(small())
    with pytest.raises(UserError, match="z1, z2"):
        model.inverse_transform(np.zeros((3, 5)))
    with pytest.raises(UserError, match="no Condition"):
        model.transform(small(), np.zeros(40))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Continuous(0),
        lambda: Continuous(2, beta=-1),
        lambda: Rotation(0),
        lambda: Rotation(200),
        lambda: Translation(0),
        lambda: Scale(2),
        lambda: Discrete(1),
        lambda: Classes(1),
        lambda: Condition(0),
        lambda: Capacity(opens=0.5, full=0.5),
        lambda: VaeConfig(loss="l1"),
        lambda: VaeConfig(epochs=0),
        lambda: VaeConfig(learning_rate=0),
        lambda: gather([]),
        lambda: gather([Condition(1)]),
        lambda: gather([Discrete(2), Classes(2)]),
        lambda: gather(["rotation"]),
    ],
)
def test_impossible_latent_spaces_are_refused_at_once(wrong):
    with pytest.raises(UserError):
        wrong()


def test_a_model_that_was_built_otherwise_is_told_from_a_broken_one(tmp_path):
    from micrographia.nets.weights import load_tree, save_tree

    model = presets.rvae(n=2, config=VaeConfig(epochs=1, hidden=16, batch=10), seed=0)
    model.fit(np.random.default_rng(0).normal(size=(20, 12, 12)).astype(np.float32))
    model.save(tmp_path / "now.safetensors")
    tree = load_tree(tmp_path / "now.safetensors", "vae")
    weights = tree["networks"]["vae"]
    weights.pop(next(iter(weights)))
    save_tree(tmp_path / "then.safetensors", tree, "vae")
    with pytest.raises(UserError, match="another version of micrographia"):
        VAE.load(tmp_path / "then.safetensors")
    Ensemble(model, 2).fit(np.random.default_rng(0).normal(size=(20, 12, 12))).save(
        tmp_path / "two.safetensors"
    )
    tree = load_tree(tmp_path / "two.safetensors", "vae ensemble")
    tree["config"]["members"][0]["config"]["widht"] = 3
    save_tree(tmp_path / "two.safetensors", tree, "vae ensemble")
    with pytest.raises(UserError, match="another version of micrographia"):
        Ensemble.load(tmp_path / "two.safetensors")
