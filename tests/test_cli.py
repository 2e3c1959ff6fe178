from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from micrographia.cli.main import build_parser, main
from micrographia.errors import UserError
from micrographia.io import write_image
from micrographia.micrograph import Micrograph
from micrographia.workflows import shorthand

COMMANDS = ("demo", "find", "explore", "run", "recipe", "inspect", "evaluate", "provenance", "simulate", "translate fit",
            "translate apply", "detect fit", "detect apply", "completion", "synthesize fit", "synthesize sample",
            "synthesize interpolate", "synthesize project", "synthesize evaluate", "synthesize microstructures",
            "synthesize gaussian")  # fmt: skip


@pytest.fixture
def image(tmp_path) -> Path:
    """A calibrated image with a square lattice of 16 px = 3.2 Å."""
    row = np.exp(-((np.arange(160) % 16 - 8) ** 2) / 18)
    data = row * row[:, None]
    data = data + 0.1 * np.random.default_rng(0).standard_normal(data.shape)
    path = tmp_path / "scan.tif"
    write_image(path, Micrograph(data, 0.2, "scan.tif", "file"))
    return path


def fails(capsys, *words: str, code: int = 2) -> str:
    """Run a command that must fail with one line on stderr and no traceback; return the line."""
    assert main(list(map(str, words))) == code
    out, error = capsys.readouterr()
    assert "Traceback" not in error
    assert out == ""
    assert error.startswith("micrographia: ")
    assert len(error.strip().splitlines()) == 1
    return error


# ------------------------------------------------------------------------------------------ help and versions


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_a_summary_and_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"micrographia {command}" in text.split("examples:")[1]
    assert max(map(len, text.split("examples:")[1].splitlines())) <= 110


def test_examples_in_the_help_parse():
    """What the help shows can be typed: every example of every command goes through the parser."""
    import shlex

    parser = build_parser()
    examples = []
    for command in COMMANDS:
        inner = parser
        for word in command.split():
            inner = next(a for a in inner._actions if a.choices and word in a.choices).choices[word]
        examples += re.findall(r"^  micrographia (.*?)(?:   .*)?$", inner.epilog, re.MULTILINE)
    assert len(examples) >= 20
    for example in examples:
        parser.parse_args(shlex.split(example.partition(" > ")[0]))


def test_help_is_quick_and_light():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = (
        "import sys; from micrographia.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    )
    code += "print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "examples:" in done.stdout
    assert done.stderr.strip() == "False False"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_no_command_shows_the_help(capsys):
    for words in ([], ["detect"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        assert "examples:" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"micrographia \S+\n", capsys.readouterr().out)


def test_completion_knows_commands_and_options(capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    for words, expected in (
        (["ins"], ["inspect"]),
        (["translate", ""], ["fit", "apply"]),
        (["translate", "fit", "--lib"], ["--library"]),
        (["--quiet", "evaluate", "--tol"], ["--tolerance"]),
        (["run", "wse2", "--res"], ["--resume"]),
    ):
        line = " ".join(f'"{word}"' for word in ("micrographia", *words))
        ask = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _micrographia"
        ask += "; echo ${COMPREPLY[@]}"
        told = subprocess.run(
            ["bash", "-c", ask], capture_output=True, text=True, cwd=tmp_path
        ).stdout.split()
        assert set(expected) <= set(told)
    assert main(["completion", "zsh"]) == 0
    assert "bashcompinit" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ wrong use


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["inspct", "a.tif"], "inspect"),
        (["inspect"], "IMAGES"),
        (["inspect", "a.tif", "--pixel-sise", "2"], "--pixel-sise"),
        (["inspect", "a.tif", "--pixel-size", "0.02nm"], "give Å without the unit"),
        (["inspect", "a.tif", "--pixel-size", "-1"], "greater than 0"),
        (["simulate", "--n", "0", "--out", "x"], "at least 1"),
        (["simulate", "--n", "many", "--out", "x"], "whole number"),
        (["run", "wse2", "--out", "x"], "--images"),
        (["evaluate", "a.csv", "b.csv"], "--tolerance"),
        (["completion", "tcsh"], "bash"),
    ],
)
def test_wrong_use_of_the_command_line(words, expected, capsys):
    error = fails(capsys, *words)
    assert expected in error
    assert "--help" in error


