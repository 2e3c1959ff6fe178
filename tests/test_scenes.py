import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from micrographia.errors import UserError
from micrographia.simulate import scenes
from micrographia.simulate.degrade import Conditions, draw_conditions, narrowed
from micrographia.simulate.probe import Optics
from micrographia.simulate.scenes import Specimen, draw_scene, label_maps, simulate_series

OPTICS = Optics()
PIXEL_A = 0.2
SPECIMEN = Specimen(defects={"vacancy-1Se": 0.1, "vacancy-2Se": 0.05}, holes=0.0)


def _series(n: int, seed: int = 7, noisy: bool = True, **options):
    drawn = draw_conditions(Conditions(), 40, np.random.default_rng(1)) if noisy else None
    conditions = {k: v[:n] for k, v in drawn.items()} if drawn else None
    return simulate_series(SPECIMEN, OPTICS, n, (48, 64), PIXEL_A, seed, conditions, **options)


@pytest.mark.parametrize("noisy", [True, False])
def test_an_image_does_not_depend_on_how_many_follow(noisy):
    few, many = _series(3, noisy=noisy), _series(19, noisy=noisy)
    assert few[0].shape == (3, 48, 64)
    np.testing.assert_array_equal(few[0], many[0][:3])
    np.testing.assert_array_equal(few[1], many[1][:3])
    pd.testing.assert_frame_equal(few[2], many[2][many[2]["index"] < 3].reset_index(drop=True))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_image_does_not_depend_on_the_number_of_processes_nor_needs_a_script_a_main_guard(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import os\n"
        "import numpy as np\n"
        "from micrographia.simulate import scenes\n"
        "from micrographia.simulate.probe import Optics\n"
        "simulate = scenes._simulate_group\n"
        "def noted(*given):\n"
        "    open('workers', 'a').write(f'{os.getpid()}\\n')\n"
        "    return simulate(*given)\n"
        "scenes.BULK, scenes.GROUP, scenes._simulate_group = 1, 2, noted\n"
        "images, _, sites = scenes.simulate_series(scenes.Specimen(), Optics(), 16, (48, 64), 0.2, 7, workers=2)\n"
        "np.save('images.npy', images)\n"
        "sites.to_csv('sites.csv', index=False)\n"
        "print(os.getpid())\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    workers = (tmp_path / "workers").read_text().split()
    assert len(workers) == 8
    assert done.stdout.strip() not in workers
    assert not [pid for pid in set(workers) if _alive(int(pid))]
    images, _, sites = simulate_series(Specimen(), OPTICS, 16, (48, 64), PIXEL_A, 7, workers=1)
    np.testing.assert_array_equal(images, np.load(tmp_path / "images.npy"))
    pd.testing.assert_frame_equal(sites, pd.read_csv(tmp_path / "sites.csv"), check_dtype=False)


def test_a_worker_that_is_ended_is_told():
    with pytest.raises(UserError, match="want of memory"):
        scenes._shared_out(lambda *_: os._exit(1), range(4), range(4), 2, bulk=True)


def test_an_interrupt_ends_bulk_simulation_at_once(tmp_path):
    script = tmp_path / "bulk.py"
    script.write_text(
        "import os\n"
        "import signal\n"
        "import sys\n"
        "from micrographia.cli.main import main\n"
        "from micrographia.simulate import scenes\n"
        # Ignored by what a shell runs in the background, the tests for instance, and by its children.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "simulate = scenes._simulate_group\n"
        "def noted(*given):\n"
        "    open('workers', 'a').write(f'{os.getpid()}\\n')\n"
        "    return simulate(*given)\n"
        "scenes.BULK, scenes._simulate_group = 1, noted\n"
        "sys.exit(main(['simulate', '--n', '2000', '--size-px', '384', '--out', 'made']))\n"
    )
    process = subprocess.Popen([sys.executable, script], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    at_work, deadline = tmp_path / "workers", time.monotonic() + 60
    while not at_work.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=15)
    assert process.returncode == 130, told
    assert told.splitlines()[-1].startswith("micrographia: interrupted; nothing was left half-written")
    assert not (tmp_path / "made").exists()
    assert not [pid for pid in set(at_work.read_text().split()) if _alive(int(pid))]


def test_an_image_does_not_depend_on_the_number_of_threads():
    conditions = draw_conditions(Conditions(), 9, np.random.default_rng(1))
    given, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            # Shared out among threads, some of these operations round otherwise.
            made.append(simulate_series(SPECIMEN, OPTICS, 9, (201, 203), PIXEL_A, 7, conditions)[0])
            with ThreadPoolExecutor(1) as others:
                assert [torch.get_num_threads(), others.submit(torch.get_num_threads).result()] == [
                    threads
                ] * 2
    finally:
        torch.set_num_threads(given)
    np.testing.assert_array_equal(*made)


def test_another_seed_gives_other_scenes_and_every_image_is_another():
    one, two = _series(2, seed=1)[0], _series(2, seed=2)[0]
    assert np.abs(one - two).max() > 0.1
    assert np.abs(one[0] - one[1]).max() > 0.1


def test_sites_lie_inside_the_images_and_atoms_fill_them():
    _, _, sites = _series(16)
    assert sites["x_px"].between(-0.5, 63.5).all()
    assert sites["y_px"].between(-0.5, 47.5).all()
    assert set(sites["kind"]) == {"vacancy-1Se", "vacancy-2Se", "column-W", "column-Se"}
    # Monolayer WSe2: a = 3.28 Å, one W and one Se2 column per cell of 9.32 Å².
    expected = 2 * 48 * 64 * PIXEL_A**2 / 9.32
    assert len(sites) / 16 == pytest.approx(expected, rel=0.1)


def _brightness(images: np.ndarray, sites: pd.DataFrame, kind: str) -> np.ndarray:
    rows = sites[
        (sites["kind"] == kind) & sites["x_px"].between(2, 61) & sites["y_px"].between(2, 45)
    ]  # not at the border
    x, y = rows["x_px"].round().astype(int), rows["y_px"].round().astype(int)
    return images[rows["index"].to_numpy(int), y, x]


def test_labels_sit_on_the_atoms_that_they_name():
    images, _, sites = _series(16, noisy=False)
    se, w, one, two = (
        _brightness(images, sites, k) for k in ("column-Se", "column-W", "vacancy-1Se", "vacancy-2Se")
    )
    assert min(map(len, (se, w, one, two))) > 5
    assert np.median(w) > np.median(se) > np.median(one) > np.median(two)
    assert se.min() > one.max()  # no vacancy is mistaken
    # An intact column is a maximum of the image: brighter than places half way to its neighbours.
    assert np.median(se) > 1.2 * np.median(images)
    assert two.max() < np.median(images)


def test_labels_follow_the_scan_in_degraded_images():
    quiet = narrowed(
        Conditions(), counts_per_A2=1e5, readout=1e-6, contamination=0.0, speckle=0.0, afterglow_px=0.0,
        line_gain=0.0, slow_jitter_A=0.5, line_jitter_A=0.02, defocus_A=0.0, coma_A=0.0, threefold_A=0.0,
        astigmatism_A=0.0,
    )  # fmt: skip
    drawn = draw_conditions(quiet, 16, np.random.default_rng(0))
    images, clean, sites = simulate_series(SPECIMEN, OPTICS, 16, (48, 64), PIXEL_A, 3, drawn)
    for stack in (images, clean / clean.mean(axis=(1, 2), keepdims=True)):
        se, one, two = (_brightness(stack, sites, k) for k in ("column-Se", "vacancy-1Se", "vacancy-2Se"))
        assert np.quantile(se, 0.1) > np.median(one)
        assert np.median(one) > np.median(two)


def test_clean_images_are_the_degraded_ones_without_their_noise():
    images, clean, _ = _series(16)
    for image, truth in zip(images, clean, strict=True):
        assert image.shape == truth.shape
        assert np.isfinite(image).all()
    correlation = [np.corrcoef(i.ravel(), c.ravel())[0, 1] for i, c in zip(images, clean, strict=True)]
    assert np.median(correlation) > 0.2


def test_a_scene_covers_its_field_and_lists_each_column_once():
    scene = draw_scene(SPECIMEN, (30.0, 20.0), np.random.default_rng(0))
    assert scene.x_A.min() < 1
    assert scene.x_A.max() > 29
    assert scene.y_A.max() > 19
    xy = np.stack([scene.site_x_A, scene.site_y_A], axis=1)
    assert len(xy) == len(scene.site_kind)
    distance = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1)) + 10 * np.eye(len(xy))
    assert distance.min() > 1


