"""Atoms drawn as spots."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from micrographia.atoms.draw import draw_positions
from micrographia.errors import UserError
from micrographia.sites import make_sites


@given(st.floats(12, 27), st.floats(12, 20), st.floats(0.8, 2.5))
def test_a_spot_has_its_place_width_and_height(x, y, sigma):
    (drawn,) = draw_positions(make_sites("a", [x], [y], "C"), (33, 40), sigma)
    row, column = np.indices(drawn.shape)
    assert drawn.shape == (33, 40)
    assert drawn.max() <= 1
    assert drawn.max() > np.exp(-0.25 / sigma**2) - 1e-6  # the nearest pixel is at most half a diagonal away
    assert np.average(column, weights=drawn) == pytest.approx(x, abs=0.02)
    assert np.average(row, weights=drawn) == pytest.approx(y, abs=0.02)
    assert drawn.sum() == pytest.approx(2 * np.pi * sigma**2, rel=0.02)


def test_kinds_have_maps_of_their_own_and_overlaps_stay_below_one():
    sites = make_sites("a", [10, 12, 20], [10, 10, 10], ["C", "C", "Si"])
    carbon, silicon = draw_positions(sites, (24, 32), 2.0)
    assert carbon.max() == pytest.approx(1)
    assert carbon[10, 20] < 0.01 < silicon[10, 20]


def test_spots_at_the_edge_are_cut_and_others_left_out():
    sites = make_sites("a", [0, 50], [0, 5], "C")
    (drawn,) = draw_positions(sites, (16, 16), 1.5)
    assert drawn[0, 0] == pytest.approx(1)
    assert drawn[:, 10:].max() < 1e-3
    with pytest.raises(UserError, match="sigma_px"):
        draw_positions(sites, (16, 16), 0.0)