def test_no_files(capsys, tmp_path):
    assert "no such file" in fails(capsys, "inspect", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "No image files" in fails(capsys, "inspect", tmp_path / "empty")


def bad_files(tmp_path: Path) -> dict[str, Path]:
    colours = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "photo.png")
    (tmp_path / "notes.xyz123").write_text("no image")
    (tmp_path / "cut.dm4").write_bytes(b"\x00\x00\x00\x04" + bytes(200))
    np.save(tmp_path / "line.npy", np.zeros(100, np.float32))
    broken = np.ones((64, 64), np.float32)
    broken[3, 3] = np.nan
    np.save(tmp_path / "nan.npy", broken)
    return {p.name: p for p in tmp_path.iterdir()}


@pytest.mark.parametrize("name", ["photo.png", "notes.xyz123", "cut.dm4", "line.npy", "nan.npy"])
def test_files_that_are_no_images_are_named(name, capsys, tmp_path):
    path = bad_files(tmp_path)[name]
    assert main(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert name in error
    assert "Traceback" not in error


def test_of_a_broken_file_only_we_speak(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 64, 64), np.uint8))
    (tmp_path / "b.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:10_000])
    words = [sys.executable, "-m", "micrographia", "inspect", str(tmp_path / "b.tif")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"micrographia: error: .*b\.tif: cannot be read.*\n", done.stderr)


def test_bad_files_do_not_stop_the_others(capsys, image):
    bad_files(image.parent)
    np.save(image.parent / "constant.npy", np.ones((64, 64), np.float32))
    assert main(["inspect", str(image.parent), "--json"]) == 0
    out, error = capsys.readouterr()
    (result,) = json.loads(out)
    assert result["name"] == "scan.tif"
    for name in ("photo.png", "cut.dm4", "line.npy", "nan.npy", "constant.npy"):
        assert name in error


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("translate.stepps=5", "steps"),
        ("specimen.defects={\"vacancy-1Se\" = -0.1}", "above 0, at most 1"),
        ("specimen.defects={\"vacancy-1Se\" = 0}", "leave a kind out"),
        ("optics.energy_keV=\"80 kV\"", "without the unit"),
        ("no-value", "key=value"),
        ("device=\"gpu\"", "cpu"),
        ("specimen.defects={\"vacancy-1S\" = 0.1}", "no S"),
        ("specimen.material=WSe3", "WSe2"),
    ],
)  # fmt: skip
def test_wrong_recipes_fail_before_anything_is_written(change, expected, capsys, image, tmp_path):
    out = tmp_path / "run"
    error = fails(capsys, "run", "wse2", "--images", image, "--out", out, "--set", change)
    assert expected in error
    assert not out.exists()


def test_absent_device(capsys, image, tmp_path):
    import torch

    if torch.backends.mps.is_available():
        pytest.skip("this machine has the device that the test misses")
    error = fails(capsys, "run", "wse2", "--images", image, "--out", tmp_path / "run", "--device", "mps")
    assert "mps" in error
    assert not (tmp_path / "run").exists()


def test_recipe_that_is_not_there(capsys, image, tmp_path):
    assert "wse2" in fails(capsys, "run", "wsse2", "--images", image, "--out", tmp_path / "run")
    (tmp_path / "broken.toml").write_text("a = [")
    assert "TOML" in fails(capsys, "recipe", tmp_path / "broken.toml")


def test_run_folder_of_another_recipe(capsys, image, tmp_path):
    pytest.importorskip("micrographia.workflows.find")
    assert main(["recipe", "mos2"]) == 0
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text(capsys.readouterr().out)
    scans = tmp_path / "scans"  # of one image alone nothing can be learnt
    scans.mkdir()
    for name in ("a.tif", "b.tif"):
        shutil.copy(image, scans / name)
    error = fails(capsys, "run", "wse2", "--images", scans, "--out", run, "--resume", "--quiet")
    assert "another recipe" in error
    error = fails(capsys, "run", "mos2", "--images", scans, "--out", run, "--quiet")
    assert "--resume" in error


