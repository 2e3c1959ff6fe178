"""Two-phase perovskite: distances, phases, strain and angle of the truth, and the single crystal."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

from micrographia.errors import UserError
from micrographia.simulate.degrade import narrowed
from micrographia.simulate.perovskite import CLEAN, LSMO_A, NIO_A, TwoPhaseImages, two_phase
from micrographia.sites import SITE_COLUMNS


@cache
def composite() -> TwoPhaseImages:
    return two_phase(3, seed=4)


def brightness(result: TwoPhaseImages, sites: pd.DataFrame, dx: float = 0, dy: float = 0) -> np.ndarray:
    at = [sites["index"], sites["y_px"] + dy, sites["x_px"] + dx]
    return map_coordinates(result.images, [a.to_numpy(float) for a in at], order=1, mode="nearest")


def test_shapes_columns_and_repeatability():
    result = composite()
    assert result.images.shape == (3, 300, 300)
    assert result.images.dtype == np.float32
    assert set(SITE_COLUMNS) < set(result.sites.columns)
    fewer = two_phase(2, seed=4)
    assert (fewer.images == result.images[:2]).all()


def test_both_phases_have_their_motif_and_their_share():
    sites = composite().sites
    assert set(sites["phase"]) == {"LSMO", "NiO"}
    assert (sites["kind"] == "Ni").eq(sites["phase"] == "NiO").all()
    ni_A2 = (sites["kind"] == "Ni").sum() * (NIO_A / 2) ** 2 / (3 * 60 * 60)
    la_A2 = (sites["kind"] == "La/Sr").sum() * LSMO_A**2 / (3 * 60 * 60)
    # The interfaces take some of the area from both.
    assert la_A2 == pytest.approx(0.65, abs=0.05)
    assert 0.27 < ni_A2 < 0.38
    assert 0.9 < ni_A2 + la_A2 < 1.02


@pytest.mark.parametrize(
    ("nio", "kind", "spacing_A"), [(0.0, "La/Sr", LSMO_A), (0.0, "Mn", LSMO_A), (1.0, "Ni", NIO_A / 2)]
)
def test_the_single_crystal_is_one_phase_on_one_lattice(nio, kind, spacing_A):
    result = two_phase(1, (40.0, 40.0), nio=nio, strain=0.0, seed=1)
    assert result.sites["phase"].nunique() == 1
    assert result.sites["angle_deg"].nunique() == 1
    xy = result.sites.loc[result.sites["kind"] == kind, ["x_px", "y_px"]].to_numpy() * result.pixel_size_A
    pairs = cKDTree(xy).query_pairs(1.25 * spacing_A, output_type="ndarray")
    apart = np.hypot(
        *(xy[pairs[:, 0]] - xy[pairs[:, 1]]).T
    )  # all four neighbours: the nearest would be biased
    assert len(pairs) > 1.6 * len(xy)
    assert np.median(apart) == pytest.approx(spacing_A, abs=0.05)
    assert np.ptp(apart) < 0.9  # scan jitter only


def test_columns_are_where_the_table_says_and_as_bright_as_their_elements():
    result = composite()
    here = brightness(result, result.sites)
    for dx, dy in ((3, 0), (-3, 0), (0, 3), (0, -3)):
        assert brightness(result, result.sites, dx, dy).mean() < 0.6 * here.mean()
    by_kind = pd.Series(here).groupby(result.sites["kind"].to_numpy()).mean()
    assert by_kind["La/Sr"] > 1.5 * by_kind["Mn"]
    assert by_kind["La/Sr"] > 1.5 * by_kind["Ni"]


@given(st.integers(0, 1000), st.floats(-40, 40))
@settings(max_examples=6, deadline=None)
def test_strain_and_angle_are_those_of_the_positions(seed, angle_deg):
    """Fit the lattice around every column: its deformation is the strain, its direction the angle."""
    result = two_phase(
        1,
        (50.0, 50.0),
        0.3,
        nio=0.0,
        angle_deg=(angle_deg, angle_deg),
        strain=0.02,
        conditions=narrowed(CLEAN, line_jitter_A=1e-4, slow_jitter_A=1e-4),
        seed=seed,
    )
    sites = result.sites[result.sites["kind"] == "La/Sr"]
    xy = sites[["x_px", "y_px"]].to_numpy() * result.pixel_size_A
    tree = cKDTree(xy)
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    ideal = LSMO_A * np.array([[c, -s], [s, c], [-c, s], [-s, -c]])  # y points down
    rows = []
    for i in range(len(xy)):
        distance, neighbour = tree.query(xy[i] + ideal)
        if distance.max() < 0.8:
            deformation = np.linalg.lstsq(ideal, xy[neighbour] - xy[i], rcond=None)[0].T
            spin = np.rad2deg((deformation[0, 1] - deformation[1, 0]) / 2)
            rows.append((i, deformation[0, 0] - 1, deformation[1, 1] - 1, angle_deg + spin))
    i, exx, eyy, angle = np.array(rows).T
    truth = sites.iloc[i.astype(int)]
    assert len(rows) > 80
    for measured, name, tolerance in ((exx, "exx", 0.004), (eyy, "eyy", 0.004), (angle, "angle_deg", 0.25)):
        assert np.abs(measured - truth[name].to_numpy()).max() < tolerance


def test_strain_has_the_size_asked_for():
    result = two_phase(10, (60.0, 60.0), 0.5, nio=0.0, strain=0.01, layers=1, seed=0)
    assert np.sqrt((result.sites[["exx", "eyy"]] ** 2).to_numpy().mean()) == pytest.approx(0.01, rel=0.35)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n = 0"),
        ({"layers": 0}, "layers"),
        ({"nio": 1.5}, "nio"),
        ({"strain": -0.1}, "strain"),
        ({"pixel_size_A": 0.0}, "pixel_size_A"),
        ({"pillar_A": 0.0}, "pillar_A"),
        ({"field_A": (-1.0, 5.0)}, "field"),
        ({"field_A": (1.0, 50.0)}, "8 x 8"),
        ({"angle_deg": (10.0, 0.0)}, "low <= high"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        two_phase(**arguments)
