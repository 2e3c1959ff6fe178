import sys

import numpy as np
import pytest
from ase import Atoms

from micrographia.errors import UserError
from micrographia.simulate.crystals import build_crystal
from micrographia.simulate.defects import DefectSpec, introduce_defects
from micrographia.simulate.imaging import atom_weights, simulate_image
from micrographia.simulate.multislice import (
    ColumnWeights,
    _polar_aberrations,
    apply_column_weights,
    column_kinds,
    column_weights,
    multislice_adf,
)
from micrographia.simulate.probe import Optics, probe_intensity

WEIGHTS = ColumnWeights({"W": 1.2, "Se2": 1.1}, 0.9, 0.99, 300, 150)


def _with_vacancies():
    atoms = build_crystal("WSe2", (30.0, 30.0))
    rng = np.random.default_rng(0)
    return introduce_defects(atoms, [DefectSpec("vacancy-1Se", 0.1), DefectSpec("vacancy-2Se", 0.1)], rng)[0]


def test_columns_are_named_by_what_they_hold():
    atoms = _with_vacancies()
    kinds = np.array(column_kinds(atoms))
    assert set(kinds) == {"W", "Se2", "Se"}
    assert (atoms.numbers[kinds == "W"] == 74).all()
    for kind, atoms_per_column in (("W", 1), ("Se2", 2), ("Se", 1)):
        _, held = np.unique(atoms.arrays["column"][kinds == kind], return_counts=True)
        assert (held == atoms_per_column).all()
    assert column_kinds(Atoms("He")) == [""]


def test_factors_scale_the_image_and_unknown_kinds_stay():
    atoms = _with_vacancies()
    before, kinds = atom_weights(atoms, Optics()), np.array(column_kinds(atoms))
    weighted = apply_column_weights(atoms, WEIGHTS)
    ratio = atom_weights(weighted, Optics()) / before
    assert ratio[kinds == "W"] == pytest.approx(1.2)
    assert ratio[kinds == "Se2"] == pytest.approx(1.1)
    assert ratio[kinds == "Se"] == pytest.approx(1.0)
    assert "occupancy" not in atoms.arrays  # the original is left alone
    twice = apply_column_weights(weighted, WEIGHTS)
    assert atom_weights(twice, Optics())[kinds == "W"] == pytest.approx(1.44 * before[kinds == "W"])
    same = ColumnWeights(dict.fromkeys(("W", "Se2", "Se"), 1.3), 0, 0, 0, 0)
    plain, _ = simulate_image(atoms, Optics(), (64, 64), 0.4)
    brighter, _ = simulate_image(apply_column_weights(atoms, same), Optics(), (64, 64), 0.4)
    np.testing.assert_allclose(brighter, 1.3 * plain, rtol=1e-4, atol=1e-6)


def test_without_abtem_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "abtem", None)
    with pytest.raises(UserError, match=r"pip install micrographia\[abtem\]"):
        column_weights("WSe2", Optics())


def test_bad_input_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "abtem", sys)  # is checked before multislice starts
    with pytest.raises(UserError, match="too small"):
        column_weights(build_crystal("WSe2", (8.0, 30.0)), Optics())
    with pytest.raises(UserError, match="form no columns"):
        column_weights(Atoms("Re", positions=[(10, 10, 0)], cell=[20, 20, 5]), Optics())
    with pytest.raises(UserError, match="at least 20 probes"):
        column_weights("WSe2", Optics(), n_probes=3)


def test_probe_is_that_of_abtem_with_every_aberration():
    abtem = pytest.importorskip("abtem", reason="needs abTEM: pip install micrographia[abtem]")
    aberrations = {
        "C30": 3e3, "C12a": 10, "C12b": 15, "C21a": 200, "C21b": -350, "C23a": 330, "C23b": 250,
        "C34a": 3e4, "C32b": 1e4, "C50": 1e6,
    }  # fmt: skip
    optics = Optics(source_size_A=0, defocus_A=20, aberrations=aberrations)
    probe = abtem.Probe(
        energy=80e3,
        semiangle_cutoff=optics.convergence_mrad,
        soft=False,
        aberrations=_polar_aberrations(optics),
        extent=25.6,
        gpts=256,
    )
    waves = probe.build(scan=(12.8, 12.8)).compute(progress_bar=False)
    theirs = np.abs(np.squeeze(waves.array)).T ** 2
    theirs = theirs / theirs.sum() / 0.01
    ours = probe_intensity(optics, (256, 256), 0.1).numpy()
    assert np.abs(theirs - ours).max() <= 1e-4 * ours.max()


def test_one_atom_scatters_as_much_in_multislice():
    """A single atom is where both models must agree: Molière's amplitude is multislice of one thin atom."""
    pytest.importorskip("abtem", reason="needs abTEM: pip install micrographia[abtem]")
    atom = Atoms("W", positions=[(6.0, 6.0, 0.0)], cell=[12.0, 12.0, 1.0])
    optics = Optics(source_size_A=0)
    signal = multislice_adf(atom, optics, np.array([[6.0, 6.0], [6.8, 6.0]]), thermal_rms_A=0.0)
    image = simulate_image(atom, optics, (60, 60), 0.2)[0].numpy()
    # A finite atom under a sharp probe: the incoherent model is exact only where the probe is flat.
    assert signal[0] == pytest.approx(image[30, 30], rel=0.2)
    assert signal[1] < 0.3 * signal[0]


@pytest.mark.slow
def test_incoherent_images_agree_with_multislice_on_held_out_probes():
    pytest.importorskip("abtem", reason="needs abTEM: pip install micrographia[abtem]")
    weights = column_weights("WSe2", Optics(), n_probes=200, n_held_out=100, configurations=8)
    assert weights.correlation_after >= 0.985
    assert weights.correlation_after >= weights.correlation_before - 1e-3
    assert set(weights.factors) == {"W", "Se2", "Se"}
    assert all(0.7 < f < 1.5 for f in weights.factors.values())
