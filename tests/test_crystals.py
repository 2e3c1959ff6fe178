import time

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from scipy.spatial import cKDTree

from micrographia.errors import UserError
from micrographia.simulate.crystals import DICHALCOGENIDES, MATERIALS, build_crystal
from micrographia.simulate.graphene import BOND_A, build_grain_boundary


def _nearest(xy, k=2):
    """Distances to the k - 1 nearest neighbours of the points well inside."""
    inner = ((xy > xy.min(0) + 5) & (xy < xy.max(0) - 5)).all(1)
    return cKDTree(xy).query(xy[inner], k=k)[0][:, 1:]


@pytest.mark.parametrize("material", DICHALCOGENIDES)
def test_monolayers_have_their_lattice_and_composition(material):
    atoms = build_crystal(material, (60, 50), angle_deg=11)
    metal = atoms[atoms.arrays["sublattice"] == 0]
    a = DICHALCOGENIDES[material][0]
    assert _nearest(metal.positions[:, :2], 7) == pytest.approx(a, abs=1e-6)
    columns = np.bincount(atoms.arrays["column"])
    assert set(columns) == {1, 2}
    assert np.isclose(len(atoms) / (70 * 60), 3 / (a**2 * np.sqrt(3) / 2), rtol=0.03)
    # Every metal column is surrounded by three chalcogen columns.
    _, first = np.unique(atoms.arrays["column"], return_index=True)
    assert _nearest(atoms.positions[first, :2], 4) == pytest.approx(a / np.sqrt(3), abs=1e-6)


@pytest.mark.parametrize("material", MATERIALS)
def test_every_material_fills_field_and_margin_quickly(material):
    build_crystal(material, (30, 30))
    start = time.process_time()
    atoms = build_crystal(material, (300, 200), angle_deg=33, rng=np.random.default_rng(1), margin_A=4)
    assert time.process_time() - start < 0.5
    xy = atoms.positions[:, :2]
    assert (xy >= -4).all()
    assert (xy <= [304, 204]).all()
    cells = np.floor((xy + 4) / 8).astype(int)  # no empty corner anywhere
    assert len(np.unique(cells, axis=0)) == np.prod(np.ceil(np.array([308, 208]) / 8))
    assert tuple(atoms.cell.lengths()[:2]) == (300, 200)
    assert not atoms.pbc.any()


def test_angles_turn_counter_clockwise_on_the_screen():
    atoms = build_crystal("WSe2", (40, 40), angle_deg=10, origin_A=(20, 20))
    metal = atoms[atoms.arrays["sublattice"] == 0].positions[:, :2] - 20
    ring = metal[np.abs(np.hypot(*metal.T) - 3.282) < 0.01]
    angles = np.rad2deg(np.arctan2(-ring[:, 1], ring[:, 0])) % 60  # y points down
    assert angles == pytest.approx(10, abs=1e-6)


def test_strain_stretches_along_the_screen():
    atoms = build_crystal("SrTiO3", (60, 60), strain=(0.02, -0.01, 0), origin_A=(0, 0))
    strontium = atoms[atoms.symbols == "Sr"].positions[:, :2]
    x, y = np.unique(strontium[:, 0].round(6)), np.unique(strontium[:, 1].round(6))
    assert np.diff(x) == pytest.approx(3.905 * 1.02, abs=1e-5)
    assert np.diff(y) == pytest.approx(3.905 * 0.99, abs=1e-5)


def test_disorder_is_the_rms_along_each_axis_and_columns_stay():
    ideal = build_crystal("MoS2", (80, 80))
    moved = build_crystal("MoS2", (80, 80), disorder_A=0.1)
    assert (moved.positions - ideal.positions).std(0) == pytest.approx(0.1, rel=0.05)
    assert (moved.arrays["column"] == ideal.arrays["column"]).all()


def test_alloys_mix_at_random():
    atoms = build_crystal("WSe2", (150, 150), alloy={"Se": ("S", 0.3)}, rng=np.random.default_rng(0))
    sulfur, selenium = (atoms.symbols == "S").sum(), (atoms.symbols == "Se").sum()
    assert sulfur / (sulfur + selenium) == pytest.approx(0.3, abs=0.02)
    assert atoms.info["elements"] == ["S", "Se", "W"]


def test_strontium_titanate_columns_along_two_axes():
    atoms = build_crystal("SrTiO3", (40, 40))
    kinds = {
        "".join(sorted(atoms.symbols[atoms.arrays["column"] == c])) for c in np.unique(atoms.arrays["column"])
    }
    assert kinds == {"Sr", "OTi", "O"}
    side = build_crystal("SrTiO3", (60, 60), zone_axis=(1, 1, 0))
    strontium = side[side.symbols == "Sr"].positions[:, :2]
    assert _nearest(strontium, 3)[:, 0].min() == pytest.approx(3.905 / np.sqrt(2), abs=1e-4)
    thick = build_crystal("SrTiO3", (40, 40), thickness_A=39)
    assert len(thick) == 10 * len(atoms)
    assert len(np.unique(thick.arrays["column"])) == len(np.unique(atoms.arrays["column"]))


