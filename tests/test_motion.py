"""Single atoms that move during the scan, and the labels that stay true."""

import numpy as np
import pytest
import torch

from micrographia.errors import UserError
from micrographia.simulate.degrade import sample_displaced
from micrographia.simulate.motion import atom_tracks, motion_field
from micrographia.simulate.probe import Optics
from micrographia.simulate.scenes import Specimen, simulate_series
from micrographia.workflows.recipe import built_in


def test_atoms_stand_still_without_hops_and_are_at_home_on_their_own_line():
    own = np.array([3.0, 20.4, 39.0])
    rest = atom_tracks(own, 40, 0.0, 5.0, 0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(rest, 0)
    hopping = atom_tracks(own, 40, 0.5, 5.0, 0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(hopping[[0, 1, 2], [3, 20, 39]], 0)


def test_hops_come_as_often_and_reach_as_far_as_asked():
    tracks = atom_tracks(np.full(400, 50.0), 100, 0.1, 4.0, 0.0, np.random.default_rng(1))
    steps = np.diff(tracks, axis=1).reshape(-1, 2)
    moved = steps.any(axis=1)
    assert moved.mean() == pytest.approx(0.1, abs=0.01)
    np.testing.assert_allclose(steps[moved].std(axis=0), 4.0, rtol=0.05)


def test_trembling_is_along_the_lines_only():
    tracks = atom_tracks(np.full(50, 10.0), 40, 0.0, 4.0, 0.7, np.random.default_rng(2))
    assert tracks[..., 0].std() == pytest.approx(0.7, rel=0.05)
    np.testing.assert_array_equal(tracks[..., 1], 0)


def test_each_atom_moves_its_own_surroundings():
    x, y = np.array([10.0, 50.0]), np.array([20.0, 20.0])
    field = motion_field(x, y, (40, 60), 0.3, 3.0, 0.0, np.random.default_rng(3))
    assert field.shape == (40, 60, 2)
    assert (field[:, :30] == field[:, :1]).all()
    assert (field[:, 31:] == field[:, 31:32]).all()
    assert not np.array_equal(field[:, 0], field[:, 59])
    np.testing.assert_array_equal(field[20], 0)
    assert not motion_field(x[:0], y[:0], (8, 8), 0.3, 3.0, 0.1, np.random.default_rng(0)).any()


def test_an_atom_that_hops_is_cut_off_and_seen_where_it_went():
    image = torch.zeros(1, 40, 40)
    image[0, 18:23, 18:23] = 1.0
    field = torch.zeros(1, 40, 40, 2)
    field[0, 21:, :, 0] = -6.0  # from line 21 on it is 6 px further right
    seen = sample_displaced(image, field)[0]
    np.testing.assert_allclose(seen[18:21, 18:23], 1.0, atol=1e-4)
    np.testing.assert_allclose(seen[21:23, 24:29], 1.0, atol=1e-4)
    assert seen[21:23, 18:23].abs().max() < 1e-4
    lines = torch.rand(1, 40, 2)
    same = sample_displaced(image, lines[:, :, None].expand(-1, -1, 40, -1))
    torch.testing.assert_close(same, sample_displaced(image, lines))


def test_moving_atoms_keep_their_labels_and_only_they_change():
    recipe = built_in("single-atoms")
    still = Specimen(material="single-atoms", atoms_per_nm2=(0.3, 0.3), clustering=(0.0, 0.0))
    moving = Specimen(
        material="single-atoms", atoms_per_nm2=(0.3, 0.3), clustering=(0.0, 0.0), hops_per_A=(0.3, 0.3)
    )
    none = {name: np.zeros(2) for name in vars(recipe.fit.prior)}
    none |= {
        k: np.full(2, v) for k, v in (("counts_per_A2", 1e6), ("source_size_A", 0.8), ("readout", 1e-3),
        ("contamination_length_A", 20.0), ("speckle_length_A", 1.0))
    }  # fmt: skip
    one, _, sites = simulate_series(still, Optics(), 2, (96, 96), 0.3, 4, none)
    two, clean, same = simulate_series(moving, Optics(), 2, (96, 96), 0.3, 4, none)
    assert sites.equals(same)
    assert np.abs(one - two).max() > 0.2 * np.ptp(one)
    assert np.corrcoef(two.ravel(), clean.ravel())[0, 1] > 0.98  # the noise-free images move alike
    x, y = (sites[c].round().astype(int).clip(1, 94) for c in ("x_px", "y_px"))
    assert (two[sites["index"], y, x] > np.median(two)).mean() > 0.95


def test_impossible_motion_is_refused():
    with pytest.raises(UserError, match="hops_per_A"):
        Specimen(hops_per_A=(0.5, 0.1))
    with pytest.raises(UserError, match="tremble_A"):
        Specimen(tremble_A=(-0.1, 0.1))
