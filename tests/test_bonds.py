"""Bonds, rings and ring labels: perfect sheets, known defects, hostile positions, a real grain boundary."""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from micrographia.bonds import RING_LABELS, bond_graph, label_rings, ring_statistics
from micrographia.errors import UserError
from micrographia.simulate.crystals import build_crystal
from micrographia.simulate.defects import DefectSpec, introduce_defects
from micrographia.simulate.graphene import build_grain_boundary

ANGLES = st.floats(0, 360)
SHIFTS = st.tuples(st.floats(-500, 500), st.floats(-500, 500))


def sheet(field_A=(30.0, 30.0), angle_deg=7.0) -> np.ndarray:
    return build_crystal("graphene", field_A, angle_deg).positions[:, :2]


@cache
def bicrystal() -> np.ndarray:
    return build_grain_boundary((35.0, 35.0), (-9.0, 12.0)).positions[:, :2]


@given(ANGLES, SHIFTS)
@settings(max_examples=30, deadline=None)
def test_a_perfect_sheet_is_hexagons_wherever_it_lies(angle_deg, shift):
    graph = bond_graph(sheet(angle_deg=angle_deg) + shift)
    assert set(graph.ring_sizes) == {6}
    assert not graph.holes
    assert set(graph.labels[~graph.border]) == {"[6,6,6]"}
    assert set(graph.coordination[~graph.border]) == {3}
    # Euler: atoms - bonds + faces = pieces (a corner of the field can cut an atom off).
    n, (a, b) = len(graph.xy_A), graph.edges.T
    pieces, _ = connected_components(coo_matrix((np.ones(len(a)), (a, b)), (n, n)), directed=False)
    assert pieces < 5
    assert n - len(graph.edges) + len(graph.rings) == pieces


