import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from micrographia.atoms.find import automatic_threshold, find_atoms, sites_from_maps
from micrographia.errors import UserError
from micrographia.metrics.matching import match_sites
from micrographia.micrograph import Micrograph
from micrographia.simulate.crystals import build_crystal
from micrographia.simulate.imaging import disc_maps, simulate_image
from micrographia.simulate.probe import Optics
from micrographia.sites import SITE_COLUMNS

PIXEL_A = 0.1


def _crystal(material: str, shape=(200, 220), seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Noise-free image scaled to 0..1, and the positions of its columns in px."""
    atoms = build_crystal(
        material, (shape[1] * PIXEL_A, shape[0] * PIXEL_A), angle_deg=11, rng=np.random.default_rng(seed)
    )
    image, _ = simulate_image(atoms, Optics(source_size_A=0.6, energy_keV=100), shape, PIXEL_A)
    xy = np.unique(np.round(atoms.positions[:, :2] / PIXEL_A, 4), axis=0)
    return (image / image.max()).numpy(), xy


def _scores(found: np.ndarray, truth: np.ndarray, shape, border_px: float, tolerance_px: float):
    """Precision and recall of the inner part of the image."""
    i, j, _ = match_sites(found, truth, tolerance_px)

    def inner(points):
        return ((points > border_px) & (points < np.array(shape[::-1]) - 1 - border_px)).all(axis=1)

    hit, reached = np.isin(np.arange(len(found)), i), np.isin(np.arange(len(truth)), j)
    return hit[inner(found)].mean(), reached[inner(truth)].mean()


@pytest.mark.parametrize("method", ["log", "dog", "maxima"])
@pytest.mark.parametrize("material", ["graphene", "MoS2"])
def test_every_column_of_a_noisy_crystal_is_found_on_an_uneven_background(material, method):
    clean, truth = _crystal(material)
    rng = np.random.default_rng(1)
    rows, columns = np.indices(clean.shape)
    uneven = 1.5 * np.exp(-((rows - 60) ** 2 + (columns - 150) ** 2) / 2 / 60**2) + columns / 200
    image = clean + uneven + 0.1 * rng.standard_normal(clean.shape)
    sites = find_atoms(image, 0.35, 0.8, method=method, pixel_size_A=PIXEL_A)
    precision, recall = _scores(sites[["x_px", "y_px"]].to_numpy(), truth, clean.shape, 5, 5)
    assert precision > 0.98
    assert recall > 0.98


def test_the_neighbours_of_an_atom_that_outshines_all_others_are_found(monkeypatch):
    atoms = build_crystal("graphene", (22, 20), angle_deg=11, rng=np.random.default_rng(0))
    heavy = np.argmin(np.hypot(*(atoms.positions[:, :2] - (11, 10)).T))
    atoms.symbols[heavy] = "Si"
    image, _ = simulate_image(atoms, Optics(source_size_A=1.1, energy_keV=60), (100, 110), 0.2)
    noisy = (image / image.max()).numpy() + 0.02 * np.random.default_rng(1).standard_normal((100, 110))
    xy = atoms.positions[:, :2] / 0.2
    beside = xy[np.hypot(*(xy - xy[heavy]).T) * 0.2 < 1.5]
    assert len(beside) == 4

    def off_A() -> list[float]:
        found = find_atoms(noisy, pixel_size_A=0.2)[["x_px", "y_px"]].to_numpy()
        return [np.hypot(*(found - place).T).min() * 0.2 for place in beside]

    assert max(off_A()) < 0.15
    monkeypatch.setattr("micrographia.atoms.find._OUTSHINES", np.inf)
    assert max(off_A()) > 0.5  # what makes it hard: on its slope they are no maxima


def test_what_is_left_of_a_bright_spot_that_is_not_round_is_no_atom(monkeypatch):
    v, u = np.indices((120, 120)) * PIXEL_A
    image = 0.01 * np.random.default_rng(0).standard_normal((120, 120))
    for x, y in ((2, 2), (6, 2), (10, 2), (2, 6), (10, 6), (2, 10), (6, 10), (10, 10)):
        image += np.exp(-((u - x) ** 2 + (v - y) ** 2) / 2 / 0.4**2)
    image += 10 * np.exp(-((u - 6) ** 2 / 0.48**2 + (v - 6) ** 2 / 0.4**2) / 2)
    assert len(find_atoms(image, pixel_size_A=PIXEL_A)) == 9
    monkeypatch.setattr("micrographia.atoms.find._REMNANT", 0.0)
    assert len(find_atoms(image, pixel_size_A=PIXEL_A)) > 9


def test_dark_atoms_are_the_bright_ones_of_the_negative():
    clean, _ = _crystal("graphene")
    bright = find_atoms(clean, 0.35, pixel_size_A=PIXEL_A)
    dark = find_atoms(1 - clean, 0.35, dark=True, pixel_size_A=PIXEL_A)
    assert len(bright) > 100
    np.testing.assert_allclose(dark[["x_px", "y_px"]], bright[["x_px", "y_px"]], atol=1e-3)
    assert (bright["confidence"] >= 0.5).all()


@settings(max_examples=25, deadline=None)
@given(st.floats(20, 40), st.floats(20, 35), st.floats(0.3, 1.0), st.floats(1e-3, 1e3))
def test_one_spot_is_found_to_a_tenth_of_a_pixel_whatever_the_units(x, y, sigma_A, unit):
    v, u = np.indices((56, 60))
    spot = unit * np.exp(-((u - x) ** 2 + (v - y) ** 2) / 2 / (sigma_A / PIXEL_A) ** 2)
    sites = find_atoms(spot, min(sigma_A, 0.6), pixel_size_A=PIXEL_A)
    assert len(sites) == 1
    assert np.hypot(sites["x_px"][0] - x, sites["y_px"][0] - y) < 0.1


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_noise_alone_holds_next_to_no_atoms(seed):
    noise = np.random.default_rng(seed).standard_normal((200, 200))
    assert len(find_atoms(noise, 0.4, pixel_size_A=PIXEL_A)) <= 2


def test_few_atoms_on_noise_are_found_and_little_else():
    rng = np.random.default_rng(3)
    truth = np.stack(np.meshgrid([40.3, 110.6, 170.2], [30.1, 100.7, 160.4]), -1).reshape(-1, 2)
    v, u = np.indices((200, 200))
    image = rng.standard_normal((200, 200))
    for x, y in truth:
        image += 4 * np.exp(-((u - x) ** 2 + (v - y) ** 2) / 2 / 4**2)
    found = find_atoms(image, 0.4, pixel_size_A=PIXEL_A)[["x_px", "y_px"]].to_numpy()
    assert len(match_sites(found, truth, 3)[0]) == 9
    assert len(found) <= 12


def test_threshold_keeps_two_species_and_drops_the_ripples_between():
    rng = np.random.default_rng(0)
    heavy, light = rng.normal(1, 0.05, 300), rng.normal(0.5, 0.04, 300)
    assert automatic_threshold(np.r_[heavy, light], 0.01) < light.min()
    ripples = rng.normal(0.03, 0.005, 400)
    between = automatic_threshold(np.r_[heavy, ripples], 0.02)
    assert ripples.max() < between < heavy.min()
    assert automatic_threshold(np.zeros(0), 0.1) > 0


def test_frames_are_numbered_and_named():
    clean, _ = _crystal("graphene")
    movie = [Micrograph(clean, PIXEL_A, "a"), Micrograph(clean[:, ::-1], PIXEL_A, "b")]
    sites = find_atoms(movie, 0.35)
    assert list(sites.columns) == [*SITE_COLUMNS, "frame", "height"]
    assert sites.groupby("frame")["image"].unique().map(list).to_dict() == {0: ["a"], 1: ["b"]}
    alone = find_atoms(movie[1], 0.35)
    np.testing.assert_array_equal(sites.loc[sites["frame"] == 1, "x_px"], alone["x_px"])


def test_no_two_atoms_are_closer_than_the_distance():
    image = np.random.default_rng(5).standard_normal((150, 150))
    sites = find_atoms(image, 0.2, 0.7, threshold=0.0, pixel_size_A=PIXEL_A)
    xy = sites[["x_px", "y_px"]].to_numpy()
    distance = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1)) + 1e3 * np.eye(len(xy))
    assert len(xy) > 50
    assert (
        distance.min() > 6
    )  # 7 px between the pixels of the maxima; the vertices move by up to half a pixel


def test_maps_of_two_species_become_one_table():
    x, y = np.array([12.2, 40.6, 25.0]), np.array([15.0, 30.4, 44.8])
    maps = disc_maps(x, y, np.array([0, 1, 1]), 2, (60, 60), 4.0).numpy()
    maps[0] += 0.7 * disc_maps(x[1:2], y[1:2], np.zeros(1, int), 1, (60, 60), 4.0).numpy()[0]  # a rival
    sites = sites_from_maps(maps, ["C", "Si"], 0.8, 0.2, pixel_size_A=0.1, image="m")
    assert sorted(sites["kind"]) == ["C", "Si", "Si"]
    i, _, distance = match_sites(sites[["x_px", "y_px"]].to_numpy(), 2 * np.stack([x, y], 1), 1.0)
    assert len(i) == 3
    assert distance.max() < 0.3
    assert (sites["image"] == "m").all()
    empty = sites_from_maps(np.zeros((2, 60, 60)), ["C", "Si"], 0.8, 0.2)
    assert len(empty) == 0
    assert list(empty.columns) == list(SITE_COLUMNS)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: find_atoms(np.ones((50, 50)), pixel_size_A=0.1), "constant"),
        (lambda: find_atoms(np.eye(50)), "pixel size"),
        (lambda: find_atoms(np.eye(50), 0.4, pixel_size_A=2.0), "scale"),
        (lambda: find_atoms(np.eye(20), 0.4, pixel_size_A=0.05), "scale"),
        (lambda: find_atoms(np.full((50, 50), np.nan), pixel_size_A=0.1), "NaN"),
        (lambda: find_atoms(np.eye(50), -1, pixel_size_A=0.1), "greater than 0"),
        (lambda: find_atoms(np.eye(50), method="best", pixel_size_A=0.1), "choose"),
        (lambda: find_atoms(np.zeros((2, 3, 50, 50)), pixel_size_A=0.1), "channels"),
        (lambda: find_atoms([], pixel_size_A=0.1), "image"),
        (lambda: find_atoms(np.zeros((50, 50), complex), pixel_size_A=0.1), "real"),
        (lambda: sites_from_maps(np.zeros((2, 9, 9)), ["C"], 1, 0.1), "shape"),
        (lambda: sites_from_maps(np.full((1, 9, 9), 7.0), ["C"], 1, 0.1), "probabilities"),
        (lambda: sites_from_maps(torch.zeros(1, 9, 9).numpy(), ["C"], 0, 0.1), "radius_A"),
    ],
)
def test_bad_input_is_told(call, told):
    with pytest.raises(UserError, match=told):
        call()


@pytest.mark.shared_data
def test_real_graphene_grain_boundary(shared_data):
    h5py = pytest.importorskip("h5py")
    folder = shared_data / "graphene-si"
    with h5py.File(folder / "G-GB-4nm.hdf5") as file:
        image = file["image_data"][()]
    table = np.loadtxt(folder / "G-GB-4nm-coord.csv", delimiter=",", skiprows=1)
    pixel = 40 / 512
    sites = find_atoms(image, 0.4, 0.9, pixel_size_A=pixel)
    precision, recall = _scores(
        sites[["x_px", "y_px"]].to_numpy(), table[:, 1::-1], image.shape, 1 / pixel, 0.5 / pixel
    )
    assert precision > 0.96
    assert recall > 0.93