def test_single_atoms_are_all_of_the_named_element():
    specimen = Specimen("single-atoms", {"Pt": 1.0}, element="Pt", atoms_per_nm2=(1.0, 1.0))
    images, _, sites = simulate_series(specimen, OPTICS, 2, (128, 128), 0.3, 0)
    assert set(sites["kind"]) == {"Pt"}
    assert len(sites) / 2 == pytest.approx((128 * 0.03) ** 2, rel=0.5)
    here = images[sites["index"], sites["y_px"].round().astype(int), sites["x_px"].round().astype(int)]
    assert here.min() > np.median(images)


def test_an_alloy_replaces_atoms_without_labels():
    mixed = replace(SPECIMEN, alloy={"S-Se": 0.3})
    plain, drawn = (draw_scene(s, (80, 80), np.random.default_rng(3)) for s in (SPECIMEN, mixed))
    sulphur, selenium = ((drawn.number == z).sum() for z in (16, 34))
    assert sulphur / (sulphur + selenium) == pytest.approx(0.3, abs=0.04)
    assert not (plain.number == 16).any()
    assert set(drawn.site_kind) <= {"vacancy-1Se", "vacancy-2Se", "column-W", "column-Se", "column-S"}


def test_a_crystal_is_seen_along_its_zone_axis():
    def columns(axis: tuple[int, int, int], thickness_A: float = 0.0) -> np.ndarray:
        specimen = Specimen(
            "SrTiO3", {}, strain=0.0, disorder_A=0.0, holes=0.0, zone_axis=axis, thickness_A=thickness_A
        )
        scene = draw_scene(specimen, (40, 40), np.random.default_rng(0))
        strontium = scene.number == 38
        return np.stack([scene.x_A[strontium], scene.y_A[strontium]], axis=1)

    def spacing(xy: np.ndarray) -> float:
        apart = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
        return apart[apart > 0.1].min()

    assert spacing(columns((0, 0, 1))) == pytest.approx(3.905, abs=0.01)
    assert spacing(columns((1, 1, 0))) == pytest.approx(3.905 / np.sqrt(2), abs=0.01)
    assert len(columns((0, 0, 1), 39.05)) > 8 * len(columns((0, 0, 1)))


