from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from micrographia.errors import UserError
from micrographia.simulate.crystals import build_crystal
from micrographia.simulate.defects import DefectSpec, introduce_defects
from micrographia.simulate.graphene import BOND_A


def _rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def wse2():
    return build_crystal("WSe2", (120, 120), angle_deg=13, rng=_rng())


@pytest.fixture(scope="module")
def graphene():
    return build_crystal("graphene", (80, 80), angle_deg=13, rng=_rng())


def _at(atoms, site, radius=0.3):
    """Symbols of the atoms at a site."""
    r = np.hypot(*(atoms.positions[:, :2] - [site.x_A, site.y_A]).T)
    return sorted(atoms.symbols[r < radius])


@pytest.mark.parametrize(
    ("kind", "remaining"),
    [
        ("vacancy-1Se", ["Se"]),
        ("vacancy-Se", ["Se"]),
        ("vacancy-2Se", []),
        ("vacancy-1W", []),
        ("substitution-Te-1Se", ["Se", "Te"]),
        ("substitution-S-2Se", ["S", "S"]),
        ("substitution-Re-W", ["Re"]),
        ("antisite-W-2Se", ["W"]),
        ("antisite-Se-W", ["Se"]),
        ("adatom-W", None),
    ],
)
def test_a_site_holds_what_its_kind_says(wse2, kind, remaining):
    atoms, sites = introduce_defects(wse2, [DefectSpec(kind, 0.05)], _rng(1))
    assert len(sites) > 20
    assert set(sites["kind"]) == {kind}
    for site in sites.itertuples():
        before, after = _at(wse2, site), _at(atoms, site)
        expected = sorted([*before, "W"]) if remaining is None else remaining
        assert after == expected
    changed = len(sites) * (1 if remaining is None else len(remaining)) - sum(
        len(_at(wse2, s)) for s in sites.itertuples()
    )
    if remaining is not None:
        assert len(atoms) - len(wse2) == changed


@settings(max_examples=20, deadline=None)
@given(first=st.floats(0, 0.6), second=st.floats(0, 1), seed=st.integers(0, 1000))
def test_concentrations_are_fractions_of_eligible_columns_and_no_column_has_two(first, second, seed):
    crystal = build_crystal("MoS2", (40, 40))
    eligible = len(np.unique(crystal.arrays["column"][crystal.symbols == "S"]))
    specs = [DefectSpec("vacancy-1S", first), DefectSpec("vacancy-2S", second)]
    _, sites = introduce_defects(crystal, specs, _rng(seed))
    ones = int((sites["kind"] == "vacancy-1S").sum())
    assert abs(ones - first * eligible) <= 1
    assert abs((sites["kind"] == "vacancy-2S").sum() - second * (eligible - ones)) <= 1
    assert not sites.duplicated(["x_A", "y_A"]).any()


def test_the_input_is_not_changed_and_the_seed_decides(wse2):
    before = wse2.positions.copy(), wse2.numbers.copy()
    specs = [DefectSpec("vacancy-1Se", 0.03, relaxation=0.05), DefectSpec("antisite-W-2Se", 0.01)]
    a, sites_a = introduce_defects(wse2, specs, _rng(3))
    b, sites_b = introduce_defects(wse2, specs, _rng(3))
    assert np.array_equal(wse2.positions, before[0])
    assert np.array_equal(wse2.numbers, before[1])
    assert np.array_equal(a.positions, b.positions)
    assert sites_a.equals(sites_b)


def test_explicit_positions_use_the_nearest_column(wse2):
    column = wse2.arrays["column"][wse2.symbols == "Se"][50]
    x, y = wse2.positions[wse2.arrays["column"] == column, :2].mean(0)
    _, sites = introduce_defects(wse2, [DefectSpec("vacancy-2Se", positions=((x + 0.4, y - 0.3),))], _rng())
    assert sites[["x_A", "y_A"]].to_numpy() == pytest.approx(np.array([[x, y]]))
    with pytest.raises(UserError, match="no eligible site within"):
        introduce_defects(wse2, [DefectSpec("vacancy-2Se", positions=((500.0, 0.0),))], _rng())