@given(ANGLES, SHIFTS)
@settings(max_examples=20, deadline=None)
def test_graph_does_not_depend_on_rotation_and_translation(angle_deg, shift):
    xy = bicrystal()
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    here, there = bond_graph(xy), bond_graph(xy @ np.array([[c, s], [-s, c]]) + shift)
    assert (here.edges == there.edges).all()
    assert (here.labels == there.labels).all()


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_graph_does_not_depend_on_the_order_of_atoms(seed):
    rng = np.random.default_rng(seed)
    xy = sheet()
    xy = np.delete(xy, rng.choice(len(xy), 20, replace=False), axis=0) + rng.normal(0, 0.1, (len(xy) - 20, 2))
    order = rng.permutation(len(xy))
    graph, shuffled = bond_graph(xy), bond_graph(xy[order])
    assert (shuffled.labels == graph.labels[order]).all()


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_any_points_give_a_planar_graph(seed):
    """Random points: at most three bonds each, no bond crosses another, Euler's formula holds."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, 15, (rng.integers(1, 150), 2))
    graph = bond_graph(xy)
    assert graph.coordination.max() <= 3
    assert (graph.edges[:, 0] < graph.edges[:, 1]).all()
    p, q = xy[graph.edges[:, 0]], xy[graph.edges[:, 1]]

    def side(a, b, c):
        return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (
            c[..., 0] - a[..., 0]
        )

    P, Q, R, S = p[:, None], q[:, None], p[None], q[None]
    crossing = (side(P, Q, R) * side(P, Q, S) < 0) & (side(R, S, P) * side(R, S, Q) < 0)
    shared = (graph.edges[:, None, :, None] == graph.edges[None, :, None, :]).any((2, 3))
    assert not (crossing & ~shared).any()
    assert set(graph.labels) <= set(RING_LABELS)


def test_stone_wales_is_two_pentagons_and_two_heptagons():
    atoms = build_crystal("graphene", (40.0, 40.0), 11.0)
    atoms, sites = introduce_defects(atoms, [DefectSpec("stone-wales", 0.002)], np.random.default_rng(3))
    graph = bond_graph(atoms.positions[:, :2])
    n = len(sites)
    assert n >= 1
    sizes, counts = np.unique(graph.ring_sizes, return_counts=True)
    assert dict(zip(sizes.tolist(), counts.tolist(), strict=True)) | {6: 0} == {5: 2 * n, 6: 0, 7: 2 * n}
    assert not graph.holes
    labels = pd.Series(graph.labels).value_counts()
    # Per defect: the two atoms of the turned bond are other ([5,7,7]), and a pentagon's other atoms follow.
    assert labels["other"] == 2 * n
    assert labels["[5,6,7]"] == 4 * n
    assert labels["[5,6,6]"] == 4 * n
    assert labels["[6,6,7]"] == 6 * n


def test_divacancy_is_two_pentagons_and_a_hole_of_eight():
    atoms = build_crystal("graphene", (40.0, 40.0), 11.0)
    atoms, sites = introduce_defects(atoms, [DefectSpec("divacancy-C", 0.002)], np.random.default_rng(3))
    graph = bond_graph(atoms.positions[:, :2])
    assert len(sites) >= 1
    assert (graph.ring_sizes == 5).sum() == 2 * len(sites)
    assert [len(hole) for hole in graph.holes] == [8] * len(sites)


def test_a_missing_atom_opens_a_hole_of_twelve():
    xy = sheet()
    centre = np.hypot(*(xy - 15).T).argmin()
    graph = bond_graph(np.delete(xy, centre, axis=0))
    assert [len(hole) for hole in graph.holes] == [12]
    inner = graph.labels[~graph.border]
    # The three neighbours keep one ring each, the nine others around the hole two.
    assert (inner == "0").sum() == 3
    assert (inner == "[6,6]").sum() == 9


@given(st.floats(-0.1, 0.1), st.floats(-0.1, 0.1), st.integers(0, 40))
@settings(max_examples=20, deadline=None)
def test_an_extra_atom_inside_a_ring_changes_nothing_else(dx, dy, which):
    xy = sheet()
    clean = bond_graph(xy)
    inner = [ring for ring in clean.rings if not clean.border[ring].any()]
    ring = inner[which % len(inner)]
    extra = bond_graph(np.r_[xy, [xy[ring].mean(0) + np.array([dx, dy])]])
    assert (extra.labels[:-1] == clean.labels).all()
    assert extra.labels[-1] == "0"


@given(st.integers(0, 400), st.floats(0, 0.5), ANGLES)
@settings(max_examples=20, deadline=None)
def test_an_atom_found_twice_changes_nothing_else(which, distance, angle_deg):
    xy = sheet()
    clean = bond_graph(xy)
    twin = xy[which % len(xy)] + distance * np.array([np.cos(angle_deg), np.sin(angle_deg)])
    doubled = bond_graph(np.r_[xy, [twin]])
    assert (doubled.labels[:-1] == clean.labels).all()


def test_noise_of_a_tenth_of_an_angstrom_is_harmless():
    xy = sheet((60.0, 60.0))
    graph = bond_graph(xy + np.random.default_rng(0).normal(0, 0.1, xy.shape))
    assert (graph.labels[~graph.border] == "[6,6,6]").mean() > 0.99


def test_border_flags_exactly_what_the_edge_has_changed():
    """Cut a field out of a larger sheet with defects: unflagged atoms keep the labels they had."""
    atoms = build_crystal("graphene", (60.0, 60.0), 4.0)
    specs = [DefectSpec("stone-wales", 0.01), DefectSpec("vacancy-1C", 0.02)]
    xy = introduce_defects(atoms, specs, np.random.default_rng(0))[0].positions[:, :2]
    whole = bond_graph(xy)
    inside = ((xy > 10) & (xy < 50)).all(1)
    part = bond_graph(xy[inside])
    kept = ~part.border
    assert (part.labels[kept] == whole.labels[inside][kept]).mean() > 0.995
    assert 0.05 < part.border.mean() < 0.25
    changed = part.labels != whole.labels[inside]
    assert part.border[changed].mean() > 0.97


def test_edge_of_a_flake_inside_the_field_is_no_border():
    xy = sheet((40.0, 40.0))
    flake = xy[np.hypot(*(xy - 20).T) < 12]
    graph = bond_graph(flake, field_A=(40.0, 40.0))
    assert not graph.border.any()
    assert bond_graph(flake).border.any()


def test_silicon_may_have_four_bonds():
    xy = np.array([[0, 0], [1.7, 0], [-1.7, 0], [0, 1.7], [0, -1.7]])
    assert bond_graph(xy, max_bonds=[4, 3, 3, 3, 3]).coordination[0] == 4
    assert bond_graph(xy).coordination[0] == 3


def test_statistics_and_labels_of_a_movie():
    perfect, atoms = sheet(), build_crystal("graphene", (30.0, 30.0), 7.0)
    damaged = introduce_defects(atoms, [DefectSpec("stone-wales", 0.01)], np.random.default_rng(1))[0]
    frames = [perfect, damaged.positions[:, :2]]
    sites = pd.concat(
        [
            pd.DataFrame({"frame": t, "x_px": xy[:, 0] / 0.2, "y_px": xy[:, 1] / 0.2, "kind": "C"})
            for t, xy in enumerate(frames)
        ]
    )
    shuffled = sites.sample(frac=1, random_state=0)
    labelled, statistics = label_rings(shuffled, pixel_size_A=0.2)
    assert labelled.drop(columns=["ring_label", "bonds", "border"]).equals(shuffled)
    assert statistics["frame"].tolist() == [0, 1]
    assert statistics["rings_5"].tolist()[0] == 0
    assert statistics["rings_5"].tolist()[1] > 0
    assert statistics["hexagons"].is_monotonic_decreasing
    direct = bond_graph(frames[1])
    mine = labelled[labelled["frame"] == 1]
    assert mine["ring_label"].value_counts().to_dict() == pd.Series(direct.labels).value_counts().to_dict()


def test_ten_thousand_atoms_take_less_than_a_second():
    xy = sheet((152.0, 152.0))
    xy = xy + np.random.default_rng(0).normal(0, 0.1, xy.shape)
    assert len(xy) > 9_900
    start = time.process_time()
    bond_graph(xy).labels  # noqa: B018
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_atoms(n):
    graph = bond_graph(np.arange(n)[:, None] * [1.4, 0.0])
    assert len(graph.edges) == max(0, n - 1)
    assert graph.rings == ()
    assert list(graph.labels) == ["0"] * n
    assert len(ring_statistics([graph])) == 1
    assert ring_statistics([]).empty


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"xy_A": np.zeros((4, 3))}, r"shape \[N, 2\]"),
        ({"xy_A": [[0, 0], [np.nan, 1]]}, "1 of 2 positions"),
        ({"xy_A": [[0, 0]], "bond_A": -1}, "must be positive"),
        ({"xy_A": [[0, 0]], "tolerance": 1.0}, "tolerance"),
        ({"xy_A": [[0, 0]], "max_bonds": [3, 3]}, "max_bonds"),
        ({"xy_A": [[0, 0]], "field_A": (1.0,)}, "field_A"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        bond_graph(**arguments)


def test_tables_without_positions_are_refused():
    with pytest.raises(UserError, match="lacks the column y_px"):
        label_rings(pd.DataFrame({"frame": [0], "x_px": [1.0], "kind": ["C"]}), 0.2)
    with pytest.raises(UserError, match="pixel_size_A"):
        label_rings(pd.DataFrame(), 0.0)


@pytest.mark.shared_data
def test_real_grain_boundary_is_a_chain_of_pentagons_and_heptagons(shared_data):
    """G-GB-4nm: 512 pixels of 4 nm; positions found by its authors' network."""
    table = pd.read_csv(shared_data / "graphene-si" / "G-GB-4nm-coord.csv")
    graph = bond_graph(table[["col", "row"]].to_numpy(float) * 40 / 512)
    statistics = ring_statistics([graph]).iloc[0]
    assert (statistics["rings_5"], statistics["rings_7"], statistics["holes"]) == (11, 10, 0)
    odd = [graph.xy_A[ring].mean(0) for ring in graph.rings if len(ring) != 6]
    # Every pentagon and heptagon touches another one: together they are one line through the image.
    gaps = np.sort(np.hypot(*(np.array(odd)[:, None] - odd).T), axis=1)[:, 1]
    assert gaps.max() < 3.0