def test_model_files_that_are_not_ours(capsys, image, tmp_path):
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"not a model")
    for command in ("detect", "translate"):
        assert "model.safetensors" in fails(capsys, command, "apply", model, image, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- exit codes


def broken_evaluate(error):
    def evaluate(*arguments):
        raise error

    return evaluate


@pytest.fixture
def tables(tmp_path) -> list[str]:
    truth = pd.DataFrame({"image": "a.tif", "x_px": [10.0, 50, 90], "y_px": [10.0, 50, 90], "kind": "Si"})
    truth.to_csv(tmp_path / "truth.csv", index=False)
    found = truth.assign(x_px=[15.0, 50, 200], confidence=0.9)
    found.to_csv(tmp_path / "found.csv", index=False)
    return [str(tmp_path / "found.csv"), str(tmp_path / "truth.csv")]


def test_internal_errors_are_one_line_and_exit_1(capsys, tables, monkeypatch):
    monkeypatch.setattr(
        "micrographia.workflows.looking.evaluate_sites", broken_evaluate(ValueError("two\nlines"))
    )
    error = fails(capsys, "evaluate", *tables, "--tolerance", "6", code=1)
    assert "ValueError: two lines" in error
    assert "--debug" in error
    with pytest.raises(ValueError, match="two"):
        main(["evaluate", *tables, "--tolerance", "6", "--debug"])


def test_too_little_memory_is_told_and_leaves_nothing(tmp_path):
    words = ["simulate", "--noise-free", "--n", "8", "--size-px", "5000", "--out", str(tmp_path / "huge")]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, resource.RLIM_INFINITY))

    done = subprocess.run(
        [sys.executable, "-m", "micrographia", *words],
        preexec_fn=limited,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"micrographia: error: out of memory \(.*\): work on smaller images.*\n", done.stderr)
    assert not (tmp_path / "huge").exists()


