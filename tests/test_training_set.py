from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from micrographia.errors import UserError
from micrographia.io import StoredImage, read_images, read_provenance, read_stored, write_stored
from micrographia.synthesize.images import Window, read_training_set, write_samples


def grains(seed: int, shape: tuple[int, ...] = (64, 64), dtype: str = "uint8") -> np.ndarray:
    top = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    return (np.random.default_rng(seed).random(shape) * top).astype(dtype)


def save(path, data: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(data).save(path)
    else:
        tifffile.imwrite(path, data)
    return data


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".png", "uint8"), (".png", "uint16"), (".tif", "uint8"), (".tif", "uint16"), (".tif", "float32")],
)
def test_images_of_the_resolution_are_taken_as_they_are(tmp_path, suffix, dtype):
    originals = [save(tmp_path / f"{i}{suffix}", grains(i, dtype=dtype)) for i in range(3)]
    found = read_training_set(tmp_path, 64)
    assert found.images.dtype == dtype, "compact: the bit depth of the files"
    assert np.array_equal(found.images[:, 0], originals)
    assert found.names == tuple(f"{i}{suffix}" for i in range(3))
    assert found.corners_px.tolist() == [[0, 0]] * 3
    assert (found.failures, found.notes, found.pixel_size_A, found.labels) == ((), (), None, None)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_one_window_for_the_set_and_back(tmp_path, dtype):
    """A dark image stays dark beside a bright one, and grey levels inside the window return."""
    top = {"uint8": 200, "uint16": 50000, "float32": 3.5}[dtype]
    for i, level in enumerate((0.25, 0.5, 1)):
        save(tmp_path / f"{i}.tif", (grains(i, dtype="float32") * level * top).astype(dtype))
    found = read_training_set(tmp_path, 64)
    scaled = found.batch([0, 1, 2])
    assert scaled.dtype == torch.float32
    assert scaled.min() == -1
    assert scaled.max() == 1
    assert found.batch(slice(0, 1)).mean() == pytest.approx(-0.75, abs=0.02)
    assert found.batch(np.array([2])).mean() == pytest.approx(0, abs=0.02)
    original = found.images.astype(float)
    inside = (original >= found.window.low) & (original <= found.window.high)
    assert 0.997 <= inside.mean() <= 1
    returned = found.window.restore(scaled.numpy())
    assert returned.dtype == dtype
    assert np.allclose(returned[inside], found.images[inside], atol=0 if dtype != "float32" else 1e-6)


def test_the_window_ignores_a_hot_pixel(tmp_path):
    image = grains(0, (128, 128), "float32")
    image[5, 5] = 1e6
    save(tmp_path / "hot.tif", image)
    found = read_training_set(tmp_path, 64)
    assert (found.window.low, found.window.high) == pytest.approx((0, 1), abs=0.02)
    assert float(found.batch(slice(None)).max()) == 1, "clipped"


def test_of_binary_images_the_window_is_their_extremes(tmp_path):
    image = np.zeros((128, 128), np.uint8)
    image[:3, :3] = 255  # 0.05 % of the pixels
    save(tmp_path / "a.png", image)
    assert read_training_set(tmp_path, 64).window == Window(0, 255, "uint8")


def test_larger_images_are_covered_by_crops(tmp_path):
    image = save(tmp_path / "a.png", grains(0, (100, 160)))
    found = read_training_set(tmp_path, 64)
    assert found.corners_px.tolist() == [[x, y] for y in (0, 36) for x in (0, 48, 96)]
    seen = np.zeros(image.shape, bool)
    for patch, (x, y) in zip(found.images[:, 0], found.corners_px, strict=True):
        assert np.array_equal(patch, image[y : y + 64, x : x + 64])
        seen[y : y + 64, x : x + 64] = True
    assert seen.all()