def test_neighbours_of_a_vacancy_relax_towards_it():
    def distance(relaxation: float) -> float:
        specimen = replace(
            SPECIMEN, defects={"vacancy-2Se": 0.02}, strain=0.0, disorder_A=0.0, relaxation=(relaxation,) * 2
        )
        scene = draw_scene(specimen, (60, 60), np.random.default_rng(2))
        vacancy = np.stack([scene.site_x_A, scene.site_y_A], axis=1)[scene.site_kind == "vacancy-2Se"]
        atoms = np.stack([scene.x_A, scene.y_A], axis=1)
        apart = np.linalg.norm(atoms[None] - vacancy[:, None], axis=-1)
        return float(np.median(np.sort(apart, axis=1)[:, :3]))

    assert distance(0.1) == pytest.approx(0.9 * distance(0.0), rel=0.02)


def test_a_hole_holds_neither_atoms_nor_sites():
    whole = replace(SPECIMEN, angle_deg=(0.0, 0.0), strain=0.0)
    pierced = replace(whole, holes=1.0)
    for seed in range(5):
        one, two = (draw_scene(s, (60.0, 60.0), np.random.default_rng(seed)) for s in (whole, pierced))
        assert len(two.x_A) < len(one.x_A)
        atoms = set(zip(two.x_A.round(6), two.y_A.round(6), strict=True))
        gone = [p for p in zip(one.x_A.round(6), one.y_A.round(6), strict=True) if p not in atoms]
        centre = np.mean(gone, axis=0)
        radius = np.sqrt(len(gone) / len(one.x_A) * 60**2 / np.pi)
        site = np.hypot(two.site_x_A - centre[0], two.site_y_A - centre[1])
        assert site.min() > 0.3 * radius