@pytest.mark.parametrize("suffix", ["cif", "xyz", "vasp"])
def test_structure_files_are_tiled(tmp_path, suffix):
    silicon = Atoms("Si8", cell=[5.43] * 3, pbc=True)
    corner = [(0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    silicon.set_scaled_positions(corner + [tuple(np.add(c, 0.25)) for c in corner])
    path = tmp_path / f"silicon.{suffix}"
    write(path, silicon)
    atoms = build_crystal(path, (50, 50), zone_axis=(1, 1, 0), rng=np.random.default_rng(0))
    _, first = np.unique(atoms.arrays["column"], return_index=True)
    # The dumbbells of [110]: pairs 5.43 / 4 apart.
    assert _nearest(atoms.positions[first, :2])[:, 0] == pytest.approx(5.43 / 4, abs=1e-3)


def test_a_molecule_lands_in_the_middle(tmp_path):
    write(tmp_path / "dimer.xyz", Atoms("W2", positions=[(0, 0, 0), (0, 2, 0)]))
    atoms = build_crystal(tmp_path / "dimer.xyz", (30, 20))
    assert len(atoms) == 2
    assert atoms.positions[:, :2].mean(0) == pytest.approx([15, 10])


def test_carbon_film_has_its_density_and_bond_lengths():
    atoms = build_crystal(
        "single-atoms", (150, 150), rng=np.random.default_rng(0), thickness_A=25, element="Pt", margin_A=0
    )
    carbon = atoms[atoms.symbols == "C"]
    density = len(carbon) * 12.011 / 0.6022 / (150 * 150 * 25)
    assert density == pytest.approx(1.9, abs=0.1)
    distance = cKDTree(carbon.positions).query(carbon.positions, k=2)[0][:, 1]
    assert (distance < 1.3).mean() < 0.1  # only across the seams of the layers
    heavy = atoms[atoms.arrays["isolated"]]
    assert set(heavy.symbols) == {"Pt"}
    assert 60 < len(heavy) < 170
    assert cKDTree(heavy.positions).query(heavy.positions, k=2)[0][:, 1].min() >= 2.5


def test_the_film_does_not_repeat():
    atoms = build_crystal(
        "single-atoms", (300, 300), rng=np.random.default_rng(2), atoms_per_nm2=0, margin_A=0
    )
    coarse, _, _ = np.histogram2d(*atoms.positions[:, :2].T, bins=150)
    coarse -= coarse.mean()
    spectrum = np.abs(np.fft.fft2(coarse)) ** 2
    correlation = np.fft.ifft2(spectrum).real / spectrum.mean()
    correlation[:5, :5] = correlation[-4:, :5] = correlation[:5, -4:] = correlation[-4:, -4:] = 0
    assert np.abs(correlation).max() < 0.5  # a copied film would give 1


def test_the_same_seed_gives_the_same_crystal():
    for material in ("WSe2", "single-atoms"):
        a, b, c = (
            build_crystal(material, (30, 30), disorder_A=0.05, rng=np.random.default_rng([7, i]))
            for i in (1, 1, 2)
        )
        assert np.array_equal(a.positions, b.positions)
        assert len(a) != len(c) or not np.array_equal(a.positions, c.positions)


@pytest.mark.parametrize("misorientation", [8, 21.8, 30])
def test_a_grain_boundary_keeps_three_bonds_per_atom(misorientation):
    atoms = build_grain_boundary((80, 60), (5, 5 + misorientation), rng=np.random.default_rng(3))
    xy = atoms.positions[:, :2]
    bonds = cKDTree(xy).query(xy, k=5)[0]
    inner = ((xy > [2, 2]) & (xy < [78, 58])).all(1)
    assert bonds[inner, 1].min() > 0.88 * BOND_A
    assert bonds[inner, 3].max() < 1.15 * BOND_A
    assert bonds[inner, 4].min() > 1.3 * BOND_A
    left, right = xy[xy[:, 0] < 25], xy[xy[:, 0] > 55]
    for side, angle in ((left, 5), (right, 5 + misorientation)):
        pairs = cKDTree(side).query_pairs(1.1 * BOND_A, output_type="ndarray")
        offset = side[pairs[:, 1]] - side[pairs[:, 0]]
        sixfold = np.exp(6j * np.arctan2(-offset[:, 1], offset[:, 0])).mean()
        assert np.abs(sixfold) > 0.99
        expected = np.exp(6j * np.deg2rad(angle + 30))  # bonds are 30° from the lattice vectors
        assert np.abs(sixfold / np.abs(sixfold) - expected) < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"material": "WSe"}, "Did you mean 'WSe2'"),
        ({"field_A": (0, 30)}, "positive"),
        ({"field_A": (30, float("nan"))}, "positive"),
        ({"field_A": (1e6, 1e6)}, "smaller"),
        ({"alloy": {"S": ("Se", 0.2)}}, "no S"),
        ({"alloy": {"Se": ("Sx", 0.2)}}, "not an element"),
        ({"alloy": {"Se": ("S", 1.2)}}, "fraction"),
        ({"disorder_A": -0.1}, "negative"),
        ({"angle_deg": float("inf")}, "finite"),
        ({"material": "SrTiO3", "zone_axis": (0, 0, 0)}, "zone axis"),
        ({"material": "single-atoms", "element": "Rx"}, "not an element"),
        ({"material": "nowhere.cif"}, "no structure file"),
    ],
)
def test_impossible_crystals_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        build_crystal(**{"material": "WSe2", "field_A": (30, 30), **arguments})


def test_an_unreadable_file_is_named(tmp_path):
    path = tmp_path / "broken.cif"
    path.write_text("this is no crystal")
    with pytest.raises(UserError, match=r"broken\.cif"):
        build_crystal(path, (30, 30))