def test_random_crops_do_not_depend_on_the_other_files(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", grains(i, (100, 160)))
    few = read_training_set(tmp_path, 64, crops_per_image=5, seed=7)
    assert len(few) == 15
    assert len({tuple(c) for c in few.corners_px}) > 10
    other = read_training_set(tmp_path, 64, crops_per_image=5, seed=8)
    assert not np.array_equal(few.corners_px, other.corners_px)
    (tmp_path / "1.png").write_bytes(b"damaged")
    again = read_training_set(tmp_path, 64, crops_per_image=5, seed=7)
    assert np.array_equal(again.images, few.images[[*range(5), *range(10, 15)]])


def test_resizing_averages_over_areas_and_scales_the_pixel(tmp_path):
    coarse = grains(0, (64, 96))
    fine = np.kron(coarse, np.ones((3, 3), np.uint8))
    for i in range(2):
        write_stored(tmp_path / f"{i}.tif", StoredImage(fine, pixel_size_A=2.0))
    found = read_training_set(tmp_path, 64, fit="resize")
    assert np.array_equal(found.images[0, 0], coarse[:, 16:80]), "the centre, each new pixel the mean of nine"
    assert found.pixel_size_A == pytest.approx(6)
    assert read_training_set(tmp_path, 64).pixel_size_A == pytest.approx(2)


def test_each_image_scaled_by_itself(tmp_path):
    one = grains(0, (64, 128)).astype(np.float32)
    save(tmp_path / "dark.tif", (one / 8).astype(np.float32))
    save(tmp_path / "bright.tif", (100 + one / 2).astype(np.float32))
    apart = read_training_set(tmp_path, 64)
    assert abs(apart.images[0].mean() - apart.images[-1].mean()) > 50
    assert any("images.scale_each" in note for note in apart.notes)
    alike = read_training_set(tmp_path, 64, scale_each=True)
    assert alike.scale_each
    assert not alike.notes
    assert np.allclose(alike.images[:2], alike.images[2:], atol=1e-3)
    assert not np.allclose(alike.images[0], alike.images[1]), (
        "scaled before patches are cut, not patch by patch"
    )


def test_unlike_pixel_sizes_are_noted(tmp_path):
    for i, size in enumerate((2.0, 2.0, 4.0)):
        write_stored(tmp_path / f"{i}.tif", StoredImage(grains(i), pixel_size_A=size))
    found = read_training_set(tmp_path, 64)
    assert found.pixel_size_A is None
    assert "range from 2 to 4 Å" in found.notes[0]
    write_stored(tmp_path / "2.tif", StoredImage(grains(2)))
    assert "1 of 3 images have no pixel size" in read_training_set(tmp_path, 64).notes[0]


def test_colours(tmp_path):
    colour = save(tmp_path / "a.png", grains(0, (64, 64, 3)))
    save(tmp_path / "b.tif", grains(1, (64, 64, 3)))
    save(tmp_path / "c.png", grains(2, (64, 64, 4)))
    save(tmp_path / "grey.png", grains(3))
    found = read_training_set(tmp_path, 64, channels=3)
    assert found.images.shape == (3, 3, 64, 64)
    assert np.array_equal(found.images[0], colour.transpose(2, 0, 1))
    assert [path.name for path, _ in found.failures] == ["grey.png"]
    assert "is grey" in found.failures[0][1]


def test_reasons_are_counted_over_frames(tmp_path):
    tifffile.imwrite(tmp_path / "movie.tif", np.zeros((5, 64, 64), np.uint8), photometric="minisblack")
    with pytest.raises(UserError, match=r"movie\.tif: 5 x is constant"):
        read_training_set(tmp_path, 64)


def test_images_in_colours_are_no_grey_ones(tmp_path):
    for i in range(2):
        save(tmp_path / f"{i}.png", grains(i, (64, 64, 3)))
    with pytest.raises(UserError, match=r"2 x is in colours, not in grey; .*--set images\.channels=3"):
        read_training_set(tmp_path, 64)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_the_largest_float_images_do_not_overflow(tmp_path):
    for i in range(3):
        write_stored(tmp_path / f"{i}.tif", StoredImage((1e38 * grains(i) / 255).astype(np.float32)))
    found = read_training_set(tmp_path, 64)
    batch = found.batch(slice(None))
    assert bool(batch.isfinite().all())
    assert 0.1 < float(batch.std()) < 1
    assert found.notes == ()


def test_folders_as_classes(tmp_path):
    for name, count in (("ferrite", 3), ("pearlite", 2), ("empty", 0)):
        (tmp_path / name).mkdir()
        for i in range(count):
            save(tmp_path / name / f"{i}.png", grains(i + count))
    save(tmp_path / "loose.png", grains(0))
    found = read_training_set(tmp_path, 64, classes=True)
    assert found.classes == ("ferrite", "pearlite")
    assert found.labels.tolist() == [0, 0, 0, 1, 1]
    assert found.names[0] == "ferrite/0.png"
    assert [path.name for path, _ in found.failures] == ["loose.png"]
    assert len(read_training_set([tmp_path / "ferrite", tmp_path / "pearlite"], 64)) == 5, "no classes"


@pytest.mark.shared_data
def test_a_real_set(shared_data):
    pictures = sorted(p for p in (shared_data / "sem-two-phase").glob("*.tif") if "phases" not in p.name)
    found = read_training_set(pictures[:2], 256)
    assert found.images.shape[1:] == (1, 256, 256)
    assert set(found.names) == {p.name for p in pictures[:2]}
    assert found.batch(slice(0, 4)).std() > 0.1


# ---------------------------------------------------------------- bad input


def test_bad_files_among_good_ones_are_left_out_and_listed(tmp_path):
    for i in range(4):
        save(tmp_path / f"good{i}.tif", grains(i, dtype="float32"))
    whole = save(tmp_path / "a-truncated.png", grains(9))
    assert whole.std() > 0
    content = (tmp_path / "a-truncated.png").read_bytes()
    (tmp_path / "a-truncated.png").write_bytes(content[: len(content) // 2])
    save(tmp_path / "b-nan.tif", np.where(np.eye(64) > 0, np.nan, grains(1, dtype="float32")))
    sentinels = np.where(np.eye(64) > 0, 1e300, grains(1, dtype="float32").astype(np.float64))
    tifffile.imwrite(tmp_path / "b-sentinel.tif", sentinels)
    save(tmp_path / "c-constant.tif", np.ones((64, 64), np.float32))
    save(tmp_path / "d-small.tif", grains(1, (64, 40), "float32"))
    save(tmp_path / "e-colour.png", grains(0, (64, 64, 3)))
    (tmp_path / "f-empty.png").write_bytes(b"")
    said = []
    found = read_training_set(tmp_path, 64, say=said.append)
    assert len(found) == 4
    assert any("b-sentinel.tif: 64 of 4096 pixels are" in reason for _, reason in found.failures)
    reasons = {p.name[0]: reason for p, reason in found.failures if "sentinel" not in p.name}
    assert reasons.keys() == set("abcdef")
    for letter, expected in zip(
        "abcdef",
        (
            "cannot be read",
            "64 of 4096 pixels are NaN",
            "constant",
            "40 x 64 px, smaller",
            "colour",
            "cannot be read",
        ),
        strict=True,
    ):
        assert expected in reasons[letter]
        assert f"{letter}-" in reasons[letter], "the file is named"
    assert said[5:] == [
        "left out: 2 more",
        "note: 1 images are smaller than 64 x 64 px and were left out; all would fit 32 px.",
    ]


@pytest.mark.parametrize("resolution", [0, 8, 63, 100, 1000, 2048, -64])
def test_resolution(tmp_path, resolution):
    with pytest.raises(UserError, match="not a power of two") as caught:
        read_training_set(tmp_path, resolution)
    near = {0: "16", 8: "16", 63: "32 or 64", 100: "64 or 128", 1000: "512 or 1024", 2048: "1024", -64: "16"}
    assert str(caught.value).endswith(f"choose {near[resolution]}.")


def test_all_too_small(tmp_path):
    for i, edge in enumerate((40, 70, 100)):
        save(tmp_path / f"{i}.png", grains(i, (edge, 120)))
    with pytest.raises(UserError, match="3 of 3 images are smaller than 128 x 128 px") as caught:
        read_training_set(tmp_path, 128)
    assert "fits any of them is 64, all of them 32" in str(caught.value)


def test_mixed_bit_depths(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", grains(i))
    save(tmp_path / "x.tif", grains(5, dtype="uint16"))
    with pytest.raises(UserError, match=r"3 8-bit \(such as 0\.png\), 1 16-bit \(such as x\.tif\)"):
        read_training_set(tmp_path, 64)


def test_too_few(tmp_path):
    with pytest.raises(UserError, match="No image files"):
        read_training_set(tmp_path, 64)
    with pytest.raises(UserError, match="No image files"):
        read_training_set([], 64)
    save(tmp_path / "a.png", grains(0))
    with pytest.raises(UserError, match=r"One image of 64 x 64 px \(a\.png\)"):
        read_training_set(tmp_path, 64)
    assert len(read_training_set(tmp_path, 32)) == 4, "one image may hold several patches"


def test_nothing_usable_tells_the_commonest_reasons(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", np.full((64, 64), 7, np.uint8))
    save(tmp_path / "x.png", grains(0, (64, 64, 3)))
    with pytest.raises(UserError, match=r"None of 4 files can be learnt from.*3 x is constant"):
        read_training_set(tmp_path, 64)


def test_folders_that_are_not_what_was_said(tmp_path):
    save(tmp_path / "a" / "x.png", grains(0))
    with pytest.raises(UserError, match="its folders a hold some"):
        read_training_set(tmp_path, 64)
    with pytest.raises(UserError, match=r"two or more with images; .* has 1"):
        read_training_set(tmp_path, 64, classes=True)
    save(tmp_path / "a" / "w.png", grains(2))
    save(tmp_path / "b" / "y.png", grains(0, (40, 40)))
    assert len(read_training_set(tmp_path, 32, classes=True)) == 4 + 4 + 4
    with pytest.raises(UserError, match=r"No usable image in the class b: .*y\.png: is 40 x 40 px, smaller"):
        read_training_set(tmp_path, 64, classes=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, "choose 1"),
        ({"fit": "stretch"}, "choose 'crop' or 'resize'"),
        ({"crops_per_image": 0}, "give at least 1"),
        ({"fit": "resize", "crops_per_image": 3}, "fit = 'crop'"),
    ],
)
def test_other_requests(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        read_training_set(tmp_path, 64, **options)


# ---------------------------------------------------------------- samples


def provenance_by_command(path) -> dict:
    command = [sys.executable, "-m", "micrographia", "provenance", str(path)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_samples_tell_the_command_line_what_they_are(tmp_path, suffix):
    window = Window(10, 210, "uint8")
    samples = torch.rand(2, 1, 64, 64) * 0.2 - 0.9  # a dark image must stay dark
    made = {"model": "model.safetensors", "truncation": 0.7}
    paths = write_samples(tmp_path, samples, window, made, seeds=[3, 17], pixel_size_A=2.5, suffix=suffix)
    assert [p.name for p in paths] == [f"seed-0003{suffix}", f"seed-0017{suffix}"]
    told = provenance_by_command(paths[1])
    assert told.pop("software").startswith("micrographia ")
    assert told == {**made, "seed": 17, "synthetic": True, "window": [10.0, 210.0]}
    (stored,) = read_stored(paths[1])
    assert stored.data.dtype == np.uint8
    assert stored.pixel_size_A == pytest.approx(2.5)
    assert np.array_equal(stored.data, np.round((samples[1, 0].numpy() + 1) * 100 + 10))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_return_to_the_originals(tmp_path, suffix, dtype, channels):
    """The images of a set, written as if they were samples, are the images of the set."""
    window = Window(0, {"uint8": 255, "uint16": 65535, "float32": 2.5}[dtype], dtype)
    originals = np.stack([grains(i, (channels, 64, 64), dtype) for i in range(2)])
    scaled = window.scale(torch.from_numpy(originals.astype(np.float32)))
    if suffix == ".png" and channels == 3 and dtype != "uint8":
        with pytest.raises(UserError, match=r"cannot hold uint16 in colours as it is; choose \.tif"):
            write_samples(tmp_path / "one.png", scaled[:1], window, {})
    paths = write_samples(
        tmp_path, scaled, window, {"model": "none"}, each=[{"class": c} for c in "ab"], suffix=suffix
    )
    assert [read_provenance(p)["class"] for p in paths] == ["a", "b"]
    as_png = suffix == ".png" and (channels == 1 or dtype == "uint8")
    assert paths[1].suffix == (".png" if as_png else ".tif")
    (stored,) = read_stored(paths[1], colours=channels == 3)
    pixels = np.moveaxis(np.atleast_3d(stored.data), -1, 0).astype(np.float64)
    if as_png and dtype == "float32":
        levels = read_provenance(paths[1])["grey_levels"]
        pixels = levels["0"] + pixels / 65535 * (levels["65535"] - levels["0"])
    else:
        assert stored.data.dtype == dtype
    assert np.abs(pixels - originals[1]).max() <= (1e-4 if dtype == "float32" else 0)


def test_one_sample_into_a_file_and_samples_that_cannot_be_written(tmp_path):
    window = Window(0, 255, "uint8")
    (path,) = write_samples(tmp_path / "one.png", np.zeros((32, 48)), window, {"model": "m"})
    assert read_images(path)[0].shape == (32, 48), "non-square, cropped"
    assert read_images(path)[0].data[0, 0] == 128
    with pytest.raises(UserError, match="give a folder"):
        write_samples(tmp_path / "two.png", np.zeros((2, 32, 32)), window, {})
    with pytest.raises(UserError, match="diverged"):
        write_samples(tmp_path, np.full((1, 32, 32), np.nan), window, {})
    with pytest.raises(UserError, match="same seed"):
        write_samples(tmp_path, np.zeros((2, 32, 32)), window, {}, seeds=[1, 1])
    with pytest.raises(UserError, match="images are constant"):
        Window(3, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["one.png"]


def test_a_training_set_made_of_samples_says_so(tmp_path):
    write_samples(
        tmp_path, np.random.default_rng(0).random((3, 32, 32)), Window(0, 255, "uint8"), {"model": "m"}
    )
    found = read_training_set(tmp_path, 32)
    assert len(found) == 3
    assert found.notes == ("3 of 3 files were generated by micrographia, not measured.",)


def test_binned_images_show_more_of_the_specimen(tmp_path):
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 255, (2, 70, 64)).astype(np.uint8)
    for i, image in enumerate(fine):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    found = read_training_set(tmp_path, 32, binning=2)
    expected = fine[0, :64].reshape(32, 2, 32, 2).mean(axis=(1, 3))
    assert np.abs(found.images[0, 0] - expected).max() <= 0.5
    assert len(found) == 4  # 35 rows are covered by two patches
    sized = read_training_set(tmp_path, 32, binning=2, pixel_size_A=3.0)
    assert sized.pixel_size_A == pytest.approx(6.0)
    Image.fromarray(fine[0][:67, :63].repeat(2, 0).repeat(2, 1)).save(tmp_path / "2.png")
    # What binning cuts off at the edges is no part of the scale.
    assert read_training_set(tmp_path, 16, binning=4, pixel_size_A=3.0).pixel_size_A == pytest.approx(12.0)
    with pytest.raises(UserError, match="smaller than 64 x 64"):
        read_training_set(tmp_path, 64, binning=2)
