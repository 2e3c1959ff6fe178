from __future__ import annotations

import json

import numpy as np
import pytest

from micrographia.errors import UserError
from micrographia.library import ImageLibrary
from micrographia.sites import make_sites

KINDS = ("vacancy-1Se", "vacancy-2Se")


def fill(path, n=3, order=(2, 0, 1), **options):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(n, 16, 20)).astype(np.float32)
    labels = rng.integers(0, 2, (n, 2, 16, 20)).astype(np.uint8)
    with ImageLibrary.create(path, n, (16, 20), KINDS, 0.2, {"seed": 1}, **options) as library:
        for i in order:
            library.write(i, images[i], labels[i], make_sites("", [i + 0.5], [2], KINDS[0]))
        assert not path.exists(), "nothing under its name before it is complete"
    return images, labels


def test_round_trip_in_any_order(tmp_path):
    images, labels = fill(tmp_path / "set")
    library = ImageLibrary.open(tmp_path / "set")
    assert (len(library), library.shape, library.kinds) == (3, (16, 20), KINDS)
    assert (library.pixel_size_A, library.metadata) == (0.2, {"seed": 1})
    loaded = library.load()
    assert np.array_equal(loaded[0], images)
    assert np.array_equal(loaded[1], labels)
    assert loaded[1].dtype == np.uint8
    assert np.array_equal(library.images[1], images[1])
    assert library.sites[["image", "x_px"]].to_numpy().tolist() == [["0", 0.5], ["1", 1.5], ["2", 2.5]]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_float16_labels_and_images_without_sites(tmp_path):
    with ImageLibrary.create(tmp_path / "set", 1, (8, 8), ["k"], 0.1, label_dtype="float16") as library:
        library.write(0, np.zeros((8, 8)), np.full((1, 8, 8), 0.25), make_sites("", [], [], "k"))
    library = ImageLibrary.open(tmp_path / "set")
    assert library.load()[1].dtype == np.float16
    assert float(library.labels[0].max()) == 0.25
    assert len(library.sites) == 0


def test_a_black_image_is_not_taken_for_a_missing_one(tmp_path):
    with ImageLibrary.create(tmp_path / "set", 2, (8, 8), ["k"], 0.1) as library:
        for i in range(2):
            library.write(i, np.zeros((8, 8)), np.zeros((1, 8, 8)), make_sites("", [], [], "k"))
    assert len(ImageLibrary.open(tmp_path / "set")) == 2


def test_read_only(tmp_path):
    images, labels = fill(tmp_path / "set")
    with pytest.raises(ValueError, match="read-only"):
        ImageLibrary.open(tmp_path / "set").write(0, images[0], labels[0], make_sites("", [], [], "k"))


def test_unfinished_or_failed_libraries_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"1 of 3 images were not written \(first: 1\)"):
        fill(tmp_path / "set", order=(0, 2))
    with (
        pytest.raises(ValueError, match="got"),
        ImageLibrary.create(tmp_path / "b", 1, (8, 8), "k", 0.1) as library,
    ):
        library.write(0, np.zeros((8, 9)), np.zeros((1, 8, 8)), make_sites("", [], [], "k"))
    assert list(tmp_path.iterdir()) == []


def test_create_refuses_what_makes_no_sense(tmp_path):
    fill(tmp_path / "set")
    with pytest.raises(UserError, match="exists already"):
        fill(tmp_path / "set")
    with (
        pytest.raises(UserError, match="needs images and kinds"),
        ImageLibrary.create(tmp_path / "x", 0, (8, 8), [], 0.1),
    ):
        pass


def test_open_refuses_strangers_other_versions_and_damage(tmp_path):
    with pytest.raises(UserError, match="is not an image library"):
        ImageLibrary.open(tmp_path)
    fill(tmp_path / "set")
    note = tmp_path / "set" / "zarr.json"
    described = json.loads(note.read_text())

    def changed(**attributes: object) -> str:
        return json.dumps({**described, "attributes": attributes})

    for text, message in [
        (changed(**{**described["attributes"], "micrographia_library": 99}), "version 99"),
        (changed(**{**described["attributes"], "n": 4}), "incomplete"),
        (changed(micrographia_library=1), "damaged"),
        (changed(), "is not an image library"),
        ("{", "is not an image library"),
    ]:
        note.write_text(text)
        with pytest.raises(UserError, match=message):
            ImageLibrary.open(tmp_path / "set")
    note.write_text(json.dumps(described))
    chunks = sorted(
        p for p in (tmp_path / "set" / "images").rglob("*") if p.is_file() and p.name != "zarr.json"
    )
    chunks[0].write_bytes(chunks[0].read_bytes()[:-30])
    with pytest.raises(UserError, match="damaged"):
        ImageLibrary.open(tmp_path / "set").load()
    chunks[0].unlink()
    with pytest.raises(UserError, match="incomplete"):
        ImageLibrary.open(tmp_path / "set")
