"""The graphene movie: its truth is true, and it loses order as it says."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import map_coordinates

from micrographia.bonds import RING_LABELS, label_rings
from micrographia.errors import UserError
from micrographia.simulate.crystals import build_crystal
from micrographia.simulate.graphene_movie import BeamDamage, GrapheneMovie, _describe, graphene_movie
from micrographia.sites import SITE_COLUMNS

NO_DAMAGE = BeamDamage(vacancies=0, rotations=0, edge_loss=0, silicon=0)
STRONG = BeamDamage(vacancies=0.004, rotations=0.003, edge_loss=0.1, silicon=0.01)


@cache
def damaged() -> GrapheneMovie:
    return graphene_movie(10, (36.0, 36.0), damage=STRONG, seed=1)


@cache
def intact() -> GrapheneMovie:
    return graphene_movie(3, (30.0, 24.0), grains_deg=(11.0,), frame_rotation_deg=6, damage=NO_DAMAGE, seed=2)


def brightness(movie: GrapheneMovie, sites: pd.DataFrame, dx: float = 0, dy: float = 0) -> np.ndarray:
    at = [sites["frame"], sites["y_px"] + dy, sites["x_px"] + dx]
    return map_coordinates(movie.images, [a.to_numpy(float) for a in at], order=1, mode="nearest")


def test_shapes_columns_and_repeatability():
    movie = intact()
    assert movie.images.shape == (3, 120, 150)
    assert movie.images.dtype == np.float32
    assert set(SITE_COLUMNS) < set(movie.sites.columns)
    assert movie.sites["x_px"].between(-0.5, 149.5).all()
    assert movie.sites["y_px"].between(-0.5, 119.5).all()
    again = graphene_movie(
        3, (30.0, 24.0), grains_deg=(11.0,), frame_rotation_deg=6, damage=NO_DAMAGE, seed=2
    )
    assert (again.images == movie.images).all()
    pd.testing.assert_frame_equal(again.sites, movie.sites)


def test_without_damage_every_atom_is_perfect():
    sites = intact().sites
    assert (sites["ring_label"] == "[6,6,6]").all()
    assert np.allclose(sites["crystallinity"], 1, atol=2e-3)
    assert not sites["hole"].any()
    assert np.allclose(sites["angle_deg"], sites["grain_angle_deg"], atol=0.1)
    # 2.62 Å² per atom
    assert sites.groupby("frame").size().between(265, 285).all()


def test_angle_is_that_of_the_lattice_counter_clockwise_on_the_screen():
    """The shortest second-neighbour vectors lie along the lattice vectors: measure them in the table."""
    movie = intact()
    for _, part in movie.sites.groupby("frame"):
        xy = part[["x_px", "y_px"]].to_numpy() * movie.pixel_size_A
        offset = xy[:, None] - xy
        length = np.hypot(*np.moveaxis(offset, 2, 0))
        chosen = offset[(length > 2.2) & (length < 2.7)]
        phase = np.exp(6j * np.arctan2(-chosen[:, 1], chosen[:, 0])).mean()
        difference = np.rad2deg(np.angle(phase)) / 6 - part["angle_deg"].mean()
        assert abs((difference + 30) % 60 - 30) < 0.3


def test_frames_turn_as_the_angles_say():
    movie = intact()
    a, b = (movie.sites[movie.sites["frame"] == t].set_index("atom") for t in (0, 1))
    both = a.index.intersection(b.index)
    assert len(both) > 150
    x, y = (t.loc[both, ["x_px", "y_px"]].to_numpy() for t in (a, b))
    x, y = x - x.mean(0), y - y.mean(0)
    turn = np.rad2deg(np.arctan2((x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]).sum(), (x * y).sum()))
    told = b["grain_angle_deg"].iloc[0] - a["grain_angle_deg"].iloc[0]
    assert abs(told) > 0.5
    assert abs(-turn - told) < 0.2  # y points down


def test_the_atoms_are_where_the_table_says():
    movie = damaged()
    here = brightness(movie, movie.sites).mean()
    for dx, dy in ((2, 0), (-2, 0), (0, 2), (0, -2)):
        assert brightness(movie, movie.sites, dx, dy).mean() < 0.85 * here
    silicon = movie.sites["kind"] == "Si"
    light, heavy = (brightness(movie, movie.sites[s]).mean() for s in (~silicon, silicon))
    assert heavy > 2 * light


def test_the_two_grains_have_their_angles():
    sites = damaged().sites
    first = sites[(sites["frame"] == 0) & (sites["crystallinity"] > 0.97)]
    assert set(first["grain"]) == {0, 1}
    gap = (first["angle_deg"] - first["grain_angle_deg"]).abs()
    assert gap.groupby(first["grain"]).median().max() < 0.3
    means = first.groupby("grain")["grain_angle_deg"].mean()
    assert means[1] - means[0] == pytest.approx(10.0)


def test_the_sheet_loses_order():
    movie = damaged()
    mean = movie.sites.groupby("frame")["crystallinity"].mean()
    assert mean.iloc[0] > 0.93
    assert mean.iloc[-1] < 0.75
    assert np.corrcoef(mean.index, mean)[0, 1] < -0.95
    assert movie.sites["crystallinity"].between(0, 1.01).all()
    assert set(movie.sites["ring_label"]) == set(RING_LABELS)
    _, statistics = label_rings(movie.sites, movie.pixel_size_A)
    first, last = statistics.iloc[0], statistics.iloc[-1]
    assert first["holes"] == 0
    assert last["holes"] > 1
    assert last["hole_A2"] > 50
    assert last["rings_5"] > first["rings_5"] + 5
    assert last["rings_7"] > first["rings_7"] + 5
    assert last["atoms"] < first["atoms"]


def test_labels_are_those_of_the_positions():
    """Found again from where the images show the atoms; only the edge of the image may differ."""
    movie = damaged()
    found, _ = label_rings(movie.sites, movie.pixel_size_A)
    inner = ~found["border"]
    assert (found["ring_label"] == movie.sites["ring_label"])[inner].mean() > 0.99


def test_silicon_goes_to_the_edges_and_stays():
    silicon = damaged().sites.query("kind == 'Si'")
    at_edge = silicon.groupby("frame")["hole"].mean()
    assert at_edge.iloc[0] == 0
    assert at_edge.iloc[-1] > 0.6


def test_atoms_keep_their_number():
    sites = damaged().sites
    assert not sites.duplicated(["frame", "atom"]).any()
    last_seen = sites[~sites["hole"] & (sites["ring_label"] == "[6,6,6]")]
    tracked = last_seen.pivot(index="atom", columns="frame", values="x_px")
    moves = tracked.diff(axis=1).abs().stack()
    assert moves.quantile(0.95) < 5  # 1 Å per frame: turn, drift and relaxation


def test_holes_do_not_brighten_the_rest():
    movie = damaged()
    crystal = movie.sites.query("crystallinity > 0.9 and kind == 'C'")
    light = pd.Series(brightness(movie, crystal)).groupby(crystal["frame"].to_numpy()).mean()
    assert light.max() < 1.03 * light.iloc[0]
    assert light.min() > 0.8 * light.iloc[0]
    assert movie.images[-1].mean() < 0.97 * movie.images[0].mean()


def test_crystallinity_at_a_straight_edge_is_half():
    xy = build_crystal("graphene", (60.0, 60.0), 0.0).positions[:, :2]
    half = xy[xy[:, 0] < 30]
    truth = _describe(half, np.zeros(len(half), dtype=bool))
    edge = (half[:, 0] > 28.5) & (np.abs(half[:, 1] - 30) < 12)
    deep = (half[:, 0] < 18) & (half[:, 0] > 10) & (np.abs(half[:, 1] - 30) < 12)
    assert 0.35 < truth["crystallinity"][edge].mean() < 0.6
    assert truth["crystallinity"][deep].mean() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_frames": 0}, "at least 1"),
        ({"field_A": (0.0, 10.0)}, "field"),
        ({"field_A": (1.0, 10.0)}, "8 x 8"),
        ({"pixel_size_A": -0.1}, "pixel_size_A"),
        ({"counts_per_A2": 0.0}, "counts_per_A2"),
        ({"grains_deg": (1.0, 2.0, 3.0)}, "grains_deg"),
        ({"grains_deg": (np.nan,)}, "grains_deg"),
        ({"frame_rotation_deg": -1.0}, "frame_rotation_deg"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        graphene_movie(**arguments)


def test_impossible_damage_is_refused():
    with pytest.raises(UserError, match="edge_loss"):
        BeamDamage(edge_loss=1.5)
    with pytest.raises(UserError, match="vacancies"):
        BeamDamage(vacancies=float("nan"))


def test_a_sheet_that_is_gone_is_an_image_without_atoms():
    movie = graphene_movie(3, (12.0, 12.0), damage=BeamDamage(vacancies=1, edge_loss=1, silicon=0), seed=0)
    assert np.isfinite(movie.images).all()
    assert (movie.sites["frame"] == 0).any()
    assert (movie.sites["frame"] == 2).sum() < 10