def test_debug_shows_where_user_errors_come_from(tables):
    for words in (["--debug", "evaluate"], ["evaluate", "--debug"]):
        with pytest.raises(UserError):
            main([*words, tables[0], "nowhere.csv", "--tolerance", "6"])


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Locks do not hold root: as root, go on as a user who is nobody."""
    if os.geteuid():
        yield
        return
    try:
        os.seteuid(65534)
    except OSError:
        pytest.skip("this root cannot become another user")
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def locked(image, monkeypatch) -> Iterator[Path]:
    """A folder, locked together with what is in it, beside the good image in the current folder."""
    monkeypatch.chdir(image.parent)
    image.parent.chmod(0o755)
    folder = Path("locked")
    folder.mkdir()
    (folder / "scan.tif").write_bytes(image.read_bytes())
    Path("secret.toml").write_text("seed = 1")
    Path("secret.toml").chmod(0)
    folder.chmod(0)
    yield folder
    folder.chmod(0o755)


@pytest.mark.parametrize(
    "words",
    [
        "inspect locked",
        "inspect locked/scan.tif",
        "inspect locked/*.tif",
        "recipe secret.toml",
        "recipe locked/x.toml",
        "evaluate locked/t.csv locked/t.csv --tolerance 1",
        "provenance locked/x.npy",
        "simulate --n 1 --size-px 64 --out locked/q",
        "simulate --n 1 --size-px 64 --set specimen.material=locked/x.cif --out q",
        "detect apply locked/x.safetensors scan.tif --out q",
    ],
)
def test_what_is_locked_is_for_the_user_to_open(words, capsys, locked):
    main(words.split())  # Python's own library may be root's alone: what is imported later is so now.
    capsys.readouterr()
    with as_nobody():
        error = fails(capsys, *words.split())
    assert re.search("permission", error, re.IGNORECASE)
    assert re.search(r"locked|secret\.toml", error)


def test_locked_files_do_not_stop_the_others(capsys, locked):
    np.save("good.npy", np.random.default_rng(0).normal(size=(64, 64)))
    words = ["inspect", "good.npy", "locked/scan.tif", "--json"]
    main(words)
    capsys.readouterr()
    with as_nobody():
        assert main(words) == 0
    out, error = capsys.readouterr()
    assert [result["name"] for result in json.loads(out)] == ["good.npy"]
    assert error.startswith("micrographia: left out: locked/scan.tif: ")
    assert "damaged" not in error


def test_a_file_that_the_system_refuses_is_no_internal_error(capsys):
    name = "a" * 300
    assert f"{name}: " in fails(capsys, "recipe", name)


def test_interrupts_say_how_to_go_on(capsys, image, tmp_path, monkeypatch):
    monkeypatch.setattr(shorthand, "check_recipe", broken_evaluate(KeyboardInterrupt()))
    out = tmp_path / "a b"
    error = fails(capsys, "run", "wse2", "--images", image, "--out", out, code=130)
    assert error.strip().endswith(f"run wse2 --images {image} --out '{out}' --resume")
    monkeypatch.setattr("micrographia.workflows.steps.fit_detector", broken_evaluate(KeyboardInterrupt()))
    error = fails(capsys, "detect", "fit", "--library", "l.zarr", "--out", "d", code=130)
    assert error.strip().endswith("detect fit --library l.zarr --out d")


def test_as_a_process(tables):
    """The console's view: exit code, streams, and threads that sleep while they wait."""
    module = [sys.executable, "-m", "micrographia"]
    done = subprocess.run([*module, "evaluate", *tables, "--tolerance", "x"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    code = (
        "import os, micrographia.cli.main as m; m.main(['--version']); print(os.environ['OMP_WAIT_POLICY'])"
    )
    clean = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean)
    assert done.stdout.splitlines()[-1] == "passive"


# --------------------------------------------------------------------------------------------------- evaluate


def evaluated(capsys, *words) -> dict:
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_evaluate_in_angstrom_and_in_pixels(capsys, tables):
    # 5 px of 0.078 Å are 0.39 Å; the third site is far away.
    result = evaluated(capsys, *tables, "--tolerance", "0.75", "--pixel-size", "0.078")
    assert (result["tp"], result["fp"], result["fn"], result["unit"]) == (2, 1, 1, "Å")
    assert result["precision"] == result["recall"] == result["f1"] == pytest.approx(2 / 3)
    assert result["rms_distance"] == pytest.approx(0.078 * np.sqrt(25 / 2))
    low, high = result["f1_interval"]
    assert low <= 2 / 3 <= high
    assert evaluated(capsys, *tables, "--tolerance", "4.9")["tp"] == 1
    assert evaluated(capsys, *tables, "--tolerance", "0.3", "--pixel-size", "0.078")["tp"] == 1
    assert main(["evaluate", *tables, "--tolerance", "6"]) == 0
    assert "2 found, 1 missed, 1 false alarms in 1 image(s)" in capsys.readouterr().out


def test_evaluate_writes_the_precision_recall_curve(capsys, tmp_path):
    for name, x, confidence in (("found", [10, 20, 90], [0.9, 0.5, 0.7]), ("truth", [10, 20, 30], [1, 1, 1])):
        table = pd.DataFrame({"image": "a", "x_px": x, "y_px": 5, "kind": "Si", "confidence": confidence})
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    words = [tmp_path / "found.csv", tmp_path / "truth.csv", "--tolerance", 2, "--curve"]
    result = evaluated(capsys, *words, tmp_path / "curve.csv")
    curve = pd.read_csv(tmp_path / "curve.csv")
    assert curve["threshold"].tolist() == [0.9, 0.7, 0.5]
    assert curve["precision"].tolist() == pytest.approx([1, 1 / 2, 2 / 3])
    assert result["average_precision"] == pytest.approx(1 / 3 + 2 / 3 / 3)
    evaluated(capsys, *words, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    assert ".csv or .png" in fails(capsys, "evaluate", *words, tmp_path / "curve.jpg")


def test_each_image_may_have_its_own_pixel_size(capsys, tmp_path):
    truth = pd.DataFrame(
        {"image": ["a.tif", "b.tif"], "x_px": 10.0, "y_px": 10.0, "kind": "Si", "pixel_size_A": [0.1, 0.4]}
    )
    truth.to_csv(tmp_path / "truth.csv", index=False)
    truth.drop(columns="pixel_size_A").assign(x_px=14.0).to_csv(tmp_path / "found.csv", index=False)
    files = [tmp_path / "found.csv", tmp_path / "truth.csv"]
    assert evaluated(capsys, *files, "--tolerance", "0.75")["tp"] == 1  # 0.4 Å and 1.6 Å
    assert evaluated(capsys, *files, "--tolerance", "1.7")["tp"] == 2
    truth.assign(pixel_size_A=[0.1, np.nan]).to_csv(tmp_path / "truth.csv", index=False)
    assert "b.tif" in fails(capsys, "evaluate", *files, "--tolerance", "1")


def test_evaluate_kinds_names_and_borders(capsys, tables, tmp_path):
    truth = pd.read_csv(tables[1])
    truth.drop(columns="kind").assign(image="a.png", species=["Si", "Si", "C"]).to_csv(tables[1], index=False)
    result = evaluated(capsys, *tables, "--tolerance", "6")
    assert (result["tp"], result["fn"]) == (2, 1)  # the carbon atom is another kind
    assert "endings" in result["warnings"][0]
    assert evaluated(capsys, *tables, "--tolerance", "6", "--kind", "Si")["fn"] == 0
    truth.drop(columns=["kind", "image"]).to_csv(tables[1], index=False)
    result = evaluated(capsys, *tables, "--tolerance", "6")
    assert result["tp"] == 2
    assert "no kinds" in result["warnings"][0]
    truth.assign(kind="Ge").to_csv(tables[1], index=False)
    result = evaluated(capsys, *tables, "--tolerance", "6")
    assert result["tp"] == 0
    assert "no kind in common" in result["warnings"][0]
    assert evaluated(capsys, *tables, "--tolerance", "6", "--ignore-kind")["tp"] == 2
    truth.to_csv(tables[1], index=False)
    assert "--size" in fails(capsys, "evaluate", *tables, "--tolerance", "6", "--border", "20")
    frame = evaluated(capsys, *tables, "--tolerance", "6", "--border", "20", "--size", "210", "100")
    assert (frame["tp"], frame["fp"], frame["fn"]) == (1, 0, 0)
    assert "x_px" in fails(
        capsys, "evaluate", tables[0], _csv(tmp_path / "no.csv", "a,b\n1,2\n"), "--tolerance", 1
    )


@pytest.mark.parametrize(
    ("x", "y", "judged"),
    [(17, 500, 0), (20, 500, 1), (977, 500, 1), (981, 500, 0), (500, 17, 0), (500, 977, 1), (500, 981, 0)],
)
def test_a_border_in_angstrom_begins_at_the_edge_of_the_image(x, y, judged, capsys, tmp_path):
    # 2 Å are 20 px; the edges lie at -0.5 and 999.5.
    table = _csv(tmp_path / "sites.csv", f"image,x_px,y_px,kind\na.tif,{x},{y},v\n")
    border = ["--border", "2", "--size", "1000", "1000", "--pixel-size", "0.1"]
    assert evaluated(capsys, table, table, "--tolerance", "0.5", *border)["tp"] == judged


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--kind", "Sii"], "Did you mean 'Si'"),
        (["--kind", "Ge"], "Valid: Si"),
        (["--border", "-5", "--size", "200", "100"], "border"),
        (["--border", "nan", "--size", "200", "100"], "border"),
        (["--border", "5", "--size", "-200", "100"], "at least 1"),
        (["--border", "5", "--size", "200", "0"], "at least 1"),
        (["--tolerance", "1e300"], "at most"),
    ],
)
def test_evaluate_refuses_what_means_nothing(words, expected, capsys, tables):
    assert expected in fails(capsys, "evaluate", *tables, "--tolerance", "6", *words)


