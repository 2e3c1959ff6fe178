"""The journey `synthesize`, through the command line."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image

from micrographia.cli.main import main
from micrographia.errors import UserError
from micrographia.io import read_provenance, read_stored, write_image
from micrographia.metrics import features
from micrographia.metrics.memorisation import pixel_keys
from micrographia.micrograph import Micrograph
from micrographia.nets.weights import load_model
from micrographia.synthesize.gan import GAN
from micrographia.synthesize.images import TrainingSet, Window, read_training_set
from micrographia.synthesize.synthesizer import Synthesizer
from micrographia.video import read_video_provenance
from micrographia.workflows.looking import provenance
from micrographia.workflows.recipe import load_recipe
from micrographia.workflows.synthesize import divide
from micrographia.workflows.synthesize_recipe import JudgeConfig
from micrographia.workflows.synthesize_steps import evaluate

QUICK = [
    "gan.steps=12",
    "gan.batch=8",
    "gan.latent=8",
    "gan.width=8",
    "gan.widest=16",
    "gan.evaluate_every=6",
    "judge.samples=40",
    "judge.bootstrap=10",
]


def changes(*more: str) -> list[str]:
    return [word for change in (*QUICK, *more) for word in ("--set", change)]


@pytest.fixture(scope="module")
def steel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("steel") / "steel"
    words = [
        "synthesize",
        "microstructures",
        "--kind",
        "field",
        "--n",
        "60",
        "--size-px",
        "32",
        "--out",
        str(folder),
    ]
    assert main(words) == 0
    return folder


@pytest.fixture(scope="module")
def fitted(steel, tmp_path_factory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("run") / "run"
    words = ["synthesize", "fit", str(steel), "--resolution", "32", "--out", str(out), *changes()]
    assert main(words) == 0
    return out, words


def test_the_generated_set_knows_its_truth(steel):
    truth = pd.read_csv(steel / "truth.csv")
    assert len(truth) == 60
    from micrographia.io import read_images

    mask = read_images(steel / "masks" / truth["image"][7].replace(".png", ".tif"))[0].data
    assert mask.mean() == pytest.approx(truth["phase_fraction"][7], abs=1e-6)
    told = read_provenance(steel / truth["image"][7])
    assert told["synthetic"] is True
    assert (told["number"], told["size_px"]) == (7, 32)


def test_the_report_stands_in_a_browser(fitted, stands_in_browser):
    stands_in_browser(fitted[0] / "report.html")


def test_a_folder_becomes_a_model_samples_and_a_report(fitted):
    out, _ = fitted
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["training_images"] + metrics["judged_by"] == 60
    assert metrics["held_out_by"] == "files"
    for name in (
        "fid",
        "kid",
        "precision",
        "recall",
        "density",
        "coverage",
        "two_point_rms",
        "memorisation_score",
    ):
        assert np.isfinite(metrics[name]), name
    for name in ("fid", "recall", "two_point_rms", "brightness_distance"):
        assert np.isfinite(metrics[f"{name}_training"]), name
    assert metrics["fid_training"] < metrics["fid"], "what was learnt from is nearer than what was made"
    assert "training images" in (out / "report.html").read_text("utf-8")
    assert len(list((out / "samples").glob("*.png"))) == 40
    told = read_provenance(next((out / "samples").glob("*.png")))
    assert told["synthetic"] is True
    assert told["generator"] == "stylegan2"
    page = (out / "report.html").read_text("utf-8")
    for heading in (
        "Real and generated",
        "How close",
        "Microstructure",
        "Copies?",
        "Between images",
        "Training",
    ):
        assert heading in page
    for figure in ("sheets", "microstructure", "neighbours", "paths", "training", "looks"):
        assert (out / "figures" / f"{figure}.png").stat().st_size > 2000, figure
    assert load_model(out / "model.safetensors", "synthesizer")[1]["channels"] == 1


def test_a_sample_names_its_model(fitted, tmp_path, capsys):
    assert main(["synthesize", "sample", str(fitted[0]), "--out", str(tmp_path / "new")]) == 0
    told = read_provenance(tmp_path / "new" / "seed-0000.png")
    assert told["model"] == "run/model.safetensors"
    capsys.readouterr()
    assert main(["provenance", str(fitted[0] / "model.safetensors")]) == 0
    assert f'"{told["weights"]}"' in capsys.readouterr().out


def test_every_picture_of_generated_images_says_so(fitted, steel, tmp_path, capsys):
    out = fitted[0]
    assert main(["synthesize", "evaluate", str(out), "--real", str(steel), "--n", "40", "--out", str(tmp_path / "e")]) == 0  # fmt: skip
    assert main(["synthesize", "evaluate", str(out / "samples"), "--real", str(steel), "--out", str(tmp_path / "f")]) == 0  # fmt: skip
    capsys.readouterr()
    shown = [out / "figures" / f"{name}.png" for name in ("sheets", "microstructure", "neighbours", "paths", "looks")]  # fmt: skip
    shown += [*(tmp_path / "e" / "figures").glob("*.png"), *(tmp_path / "f" / "figures").glob("*.png")]
    looks = [*(out / "looks").glob("*.png"), *(out / "looks").glob("*.npy")]
    assert len(shown) >= 9
    assert len(looks) == 4
    for path in [*shown, *looks, *(out / "samples").glob("*.png")]:
        assert main(["provenance", str(path)]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["synthetic"] is True, path
        assert told["generator"] == "stylegan2", path
        assert told["model"], path
        assert told["trained_with_seed"] == 0, path
        assert told["software"].startswith("micrographia "), path
    assert main(["provenance", str(out / "looks" / "step-000012.npy")]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 12
    assert main(["provenance", str(out / "figures" / "training.png")]) == 0
    assert "synthetic" not in json.loads(capsys.readouterr().out), "curves are no images"


def test_a_done_run_is_not_trained_again(fitted, capsys):
    out, words = fitted
    before = (out / "model.safetensors").read_bytes()
    assert main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert "train: done before" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == before


def test_a_killed_run_goes_on_to_the_same_model(steel, fitted, tmp_path):
    out = tmp_path / "killed"
    words = fitted[1]
    command = [
        sys.executable,
        "-m",
        "micrographia",
        *(str(out) if w == str(fitted[0]) else w for w in words),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("looks/*.png")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "report.html").exists(), "the run ended before it could be killed"
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (out / "model.safetensors").read_bytes() == (fitted[0] / "model.safetensors").read_bytes()


def test_samples_are_functions_of_their_seeds(fitted, tmp_path):
    out, _ = fitted
    for name, n, seed in (("a", 3, 5), ("b", 1, 7)):
        words = [
            "synthesize",
            "sample",
            str(out),
            "--n",
            str(n),
            "--seed",
            str(seed),
            "--out",
            str(tmp_path / name),
        ]
        assert main(words) == 0
    a, b = (np.asarray(Image.open(tmp_path / name / "seed-0007.png")) for name in ("a", "b"))
    assert np.abs(a.astype(int) - b).max() <= 1  # batches of other sizes round differently
    told = provenance(tmp_path / "a" / "overview" / "seeds.png")
    assert told["synthetic"] is True
    assert told["seeds"] == [5, 7]
    assert main(["synthesize", "sample", str(out), "--tif", "--out", str(tmp_path / "t")]) == 0
    assert len(list((tmp_path / "t").glob("*.tif"))) == 16


def test_a_way_between_two_images(fitted, tmp_path, capsys):
    out, _ = fitted
    film = tmp_path / "way.gif"
    assert (
        main(["synthesize", "interpolate", str(out), "1", "2", "--video", "--steps", "5", "--out", str(film)])
        == 0
    )
    with Image.open(film) as opened:
        assert opened.n_frames == 8  # there and back, the ends once
        assert opened.size == (256, 256)  # of 32 px
    capsys.readouterr()
    assert main(["provenance", str(film)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["from_seed"] == 1
    assert (told["space"], told["path"]) == ("w", "straight")
    assert told["synthetic"] is True
    frames = tmp_path / "frames"
    words = ["synthesize", "interpolate", str(out), "1", "2", "--steps", "3", "--space", "z", "--linear"]
    assert main([*words, "--out", str(frames)]) == 0
    assert len(list(frames.glob("*.png"))) == 3


def test_a_real_image_has_a_code(steel, fitted, tmp_path):
    words = ["synthesize", "project", str(fitted[0]), str(steel / "field-00.png"), "--steps", "5"]
    assert main([*words, "--out", str(tmp_path / "p")]) == 0
    assert np.load(tmp_path / "p" / "style.npy").shape == (8,)
    assert read_provenance(tmp_path / "p" / "projected.png")["projection_of"] == "field-00.png"


def test_a_way_between_real_images(steel, fitted, tmp_path, monkeypatch, capsys):
    run = str(fitted[0])
    for k in (0, 1):
        words = ["synthesize", "project", run, str(steel / f"field-0{k}.png"), "--steps", "3"]
        assert main([*words, "--out", str(tmp_path / f"p{k}")]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["synthesize", "interpolate", run, "p0", "p1/style.npy", "--steps", "3"]) == 0
    frames = sorted(Path("path-p0-style.npy").glob("*.png"))
    told = read_provenance(frames[1])
    assert (told["from_projection_of"], told["to_projection_of"]) == ("field-00.png", "field-01.png")
    model = Synthesizer.load(fitted[0] / "model.safetensors")
    ends = torch.from_numpy(np.stack([np.load(f"p{k}/style.npy") for k in (0, 1)]))
    for k, (drawn, frame) in enumerate(
        zip(model.draw_styles(ends, None), (frames[0], frames[2]), strict=True)
    ):
        np.testing.assert_array_equal(model.window.restore(drawn)[0], read_stored(frame)[0].data)
        projected = read_stored(tmp_path / f"p{k}" / "projected.png")[0].data.astype(float)
        np.testing.assert_allclose(
            projected, read_stored(frame)[0].data, atol=1
        )  # a path begins at the picture
    assert main(["synthesize", "interpolate", run, "7", "p1", "--steps", "3", "--out", "mixed"]) == 0
    assert read_provenance(sorted(Path("mixed").glob("*.png"))[0])["from_seed"] == 7
    capsys.readouterr()
    note = json.loads(Path("p0/style.json").read_text())
    note["metadata"]["micrographia"]["weights"] = "another"
    Path("p0/style.json").write_text(json.dumps(note))
    for words, message in (
        (["p0", "3"], "style of another model"),
        (["3", str(steel / "field-00.png")], "is no style"),
        (["3", "p1/projected.png"], "is no style"),
        (["3", "nowhere"], "no such file"),
        (["3", "p1", "--space", "z"], 'lies in space "w"'),
    ):
        assert main(["synthesize", "interpolate", run, *words, "--out", "none"]) == 2
        assert message in capsys.readouterr().err
        assert not Path("none").exists()


def test_evaluate_models_and_folders(steel, fitted, tmp_path, capsys):
    assert main(["synthesize", "evaluate", str(fitted[0]), "--real", str(steel), "--n", "40", "--json"]) == 0
    model = json.loads(capsys.readouterr().out)
    # Real against themselves: nothing is nearer.
    assert (
        main(["synthesize", "evaluate", str(steel), "--real", str(steel), "--out", str(tmp_path / "e")]) == 0
    )
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "aaa.png").write_bytes(b"no image")
    for path in steel.glob("*.png"):
        (tmp_path / "some" / path.name).write_bytes(path.read_bytes())
    words = ["synthesize", "evaluate", str(tmp_path / "some"), "--real", str(steel)]
    assert main([*words, "--out", str(tmp_path / "f")]) == 0
    told = json.loads((tmp_path / "f" / "metrics.json").read_text())["images_left_out"]
    assert [Path(name).name for name, _ in told] == ["aaa.png"]
    assert "Left out: 1 files or frames" in (tmp_path / "f" / "report.html").read_text("utf-8")
    same = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert same["fid"] < 1e-3 < model["fid"]
    assert same["two_point_rms"] < 1e-9 < model["two_point_rms"]
    assert (tmp_path / "e" / "report.html").exists()


def test_few_images_are_judged_without_intervals_and_in_valid_json(steel, tmp_path, capsys):
    for path in sorted(steel.glob("*.png"))[:10]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert main(["synthesize", "evaluate", str(tmp_path), "--real", str(steel), "--json"]) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # no NaN
    assert told["fid_interval"] == [None, None]
    assert any("fewer than 20" in w for w in told["warnings"])
    assert main(["synthesize", "evaluate", str(tmp_path), "--real", str(steel)]) == 0
    assert "too few for intervals" in "".join(capsys.readouterr())


def test_evaluate_on_the_training_images_says_so_and_finds_copies(steel, fitted, tmp_path, capsys):
    copies = tmp_path / "copies"
    copies.mkdir()
    for path in sorted(steel.glob("*.png"))[:12]:
        (copies / path.name).write_bytes(path.read_bytes())
    words = ["synthesize", "evaluate", str(copies), "--real", str(steel), "--training", str(steel)]
    assert main([*words, "--out", str(tmp_path / "e"), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["memorisation_score"] == 1
    assert main(words) == 0
    assert "100.0 % of the samples are more like some training image" in capsys.readouterr().out
    assert "60 of 60 real images are training images" in told.err
    assert "are training images themselves" in (tmp_path / "e" / "report.html").read_text("utf-8")
    # Of a folder that is larger than what is judged, some from everywhere.
    few = evaluate(steel, [steel], None, config=JudgeConfig(samples=16, bootstrap=10))
    assert few.numbers["n_other"] == 16


def test_16_bit_colours_become_tiff(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for k in range(24):
        levels = rng.integers(0, 65536, (16, 16, 3)).astype(np.uint16)
        tifffile.imwrite(tmp_path / f"{k}.tif", levels, photometric="rgb")
    out = tmp_path / "run"
    words = ["synthesize", "fit", str(tmp_path / "*.tif"), "--resolution", "16", "--out", str(out)]
    assert main([*words, *changes("images.channels=3", "gan.steps=4", "judge.phases=false")]) == 0
    assert read_stored(next((out / "samples").glob("*.tif")), colours=True)[0].data.dtype == np.uint16
    assert "Of colours the mean is judged" in (out / "report.html").read_text("utf-8")
    assert main(["synthesize", "sample", str(out), "--out", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "seed-0000.tif").is_file()
    words = ["synthesize", "project", str(out), str(tmp_path / "0.tif"), "--steps", "2"]
    assert main([*words, "--out", str(tmp_path / "p")]) == 0
    assert (tmp_path / "p" / "projected.tif").is_file()


def test_classes_by_folder(steel, tmp_path, capsys):
    folder = tmp_path / "both"
    for name, kind in (("field", "field"), ("grains", "grains")):
        words = [
            "synthesize",
            "microstructures",
            "--kind",
            kind,
            "--n",
            "24",
            "--size-px",
            "16",
            "--seed",
            "3",
        ]
        assert main([*words, "--out", str(folder / name)]) == 0
    out = tmp_path / "run"
    words = ["synthesize", "fit", str(folder), "--resolution", "16", "--out", str(out), "--recipe", "r3gan"]
    assert main([*words, *changes("images.classes=true", "gan.steps=4")]) == 0
    assert set(json.loads((out / "metrics.json").read_text())["frechet_by_class"]) == {"field", "grains"}
    told = [read_provenance(path) for path in sorted((out / "samples").glob("seed-*.png"))]
    assert {each["class"] for each in told} == {"field", "grains"}
    model = Synthesizer.load(out / "model.safetensors")
    again = model.sample([told[0]["seed"]], label=told[0]["class"])
    written = read_stored(next((out / "samples").glob(f"seed-*{told[0]['seed']}.png")))[0].data
    np.testing.assert_array_equal(model.window.restore(again)[0, 0], written)
    assert main(["synthesize", "sample", str(out), "--class", "grains", "--out", str(tmp_path / "s")]) == 0
    assert read_provenance(tmp_path / "s" / "seed-0000.png")["class"] == "grains"
    capsys.readouterr()
    assert main(["synthesize", "sample", str(out), "--out", str(tmp_path / "t")]) == 2
    assert "--class): one of field, grains." in capsys.readouterr().err
    assert main(["synthesize", "evaluate", str(out), "--real", str(folder / "field")]) == 2
    told = capsys.readouterr().err
    assert "real: Classes are the sub-folders" in told
    assert "with --class" in told
    judging = ["synthesize", "evaluate", str(out), "--n", "40", "--json"]
    assert main([*judging, "--real", str(folder)]) == 0
    assert set(json.loads(capsys.readouterr().out)["frechet_by_class"]) == {"field", "grains"}
    assert main([*judging, "--real", str(folder / "grains"), "--class", "grains"]) == 0
    assert "frechet_by_class" not in json.loads(capsys.readouterr().out)


def test_images_that_are_no_squares(tmp_path):
    folder = tmp_path / "wide"
    words = [
        "synthesize",
        "microstructures",
        "--n",
        "24",
        "--size-px",
        "32",
        "--kind",
        "field",
        "--out",
        str(folder),
    ]
    assert main(words) == 0
    (folder / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "run"
    words = ["synthesize", "fit", str(folder), "--resolution", "32", "--out", str(out)]
    assert main([*words, *changes("images.height_px=24", "gan.steps=4", "images.crops_per_image=3")]) == 0
    assert Image.open(next((out / "samples").glob("*.png"))).size == (32, 24)
    assert "Left out: 1 files or frames" in (out / "report.html").read_text("utf-8")


def test_dcgan_by_recipe(steel, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["synthesize", "fit", str(steel), "--recipe", "dcgan", "--resolution", "32", "--out", str(out)]
    assert main([*words, *changes("gan.slope=0.0", "gan.steps=4")]) == 0
    assert "towards the mean image" not in (out / "report.html").read_text("utf-8")
    assert main(["synthesize", "interpolate", str(out), "1", "2", "--out", str(tmp_path / "w.gif")]) == 0
    assert read_video_provenance(tmp_path / "w.gif")["space"] == "z"
    capsys.readouterr()
    words = ["synthesize", "interpolate", str(out), "1", "2", "--space", "w", "--video"]
    assert main([*words, "--out", str(tmp_path / "v.gif")]) == 2
    assert "a dcgan has no style space" in capsys.readouterr().err
    critic = GAN(Synthesizer.load(out / "model.safetensors").config, 1, 0, (32, 32), 0).networks["critic"]
    assert critic.slope == 0  # the lecture's exercise: plain rectifiers


def test_what_fails_in_training_ends_in_one_line(steel, tmp_path, monkeypatch, capsys):
    usual = GAN.training_step
    words = ["synthesize", "fit", str(steel), "--resolution", "32", *changes("gan.evaluate_every=2")]

    def diverging(self, batch, number, generator):
        values = usual(self, batch, number, generator)
        return values if number < 5 else values | {"critic": float("nan")}

    monkeypatch.setattr(GAN, "training_step", diverging)
    assert main([*words, "--out", str(tmp_path / "wild")]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    model = tmp_path / "wild" / "model.safetensors"
    assert "diverged" in told
    assert str(model) in told
    assert Synthesizer.load(model).sample([0]).shape == (1, 1, 32, 32)

    def large(self, batch, number, generator):
        if len(batch[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return usual(self, batch, number, generator)

    monkeypatch.setattr(GAN, "training_step", large)
    assert main([*words, "--out", str(tmp_path / "large")]) == 2
    assert "set gan.batch = 4, which fits" in capsys.readouterr().err.strip().splitlines()[-1]


class Inception(torch.nn.Module):
    """In place of torch-fidelity's network: as many features, of images as it takes them."""

    def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert features == ["2048"]
        self.mixed = torch.nn.Linear(3 * 64, 2048, bias=False)
        torch.nn.init.orthogonal_(self.mixed.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        small = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 8)
        return (self.mixed(small.flatten(1)),)


