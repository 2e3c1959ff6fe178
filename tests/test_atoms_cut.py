import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micrographia.atoms.cut import AtomPatches, cut_grid, cut_patches_around
from micrographia.errors import UserError
from micrographia.micrograph import Micrograph
from micrographia.sites import make_sites


def _blob(x: float, y: float, shape=(60, 70), sigma=2.0) -> np.ndarray:
    rows, columns = np.indices(shape)
    return np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 2 / sigma**2).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(st.floats(10, 58), st.floats(10, 48), st.integers(7, 20))
def test_the_atom_sits_at_the_exact_centre(x, y, size):
    sites = make_sites("i", [x], [y], "C")
    centre = (size - 1) / 2
    expected = _blob(centre, centre, (size, size))
    cubic = cut_patches_around(_blob(x, y), sites, 0.1 * size, pixel_size_A=0.1)
    linear = cut_patches_around(_blob(x, y), sites, 0.1 * size, sampling="linear", pixel_size_A=0.1)
    assert cubic.images.shape == (1, size, size)
    np.testing.assert_allclose(cubic.images[0], expected, atol=0.006)
    np.testing.assert_allclose(linear.images[0], expected, atol=0.07)
    nearest = cut_patches_around(_blob(x, y), sites, 0.1 * size, sampling="nearest", pixel_size_A=0.1)
    top = np.unravel_index(nearest.images[0].argmax(), (size, size))
    assert np.abs(np.array(top) - centre).max() <= 1.0


def test_whole_pixel_positions_copy_the_pixels():
    image = np.random.default_rng(0).random((40, 50), dtype=np.float32)
    sites = make_sites("i", [20, 4, 45], [10, 4, 35], "C")
    for sampling in ("cubic", "linear", "nearest"):
        patches = cut_patches_around(image, sites, 0.9, sampling=sampling, pixel_size_A=0.1)
        assert patches.size_px == 9
        for patch, x, y in zip(
            patches.images, sites["x_px"].astype(int), sites["y_px"].astype(int), strict=True
        ):
            np.testing.assert_allclose(patch, image[y - 4 : y + 5, x - 4 : x + 5], atol=2e-6)


def test_windows_that_leave_the_image_are_dropped_and_counted():
    image = np.random.default_rng(0).random((40, 50), dtype=np.float32)
    x, y = [3.9, 4.0, 45.0, 45.1, 20.0, 20.0], [20.0, 20.0, 20.0, 20.0, 35.0, 35.2]
    sites = make_sites("i", x, y, "C").assign(z1=range(6))
    patches = cut_patches_around(image, sites, 0.9, pixel_size_A=0.1)
    assert patches.rows.tolist() == [1, 2, 4]
    assert patches.dropped == 3
    assert patches.sites["z1"].tolist() == [1, 2, 4]
    assert patches.sites["frame"].tolist() == [0, 0, 0]
    assert len(patches) == len(patches.sites) == 3


def test_frames_are_found_by_number_or_by_name_and_rows_keep_their_order():
    movie = [Micrograph(np.full((30, 30), k) + np.eye(30), 0.1, f"m{k}") for k in range(3)]
    sites = make_sites("m2", [15, 15], [15, 14], "C")
    sites = pd.concat([sites, make_sites("m0", [15], [15], "Si")], ignore_index=True)
    by_name = cut_patches_around(movie, sites, 0.5)
    assert by_name.images[:, 0, 4] == pytest.approx([2, 2, 0], abs=1e-5)
    assert by_name.sites["kind"].tolist() == ["C", "C", "Si"]
    assert by_name.sites["frame"].tolist() == [2, 2, 0]
    by_number = cut_patches_around(movie, sites.assign(frame=[1, 0, 2]), 0.5)
    assert by_number.images[:, 0, 4] == pytest.approx([1, 0, 2], abs=1e-5)


def test_channels_and_time_stacks():
    stack = np.arange(4 * 2, dtype=np.float32).reshape(4, 2, 1, 1) * np.ones((4, 2, 30, 30), np.float32)
    sites = make_sites("s", [15.3] * 4, [14.6] * 4, "C").assign(frame=[2, 0, 3, 1])
    channels = cut_patches_around(stack, sites, 0.8, pixel_size_A=0.1)
    assert channels.images.shape == (4, 2, 8, 8)
    np.testing.assert_allclose(channels.images.mean(axis=(2, 3)), [[4, 5], [0, 1], [6, 7], [2, 3]], rtol=1e-5)
    pairs = cut_patches_around(stack, sites, 0.8, time_stack=2, pixel_size_A=0.1)
    assert (pairs.without_next, pairs.dropped) == (1, 0)
    assert pairs.rows.tolist() == [0, 1, 3]
    np.testing.assert_allclose(
        pairs.images.mean(axis=(2, 3)), [[4, 5, 6, 7], [0, 1, 2, 3], [2, 3, 4, 5]], rtol=1e-5
    )
    movie = cut_patches_around(stack[:, 0], sites, 0.8, time_stack=3, pixel_size_A=0.1)
    assert movie.images.shape == (2, 3, 8, 8)


def test_a_time_stack_looks_at_the_same_place():
    movie = np.stack([_blob(30.3, 30.6), _blob(31.3, 30.6)])
    sites = make_sites("s", [30.3], [30.6], "C").assign(frame=0)
    first, second = cut_patches_around(movie, sites, 1.1, time_stack=2, pixel_size_A=0.1).images[0]
    np.testing.assert_allclose(first, _blob(5, 5, (11, 11)), atol=0.006)
    np.testing.assert_allclose(second, _blob(6, 5, (11, 11)), atol=0.006)