def test_single_atoms_gather_when_asked():
    def nearest(share: float) -> float:
        specimen = Specimen(
            "single-atoms",
            {"Pt": 1.0},
            element="Pt",
            atoms_per_nm2=(1.0, 1.0),
            clustering=(share, share),
            holes=0.0,
        )
        scene = draw_scene(specimen, (120.0, 120.0), np.random.default_rng(0))
        xy = np.stack([scene.site_x_A, scene.site_y_A], axis=1)
        distance = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1)) + 1e3 * np.eye(len(xy))
        return float((distance.min(axis=1) <= 6).mean())

    assert nearest(0.9) > nearest(0.0) + 0.2


def test_label_discs_have_their_area_and_their_map():
    sites = pd.DataFrame(
        {
            "index": [0, 1, 1],
            "x_px": [20.3, 10.0, 30.0],
            "y_px": [15.7, 20.0, 20.0],
            "kind": ["a", "b", "other"],
        }
    )
    maps = label_maps(sites, ["a", "b"], 2, (40, 48), 4.0)
    assert maps.shape == (2, 2, 40, 48)
    assert maps.dtype == np.uint8
    for i, k in ((0, 0), (1, 1)):
        assert maps[i, k].sum() / 255 == pytest.approx(np.pi * 4**2, rel=0.03)
    assert not maps[0, 1].any()
    assert not maps[1, 0].any()
    row, column = np.average(np.indices((40, 48)).reshape(2, -1), axis=1, weights=maps[0, 0].ravel())
    assert (column, row) == (pytest.approx(20.3, abs=0.05), pytest.approx(15.7, abs=0.05))


def test_discs_that_overlap_do_not_exceed_one_and_no_site_is_no_disc():
    pair = pd.DataFrame({"index": [0, 0], "x_px": [20.0, 22.0], "y_px": [20.0, 20.0], "kind": ["a", "a"]})
    assert label_maps(pair, ["a"], 1, (40, 40), 5.0).max() == 255
    assert not label_maps(pair.iloc[:0], ["a"], 1, (40, 40), 5.0).any()


@pytest.mark.parametrize("value", [0.0, -0.1, 1.5, float("nan")])
def test_impossible_concentrations_are_refused(value):
    with pytest.raises(UserError, match="vacancy-1Se"):
        Specimen(defects={"vacancy-1Se": value})


@pytest.mark.parametrize(
    "change",
    [
        {"strain": -0.1},
        {"strain": 0.2},
        {"mean_strain": (0.6, 0.0, 0.0)},
        {"mean_strain": (0.0, float("nan"), 0.0)},
        {"clustering": (0.0, 9.0)},
        {"contrast": (-5.0, 5.0)},
        {"atoms_per_nm2": (0.0, 100.0)},
        {"disorder_A": float("nan")},
        {"holes": 2.0},
        {"angle_deg": (30.0, 10.0)},
        {"alloy": {"S": 0.3}},
        {"alloy": {"S-Se": 1.5}},
        {"alloy": {"S-Se": 0.3, "Te-Se": 0.3}},
        {"relaxation": (0.2, 0.1)},
        {"thickness_A": -1.0},
        {"contrast": (0.5, float("inf"))},
        {"atoms_per_nm2": (float("nan"), 1.0)},
    ],
)
def test_impossible_specimens_are_refused_by_name(change):
    with pytest.raises(UserError, match=f"specimen.*{next(iter(change))}"):
        Specimen(**change)


def test_numbers_are_told_as_they_are_typed():
    with pytest.raises(UserError, match=r"mean_strain = \(0\.6, 0\.0, 0\.0\)"):
        Specimen(mean_strain=(np.float64(0.6), np.float64(0), np.float64(0)))


def test_no_images_are_refused():
    with pytest.raises(UserError, match="at least 1"):
        _series(0)
