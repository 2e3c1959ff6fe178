from __future__ import annotations

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from micrographia.errors import UserError
from micrographia.inspect import IDEAL_CELLS, LATTICES, SYMMETRY_DEG, inspect_image, spot_scale
from micrographia.io import read_images
from micrographia.micrograph import Micrograph
from micrographia.plots.inspection import inspection_figure
from micrographia.simulate.crystals import DICHALCOGENIDES, STRONTIUM_TITANATE_A
from micrographia.simulate.graphene import LATTICE_A


def lattice_image(
    shape: tuple[int, int] = (256, 256),
    constant_px: float = 18.0,
    angle_deg: float = 20.0,
    kind: str = "hexagonal",
    noise: float = 1.0,
    seed: int = 0,
    distortion: np.ndarray | None = None,
    jitter_px: float = 0.0,
    columns: tuple[tuple[float, float, float], ...] = ((0.0, 0.0, 1.0),),
) -> np.ndarray:
    """Gaussian columns (u, v, weight) on a lattice as a Fourier sum; noise in units of its standard deviation."""
    rng = np.random.default_rng(seed)
    turn = np.radians(angle_deg)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])  # y down the screen
    cell = constant_px * IDEAL_CELLS[kind] @ rotation.T
    if distortion is not None:
        cell = cell @ distortion.T
    reciprocal = np.linalg.inv(cell).T
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    x += jitter_px * rng.normal(size=(shape[0], 1))
    image = np.zeros(shape)
    sigma = constant_px / 12
    for h in range(-4, 5):
        for k in range(-4, 5):
            q = h * reciprocal[0] + k * reciprocal[1]
            weight = np.exp(-2 * (np.pi * sigma) ** 2 * (q @ q))
            factor = sum(w * np.exp(-2j * np.pi * (h * u + k * v)) for u, v, w in columns)
            image += weight * (factor * np.exp(2j * np.pi * (q[0] * (x - 7.3) + q[1] * (y - 4.1)))).real
    return image / image.std() + noise * rng.normal(size=shape)


def angle_error(found: float, true: float, kind: str) -> float:
    symmetry = SYMMETRY_DEG[kind]
    return abs((found - true + symmetry / 2) % symmetry - symmetry / 2)


def test_a_doubt_about_the_files_pixel_size_is_a_warning(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, lattice_image().astype("f4"), imagej=True, resolution=(50, 40), metadata={"unit": "nm"}
    )
    (warning,) = inspect_image(read_images(path)[0]).warnings
    assert warning == "pixels are not square: 0.2 Å along x, 0.25 Å along y; the mean is used"
    assert inspect_image(read_images(path, pixel_size_A=0.2)[0]).warnings == ()


# ---------------------------------------------------------------- known lattices


@settings(max_examples=8, deadline=None)
@given(
    kind=st.sampled_from(sorted(IDEAL_CELLS)),
    constant=st.floats(11, 26),
    angle=st.floats(0, 90),
    noise=st.floats(0.3, 3),
    seed=st.integers(0, 1000),
)
def test_a_noisy_lattice_is_recovered_to_0p3_percent_and_0p2_degrees(kind, constant, angle, noise, seed):
    image = lattice_image((256, 288), constant, angle, kind, noise, seed)
    found = inspect_image(Micrograph(image))
    assert found.kind == kind
    assert found.lattice_constant_px == pytest.approx(constant, rel=0.003)
    assert angle_error(found.angle_deg, angle, kind) < 0.2
    assert abs(found.lattice_constant_px / constant - 1) < 0.04 * found.lattice_error_percent
    a, b = found.vectors_px
    assert a[0] * b[1] - a[1] * b[0] < 0  # a2 counter-clockwise from a1 on the screen


def test_counted_electrons_at_low_dose_suffice():
    """About 0.5 electrons per pixel: no column can be seen by eye in it."""
    density = lattice_image((512, 512), 17.6, 33.0, noise=0)
    density = 0.5 * (density - density.min()) / (density - density.min()).mean()
    found = inspect_image(Micrograph(np.random.default_rng(1).poisson(density)), "MoS2")
    assert found.lattice_constant_px == pytest.approx(17.6, rel=0.003)
    assert angle_error(found.angle_deg, 33.0, "hexagonal") < 0.2