def test_images_of_different_sampling_are_brought_to_one():
    fine = Micrograph(_blob(40, 44, (90, 90), 4.0), 0.05, "fine")
    coarse = Micrograph(_blob(20, 22, (45, 45), 2.0), 0.1, "coarse")
    sites = pd.concat([make_sites("fine", [40.0], [44.0], "C"), make_sites("coarse", [20.0], [22.0], "C")])
    patches = cut_patches_around([fine, coarse], sites, 1.1)
    assert (patches.pixel_size_A, patches.size_px) == (0.1, 11)
    np.testing.assert_allclose(patches.images[0], patches.images[1], atol=0.05)
    assert patches.sites["x_px"].tolist() == [40, 20]


def test_grid_covers_the_image_evenly():
    image = np.random.default_rng(0).random((40, 50), dtype=np.float32)
    patches = cut_grid(image, 0.8, 0.4, pixel_size_A=0.1)
    assert patches.dropped == 0
    assert len(patches) == 9 * 11
    assert (patches.sites["kind"] == "window").all()
    row = patches.sites.iloc[12]
    x, y = int(row["x_px"] - 3.5), int(row["y_px"] - 3.5)
    np.testing.assert_array_equal(patches.images[12], image[y : y + 8, x : x + 8])
    assert patches.sites["x_px"].min() - 3.5 == 49 - (patches.sites["x_px"].max() + 3.5)
    two = cut_grid(np.stack([image, image + 1]), 0.8, 0.4, time_stack=2, pixel_size_A=0.1)
    assert two.images.shape == (99, 2, 8, 8)


def test_select_takes_a_mask_or_indices():
    image = np.random.default_rng(0).random((40, 50), dtype=np.float32)
    patches = cut_grid(image, 0.8, 0.8, pixel_size_A=0.1)
    right = patches.sites["x_px"].to_numpy() > 25
    some = patches.select(right)
    assert isinstance(some, AtomPatches)
    assert len(some) == right.sum() == len(some.sites)
    np.testing.assert_array_equal(some.images, patches.images[right])
    np.testing.assert_array_equal(patches.select(np.array([3, 1])).rows, [3, 1])


def test_peak_memory_is_the_patches_and_little_more():
    code = """
import resource
import numpy as np, pandas as pd
from micrographia.atoms.cut import cut_patches_around
from micrographia.sites import make_sites
rng = np.random.default_rng(0)
movie = rng.random((8, 256, 256), dtype=np.float32)
sites = pd.concat([make_sites("m", *rng.uniform(30, 225, (2, 1600)), "C").assign(frame=t) for t in range(8)])
cut_patches_around(movie, sites.iloc[:10], 4.8, pixel_size_A=0.1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
patches = cut_patches_around(movie, sites, 4.8, pixel_size_A=0.1)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) / 1024, patches.images.nbytes / 2**20)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    grown, own = map(float, told.split())
    assert own == pytest.approx(12800 * 48 * 48 * 4 / 2**20)
    assert grown < own + 40  # MiB; 80,000 patches of 48 px are then 0.7 GiB


IMAGE = np.random.default_rng(0).random((30, 40))
SITES = make_sites("i", [15.0], [15.0], "C")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: cut_patches_around(IMAGE, SITES, 3.5, pixel_size_A=0.1), "larger than the image"),
        (lambda: cut_patches_around(IMAGE, make_sites("", [], [], ""), 1, pixel_size_A=0.1), "no atoms"),
        (lambda: cut_patches_around(IMAGE, SITES, 1), "pixel size"),
        (lambda: cut_patches_around(Micrograph(IMAGE), SITES, 1), "pixel size"),
        (lambda: cut_patches_around(IMAGE * np.nan, SITES, 1, pixel_size_A=0.1), "NaN"),
        (lambda: cut_patches_around(IMAGE, SITES.assign(x_px=np.inf), 1, pixel_size_A=0.1), "finite"),
        (lambda: cut_patches_around(IMAGE, SITES.assign(x_px=1.0), 1, pixel_size_A=0.1), "wholly inside"),
        (lambda: cut_patches_around(IMAGE, SITES, 0.1, pixel_size_A=0.1), "at least 3"),
        (lambda: cut_patches_around(IMAGE, SITES, np.nan, pixel_size_A=0.1), "at least 3"),
        (lambda: cut_patches_around(IMAGE, SITES, 1, time_stack=2, pixel_size_A=0.1), "time_stack"),
        (lambda: cut_patches_around(IMAGE, SITES, 1, sampling="best", pixel_size_A=0.1), "choose"),
        (lambda: cut_patches_around(IMAGE, SITES.drop(columns="x_px"), 1, pixel_size_A=0.1), "x_px"),
        (lambda: cut_patches_around(np.zeros((2, 30, 30)), SITES, 1, pixel_size_A=0.1), "no image 'i'"),
        (lambda: cut_patches_around(IMAGE, SITES.assign(frame=1), 1, pixel_size_A=0.1), "frames"),
        (lambda: cut_grid(IMAGE, 3.5, 1, pixel_size_A=0.1), "larger than the image"),
        (lambda: cut_grid(IMAGE, 1, 0, pixel_size_A=0.1), "step_A"),
        (lambda: cut_grid(IMAGE, 1, 1, time_stack=2, pixel_size_A=0.1), "time_stack"),
    ],
)
def test_bad_input_is_told(call, told):
    with pytest.raises(UserError, match=told):
        call()
