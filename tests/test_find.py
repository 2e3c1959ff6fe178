"""The whole journey at the smallest size: through the command line, on files, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from micrographia.cli.main import main
from micrographia.io import read_images, write_image
from micrographia.metrics.features import module_extractor
from micrographia.micrograph import Micrograph
from micrographia.simulate.probe import Optics
from micrographia.simulate.scenes import Specimen, simulate_series
from micrographia.simulate.virtual import record
from micrographia.workflows.find import find_defects
from micrographia.workflows.looking import provenance
from micrographia.workflows.recipe import built_in, load_recipe
from micrographia.workflows.scale import ScaleRule, decide_scale, matched, read_experiment

TINY = [
    "library.images=16", "library.size_px=96", "fit.simulations=100", "fit.rounds=2", "fit.max_patches=8",
    "fit.patch_px=64", "translate.steps=4", "translate.batch=1", "translate.patch_px=64", "translate.width=8",
    "translate.blocks=1", "translate.evaluate_every=2", "detect.steps=160", "detect.width=8", "detect.patch_px=64",
    "detect.levels=1", "detect.symmetries=false", "specimen.defects={\"vacancy-2Se\" = 0.1}",
    "fit.prior.counts_per_A2=[1000, 3000]", "fit.prior.contamination=[0, 0.1]", "fit.prior.speckle=[0, 0.05]",
    "fit.prior.readout=[0.005, 0.02]", "fit.prior.line_jitter_A=[0.005, 0.02]", "fit.prior.blur_px=[0, 0.3]",
    "fit.prior.source_size_A=[0.6, 0.9]", "fit.prior.slow_jitter_A=[0.02, 0.1]", "fit.prior.afterglow_px=[0, 0.3]",
    "fit.prior.background=[0, 0.2]", "device=cpu",
]  # fmt: skip
SETTINGS = [word for change in TINY for word in ("--set", change)]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    images, truth = record("day-b", Specimen(defects={"vacancy-2Se": 0.05}), Optics(), 3, (192, 192), 0.2, 3)
    for image in images:
        write_image(folder / image.name, image)
    truth[truth["kind"] == "vacancy-2Se"].to_csv(folder / "truth.csv", index=False)
    (folder / "broken.dm4").write_bytes(b"not a dm4 file")
    return folder


@pytest.fixture(scope="module")
def run_folder(scans, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["run", "wse2", "--images", str(scans), "--out", str(out), *SETTINGS]) == 0
    return out


def test_a_run_leaves_everything_behind(run_folder, scans, stands_in_browser):
    stands_in_browser(run_folder / "report.html")
    sites = pd.read_csv(run_folder / "defects.csv")
    assert {"image", "x_px", "y_px", "kind", "confidence"} <= set(sites.columns)
    assert set(sites["kind"]) <= {"vacancy-2Se"}
    assert set(sites["image"]) <= {p.name for p in scans.glob("*.tif")}
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert metrics["sites"] == len(sites)
    assert 0 < metrics["threshold"] <= 1
    assert [reason for path, reason in metrics["images_left_out"] if path.endswith("broken.dm4")]
    assert {"noise-free", "simulated", "translated"} <= metrics["distance_to_experiment"].keys()
    assert "fid_floor" in metrics["distance_to_experiment"]["simulated"]
    report = (run_folder / "report.html").read_text()
    assert "What was found" in report
    assert "vacancy-2Se" in (run_folder / "recipe.toml").read_text()
    told = provenance(run_folder / "figures" / "comparison.png")
    assert (told["synthetic"], told["generator"]) == (True, "simulation, CycleGAN")
    previews = list(run_folder.glob("stages/translate-*/samples/*.png"))
    assert all(provenance(preview)["generator"] == "cyclegan" for preview in previews)
    assert previews
    name = sorted(scans.glob("*.tif"))[0].name
    assert (run_folder / "annotated" / f"{name}.png").stat().st_size > 1000
    marked = read_images(run_folder / "annotated" / f"{name}.hspy")[0]
    assert marked.shape == (192, 192)
    assert marked.pixel_size_A == pytest.approx(0.2, rel=0.02)
    picture = tifffile.imread(run_folder / "annotated" / f"{name}.annotated.tif")
    assert picture.ndim == 3
    assert (picture.max(axis=-1) > picture.min(axis=-1)).any()  # the sites are drawn in colour


def test_a_run_folder_is_not_overwritten_and_resumes_without_work(run_folder, scans, capsys):
    words = ["run", "wse2", "--images", str(scans), "--out", str(run_folder), *SETTINGS]
    assert main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*words, "--set", "seed=5", "--resume"]) == 2
    assert "another recipe" in capsys.readouterr().err
    before = (run_folder / "defects.csv").read_bytes()
    assert main([*words, "--resume"]) == 0
    told = capsys.readouterr().err
    assert told.count("done before") == 5
    assert (run_folder / "defects.csv").read_bytes() == before


def test_the_detector_of_a_run_knows_the_lattice(run_folder, scans, tmp_path, capsys):
    good = read_images(next(scans.glob("*.tif")))[0]
    write_image(tmp_path / "wrong.tif", good.with_pixel_size(0.23, "file"))
    noise = np.random.default_rng(0).normal(size=(128, 128)).astype("float32")
    np.save(tmp_path / "noise.npy", noise)
    detector = str(run_folder / "detector.safetensors")
    assert main(["detect", "apply", detector, str(tmp_path), "--out", str(tmp_path / "found")]) == 0
    told = capsys.readouterr().err
    assert "from the lattice; the file says 0.23 Å" in told
    assert "left out: noise.npy: the file has no pixel size and no WSe2 lattice" in told
    names = {f"wrong.tif.{end}" for end in ("png", "annotated.tif", "calibrated.tif", "hspy")} | {
        "defects.csv"
    }
    assert {path.name for path in (tmp_path / "found").iterdir()} >= names
    kept = read_images(tmp_path / "found" / "wrong.tif.calibrated.tif")[0]
    assert kept.pixel_size_A == pytest.approx(0.2, rel=0.03)


def test_a_killed_run_resumes_to_the_same_result(run_folder, scans, tmp_path):
    out = tmp_path / "killed"
    words = [
        sys.executable,
        "-m",
        "micrographia",
        "run",
        "wse2",
        "--images",
        str(scans),
        "--out",
        str(out),
    ]
    process = subprocess.Popen([*words, *SETTINGS], stderr=subprocess.DEVNULL, env=dict(os.environ))
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if list(out.glob("stages/detect-*/training/member-0/last.safetensors")):
            break
        time.sleep(0.05)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "defects.csv").exists()
    assert main(["run", "wse2", "--images", str(scans), "--out", str(out), *SETTINGS, "--resume"]) == 0
    assert (out / "defects.csv").read_bytes() == (run_folder / "defects.csv").read_bytes()


def test_evaluate_reads_what_a_run_wrote(run_folder, scans, capsys):
    words = ["evaluate", str(run_folder / "defects.csv"), str(scans / "truth.csv"), "--tolerance", "1.0"]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["f1"] > 0.5  # two missing atoms at a high dose: even this tiny training sees them


def test_images_without_scale_or_lattice_are_refused(tmp_path, capsys):
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).normal(size=(128, 128)).astype("float32"))
    words = ["run", "wse2", "--images", str(tmp_path / "noise.npy"), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "--pixel-size" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_used_are_left_out_by_name(scans, tmp_path):
    good = read_images(next(scans.glob("*.tif")))[0]
    write_image(tmp_path / "good.tif", good)
    write_image(tmp_path / "blank.tif", good.with_data(np.full(good.shape, 3.0, np.float32), "blanked"))
    write_image(tmp_path / "overview.tif", good.with_pixel_size(56.0, "file"))
    said: list[str] = []
    images, failures = read_experiment([tmp_path], 0.0, said.append)
    assert [str(path) for path, _ in failures] == ["blank.tif"]
    noise = np.random.default_rng(0).normal(size=(128, 128)).astype("float32")
    images += [Micrograph(noise, None, "noise.tif"), Micrograph(noise[:5, :5], 0.2, "tiny.tif")]
    kept, unusable = decide_scale(images, ScaleRule("WSe2"), said.append, 0.2)
    assert [s.image.name for s in kept] == ["good.tif"]
    assert [str(path) for path, _ in unusable] == ["overview.tif", "noise.tif", "tiny.tif"]
    for told in (
        "blank.tif",
        "too coarse",
        "noise.tif: the file has no pixel size",
        "tiny.tif: (5, 5) pixels",
    ):
        assert any(told in line for line in said), told


def test_nothing_but_an_overview_is_refused_before_any_work(scans, tmp_path, capsys):
    good = read_images(next(scans.glob("*.tif")))[0]
    write_image(tmp_path / "overview.tif", good.with_pixel_size(56.0, "file"))
    assert main(["run", "wse2", "--images", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "too coarse" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_images_smaller_than_a_patch_leave_no_run_folder(scans, tmp_path, capsys):
    good = read_images(next(scans.glob("*.tif")))[0]
    write_image(tmp_path / "small.tif", good.with_data(good.data[:40, :40], "cut"))
    words = ["run", "wse2", "--images", str(tmp_path), "--pixel-size", "0.2", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "smaller than 48 px" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_patches_larger_than_the_library_are_refused_before_any_work(scans, tmp_path, capsys):
    words = [
        "run",
        "wse2",
        "--images",
        str(scans),
        "--out",
        str(tmp_path / "out"),
        "--set",
        "library.size_px=64",
    ]
    assert main(words) == 2
    assert "translate.patch_px = 96 is more than library.size_px = 64" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("angles_deg", "expected"),
    [
        ([10, 12], (5, 17)),
        ([58, 63], (53, 68)),  # one turns into the other beyond 60°
        ([5, 20, 30, 45], (0, 50)),
        ([0, 9, 18, 27, 36, 45, 54], (0, 360)),  # all around
    ],
)
def test_lattices_are_simulated_as_those_measured_are_turned(angles_deg, expected):
    specimen, optics = Specimen(defects={}, strain=0.0, holes=0.0), Optics()
    images = []
    for angle in angles_deg:
        turned = replace(specimen, angle_deg=(angle, angle + 1e-6))
        (image,), _, _ = simulate_series(turned, optics, 1, (256, 256), 0.2, 0)
        images.append(Micrograph(image, 0.2, f"at {angle}"))
    scaled, _ = decide_scale(images, ScaleRule("WSe2"), print)
    low, high = matched(specimen, scaled).angle_deg
    assert (low - expected[0]) % 60 == pytest.approx(0, abs=0.5) or (low - expected[0]) % 60 > 59.5
    assert high - low == pytest.approx(expected[1] - expected[0], abs=0.5)
    given = replace(specimen, angle_deg=(0.0, 90.0))
    assert matched(given, scaled).angle_deg == (0.0, 90.0)
    assert matched(specimen, []).angle_deg == Specimen.angle_deg
    oblique = [replace(s, inspection=replace(s.inspection, kind="oblique")) for s in scaled]
    assert matched(specimen, oblique).angle_deg == Specimen.angle_deg
    blank = Micrograph(np.random.default_rng(0).normal(size=(256, 256)), 0.2, "noise")
    with_noise, _ = decide_scale([*images, blank], ScaleRule("WSe2"), print)
    assert len(with_noise) == len(images) + 1
    assert matched(specimen, with_noise).angle_deg == Specimen.angle_deg


def test_a_calibration_far_from_the_lattice_is_doubted(scans):
    good = read_images(next(scans.glob("*.tif")))[0]
    rule = ScaleRule.of(built_in("wse2"))
    ((scaled,), _) = decide_scale([good.with_pixel_size(0.5, "file")], rule, print)
    assert scaled.doubtful
    assert "--pixel-size" in scaled.why
    ((scaled,), _) = decide_scale([good], rule, print)
    assert not scaled.doubtful


def test_a_run_is_not_resumed_on_other_images(run_folder, scans, tmp_path, capsys):
    good = read_images(next(scans.glob("*.tif")))[0]
    write_image(tmp_path / "other.tif", good)
    words = ["run", "wse2", "--images", str(tmp_path), "--out", str(run_folder), *SETTINGS, "--resume"]
    assert main(words) == 2
    assert "other images" in capsys.readouterr().err


def test_two_processes_learn_what_one_does_and_only_one_reports(scans, tmp_path):
    """The detector's batches are shared; the CycleGAN, whose noise each process draws itself, is left out."""
    settings = [*SETTINGS, "--set", "library.train_on=fitted", "--set", "detect.steps=40"]
    words = ["run", "wse2", "--images", str(scans), *settings, "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def torchrun(out: str, *more: str) -> subprocess.CompletedProcess[str]:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "micrographia"]
        command = [sys.executable, *launch, *words, str(tmp_path / out), *more]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)

    done = torchrun("two")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("simulate-fitted: started") == 1
    assert done.stdout.count("report.html") == 1
    assert main([*words, str(tmp_path / "one")]) == 0
    one, two = (
        pd.read_csv(next((tmp_path / name).glob("stages/detect-*/history.csv"))) for name in ("one", "two")
    )
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-3)
    again = torchrun("two")
    assert again.returncode != 0
    assert "--resume" in again.stderr
    assert "internal error" not in again.stderr


def test_any_network_can_judge_the_training_images(run_folder, scans):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 5), torch.nn.ReLU())
    recipe = load_recipe("wse2", TINY)
    found = find_defects(
        [scans], recipe, run_folder, True, extractor=module_extractor(network, "a small network")
    )
    distances = found.metrics["distance_to_experiment"]["simulated"]
    assert distances["extractor"] == "a small network"
    assert distances["n_features"] == 6
    assert "a small network" in (run_folder / "report.html").read_text()


def test_other_weights_than_inceptions_are_refused_before_any_work(scans, tmp_path, capsys):
    (tmp_path / "weights.pth").write_bytes(b"others")
    words = ["run", "wse2", "--images", str(scans), "--out", str(tmp_path / "out")]
    assert main([*words, "--set", f"inception_weights={tmp_path / 'weights.pth'}"]) == 2
    assert "weights.pth" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