def test_the_pixel_size_follows_from_the_material_and_a_wrong_one_is_reported():
    image = lattice_image(constant_px=20.0)
    found = inspect_image(Micrograph(image, 0.2, pixel_size_source="file"), "WSe2")
    assert found.lattice_pixel_size_A == pytest.approx(3.282 / 20, rel=0.003)
    assert found.pixel_size_ratio == pytest.approx(0.2 * 20 / 3.282, rel=0.003)
    assert any("pixel size of the file" in w and "+21.9 %" in w for w in found.warnings)
    assert np.hypot(*found.vectors_A.T) == pytest.approx(3.282, rel=0.01)
    right = inspect_image(Micrograph(image, 0.1641, pixel_size_source="file"), "wse2")  # in any case
    assert right.warnings == ()
    unknown = inspect_image(Micrograph(image))
    assert unknown.lattice_pixel_size_A is None
    assert unknown.vectors_A is None
    assert unknown.information_limit_pm is None


@pytest.mark.parametrize(
    ("kind", "constant", "columns"),
    [
        ("hexagonal", 31.5, ((0, 0, 1), (1 / 3, 2 / 3, 1))),  # graphene
        ("hexagonal", 31.5, ((0, 0, 1), (1 / 3, 2 / 3, 1), (2 / 3, 1 / 3, 0.85))),
        ("square", 40.0, ((0, 0, 1), (0.5, 0.5, 0.85))),  # first order nearly extinct
    ],
)
def test_weak_first_orders_are_not_overlooked(kind, constant, columns):
    found = inspect_image(Micrograph(lattice_image((512, 512), constant, 10.0, kind, columns=columns)))
    assert found.kind == kind
    assert found.lattice_constant_px == pytest.approx(constant, rel=0.003)


def test_distortion_is_measured():
    distortion = np.array([[1.03, 0.02], [0.0, 0.97]])
    found = inspect_image(Micrograph(lattice_image((512, 512), distortion=distortion)), "MoS2")
    assert found.shear_percent == pytest.approx(100 * 0.02 / 0.97, abs=0.3)
    singular = np.linalg.svd(distortion, compute_uv=False)
    assert found.anisotropy_percent == pytest.approx(100 * (singular[0] / singular[1] - 1), abs=0.4)
    assert found.strain[0, 0] == pytest.approx(0.031, abs=0.003)
    assert found.lattice_constant_px == pytest.approx(18 * np.sqrt(np.linalg.det(distortion)), rel=0.003)
    assert any("stretched" in w for w in found.warnings)


@pytest.mark.parametrize("jitter", [0.0, 0.4, 0.8])
def test_row_jitter_is_measured_through_noise(jitter):
    found = inspect_image(Micrograph(lattice_image((512, 512), jitter_px=jitter)))
    assert found.row_jitter_px == pytest.approx(jitter, rel=0.2, abs=0.1)


def test_an_oblique_lattice_is_called_oblique_and_gives_no_pixel_size():
    image = lattice_image((512, 512), kind="square", distortion=np.array([[1.25, 0.3], [0.0, 0.8]]))
    found = inspect_image(Micrograph(image, 0.2), "SrTiO3")
    assert found.kind == "oblique"
    assert found.lattice_pixel_size_A is None
    assert any("oblique" in w for w in found.warnings)


def test_two_grains_are_told_apart_and_a_single_one_is_not_split():
    left, right = (lattice_image((512, 512), 24.0, angle, noise=0.5) for angle in (5.0, 30.0))
    column = np.arange(512)
    image = np.where(column < 310, left, right)
    found = inspect_image(Micrograph(image))
    assert angle_error(found.angle_deg, 5.0, "hexagonal") < 0.7
    assert angle_error(found.second_angle_deg, 30.0, "hexagonal") < 1.5
    assert inspect_image(Micrograph(left)).second_angle_deg is None


def test_heavy_atoms_dirt_and_hot_pixels_do_not_hide_the_lattice():
    image = lattice_image((256, 256), 31.5, 12.0, noise=2.0, columns=((0, 0, 1), (1 / 3, 2 / 3, 1)))
    y, x = np.mgrid[:256, :256]
    for cx, cy in ((100, 120), (118, 128), (102, 141)):
        image += 12 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 2 / 5**2)
    image[40, 77] = 1e4
    found = inspect_image(Micrograph(image))
    assert found.kind == "hexagonal"
    assert found.lattice_constant_px == pytest.approx(31.5, rel=0.015)


