"""Ensembles: members speak one language before they are averaged, and their spread means something."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import roc_auc_score

from micrographia.errors import UserError
from micrographia.latent import presets
from micrographia.latent.ensemble import (
    Alignment,
    Ensemble,
    _align,
    _differences,
    _table,
    uncertainty_by_classes,
)
from micrographia.latent.model import VaeConfig
from micrographia.simulate.shapes import cards, motifs

QUICK = VaeConfig(epochs=2, batch=20, hidden=16, detail=4)


def matched(found, truth, k=4):
    counts = np.zeros((k, k))
    np.add.at(counts, (found, truth), 1)
    return linear_sum_assignment(-counts)[1][found]


@pytest.fixture(scope="module")
def suits():
    truth = cards(300, size_px=20, rotation_deg=30, shear=0.1, noise=0.5, seed=1)
    config = VaeConfig(epochs=20, batch=30, hidden=48, detail=6)
    model = presets.joint_rvae(4, n=1, range_deg=30, prior_px=0.3, config=config, seed=3)
    return truth, Ensemble(model, members=2).fit(truth.images)


def test_classes_of_members_are_matched_and_uncertain_patches_are_the_wrong_ones(suits):
    truth, ensemble = suits
    p = ensemble._probabilities(truth.images, None)
    assert (p[0].argmax(1) == p[1].argmax(1)).mean() > 0.8
    np.testing.assert_allclose(ensemble.predict_proba(truth.images), p.mean(axis=0), rtol=1e-6)
    wrong = matched(ensemble.predict(truth.images), truth.kind) != truth.kind
    assert 0 < wrong.mean() < 0.2
    spread = ensemble.uncertainty(truth.images)
    assert roc_auc_score(wrong, spread["entropy"]) >= 0.8
    assert (spread["mutual_information"] <= spread["entropy"] + 1e-9).all()


def test_an_ensemble_speaks_like_a_model(suits, tmp_path):
    truth, ensemble = suits
    some = truth.images[:20]
    names = list(ensemble.get_feature_names_out())
    codes = ensemble.transform(some)
    assert codes.shape == (20, len(names))
    assert np.abs(codes[:, 0]).max() <= 180
    assert ensemble.inverse_transform(codes).shape == some.shape
    assert np.mean((ensemble.reconstruct(some) - some) ** 2) < np.var(some)
    ensemble.save(tmp_path / "e.safetensors")
    again = Ensemble.load(tmp_path / "e.safetensors")
    np.testing.assert_array_equal(again.transform(some), codes)
    np.testing.assert_array_equal(again.uncertainty(some), ensemble.uncertainty(some))
    assert again.get_params()["members"] == 2


def test_a_member_that_differs_by_names_only_does_not_differ(suits):
    """Turn, shift, mirror and rename a table of latents in known ways: the alignment finds them."""
    truth, _ = suits
    member = presets.rvae(n=2, range_deg=30, config=QUICK).fit(truth.images)
    table = _table(member, truth.images, None)
    rng = np.random.default_rng(0)
    table[["z1", "z2"]] = rng.normal(size=(300, 2))
    table["shift_x_px"], table["shift_y_px"] = rng.normal(size=(2, 300))
    table["angle_deg"] = rng.uniform(-180, 180, 300)
    table[["class0", "class1"]] = np.eye(2)[rng.integers(2, size=300)]
    other = table.copy()
    other[["class0", "class1"]] = table[["class1", "class0"]]
    half = 180.0 * rng.integers(2, size=300) * (table["class0"] == 1)  # one class has a two-fold axis
    other["angle_deg"] = (table["angle_deg"] + 25 + half + 180) % 360 - 180
    own = (0.3 - 0.2j) * np.exp(-1j * np.deg2rad(table["angle_deg"].to_numpy()))
    other["shift_x_px"] += own.real
    other["shift_y_px"] += own.imag
    turn = np.array([[0.6, 0.8], [0.8, -0.6]])
    other[["z1", "z2"]] = table[["z1", "z2"]].to_numpy() @ turn
    found = _align(other, table, free=True)
    assert found.order == [1, 0]
    assert found.fold == [2, 1]
    kind = table[["class0", "class1"]].to_numpy().argmax(axis=1)
    rest = _differences(other, table, found, kind)
    np.testing.assert_allclose(rest.drop(columns=["class0", "class1"]), 0, atol=1e-6)


def test_patches_unlike_the_training_are_uncertain(tmp_path):
    truth = motifs(200, size_px=12, seed=2)
    config = VaeConfig(epochs=15, batch=20, hidden=32, detail=4)
    ensemble = Ensemble(presets.rvae(config=config), members=2)
    ensemble.fit(truth.images, folder=tmp_path)
    strange = np.random.default_rng(0).uniform(0, 1, (40, 12, 12))
    usual, odd = (ensemble.uncertainty(x)["reconstruction"].mean() for x in (truth.images, strange))
    assert odd > 1.5 * usual
    times = [p.stat().st_mtime_ns for p in sorted(tmp_path.rglob("last.safetensors"))]
    again = Ensemble(presets.rvae(config=config), members=2).fit(truth.images, folder=tmp_path)
    np.testing.assert_array_equal(again.transform(truth.images[:9]), ensemble.transform(truth.images[:9]))
    assert len(times) == 2
    assert times == [p.stat().st_mtime_ns for p in sorted(tmp_path.rglob("last.safetensors"))]


def test_conditions_and_channels_pass_through():
    one = motifs(40, size_px=12).images
    images = np.stack([one, 1 - one], axis=1)
    time = np.linspace(0, 1, 40)
    ensemble = Ensemble(presets.conditional_rvae(1, config=QUICK), 2).fit(images, condition=time)
    assert ensemble.uncertainty(images, time).shape[0] == 40
    assert ensemble.reconstruct(images, time).shape == images.shape


def test_the_curve_against_the_number_of_classes(tmp_path):
    images = cards(60, size_px=12, rotation_deg=20).images
    curve = uncertainty_by_classes(presets.joint_rvae(config=QUICK), images, (2, 3), 2, tmp_path)
    assert curve["classes"].tolist() == [2, 3]
    assert (curve["agreement"].between(0.3, 1)).all()
    assert (curve["mutual_information"] <= curve["entropy"] + 1e-9).all()
    with pytest.raises(UserError, match="Discrete"):
        uncertainty_by_classes(presets.rvae(config=QUICK), images, (2,))


def test_mistakes_are_explained():
    with pytest.raises(UserError, match="at least 2"):
        Ensemble(presets.rvae(config=QUICK), 1).fit(motifs(40, size_px=12).images)
    with pytest.raises(UserError, match="not trained"):
        Ensemble(presets.rvae(config=QUICK)).predict(motifs(4, size_px=12).images)


def test_too_few_patches_in_common_leave_the_latents_as_they_are():
    member = presets.joint_rvae(2, config=QUICK).fit(motifs(40, size_px=12).images)
    table = _table(member, motifs(4, size_px=12).images, None)
    found = _align(table, table, free=True)
    assert isinstance(found, Alignment)
    assert found.turn_deg == [0.0, 0.0]