def test_minimum_distance_holds_between_kinds(wse2):
    specs = [
        DefectSpec("vacancy-1Se", 0.03, min_distance_A=8),
        DefectSpec("vacancy-1W", 0.03, min_distance_A=8),
    ]
    _, sites = introduce_defects(wse2, specs, _rng())
    xy = sites[["x_A", "y_A"]].to_numpy()
    assert len(xy) > 60
    assert cKDTree(xy).query(xy, k=2)[0][:, 1].min() >= 8


def test_neighbours_relax_inwards_and_the_far_lattice_stays(wse2):
    selenium = wse2.positions[wse2.symbols == "Se", :2]
    place = tuple(selenium[np.hypot(*(selenium - 60).T).argmin()])
    spec = DefectSpec("vacancy-2Se", positions=(place,), relaxation=0.05)
    relaxed, sites = introduce_defects(wse2, [spec], _rng())
    rigid, _ = introduce_defects(wse2, [replace(spec, relaxation=0)], _rng())
    centre = sites[["x_A", "y_A"]].to_numpy()[0]
    before, after = (np.hypot(*(a.positions[:, :2] - centre).T) for a in (rigid, relaxed))
    nearest = before < before.min() + 0.01
    assert nearest.sum() == 3
    assert after[nearest] == pytest.approx(0.95 * before[nearest], rel=1e-6)
    assert after[before > 12] == pytest.approx(before[before > 12])


def test_an_antisite_is_a_column_of_its_own(wse2):
    atoms, sites = introduce_defects(wse2, [DefectSpec("antisite-W-2Se", 0.02)], _rng())
    sizes = np.bincount(atoms.arrays["column"])
    assert sizes.max() == 2
    assert (atoms.arrays["sublattice"] == -1).sum() == len(sites)


def test_isolated_atoms_are_labelled_where_they_are():
    crystal = build_crystal("single-atoms", (100, 100), rng=_rng(), element="Re")
    atoms, sites = introduce_defects(crystal, [DefectSpec("Re", 0.5)], _rng())
    expected = crystal.positions[crystal.symbols == "Re", :2]
    assert sites[["x_A", "y_A"]].to_numpy() == pytest.approx(expected)
    assert len(atoms) == len(crystal)
    empty = build_crystal("single-atoms", (20, 20), rng=_rng(), atoms_per_nm2=0)
    assert len(introduce_defects(empty, [DefectSpec("Re", 0.5)], _rng())[1]) == 0


def test_silicon_in_graphene_replaces_one_or_two_carbon_atoms(graphene):
    specs = [DefectSpec("Si", 0.01), DefectSpec("Si-4fold", 0.004)]
    atoms, sites = introduce_defects(graphene, specs, _rng())
    carbon = atoms.positions[atoms.symbols == "C", :2]
    three, four = (sites.loc[sites["kind"] == k, ["x_A", "y_A"]].to_numpy() for k in ("Si", "Si-4fold"))
    assert len(three) > 20
    assert len(four) > 5
    inner = ((four > 5) & (four < 75)).all(1)
    distance, _ = cKDTree(carbon).query(four[inner], k=5)
    assert distance[:, :4] == pytest.approx(1.88, abs=0.05)
    assert (distance[:, 4] > 2.3).all()
    assert len(atoms) == len(graphene) - len(four)


def _bond_lengths(atoms, centre, radius):
    xy = atoms.positions[:, :2]
    near = np.hypot(*(xy - centre).T) < radius
    pairs = cKDTree(xy).query_pairs(1.3 * BOND_A, output_type="ndarray")
    pairs = pairs[near[pairs].any(1)]
    degree = np.bincount(pairs.ravel(), minlength=len(xy))[near]
    return np.hypot(*(xy[pairs[:, 0]] - xy[pairs[:, 1]]).T), degree