# ---------------------------------------------------------------- noise, limit, no lattice


def test_noise_and_signal_to_noise_are_right():
    found = inspect_image(Micrograph(lattice_image((512, 512), noise=0.8)))
    assert found.noise == pytest.approx(0.8, rel=0.03)
    assert found.snr == pytest.approx(1 / 0.8, rel=0.05)


def test_the_information_limit_is_where_the_noise_begins():
    rng = np.random.default_rng(2)
    q = np.hypot(*np.meshgrid(np.fft.fftfreq(512), np.fft.fftfreq(512)))
    film = np.fft.ifft2(np.fft.fft2(rng.normal(size=(512, 512))) * (q < 1 / 8)).real
    found = inspect_image(Micrograph(film + 0.05 * rng.normal(size=film.shape), 0.2))
    assert found.kind == "none"
    assert found.information_limit_px == pytest.approx(8, rel=0.08)
    assert found.information_limit_pm == pytest.approx(160, rel=0.08)
    sharp, blurred = (
        inspect_image(
            Micrograph(ndimage.gaussian_filter(lattice_image((512, 512), 24, noise=0), s) + 0.1 * film)
        )
        for s in (0.0, 3.5)
    )
    assert sharp.information_limit_px < blurred.information_limit_px


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("grain_px", [0.0, 2.0, 5.0])
def test_noise_and_amorphous_film_have_no_lattice(size, grain_px):
    for seed in range(4):
        rng = np.random.default_rng([seed, size])
        film = rng.normal(size=(size, size))
        film = ndimage.gaussian_filter(film, grain_px) * (1 + 2 * grain_px) + 0.3 * rng.normal(
            size=film.shape
        )
        found = inspect_image(Micrograph(film), "graphene")
        assert (found.kind, found.confidence, found.has_lattice) == ("none", 0.0, False)
        assert found.vectors_px is None
        assert "no lattice found" in found.warnings[0]


def test_stripes_are_no_lattice():
    x = np.arange(256)
    image = np.sin(2 * np.pi * x / 9.3) + 0.5 * np.random.default_rng(0).normal(size=(256, 256))
    assert inspect_image(Micrograph(image)).kind == "none"


# ---------------------------------------------------------------- bad input


def test_bad_input_is_refused_with_a_reason():
    with pytest.raises(UserError, match=r"flat\.tif.*constant"):
        inspect_image(Micrograph(np.ones((64, 64)), name="flat.tif"))
    with pytest.raises(UserError, match="too few"):
        inspect_image(Micrograph(np.eye(8)))
    with pytest.raises(UserError, match="Did you mean 'WSe2'"):
        inspect_image(Micrograph(lattice_image()), "WSe")
    with pytest.raises(UserError, match="constant"):
        spot_scale(np.zeros((64, 64)))


def test_the_lattice_constants_are_those_of_the_simulation():
    simulated = {name: a for name, (a, _) in DICHALCOGENIDES.items()}
    simulated |= {"graphene": LATTICE_A, "SrTiO3": STRONTIUM_TITANATE_A}
    assert {name: a for name, (_, a) in LATTICES.items()} == simulated


# ---------------------------------------------------------------- spots


@pytest.mark.parametrize("fwhm", [4.0, 6.0, 10.0])
def test_the_width_of_single_atoms_is_found(fwhm):
    rng = np.random.default_rng(3)
    image = np.zeros((512, 512))
    rows, columns = rng.integers(20, 492, (2, 60))
    image[rows, columns] = 1
    image = ndimage.gaussian_filter(image, fwhm / 2.3548)
    image += 0.1 * image.max() * rng.normal(size=image.shape)
    assert spot_scale(image) == pytest.approx(fwhm, rel=0.04)


@pytest.mark.parametrize("film", ["level", "ramp", "edge", "speck"])
def test_atoms_are_seen_on_an_uneven_film(film):
    rng = np.random.default_rng(5)
    image = np.zeros((256, 256))
    image[rng.integers(20, 236, 40), rng.integers(20, 236, 40)] = 1
    image = ndimage.gaussian_filter(image, 6.0 / 2.3548)
    image = image / image.max() + 0.1 * rng.normal(size=image.shape)
    added = {
        "ramp": np.linspace(0, 2, 256) * np.ones((256, 1)),
        "edge": 2.0 * (np.arange(256) > 100) * np.ones((256, 1)),
    }
    image += added.get(film, 0.0)
    if film == "speck":
        image[100:103, 100:103] = 20
    assert spot_scale(image) == pytest.approx(6.0, rel=0.15)


