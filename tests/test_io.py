from __future__ import annotations

import errno
import gc
import json
import os

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from micrographia import __version__, formats, io
from micrographia.errors import UserError
from micrographia.io import atomic_path, read_folder, read_images, read_provenance, write_image
from micrographia.micrograph import Micrograph
from micrographia.signals import length_A


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, (40, 50)).astype(np.float32)


def micrograph(data: np.ndarray, pixel_size_A: float | None = 0.1234567) -> Micrograph:
    metadata = {"energy_keV": np.float64(80), "title": "Ångström"}
    return Micrograph(data, pixel_size_A, "a.tif", "lattice", metadata, ("cropped",))


# ---------------------------------------------------------------- units


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (1, "Å", 1),
        (1, "\u212b", 1),
        (2, "A", 2),
        (1, "angstroms", 1),
        (50, "pm", 0.5),
        (0.1, "nm", 1),
        (0.1, "[nm]", 1),
        (1e-4, "µm", 1),
        (1e-4, "μm", 1),
        (1e-4, "um", 1),
        (1e-4, "\\u00B5m", 1),
        ("1e-4", "micron", 1),
        (1e-10, "m", 1),
        (1, "inch", 2.54e8),
        *[(1, unit, None) for unit in ("[]", "", None, "px", "pixels", "1/nm", "eV", "s")],
        *[(value, "nm", None) for value in (0, -1, np.nan, np.inf, "wide", None)],
    ],
)
def test_one_function_normalises_lengths(value, unit, expected):
    assert length_A(value, unit) == (None if expected is None else pytest.approx(expected))


# ---------------------------------------------------------------- the instruments' own files


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("file", "count", "shape", "pixel_size_A"),
    [
        ("multi_signal_haadf_plus_plot.dm3", 1, (512, 512), 0.177516),
        ("Scanning_Preview_5frames_1.ser", 5, (128, 128), 3.84352),
        ("velox_haadf_image_512.emd", 1, (512, 512), 53.0241),
        ("HAADFscan_16x16.mrc", 1, (16, 16), 56.7913),
        ("SiO2_HAADF_128.hspy", 1, (128, 128), 85.5245),
        ("Zeiss_SEM_1k_metadata.tif", 1, (768, 1024), 26145.14),
    ],
)
def test_native_formats(shared_data, file, count, shape, pixel_size_A):
    images = read_images(shared_data / "native-formats" / file)
    assert [image.name for image in images] == (
        [file] if count == 1 else [f"{file}#{k}" for k in range(count)]
    )
    for image in images:
        assert image.shape == shape
        assert image.pixel_size_A == pytest.approx(pixel_size_A, rel=1e-5)
        assert image.pixel_size_source == "file"
        assert type(image.data) is np.ndarray, "no memory map is left open"
        assert image.data.std() > 0


@pytest.mark.shared_data
def test_values_agree_with_another_reader(shared_data):
    with mrcfile.open(shared_data / "native-formats" / "HAADFscan_16x16.mrc", permissive=True) as file:
        assert np.array_equal(read_images(file._iostream.name)[0].data, file.data.squeeze())


@pytest.mark.shared_data
def test_the_microscope_state_is_kept(shared_data):
    metadata = read_images(shared_data / "native-formats" / "velox_haadf_image_512.emd")[0].metadata
    assert metadata["energy_keV"] == 200
    assert metadata["dwell_time_us"] == pytest.approx(20)


@pytest.mark.shared_data
def test_field_of_view_in_a_json_beside_the_array(shared_data):
    image = read_images(shared_data / "mos2-haadf" / "MoS2_stem.npy")[0]
    assert (image.pixel_size_A, image.pixel_size_source) == (90 / 512, "file")
    assert image.metadata == {"energy_keV": 60.0, "beam_current_pA": 30.0}


@pytest.mark.shared_data
def test_scan_size_in_a_json_inside_hdf5(shared_data):
    image = read_images(shared_data / "graphene-si" / "G-GB-4nm.hdf5")[0]
    assert image.shape == (512, 512)
    assert image.pixel_size_A == pytest.approx(40 / 512)


@pytest.mark.shared_data
def test_igor_wave_has_its_channels_the_right_way_up(shared_data):
    from igor2 import binarywave

    path = shared_data / "pfm-domains" / "PTO_LAST0003.ibw"
    images = read_images(path)
    assert [image.metadata["title"] for image in images[:2]] == ["HeightRetrace", "AmplitudeRetrace"]
    assert images[0].pixel_size_A == pytest.approx(78.43137)
    raw = binarywave.load(str(path))["wave"]["wData"]
    assert images[1].data[0, 3] == np.float32(raw[3, -1, 1])


