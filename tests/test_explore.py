"""The journey `explore`, through the command line and from Python."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.spatial import cKDTree

from micrographia.atoms.find import find_atoms
from micrographia.cli.main import main
from micrographia.errors import UserError
from micrographia.io import read_images, write_image
from micrographia.micrograph import Micrograph
from micrographia.simulate.graphene_movie import graphene_movie
from micrographia.workflows.explore import explore
from micrographia.workflows.looking import provenance
from micrographia.workflows.recipe import load_recipe

QUICK = [
    "latent.steps=30",
    "latent.network.batch=25",
    "latent.network.hidden=32",
    "latent.range_deg=30",
]


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    """Folder of frames, and the truth."""
    folder = tmp_path_factory.mktemp("movie")
    made = graphene_movie(n_frames=3, field_A=(26.0, 26.0), seed=4)
    for i, frame in enumerate(made.images):
        write_image(folder / f"frame-{i}.tif", Micrograph(frame, made.pixel_size_A, f"frame-{i}.tif"))
    return folder, made.sites


def changes(*more: str) -> list[str]:
    return [word for change in (*QUICK, *more) for word in ("--set", change)]


@pytest.fixture(scope="module")
def explored(movie, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    words = ["explore", str(movie[0]), "--recipe", "explore-graphene", "--window", "6", "--out", str(out)]
    assert main([*words, *changes()]) == 0
    return out, words


def test_a_movie_becomes_a_table_of_atoms_maps_and_a_report(movie, explored, stands_in_browser):
    out, _ = explored
    stands_in_browser(out / "report.html")
    atoms, metrics = pd.read_csv(out / "atoms.csv"), json.loads((out / "metrics.json").read_text())
    assert {"frame", "x_px", "y_px", "z1", "z2", "angle_deg", "ring_label", "track", "cluster"} <= set(atoms)
    assert metrics["series"] is True
    assert metrics["patches"] == atoms["z1"].notna().sum() == len(atoms) - metrics["dropped_at_the_edge"]
    truth = movie[1]
    for frame in range(3):
        true = truth.loc[truth["frame"] == frame, ["x_px", "y_px"]]
        found = atoms.loc[atoms["frame"] == frame, ["x_px", "y_px"]]
        distance, _ = cKDTree(found).query(true)
        assert np.mean(distance < 2.5) > 0.85  # 0.5 Å; the outermost atoms are not looked for
    page = (out / "report.html").read_text("utf-8")
    assert all(heading in page for heading in ("Where it is", "Over time", "How far to trust it"))
    for figure in ("map-angle_deg", "map-ring_label", "manifold", "courses", "transitions", "descriptors"):
        assert (out / "figures" / f"{figure}.png").stat().st_size > 2000, figure
    for figure, drawn in (("manifold", True), ("traversals", True), ("map-angle_deg", None)):
        assert provenance(out / "figures" / f"{figure}.png").get("synthetic") is drawn, figure
    assert "src=" not in (out / "latent.html").read_text("utf-8").replace('src="data:', "")


def test_a_run_is_resumed_without_training_again(explored, capsys):
    out, words = explored
    before = (out / "atoms.csv").read_bytes()
    assert main([*words, *changes()]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*words, *changes(), "--resume"]) == 0
    told = capsys.readouterr()
    assert "rvae: done before" in told.out + told.err
    assert (out / "atoms.csv").read_bytes() == before


def test_killed_while_training_it_goes_on_to_the_same_result(movie, tmp_path):
    def command(out: Path, *more: str) -> list[str]:
        settings = changes("latent.steps=150", "compare=false")
        return [sys.executable, "-m", "micrographia", "explore", str(movie[0]), "--window", "6", "--out", str(out), *settings, *more]  # fmt: skip

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(whole), check=True, capture_output=True, env=environment)
    process = subprocess.Popen(
        command(broken), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    deadline = time.monotonic() + 120
    while not list(broken.glob("stages/rvae-*/training/last.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (broken / "atoms.csv").exists()
    subprocess.run(command(broken, "--resume"), check=True, capture_output=True, env=environment)
    assert (broken / "atoms.csv").read_bytes() == (whole / "atoms.csv").read_bytes()


def test_patches_on_a_grid_need_no_atoms(movie, tmp_path):
    recipe = load_recipe(
        "explore",
        [
            *QUICK,
            "latent.model=shift_vae",
            "atoms.find=grid",
            "atoms.grid_A=2",
            "patches.window_A=5",
            "compare=false",
        ],
    )
    said: list[str] = []
    found = explore([movie[0] / "frame-0.tif"], recipe, tmp_path / "run", say=said.append)
    assert any("latent.shift_A = 0.3 Å takes out little" in line for line in said)
    assert not found.series
    assert found.metrics["dropped_at_the_edge"] == 0
    assert "angle_deg" not in found.sites
    assert found.sites["z1"].notna().all()


def test_own_sites_can_carry_labels_and_conditions(movie, tmp_path):
    truth = movie[1].assign(label=movie[1]["grain"].map({0: "left", 1: "right"}))
    truth.loc[np.arange(len(truth)) % 2 == 0, "label"] = ""
    truth.drop(columns="image").assign(image="x").to_csv(tmp_path / "sites.csv", index=False)
    semi = load_recipe(
        "explore", [*QUICK, "latent.model=semi_supervised_rvae", "patches.window_A=6", "compare=false"]
    )
    found = explore([movie[0]], semi, tmp_path / "semi", tmp_path / "sites.csv", say=lambda text: None)
    assert set(found.sites["class"].dropna()) <= {"left", "right"}
    labelled = found.sites.dropna(subset=["class", "label"])
    both = found.confusion.loc["left", "left"]
    assert both == ((labelled["label"] == "left") & (labelled["class"] == "left")).sum()
    assert found.confusion.to_numpy().sum() == len(labelled)
    assert (tmp_path / "semi" / "figures" / "confusion.png").exists()
    assert "given_angle_deg" in found.sites  # the truth that the table brought along
    told = load_recipe(
        "explore",
        [
            *QUICK,
            "latent.model=conditional_rvae",
            "latent.condition=frame",
            "latent.members=2",
            "compare=false",
        ],
    )
    found = explore([movie[0]], told, tmp_path / "told", tmp_path / "sites.csv", say=lambda text: None)
    assert {"std_z1", "std_reconstruction"} <= set(found.sites)


def test_what_a_table_brings_along_is_not_taken_for_results(movie, tmp_path):
    brought = movie[1].assign(
        value="high", ring_label="six", z3=np.nan, dose=np.where(movie[1].index % 2, "low", "high")
    )
    brought.drop(columns="image").assign(image="x").to_csv(tmp_path / "sites.csv", index=False)
    settings = [*QUICK, "compare=false", "latent.classes=0"]
    plain = load_recipe("explore", [*settings, "latent.model=vae"])
    found = explore([movie[0]], plain, tmp_path / "vae", tmp_path / "sites.csv", say=lambda text: None)
    assert {"given_value", "given_z3", "given_angle_deg"} <= set(found.sites)
    drawn = {p.stem for p in (tmp_path / "vae" / "figures").iterdir()}
    assert {"map-z1", "map-z2"} <= drawn
    assert not {"map-value", "map-z3", "map-angle_deg", "map-ring_label"} & drawn
    told = load_recipe("explore", [*settings, "latent.model=conditional_vae", "latent.condition=dose"])
    explore([movie[0]], told, tmp_path / "told", tmp_path / "sites.csv", say=lambda text: None)
    assert re.search("at dose = (low|high)", (tmp_path / "told" / "report.html").read_text("utf-8"))


def test_own_sites_can_carry_values_that_the_others_are_given(movie, tmp_path):
    turn = movie[1]["angle_deg"]
    truth = movie[1].assign(value=np.where(np.arange(len(turn)) % 3 == 0, turn, np.nan))
    truth.drop(columns="image").assign(image="x").to_csv(tmp_path / "sites.csv", index=False)
    recipe = load_recipe(
        "explore",
        [*QUICK, "latent.model=regression_rvae", "latent.latents=3", "embedding=tsne", "compare=false"],
    )
    found = explore([movie[0]], recipe, tmp_path / "run", tmp_path / "sites.csv", say=lambda text: None)
    assert found.sites["given_value"].isna().mean() == pytest.approx(2 / 3, abs=0.01)
    assert found.sites["value"].notna().sum() == len(found.patches)
    assert {"map-value.png", "embedding.png"} <= {p.name for p in (tmp_path / "run" / "figures").iterdir()}
    truth.drop(columns="image").assign(image="x", value="much").to_csv(tmp_path / "text.csv", index=False)
    with pytest.raises(UserError, match="one alone needs none"):
        load_recipe("explore", ["latent.latents=1", "embedding=umap"])
    with pytest.raises(UserError, match="'much', which is no finite number"):
        explore([movie[0]], recipe, tmp_path / "other", tmp_path / "text.csv", say=lambda text: None)


def test_what_is_known_to_be_impossible_leaves_no_run_folder(movie, tmp_path):
    for setting in ("patches.window_A=40", "latent.model=semi_supervised_rvae"):
        with pytest.raises(UserError):
            explore([movie[0]], load_recipe("explore", [*QUICK, setting]), tmp_path / "run", say=print)
    assert not (tmp_path / "run").exists()


def test_sites_of_other_images_are_left_out(movie, tmp_path):
    frame = read_images(movie[0] / "frame-0.tif")[0]
    own = find_atoms([frame]).drop(columns="frame")
    both = pd.concat([own.assign(image="frame-0.tif"), own.assign(image="elsewhere.tif")])
    both.to_csv(tmp_path / "sites.csv", index=False)
    heard = []
    found = explore(
        [movie[0] / "frame-0.tif"],
        load_recipe("explore", QUICK),
        tmp_path / "run",
        tmp_path / "sites.csv",
        say=heard.append,
    )
    assert len(found.sites) == len(own)
    assert any(f"{len(own)} of {len(both)} sites are in other images" in line for line in heard)
    both.assign(image=np.where(both["image"] == "frame-0.tif", "a.tif", "b.tif")).to_csv(
        tmp_path / "others.csv", index=False
    )
    with pytest.raises(UserError, match="names 2 images"):
        explore(
            [movie[0] / "frame-0.tif"],
            load_recipe("explore", QUICK),
            tmp_path / "b",
            tmp_path / "others.csv",
            say=print,
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["patches.window_A=40"], "larger than the image"),
        (["patches.window_A=25.5"], "choose a smaller window"),
        (["latent.model=semi_supervised_rvae"], "column 'label'"),
        (["latent.model=regression_rvae"], "column 'value'"),
        (["latent.model=conditional_rvae", "latent.condition=dose"], "no column 'dose'"),
        (["atoms.scale_A=9"], "scale"),
        (["latent.network.batch=5000"], "fewer than a batch"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(movie, tmp_path, settings, message):
    recipe = load_recipe("explore", [*QUICK, *settings])
    with pytest.raises(UserError, match=message):
        explore([movie[0] / "frame-0.tif"], recipe, tmp_path / "run", say=lambda text: None)
    assert not (tmp_path / "run" / "atoms.csv").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("latent.latents=0", "latents"), ("latent.model=rvea", "rvae"), ("latent.range_deg=200", "range_deg"),
        ("latent.model=conditional_vae", "latent.condition"), ("patches.window_A=0", "window_A"),
        (f"seed={2**64}", "seed = .*give 0 to"), ("track_A=-1", "track_A = -1.0: give at least 0"),
        ("latent.model=joint_rvae", ""), ("series=maybe", "series"),
    ],
)  # fmt: skip
def test_impossible_recipes_are_refused_by_name(setting, message):
    if not message:
        with pytest.raises(UserError, match="at least 2 classes"):
            load_recipe("explore", [setting, "latent.classes=1"])
        return
    with pytest.raises(UserError, match=message):
        load_recipe("explore", [setting])


def test_a_material_is_set_by_its_own_name():
    assert load_recipe("explore", ["material=graphene"]).material == "graphene"


def test_the_two_kinds_of_recipe_are_not_mixed_up(movie, tmp_path, capsys):
    assert main(["explore", str(movie[0]), "--recipe", "wse2", "--out", str(tmp_path / "a")]) == 2
    assert "find defects" in capsys.readouterr().err
    assert main(["simulate", "--recipe", "explore", "--out", str(tmp_path / "b")]) == 2
    assert "recipe to explore" in capsys.readouterr().err
    assert main(["recipe", "explore-graphene"]) == 0
    assert "bond_A = 1.42" in capsys.readouterr().out


def test_an_image_without_atoms_is_said_to_have_none(tmp_path):
    noise = np.random.default_rng(0).normal(size=(96, 96)).astype(np.float32)
    write_image(tmp_path / "noise.tif", Micrograph(noise, 0.2, "noise.tif"))
    recipe = load_recipe("explore", QUICK)
    with pytest.raises(UserError, match=r"No atoms were found.*dark|patches are fewer"):
        explore([tmp_path / "noise.tif"], recipe, tmp_path / "run", say=lambda text: None)


def test_images_of_unlike_scale_are_no_movie(tmp_path):
    rng = np.random.default_rng(0)
    for i, size in enumerate((0.1, 0.2, 0.4)):
        frame = rng.normal(size=(64, 64)).astype(np.float32)
        write_image(tmp_path / "in" / f"{i}.tif", Micrograph(frame, size, f"{i}.tif"))
    grid = ["atoms.find=grid", "atoms.grid_A=0.5", "patches.window_A=3", "compare=false", "latent.model=vae"]
    found = explore(
        [tmp_path / "in"], load_recipe("explore", [*QUICK, *grid]), tmp_path / "a", say=lambda text: None
    )
    assert not found.series
    assert [m.pixel_size_A for m in found.images] == pytest.approx([0.1, 0.2, 0.4])
    for more, message in (("series=yes", "one pixel size"), ("patches.time_stack=2", "frames of a movie")):
        recipe = load_recipe("explore", [*QUICK, *grid, more])
        with pytest.raises(UserError, match=message):
            explore([tmp_path / "in"], recipe, tmp_path / "b", say=lambda text: None)


def test_a_folder_of_other_images_is_refused(movie, tmp_path):
    grid = ["atoms.find=grid", "patches.window_A=5", "atoms.grid_A=2", "compare=false", "latent.model=vae"]
    recipe = load_recipe("explore", [*QUICK, *grid])
    explore([movie[0] / "frame-0.tif"], recipe, tmp_path / "run", say=lambda text: None)
    before = (tmp_path / "run" / "atoms.csv").read_bytes()
    with pytest.raises(UserError, match="other images"):
        explore([movie[0] / "frame-1.tif"], recipe, tmp_path / "run", resume=True, say=lambda text: None)
    assert (tmp_path / "run" / "atoms.csv").read_bytes() == before


def test_its_own_table_can_be_fed_back_twice(movie, tmp_path):
    source, recipe = None, load_recipe("explore", [*QUICK, "patches.window_A=6", "compare=false"])
    for name in ("a", "b", "c"):
        found = explore([movie[0] / "frame-0.tif"], recipe, tmp_path / name, source, say=lambda text: None)
        source = tmp_path / name / "atoms.csv"
    assert found.sites.columns.is_unique
    assert {"z1", "given_z1"} <= set(found.sites)


def test_a_table_of_frames_is_not_laid_on_images_that_are_missing(movie, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in (0, 2):
        (folder / f"frame-{i}.tif").write_bytes((movie[0] / f"frame-{i}.tif").read_bytes())
    (folder / "frame-1.tif").write_bytes(b"broken")
    movie[1].to_csv(tmp_path / "sites.csv", index=False)
    with pytest.raises(UserError, match="no longer fits"):
        explore(
            [folder],
            load_recipe("explore", QUICK),
            tmp_path / "run",
            tmp_path / "sites.csv",
            say=lambda text: None,
        )


def test_counts_stay_counts_and_a_recipe_may_come_with_sites(movie, tmp_path, capsys):
    folder, truth = movie
    counts = tmp_path / "counts"
    from micrographia.io import read_folder

    for image in read_folder([folder])[0]:
        # Sharp edges: interpolation overshoots them.
        data = np.where(image.data > np.quantile(image.data, 0.8), 9.0, 0.0).astype(np.float32)
        write_image(counts / image.name, image.with_data(data, "thresholded"))
    truth.drop(columns="image").assign(image="x").to_csv(tmp_path / "sites.csv", index=False)
    words = ["run", "explore", "--images", str(counts), "--out", str(tmp_path / "out")]
    words += ["--sites", str(tmp_path / "sites.csv")]
    more = ("latent.network.loss=poisson", "patches.window_A=6", "patches.size_px=20", "compare=false")
    assert main([*words, *changes(*more)]) == 0
    assert len(pd.read_csv(tmp_path / "out" / "atoms.csv")) == len(truth)
    assert main(["run", "wse2", "--images", str(counts), "--sites", str(tmp_path / "sites.csv")]) == 2
    assert "--sites is for recipes to explore" in capsys.readouterr().err