def test_pixel_sizes_that_are_no_numbers_are_named(capsys, tables):
    pd.read_csv(tables[1]).assign(pixel_size_A=["0.2", "0.2 A", ""]).to_csv(tables[1], index=False)
    error = fails(capsys, "evaluate", *tables, "--tolerance", "1")
    assert "pixel_size_A holds '0.2 A'" in error
    assert "without the unit" in error


def test_nothing_found_is_null_not_nan(capsys, tables):
    pd.read_csv(tables[0]).iloc[:0].to_csv(tables[0], index=False)
    result = evaluated(capsys, *tables, "--tolerance", "6")
    assert result["precision"] is None
    assert (result["recall"], result["fn"]) == (0, 3)


def _csv(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# ----------------------------------------------------------------------------------------- recipes, shorthand


@pytest.mark.parametrize("name", ["wse2", "mos2", "graphene-si", "srtio3", "single-atoms"])
def test_printed_recipes_are_recipes(name, capsys, tmp_path):
    from micrographia.workflows.recipe import built_in, load_recipe

    assert main(["recipe", name]) == 0
    text = capsys.readouterr().out
    assert text.count("#") > 20
    assert load_recipe(_csv(tmp_path / "r.toml", text)) == built_in(name)


@pytest.mark.parametrize(
    ("name", "material", "kind"),
    [
        ("Se-vacancy", "WSe2", "vacancy-1Se"),
        ("double-Se-vacancy", "WSe2", "vacancy-2Se"),
        ("single se vacancy", "WSe2", "vacancy-1Se"),
        ("vacancy-Se", "WSe2", "vacancy-1Se"),
        ("vacancy-2Se", "WSe2", "vacancy-2Se"),
        ("Si", "graphene", "Si"),
        ("vacancy", "graphene", "vacancy-1C"),
        ("double-vacancy", "graphene", "divacancy-C"),
        ("antisite-W-2Se", "WSe2", "antisite-W-2Se"),
    ],
)
def test_everyday_names_of_defects(name, material, kind):
    assert shorthand.defect_kind(name, material) == kind


def test_find_makes_the_recipe_that_run_would_take():
    recipe = shorthand.recipe_for("wse2", ["Se-vacancy", "double-Se-vacancy"], ["seed=3"])
    assert recipe.specimen.defects == {"vacancy-1Se": 0.04, "vacancy-2Se": 0.02}
    assert (recipe.name, recipe.seed) == ("wse2", 3)
    assert shorthand.recipe_for("MoTe2").specimen.defects.keys() == {"vacancy-1Te", "vacancy-2Te"}
    platinum = shorthand.recipe_for("single-atoms", ["Pt"])
    assert (platinum.specimen.element, platinum.specimen.defects) == ("Pt", {"Pt": 1.0})
    assert (
        shorthand.recipe_for("graphene", ["Si"]).sampling_A == shorthand.load_recipe("graphene-si").sampling_A
    )
    for material, defects, expected in (
        ("WSe3", [], "WSe2"), ("WSe2", ["vacancy"], "Se-vacancy"), ("WSe2", ["holes"], "vacancy-1Se"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=expected):
            shorthand.recipe_for(material, defects)


def test_recipes_are_called_after_their_material(tmp_path):
    for material, name in (("MoSe2", "mose2"), ("WSe2", "wse2"), ("graphene", "graphene-si")):
        assert shorthand.recipe_for(material).name == name
    crystal = _csv(tmp_path / "Gold.cif", "")
    assert shorthand.recipe_for(str(crystal), ["Au-vacancy"]).name == "gold"
    assert shorthand.recipe_for("MoSe2", changes=["name=mine"]).name == "mine"


def test_find_refuses_a_defect_that_the_crystal_has_no_room_for(capsys, image, tmp_path):
    out = tmp_path / "run"
    words = ["--material", "MoS2", "--defect", "double-Mo-vacancy", "--out", out]
    assert "vacancy-1Mo, vacancy-1S, vacancy-2S" in fails(capsys, "find", image, *words)
    assert not out.exists()


@pytest.mark.parametrize("name", ["wse2", "mos2", "graphene-si", "srtio3", "single-atoms"])
def test_built_in_recipes_can_be_run(name):
    shorthand.check_recipe(shorthand.load_recipe(name))


# --------------------------------------------------------------------------------------------- single steps


def test_steps_from_simulation_to_found_sites(capsys, tmp_path):
    library, truth, model, found = (tmp_path / n for n in ("lib.zarr", "truth", "d.safetensors", "found"))
    defects = 'specimen.defects={ "vacancy-2Se" = 0.12 }'
    words = ["simulate", "--noise-free", "--set", defects, "--quiet"]
    assert main([*words, "--n", "20", "--size-px", "72", "--out", str(library)]) == 0
    assert main([*words, "--n", "2", "--size-px", "120", "--seed", "5", "--out", str(truth)]) == 0
    small = [f"--set=detect.{c}" for c in ("steps=200", "patch_px=64", "width=16", "batch=4")]
    assert main(["detect", "fit", "--library", str(library), "--out", str(model), *small, "--quiet"]) == 0
    assert main(["detect", "apply", str(model), str(truth), "--out", str(found)]) == 0
    capsys.readouterr()
    table = pd.read_csv(found / "defects.csv")
    assert list(table.columns[:5]) == ["image", "x_px", "y_px", "kind", "confidence"]
    assert set(table["kind"]) == {"vacancy-2Se"}
    score = evaluated(
        capsys, found / "defects.csv", truth / "sites.csv", "--tolerance", "1", "--pixel-size", "0.2",
        "--kind", "vacancy-2Se", "--border", "1", "--size", "120", "120",
    )  # fmt: skip
    assert score["recall"] >= 0.7
    assert len(list(found.glob("*.png"))) == 2

    other_day = tmp_path / "noisy"
    assert main([*words[:1], *words[2:], "--n", "2", "--size-px", "120", "--out", str(other_day)]) == 0
    for folder, warnings in ((truth, 0), (other_day, 2)):
        capsys.readouterr()
        assert main(["detect", "apply", str(model), str(folder), "--out", str(found)]) == 0
        assert (
            sum("is unlike the training images" in line for line in "".join(capsys.readouterr()).splitlines())
            == warnings
        )

    for path, step in ((library, "simulate"), (truth / "simulated-0000.tif", "simulate"),
                       (found / "simulated-0000.tif.png", "detect")):  # fmt: skip
        assert main(["provenance", str(path)]) == 0
        assert json.loads(capsys.readouterr().out)["step"] == step
    assert "exists already" in fails(capsys, *words, "--n", "2", "--out", library)


def test_translating_keeps_a_librarys_labels(capsys, tmp_path):
    from micrographia.library import ImageLibrary

    library, model, translated = tmp_path / "lib.zarr", tmp_path / "t.safetensors", tmp_path / "t.zarr"
    assert main(["simulate", "--n", "4", "--size-px", "64", "--out", str(library)]) == 0
    assert (
        main(["simulate", "--n", "2", "--size-px", "100", "--seed", "9", "--out", str(tmp_path / "real")])
        == 0
    )
    small = [f"--set=translate.{c}" for c in ("steps=2", "patch_px=64", "batch=1", "width=8", "blocks=1")]
    words = ["--library", str(library), "--images", str(tmp_path / "real"), "--out", str(model)]
    assert main(["translate", "fit", *words, *small, "--quiet"]) == 0
    assert (tmp_path / "t.training" / "losses.png").is_file()
    assert len(list((tmp_path / "t.training" / "samples").glob("*.png"))) == 1
    capsys.readouterr()
    assert main(["translate", "apply", str(model), str(library), "--out", str(translated)]) == 0
    assert "atoms moved by" in capsys.readouterr().err
    before, after = ImageLibrary.open(library), ImageLibrary.open(translated)
    assert (before.load()[1] == after.load()[1]).all()
    pd.testing.assert_frame_equal(before.sites, after.sites)
    assert not np.allclose(before.load()[0], after.load()[0])
    assert after.metadata["step"] == "translate"
    assert set(after.metadata["label_fidelity"]) & {"vacancy-1Se", "vacancy-2Se"}
    assert (
        main(["translate", "apply", str(model), str(tmp_path / "real"), "--out", str(tmp_path / "out")]) == 0
    )
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == [
        "simulated-0000.tif",
        "simulated-0001.tif",
    ]


@pytest.fixture
def interrupted(monkeypatch) -> Iterator[None]:
    """Ctrl-C comes when the second image is written."""
    from micrographia.workflows import steps

    written = []

    def write(path: Path, *others: object) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write_image(path, *others)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "write_image", write)
        yield


def untrained_models(folder: Path) -> tuple[Path, Path]:
    """A translator and a detector as they are before training, in files."""
    from micrographia.detect.finder import DefectFinder, DetectConfig, _build
    from micrographia.translate.cyclegan import TranslateConfig
    from micrographia.translate.networks import CompactGenerator
    from micrographia.translate.translator import Translator

    translator = Translator(0.2, TranslateConfig(width=8, blocks=1))
    translator.to_experiment, translator.to_simulation = (CompactGenerator(8, 1) for _ in range(2))
    translator.save(folder / "translator.safetensors")
    finder = DefectFinder(["vacancy-1Se"], [], 0.2, DetectConfig(width=8, levels=1, symmetries=False))
    finder.networks = [_build(1, finder.config, 0)]
    finder.save(folder / "detector.safetensors")
    return folder / "translator.safetensors", folder / "detector.safetensors"


@pytest.mark.parametrize("step", ["simulate", "translate"])
def test_an_interrupt_leaves_no_half_folder(step, capsys, image, tmp_path, request):
    words = ["simulate", "--n", "2", "--size-px", "64", "--noise-free"]
    if step == "translate":
        translator, _ = untrained_models(tmp_path)
        (tmp_path / "again.tif").write_bytes(image.read_bytes())
        words = ["translate", "apply", str(translator), str(image), str(tmp_path / "again.tif")]
    words += ["--out", str(tmp_path / "out")]
    before = sorted(tmp_path.iterdir())
    request.getfixturevalue("interrupted")
    assert main(words) == 130
    assert "nothing was left half-written" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("value", ["7", "-0.1", "nan", "inf"])
def test_a_threshold_is_a_confidence(value, capsys, image, tmp_path):
    _, model = untrained_models(tmp_path)
    out = tmp_path / "found"
    error = fails(capsys, "detect", "apply", model, image, "--out", out, f"--threshold={value}")
    assert "give 0 to 1" in error
    assert not out.exists()


def test_sites_are_not_searched_where_they_cannot_be_written(capsys, image, tmp_path, monkeypatch):
    from micrographia.detect.finder import DefectFinder

    _, model = untrained_models(tmp_path)
    monkeypatch.setattr(DefectFinder, "candidates", None)
    words = ["detect", "apply", model, image, "--out"]
    assert "Not a directory" in fails(capsys, *words, image)
    assert "Not a directory" in fails(capsys, *words, image / "found")
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    Path("locked").mkdir(mode=0o555)
    with as_nobody():
        told = fails(capsys, "detect", "apply", model.name, image.name, "--out", "locked/found")
    assert "locked/found: cannot be written (Permission denied)" in told


def test_provenance_of_a_model(capsys, tmp_path):
    from micrographia.detect.finder import DefectFinder

    path = tmp_path / "detector.safetensors"
    finder = DefectFinder(["vacancy-1Se"], ["column-W"], 0.2)
    finder.recall = {"curve": list(range(100))}
    finder.save(path)
    assert main(["provenance", str(path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["software"].startswith("micrographia ")
    assert told["model"] == "detector"
    assert told["settings"]["kinds"] == ["vacancy-1Se"]
    assert told["settings"]["config"]["steps"] == finder.config.steps
    assert told["settings"]["recall"] == {"curve": "100 values"}
    path.write_bytes(path.read_bytes()[:100])
    assert "truncated" in fails(capsys, "provenance", path)


def test_provenance_of_what_cannot_tell_any(capsys, tmp_path, tables):
    notes = PngInfo()
    notes.add_text("micrographia", "hello")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "foreign.png", pnginfo=notes)
    assert "foreign.png: its note" in fails(capsys, "provenance", tmp_path / "foreign.png")
    assert "is a folder" in fails(capsys, "provenance", tmp_path)
    assert "tables do not tell" in fails(capsys, "provenance", tables[0])
    assert "no such file" in fails(capsys, "provenance", tmp_path / "nowhere.csv")


def test_inspect_names_an_unknown_material_once(capsys, image):
    message = fails(capsys, "inspect", image, image, "--material", "MoSe")
    assert "Did you mean" in message
    assert message.count("MoSe'") == 1


def test_a_misspelt_defect_gets_a_name_that_the_material_has():
    with pytest.raises(UserError, match="Did you mean 'S-vacancy'"):
        shorthand.defect_kind("S-vacany", "MoS2")


def test_inspect_writes_text_json_and_pictures(capsys, image):
    pytest.importorskip("micrographia.plots.inspection")
    out = image.parent / "looks"
    assert main(["inspect", str(image), "--out", str(out)]) == 0
    assert "square, 16.0" in capsys.readouterr().out
    assert main(["provenance", str(out / "scan.tif.png")]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == "inspect"
    assert main(["inspect", str(image), "--json", "--pixel-size", "0.25"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["pixel_size_A"], told["pixel_size_source"], told["kind"]) == (0.25, "user", "square")
    assert main(["provenance", str(image)]) == 0
    assert "not generated" in capsys.readouterr().out