@pytest.mark.shared_data
@pytest.mark.parametrize("file", ["native-formats/EELS_STO.dm4", "eels/CuZn_EELS_mapping_tutorial.hspy"])
def test_spectra_are_no_images(shared_data, file):
    with pytest.raises(UserError, match=r"holds no image .* spectrum"):
        read_images(shared_data / file)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "file", ["EELS_STO.dm4", "multi_signal_haadf_plus_plot.dm3", "velox_haadf_image_512.emd"]
)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9])
def test_truncated_files_name_file_and_reason(shared_data, tmp_path, file, share):
    whole = (shared_data / "native-formats" / file).read_bytes()
    cut = tmp_path / file
    cut.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=f"{file}: "):
        read_images(cut)


@pytest.mark.shared_data
def test_large_files_are_read_lazily_to_the_same_values(shared_data, monkeypatch):
    files = [
        shared_data / "native-formats" / name
        for name in ("SiO2_HAADF_128.hspy", "Scanning_Preview_5frames_1.ser")
    ]
    eager = [image for file in files for image in read_images(file)]
    monkeypatch.setattr(formats, "LAZY_ABOVE_BYTES", 0)
    lazy = [image for file in files for image in read_images(file)]
    assert len(eager) == len(lazy) == 6
    for one, other in zip(eager, lazy, strict=True):
        assert np.array_equal(one.data, other.data)


# ---------------------------------------------------------------- MRC, TIFF, pictures, arrays


@pytest.mark.parametrize(("pixel_size_A", "expected"), [(-1.0, None), (0.0, None), (0.5, 0.5)])
def test_mrc_scale_minus_one_is_uncalibrated(tmp_path, picture, pixel_size_A, expected):
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(picture)
        file.header.cella = (50 * pixel_size_A, 40 * pixel_size_A, 1)
    image = read_images(tmp_path / "a.mrc")[0]
    assert image.pixel_size_A == (None if expected is None else pytest.approx(expected))
    assert image.pixel_size_source == ("unknown" if expected is None else "file")
    assert np.array_equal(image.data, picture)


@pytest.mark.parametrize(("unit", "per_unit"), [("nm", 80.0), ("\\u00B5m", 8e4), ("pm", 0.08)])
def test_imagej_tiff_keeps_its_unit(tmp_path, picture, unit, per_unit):
    stack = np.stack([picture, picture + 1])
    tifffile.imwrite(
        tmp_path / "ij.tif", stack, imagej=True, resolution=(per_unit, per_unit), metadata={"unit": unit}
    )
    images = read_images(tmp_path / "ij.tif")
    assert [image.name for image in images] == ["ij.tif#0", "ij.tif#1"]
    assert images[0].pixel_size_A == pytest.approx(0.125, rel=1e-4)
    assert np.array_equal(images[1].data, picture + 1)


def test_ome_tiff_calibration(tmp_path, picture):
    metadata = {"axes": "YX", "PhysicalSizeX": 0.02, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.00002}
    tifffile.imwrite(tmp_path / "a.ome.tif", picture, metadata=metadata)
    assert read_images(tmp_path / "a.ome.tif")[0].pixel_size_A == pytest.approx(0.2)


@pytest.mark.parametrize(("dots_per_cm", "expected"), [(28.346, None), (118.11, None), (5e8, 0.2)])
def test_print_resolution_is_no_calibration(tmp_path, picture, dots_per_cm, expected):
    tifffile.imwrite(
        tmp_path / "a.tif",
        picture,
        resolution=(dots_per_cm, dots_per_cm),
        resolutionunit="CENTIMETER",
        metadata=None,
    )
    assert read_images(tmp_path / "a.tif")[0].pixel_size_A == (expected and pytest.approx(expected))