def test_a_few_atoms_on_noise_are_enough_and_noise_alone_is_none():
    rng = np.random.default_rng(4)
    image = np.zeros((256, 256))
    image[rng.integers(30, 226, 8), rng.integers(30, 226, 8)] = 1
    image = ndimage.gaussian_filter(image, 6.0 / 2.3548)
    assert spot_scale(image / image.max() + 0.1 * rng.normal(size=image.shape)) == pytest.approx(6.0, rel=0.1)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        for noise in (
            rng.normal(size=(256, 256)),
            ndimage.gaussian_filter(rng.normal(size=(256, 256)), 2.0),
            rng.poisson(0.5, (256, 256)),
        ):
            with pytest.raises(UserError, match="Too few spots"):
                spot_scale(noise)


# ---------------------------------------------------------------- the figure


@pytest.mark.parametrize("material", [None, "MoS2"])
def test_the_figure_shows_image_spectrum_and_numbers(material, tmp_path):
    micrograph = Micrograph(lattice_image(), 0.3, "here.tif", "file")
    figure = inspection_figure(micrograph, inspect_image(micrograph, material))
    figure.savefig(tmp_path / "figure.png", dpi=40)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "hexagonal" in texts
    assert any("pixel size of the file" in t.replace("\n", " ") for t in texts) == (material is not None)
    noise = Micrograph(np.random.default_rng(0).normal(size=(40, 60)))
    inspection_figure(noise, inspect_image(noise)).savefig(tmp_path / "noise.png", dpi=40)


# ---------------------------------------------------------------- real images


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("path", "material", "kind", "pixel_size_A", "tolerance"),
    [
        ("mos2-haadf/MoS2_stem.npy", "MoS2", "hexagonal", 0.179, 0.015),
        ("mos2-haadf/MoS2_stem_Exp-000-2.npy", "MoS2", "hexagonal", 0.176, 0.015),
        ("wse2-haadf/full_14.tif", "WSe2", "hexagonal", 0.0845, 0.025),
        ("wse2-haadf/part_8.tif", "WS2", "hexagonal", 0.0845, 0.035),
        ("srtio3-haadf/16_STOimage_1.ser", "SrTiO3", "square", 0.0963, 0.011),
        ("graphene-si/G-Si-2nm.hdf5", "graphene", "hexagonal", 0.0781, 0.025),
        ("graphene-si/G-GB-4nm.hdf5", "graphene", "hexagonal", 0.0781, 0.025),
        ("graphene-si/frames/Si3C6_20.tif", "graphene", "hexagonal", 0.0781, 0.03),
    ],
)
def test_the_scale_of_real_images(shared_data, path, material, kind, pixel_size_A, tolerance):
    found = inspect_image(read_images(shared_data / path)[0], material)
    assert found.kind == kind
    assert found.lattice_pixel_size_A == pytest.approx(pixel_size_A, rel=tolerance)


@pytest.mark.shared_data
def test_the_tilt_boundary_has_two_grains(shared_data):
    """The atoms' published coordinates have bonds at 27.5° and 57°, so lattice vectors at 57.5° and 27°."""
    found = inspect_image(read_images(shared_data / "graphene-si/G-GB-4nm.hdf5")[0], "graphene")
    angles = sorted([found.angle_deg, found.second_angle_deg])
    assert angles == pytest.approx([27.0, 57.5], abs=2)


@pytest.mark.shared_data
def test_single_atoms_on_film_have_no_lattice(shared_data):
    files = sorted((shared_data / "re-single-atoms/images").iterdir())
    assert len(files) == 11
    for path in files[::3]:
        micrograph = read_images(path)[0]
        assert inspect_image(micrograph).kind == "none", path.name
        # Half maximum of the mean profile at the labelled atoms: 5.2 to 5.6 px.
        assert spot_scale(micrograph.data) == pytest.approx(5.6, rel=0.2)