def test_inception_judges_where_its_weights_are(steel, fitted, tmp_path, monkeypatch, capsys):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    fake = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    fake.FeatureExtractorInceptionV3 = Inception
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(features, "INCEPTION_SHA256", hashlib.sha256(b"weights").hexdigest())
    words = ["synthesize", "evaluate", str(fitted[0]), "--real", str(steel), "--n", "40"]
    assert main([*words, "--inception", str(weights), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["extractor"].startswith("Inception-v3")
    assert found["n_features"] == 2048
    assert found["fid"] > found["fid_floor"] > 0
    assert any("2048" in warning or "fewer" in warning for warning in found["warnings"])
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_features"] < 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "NOWHERE"], "NOWHERE: no such file or folder"),
        (["fit", "BROKEN", "BROKEN2"], "None of 2 files can be learnt from, such as"),
        (["fit", "BROKEN", "BROKEN2"], ": 2 x cannot be read"),
        (["evaluate", "NOWHERE", "--real", "STEEL"], "NOWHERE: no such file or folder"),
        (["evaluate", "RUN", "--real", "STEEL", "--n", "4"], "samples = 4: give at least 16"),
        (["evaluate", "STAMPS", "--real", "STEEL"], "8 x 8 px are too small: give at least 16 px each way"),
        (["sample", "SMALL", "--out", "OUT"], "is no model file"),
        (["project", "RUN", "STEEL", "--out", "OUT"], "is a folder, not an image; name a file in it"),
        (["project", "RUN", "FLAT", "--out", "OUT"], "flat.png: is constant"),
        (["fit", "STEEL", "--resolution", "48"], "power of two"),
        (["fit", "STEEL", "--resolution", "64"], "smaller than 64 x 64"),
        (["fit", "STEEL", "--resolution", "32", "--set", "gan.batch=64"], "fewer than a batch of 64"),
        (["fit", "STEEL", "--resolution", "32", "--set", "gan.batch=56"], "Of 60 images 12 are held out"),
        (["fit", "STEEL", "--recipe", "wse2"], "a recipe to find"),
        (["fit", "STEEL", "--set", f"seed={2**64}"], f"seed = {2**64}: give 0 to 1e+18"),
        (["fit", "STEEL", "--seed", str(2**64)], "must be at most 1e+18"),
        (["gaussian", "--seed", str(2**64), "--out", "OUT"], "must be at most 1e+18"),
        (["fit", "STEEL", "--set", "gan.stepps=3"], "no key 'stepps'"),
        (["sample", "NOWHERE", "--out", "OUT"], "neither a model file nor a run folder"),
        (["fit", "STEEL", "--resolution", "32", "--set", "judge.inception_weights=NO"], "do not exist"),
        (["sample", "RUN", "--out", "STEEL"], "not empty"),
        (["sample", "RUN", "--n", "1", "--out", "OUT.jpg"], "written as .png or .tif"),
        (["evaluate", "STEEL", "--real", "STEEL", "--class", "steel"], "images know no classes"),
        (["sample", "RUN", "--seed", "-1", "--out", "OUT"], "at least 0"),
        (["sample", "RUN", "--truncation", "nan", "--out", "OUT"], "from 0"),
        (["interpolate", "RUN", "1", "2", "--truncation", "-1", "--video", "--out", "OUT.gif"], "from 0"),
        (["project", "RUN", "FLOAT", "--out", "OUT"], "float32, those to compare with uint8"),
        (["sample", "RUN", "--class", "steel", "--out", "OUT"], "knows no classes"),
        (["interpolate", "RUN", "1", "2", "--video", "--out", "OUT.avi"], ".gif or .mp4"),
        (["project", "RUN", "SMALL", "--out", "OUT"], "smaller than the 32 x 32"),
        (["evaluate", "RUN", "--real", "NOWHERE"], "NOWHERE"),
        (["microstructures", "--fraction", "1.5", "--out", "OUT"], "1.5"),
    ],
)
def test_wrong_use_is_told_in_one_line(words, message, steel, fitted, tmp_path, capsys):
    small = tmp_path / "small.png"
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(small)
    real = tmp_path / "float.tif"
    write_image(real, Micrograph(np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)))
    (tmp_path / "stamps").mkdir()
    for path, size, level in (("flat.png", 32, 7), ("stamps/a.png", 8, 7)):
        Image.fromarray(np.full((size, size), level, np.uint8)).save(tmp_path / path)
    for name in ("broken.png", "broken2.png"):
        (tmp_path / name).write_bytes(b"no picture")
    places = {
        "FLAT": str(tmp_path / "flat.png"),
        "STAMPS": str(tmp_path / "stamps"),
        "BROKEN": str(tmp_path / "broken.png"),
        "BROKEN2": str(tmp_path / "broken2.png"),
        "FLOAT": str(real),
        "STEEL": str(steel),
        "RUN": str(fitted[0]),
        "OUT": str(tmp_path / "out"),
        "SMALL": str(small),
    }
    words = [places.get(w, w.replace("OUT", str(tmp_path / "out"))) for w in words]
    if words[0] == "fit":
        words += ["--out", str(tmp_path / "run")]
    assert main(["synthesize", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("micrographia: error:")
    assert message in error
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "run").exists()  # what can be known before the training claims no folder


def test_another_judgement_needs_no_other_training(fitted, capsys):
    out, words = fitted
    assert main([*words, "--resume", "--set", "judge.phases=false"]) == 0
    assert "train: done before" in capsys.readouterr().err
    assert "two_point_rms" not in json.loads((out / "metrics.json").read_text())


def divided(images, *changes: str):
    return divide(images, load_recipe("stylegan2-ada", list(changes)))


def test_patches_that_overlap_held_out_ones_are_not_learnt_from(steel, tmp_path):
    files = sorted(steel.glob("*.png"))[:4]
    overlapping = read_training_set(files, 16, crops_per_image=12)
    # Of 32 px nearly every patch of 16 shares pixels with some other.
    assert divided(overlapping, "images.hold_out=0.3").held_out_by == ""
    cover = read_training_set(files, 16)
    three = np.repeat(np.arange(len(cover)), 3)
    levels = np.random.default_rng(0).integers(0, 256, (len(three), 1, 16, 16)).astype(np.uint8)
    found = divided(replace(cover.part(three), images=levels), "images.hold_out=0.18")
    assert found.held_out_by == "places"
    taken, learnt = (
        {(n, *c) for n, c in zip(t.names, t.corners_px.tolist(), strict=True)}
        for t in (found.real, found.training)
    )
    assert not taken & learnt


def movies_of(images) -> set[str]:
    return {name.partition("#")[0] for name in images.names}


def frames_of(images, movie: str) -> set[int]:
    return {int(name.partition("#")[2] or 0) for name in images.names if name.startswith(movie)}


def write_movies(folder: Path, *frames: int) -> None:
    rng = np.random.default_rng(sum(frames))
    folder.mkdir(exist_ok=True)
    for k, n in enumerate(frames):
        stack = rng.integers(0, 256, (1, 32, 32)) + rng.integers(-9, 10, (n, 32, 32))
        tifffile.imwrite(
            folder / f"movie-{k}.tif", stack.clip(0, 255).astype(np.uint8), photometric="minisblack"
        )


def test_frames_of_a_file_are_held_out_together(tmp_path):
    write_movies(tmp_path, *[6] * 10)
    found = divided(read_training_set(tmp_path, 32))
    assert found.held_out_by == "files"
    assert len(movies_of(found.real)) == 2
    assert not movies_of(found.real) & movies_of(found.training)


def test_places_of_few_movies_are_held_out_in_all_frames(tmp_path):
    write_movies(tmp_path, *[6] * 4)
    found = divided(read_training_set(tmp_path, 16))
    assert found.held_out_by == "places"
    sides = [
        {(n.partition("#")[0], *c) for n, c in zip(t.names, t.corners_px.tolist(), strict=True)}
        for t in (found.training, found.real)
    ]
    assert not sides[0] & sides[1]
    assert len(found.training) + len(found.real) == 4 * 4 * 6


@pytest.mark.parametrize("frames", [(64,), (40, 40, 40), (20,) * 7, (8, 400), (200, 1, 1, 1)])
@pytest.mark.parametrize("share", [0.1, 0.2])
def test_blocks_of_few_movies_of_one_place_are_held_out(tmp_path, frames, share):
    write_movies(tmp_path, *frames)
    found = divided(read_training_set(tmp_path, 32), f"images.hold_out={share}")
    if share * sum(frames) < 8:
        assert found.held_out_by == ""
        return
    assert found.held_out_by == "frames"
    assert len(found.training) + len(found.real) == sum(frames)
    assert 0.5 * share <= len(found.real) / sum(frames) <= 1.6 * share
    for k, n in enumerate(frames):
        movie = f"movie-{k}.tif"
        learnt, judges = (frames_of(t, movie) for t in (found.training, found.real))
        assert not learnt & judges
        side = np.isin(np.arange(n), list(judges))
        assert np.abs(np.diff(side.astype(int))).sum() <= 4, "whole blocks, not single frames"


def test_every_class_is_held_out_in_part_and_learnt_in_part(tmp_path):
    write_movies(tmp_path / "dim", 100)
    write_movies(tmp_path / "lit", 30)
    found = divided(read_training_set(tmp_path, 32, classes=True))
    assert found.held_out_by == "frames"
    for part, low, high in ((found.real, 0.1, 0.3), (found.training, 0.7, 0.9)):
        counts = np.bincount(part.labels, minlength=2) / (100, 30)
        assert (counts >= low).all()
        assert (counts <= high).all()


def test_a_class_of_one_image_is_learnt_from(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (60, 1, 16, 16)).astype(np.uint8)
    levels[50:] = levels[50]
    labels = np.repeat([0, 1], [50, 10])
    found = divided(replace(made_up(levels), labels=labels, classes=("many", "one")))
    assert found.held_out_by == "files"
    assert (np.bincount(found.training.labels) == [40, 10]).all()
    assert (found.real.labels == 0).all()
    # Places of the only image of a class overlap: held out one by one, they would leave nothing to learn from.
    for name, n, size in (("many", 6, 64), ("one", 1, 48)):
        (tmp_path / name).mkdir()
        for k in range(n):
            image = np.random.default_rng([n, k]).integers(0, 256, (size, size)).astype(np.uint8)
            tifffile.imwrite(tmp_path / name / f"{k}.tif", image)
    assert divided(read_training_set(tmp_path, 32, classes=True)).held_out_by == ""


def test_neighbours_in_time_steer_no_augmentation(tmp_path):
    write_movies(tmp_path / "movie", 100)
    assert len(divided(read_training_set(tmp_path / "movie", 32)).unseen) == 0
    write_movies(tmp_path / "single", *[1] * 50)
    found = divided(read_training_set(tmp_path, 32, classes=True))
    assert found.held_out_by == "frames"
    assert (found.unseen.labels == 1).all()
    assert len(found.unseen) == (found.real.labels == 1).sum() == 10
    files = divided(read_training_set(tmp_path / "single", 32))
    assert files.unseen is files.real


def test_a_long_movie_among_single_images_is_divided_by_frames(tmp_path):
    write_movies(tmp_path, 400, *[1] * 7)
    found = divided(read_training_set(tmp_path, 32))
    assert found.held_out_by == "frames"
    assert 20 < len(found.real) < 200


def test_too_few_frames_judge_nothing(tmp_path):
    write_movies(tmp_path, 20)
    assert divided(read_training_set(tmp_path, 32)).held_out_by == ""


def test_an_image_under_two_names_is_on_one_side_and_judges_once(steel, tmp_path):
    for path in steel.glob("*.png"):
        for copy in range(2):
            (tmp_path / f"{path.stem}-{copy}.png").write_bytes(path.read_bytes())
    both = read_training_set(tmp_path, 32)
    found = divided(both)
    assert found.held_out_by == "files"
    keys = pixel_keys(found.real.images)
    assert not set(pixel_keys(found.training.images)) & set(keys)
    assert len(set(keys)) == len(keys) == 0.1 * len(both)
    assert len(found.training) == 0.8 * len(both)
    one = tmp_path / "one"
    one.mkdir()
    for k in range(12):
        (one / f"{k}.png").write_bytes((steel / "field-00.png").read_bytes())
    with pytest.raises(UserError, match=r"All 12 images are the same, pixel by pixel \(0\.png, 11\.png\)"):
        divided(read_training_set(one, 32))
    (one / "12.png").write_bytes((steel / "field-01.png").read_bytes())
    with pytest.raises(UserError, match="2 different images are too few"):
        divided(read_training_set(one, 32))


def made_up(levels: np.ndarray, names: list[str] | None = None) -> TrainingSet:
    """One patch of each of so many files."""
    own = tuple(names or [f"{k}.png" for k in range(len(levels))])
    return TrainingSet(levels, Window(0.0, 255.0, "uint8"), own, np.zeros((len(levels), 2), int))


@pytest.mark.parametrize("channels", [1, 3])
def test_blank_patches_are_no_copies_of_each_other(channels):
    levels = np.random.default_rng(0).integers(0, 256, (160, channels, 16, 16)).astype(np.uint8)
    levels[::2] = np.array([240, 10, 20])[:channels, None, None]
    found = divided(made_up(levels))
    assert (len(found.training), len(found.real)) == (128, 32)
    # Blank ones alone judge nothing, and nothing is learnt from them.
    levels[30:] = levels[0]
    assert divided(made_up(levels)).held_out_by == ""


def test_names_may_hold_anything():
    levels = np.random.default_rng(0).integers(0, 256, (80, 1, 16, 16)).astype(np.uint8)
    assert divided(made_up(levels, [f"a\nb#{k}#.png" for k in range(80)])).held_out_by == "files"
    assert divided(made_up(levels, [f"a\nb.tif#{k}" for k in range(80)])).held_out_by == "frames"


def test_what_was_left_out_is_on_record_before_the_training(steel, tmp_path, monkeypatch):
    def stopped(*arguments, **settings):
        raise KeyboardInterrupt

    (tmp_path / "broken.png").write_bytes(b"no picture")
    monkeypatch.setattr(Synthesizer, "fit", stopped)
    out = tmp_path / "run"
    words = ["synthesize", "fit", str(steel), str(tmp_path / "broken.png"), "--resolution", "32"]
    assert main([*words, "--out", str(out), *changes()]) == 130
    assert "broken.png" in json.loads((out / "left_out.json").read_text())[0][0]


def test_full_disk_leaves_nothing_half_written(fitted, tmp_path, monkeypatch, capsys):
    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert main(["synthesize", "sample", str(fitted[0]), "--n", "2", "--out", str(tmp_path / "out")]) == 2
    assert "disk is full" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.png"))