@pytest.mark.parametrize(("kind", "missing"), [("stone-wales", 0), ("divacancy-C", 2)])
def test_reconstructed_defects_keep_three_bonds_of_ordinary_length(graphene, kind, missing):
    atoms, sites = introduce_defects(graphene, [DefectSpec(kind, positions=((40.0, 40.0),))], _rng())
    assert len(atoms) == len(graphene) - missing
    length, degree = _bond_lengths(atoms, sites[["x_A", "y_A"]].to_numpy()[0], 4.0)
    assert (degree == 3).all()
    assert length.min() > 0.9 * BOND_A
    assert length.max() < 1.25 * BOND_A


def test_pair_defects_do_not_overlap(graphene):
    specs = [DefectSpec(k, 0.02) for k in ("stone-wales", "divacancy-C", "Si-4fold")]
    atoms, sites = introduce_defects(graphene, specs, _rng())
    xy = sites[["x_A", "y_A"]].to_numpy()
    assert sites["kind"].nunique() == 3
    assert cKDTree(xy).query(xy, k=2)[0][:, 1].min() > 3.5
    inner = atoms.positions[((atoms.positions[:, :2] > 0) & (atoms.positions[:, :2] < 80)).all(1), :2]
    assert cKDTree(inner).query(inner, k=2)[0][:, 1].min() > 0.85 * BOND_A


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("vacancy-1S", "no S.*vacancy-1Se, vacancy-2Se, vacancy-1W"),
        ("vacancy-3Se", "no column"),
        ("vacancy-2W", "no column of WSe2 has 2 atoms of W.*vacancy-1Se, vacancy-2Se, vacancy-1W"),
        ("antisite-Se-2W", "no column of WSe2 has 2 atoms of W"),
        ("antisite-Mo-2Se", "substitution-Mo-2Se"),
        ("Si", "substitution-Si-1Se or substitution-Si-1W"),
        ("divacancy-C", "only graphene"),
        ("stone-wales", "only graphene"),
    ],
)
def test_defects_that_the_crystal_cannot_have_are_refused_with_what_it_offers(wse2, kind, message):
    with pytest.raises(UserError, match=message):
        introduce_defects(wse2, [DefectSpec(kind, 0.01)], _rng())


def test_a_rare_alloy_element_may_be_absent_from_a_small_field():
    crystal = build_crystal("WSe2", (10, 10), alloy={"Se": ("S", 0.0)}, rng=_rng())
    _, sites = introduce_defects(crystal, [DefectSpec("vacancy-1S", 0.5)], _rng())
    assert list(sites.columns) == ["x_A", "y_A", "kind"]
    assert len(sites) == 0


def test_a_small_field_of_an_alloy_may_hold_less_than_others_do():
    rare = build_crystal("WSe2", (40, 40), alloy={"Se": ("S", 0.02)}, rng=_rng())
    for kind in ("vacancy-2S", "vacancy-2Se"):
        introduce_defects(rare, [DefectSpec(kind, 0.5)], _rng())
    with pytest.raises(UserError, match="no column"):
        introduce_defects(rare, [DefectSpec("vacancy-2W", 0.5)], _rng())


def test_amorphous_specimens_refuse_lattice_defects():
    crystal = build_crystal("single-atoms", (20, 20), rng=_rng())
    with pytest.raises(UserError, match="isolated atoms"):
        introduce_defects(crystal, [DefectSpec("vacancy-1C", 0.1)], _rng())


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"kind": "vacancy-1Se", "concentration": -0.1}, "between 0 and 1"),
        ({"kind": "vacancy-1Se", "concentration": 1.1}, "between 0 and 1"),
        ({"kind": "vacancy-1Se", "concentration": float("nan")}, "between 0 and 1"),
        ({"kind": "vacancy-0Se"}, "at least 1"),
        ({"kind": "vacency-1Se"}, "Did you mean 'vacancy-1Se'"),
        ({"kind": "vacancy-1Zz"}, "not an element"),
        ({"kind": "vacancy-1Se", "min_distance_A": -1}, "min_distance_A"),
        ({"kind": "vacancy-1Se", "relaxation": 2}, "relaxation"),
    ],
)
def test_impossible_specifications_are_refused(settings_, message):
    with pytest.raises(UserError, match=message):
        DefectSpec(**settings_)