@pytest.mark.parametrize(("per_unit", "unit", "expected"), [(72, "inch", None), (2.0, "\\u00B5m", 5000.0)])
def test_imagej_writes_print_resolutions_too(tmp_path, picture, per_unit, unit, expected):
    tifffile.imwrite(
        tmp_path / "a.tif", picture, imagej=True, resolution=(per_unit, per_unit), metadata={"unit": unit}
    )
    assert read_images(tmp_path / "a.tif")[0].pixel_size_A == (expected and pytest.approx(expected))


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i2", ">f4", "<f8", "u1"])
def test_number_types_keep_their_values(tmp_path, dtype):
    data = np.arange(40 * 50).reshape(40, 50).astype(dtype)
    tifffile.imwrite(
        tmp_path / "a.tif", data, byteorder=data.dtype.byteorder if data.dtype.byteorder in "<>" else "<"
    )
    np.save(tmp_path / "a.npy", data)
    for name in ("a.tif", "a.npy"):
        assert np.array_equal(read_images(tmp_path / name)[0].data, data.astype(np.float32))


def test_sixteen_bit_png_is_not_clipped(tmp_path):
    data = np.linspace(0, 65535, 2000).reshape(40, 50).astype(np.uint16)
    Image.fromarray(data).save(tmp_path / "a.png")
    assert np.array_equal(read_images(tmp_path / "a.png")[0].data, data)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.npy", "a.bmp"])
def test_a_colour_photo_is_refused_and_a_grey_one_accepted(tmp_path, name):
    def save(colours: np.ndarray) -> None:
        if name == "a.tif":
            tifffile.imwrite(tmp_path / name, colours, photometric="rgb")
        elif name == "a.npy":
            np.save(tmp_path / name, colours)
        else:
            Image.fromarray(colours).save(tmp_path / name)

    colours = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    save(colours)
    with pytest.raises(UserError, match=f"{name}: is a colour photo"):
        read_images(tmp_path / name)
    save(np.repeat(colours[..., :1], 3, axis=2))
    assert np.array_equal(read_images(tmp_path / name)[0].data, colours[..., 0])


def test_pixels_that_are_not_square_are_told(tmp_path, picture):
    tifffile.imwrite(tmp_path / "a.tif", picture, imagej=True, resolution=(100, 98), metadata={"unit": "nm"})
    image = read_images(tmp_path / "a.tif")[0]
    assert image.pixel_size_A == pytest.approx((0.1 + 10 / 98) / 2)
    assert "not square" in image.metadata["warning"]


def test_hdf5_takes_images_and_leaves_tables(tmp_path, picture):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["table"] = np.zeros((100, 4))
        file["text"] = "no JSON"
        file["group/images"] = np.stack([picture, picture])
        file["spectrum"] = np.zeros(1000)
    images = read_images(tmp_path / "a.h5")
    assert [image.name for image in images] == ["a.h5#0", "a.h5#1"]
    assert images[0].metadata["title"] == "group/images"


def test_zspy(tmp_path, picture):
    experiments = zarr.open_group(tmp_path / "a.zspy", mode="w", zarr_format=2).create_group("Experiments")
    for title, data in (
        ("HAADF", picture),
        ("4D", np.zeros((2, 2, 40, 40))),
        ("stack", np.stack([picture] * 2)),
    ):
        group = experiments.create_group(title)
        group.create_array("data", data=data)
        for i, name in enumerate("tzyx"[-data.ndim :]):
            group.create_group(f"axis-{i}").attrs.update({"name": name, "scale": 0.02, "units": "nm"})
        group.create_group("metadata").attrs.update({"General": {"title": title}})
    images = read_images(tmp_path / "a.zspy")
    assert [image.metadata["title"] for image in images] == ["HAADF", "stack", "stack"]
    for image in images:
        assert image.pixel_size_A == pytest.approx(0.2)
        assert np.array_equal(image.data, picture)


def test_the_user_knows_the_pixel_size_better(tmp_path, picture):
    write_image(tmp_path / "a.tif", micrograph(picture))
    image = read_images(tmp_path / "a.tif", pixel_size_A=0.2)[0]
    assert (image.pixel_size_A, image.pixel_size_source) == (0.2, "user")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros(100), "1-D data"),
        (np.zeros((2, 2, 40, 40)), "4-D data"),
        (np.full((40, 40), np.nan), "1600 of 1600 pixels are NaN"),
        (np.full((40, 40), 1e300), "values up to 1e\\+300 are too large for 32-bit floats"),
        (np.array([[1e300, np.nan]] * 2), "4 of 4 pixels are NaN"),
        (np.zeros((40, 40), complex), "complex"),
        (np.array([{}]), "cannot be read"),
        (np.zeros((0, 40, 40)), "holds no image"),
    ],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_arrays_that_are_no_image(tmp_path, data, message):
    np.save(tmp_path / "a.npy", data, allow_pickle=True)
    with pytest.raises(UserError, match=message) as caught:
        read_images(tmp_path / "a.npy")
    assert "a.npy" in str(caught.value)


def test_unknown_suffix_missing_file_and_folder(tmp_path):
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(UserError, match=r"'\.doc' is not a format"):
        read_images(tmp_path / "a.doc")
    with pytest.raises(UserError, match="no such file"):
        read_images(tmp_path / "b.tif")
    with pytest.raises(UserError, match="is a folder"):
        read_images(tmp_path)


@pytest.mark.parametrize("suffix", sorted(formats.FOLDER_SUFFIXES - {".zspy"}))
@pytest.mark.parametrize("content", [b"", b"this is not an image at all, whatever its name says " * 40])
def test_rubbish_under_any_known_suffix_is_a_user_error(tmp_path, suffix, content):
    path = tmp_path / f"rubbish{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"rubbish{suffix}: "):
        read_images(path)


def test_truncated_tiff(tmp_path, picture):
    for compression in (None, "zlib"):
        tifffile.imwrite(tmp_path / "a.tif", picture, compression=compression)
        whole = (tmp_path / "a.tif").read_bytes()
        (tmp_path / "a.tif").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=r"a\.tif: "):
            read_images(tmp_path / "a.tif")


def test_a_truncated_mrc_is_closed_again(tmp_path, picture):
    path = tmp_path / "a.mrc"
    with mrcfile.new(path) as file:
        file.set_data(picture)
    path.write_bytes(path.read_bytes()[:4000])
    inode = path.stat().st_ino
    gc.disable()  # A handle that only the collector closes may stay open for long.
    try:
        with pytest.raises(UserError, match=r"a\.mrc: "):
            read_images(path)
        assert not [number for number in range(256) if _inode(number) == inode]
    finally:
        gc.enable()


def _inode(number: int) -> int | None:
    """Which file this process has open under a number."""
    try:
        return os.fstat(number).st_ino
    except OSError:
        return None


@pytest.mark.parametrize(
    ("told", "history"),
    [(None, ()), ("cropped", ("cropped",)), (["cropped", "binned"], ("cropped", "binned")), (3, ("3",))],
)
def test_a_history_that_somebody_wrote_by_hand(tmp_path, picture, told, history):
    np.save(tmp_path / "a.npy", picture)
    (tmp_path / "a.json").write_text(json.dumps({"pixel_size_A": 0.2, "history": told}))
    (image,) = read_images(tmp_path / "a.npy")
    assert (image.history, image.pixel_size_A) == (history, 0.2)


# ---------------------------------------------------------------- folders


def test_a_folder_is_read_past_its_bad_files(tmp_path, picture):
    for name in ("b10.npy", "b9.npy"):
        np.save(tmp_path / name, picture)
    (tmp_path / "bad.dm4").write_bytes(b"short")
    (tmp_path / "notes.txt").write_text("not looked at")
    (tmp_path / "deeper").mkdir()
    images, failures = read_folder(tmp_path)
    assert [image.name for image in images] == ["b9.npy", "b10.npy"]
    assert [file.name for file, _ in failures] == ["bad.dm4"]
    assert "bad.dm4" in failures[0][1]
    assert len(read_folder(str(tmp_path / "b*.npy"))[0]) == 2
    assert len(read_folder([tmp_path, tmp_path / "b9.npy"])[0]) == 2, "each file once"


def test_a_bad_frame_does_not_take_its_stack_with_it(tmp_path):
    stack = np.random.default_rng(0).normal(size=(3, 40, 40)).astype(np.float32)
    stack[1, 5, 5] = np.nan
    np.save(tmp_path / "stack.npy", stack)
    images, failures = read_folder(tmp_path)
    assert [m.name for m in images] == ["stack.npy#0", "stack.npy#2"]
    ((path, reason),) = failures
    assert path.name == "stack.npy"
    assert "stack.npy#1" in reason
    assert "NaN" in reason


def test_names_from_several_folders_are_unique(tmp_path, picture):
    for folder in ("x/day", "y/day", "z"):
        (tmp_path / folder).mkdir(parents=True)
        np.save(tmp_path / folder / "a.npy", np.stack([picture, picture]) if folder == "z" else picture)
    images, _ = read_folder([tmp_path / "x/day", tmp_path / "y/day", tmp_path / "z"])
    assert [image.name for image in images] == ["x/day/a.npy", "y/day/a.npy", "z/a.npy#0", "z/a.npy#1"]


@pytest.mark.shared_data
def test_tia_header_and_data_are_one_image(shared_data):
    assert [image.name for image in read_folder(shared_data / "srtio3-haadf")[0]] == ["16_STOimage.emi"]


def test_nothing_to_read(tmp_path):
    for paths in ([], tmp_path, str(tmp_path / "*.tif"), [tmp_path]):
        with pytest.raises(UserError, match="No image files"):
            read_folder(paths)
    (tmp_path / "bad.dm4").write_bytes(b"short")
    with pytest.raises(UserError, match=r"None of 2 files could be read:\n.*bad\.dm4"):
        read_folder([tmp_path, tmp_path / "absent.tif"])


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("name", ["a.tif", "a.npy", "a.hspy", "a.png"])
@pytest.mark.parametrize("pixel_size_A", [0.1234567, None])
def test_round_trip(tmp_path, picture, name, pixel_size_A):
    write_image(tmp_path / name, micrograph(picture, pixel_size_A), {"seed": 3, "dose": np.float32(2.5)})
    (image,) = read_images(tmp_path / name)
    assert image.pixel_size_A == (pixel_size_A and pytest.approx(pixel_size_A, rel=1e-12))
    assert image.history == ("cropped",)
    assert image.metadata["energy_keV"] == 80
    software = f"micrographia {__version__}"
    assert read_provenance(tmp_path / name) == {
        "software": software, "seed": 3, "dose": 2.5, "synthetic": True,
    }  # fmt: skip
    if name == "a.png":
        assert np.corrcoef(image.data.ravel(), picture.ravel())[0, 1] > 0.999
    else:
        assert np.array_equal(image.data, picture)


def test_provenance_survives_copying_and_is_absent_from_measured_images(tmp_path, picture):
    write_image(tmp_path / "a.tif", micrograph(picture))
    assert read_provenance(tmp_path / "a.tif") is None
    write_image(tmp_path / "b.tif", micrograph(picture), {"model": "x"})
    write_image(tmp_path / "c.npy", read_images(tmp_path / "b.tif")[0])
    told = read_provenance(tmp_path / "c.npy")
    assert told is not None
    assert told["software"] == f"micrographia {__version__}"
    assert (told["model"], told["synthetic"]) == ("x", True)


def test_other_programs_see_the_calibration(tmp_path, picture):
    from rsciio.hspy import file_reader

    write_image(tmp_path / "a.hspy", micrograph(picture))
    axes = file_reader(str(tmp_path / "a.hspy"))[0]["axes"]
    assert [(axis["units"], float(axis["scale"])) for axis in axes] == [("nm", pytest.approx(0.01234567))] * 2
    write_image(tmp_path / "a.tif", micrograph(picture))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.imagej_metadata["unit"] == "nm"
        up, down = file.pages.first.tags["XResolution"].value
        assert up / down == pytest.approx(10 / 0.1234567, rel=1e-6)


def test_what_cannot_be_written_leaves_nothing(tmp_path, picture):
    with pytest.raises(UserError, match=r"choose \.tif"):
        write_image(tmp_path / "a.gif", micrograph(picture))
    with pytest.raises(UserError, match="constant"):
        write_image(tmp_path / "a.png", micrograph(np.ones((40, 40))))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_image(tmp_path / "file" / "a.tif", micrograph(picture))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_keeps_the_old_file(tmp_path, picture, monkeypatch):
    write_image(tmp_path / "a.npy", micrograph(picture))
    before = (tmp_path / "a.npy").read_bytes()

    def half(path, data):
        path.write_bytes(b"x" * 2_000_000)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(io.np, "save", half)
    with pytest.raises(UserError, match=r"disk is full: the file had reached 2\.0 MB, .* MB are free"):
        write_image(tmp_path / "a.npy", micrograph(picture + 1))
    assert (tmp_path / "a.npy").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.npy"]
    assert json.loads((tmp_path / "a.json").read_text())["pixel_size_A"] == 0.1234567


def test_atomic_path_for_files_and_folders(tmp_path):
    with atomic_path(tmp_path / "new" / "folder") as temporary:
        temporary.mkdir()
        (temporary / "x").write_text("1")
        assert not (tmp_path / "new" / "folder").exists()
    assert (tmp_path / "new" / "folder" / "x").read_text() == "1"


def test_atomic_path_leaves_nothing_after_a_failure(tmp_path):
    def fail() -> None:
        with atomic_path(tmp_path / "b.txt") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
