import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from micrographia.errors import UserError
from micrographia.workflows.recipe import built_in, load_recipe
from micrographia.workflows.runfolder import RunFolder, file_fingerprint, fingerprint, versions

RECIPE = built_in("wse2")


def _quiet(message: str) -> None:
    pass


def test_a_run_folder_holds_its_recipe_and_the_versions(tmp_path):
    run = RunFolder(tmp_path / "deep" / "run", RECIPE)
    assert load_recipe(run.path / "recipe.toml") == RECIPE
    stored = json.loads((run.path / "versions.json").read_text())
    assert stored == versions()
    assert stored["torch"] != "not installed"


def test_a_stage_is_done_once_for_the_same_inputs(tmp_path):
    run, calls, told = RunFolder(tmp_path, RECIPE), [], []

    def work(folder: Path) -> None:
        calls.append(folder)
        (folder / "result.txt").write_text("42")

    one = run.stage("fit", {"a": 1, "b": [2.5]}, work, told.append)
    two = run.stage("fit", {"b": [2.5], "a": 1}, work, told.append)
    assert one == two == calls[0]
    assert len(calls) == 1
    assert (one / "result.txt").read_text() == "42"
    assert told[0] == "fit: started"
    assert told[-1] == "fit: done before"
    record = json.loads((one / "done.json").read_text())
    assert record["stage"] == "fit"
    assert record["inputs"] == {"a": 1, "b": [2.5]}


def test_other_inputs_and_other_names_are_other_stages(tmp_path):
    run, calls = RunFolder(tmp_path, RECIPE), []
    for name, inputs in (("fit", {"a": 1}), ("fit", {"a": 2}), ("detect", {"a": 1})):
        run.stage(name, inputs, calls.append, _quiet)
    assert len(set(calls)) == 3


def test_an_interrupted_stage_goes_on_in_its_folder(tmp_path):
    run, tries = RunFolder(tmp_path, RECIPE), []

    def work(folder: Path) -> None:
        tries.append(sorted(p.name for p in folder.iterdir()))
        (folder / f"part-{len(tries)}").touch()
        if len(tries) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.stage("train", {}, work, _quiet)
    folder = RunFolder(tmp_path, RECIPE, resume=True).stage("train", {}, work, _quiet)
    assert tries == [[], ["part-1"]]
    assert (folder / "done.json").exists()


def test_a_run_is_continued_only_when_asked(tmp_path):
    RunFolder(tmp_path, RECIPE)
    with pytest.raises(UserError, match="--resume"):
        RunFolder(tmp_path, RECIPE)
    RunFolder(tmp_path, RECIPE, resume=True)


@pytest.mark.parametrize("resume", [True, False])
def test_another_recipe_is_refused_with_the_differences(tmp_path, resume):
    RunFolder(tmp_path, RECIPE)
    with pytest.raises(UserError, match=r"another recipe.*seed: 0 -> 1"):
        RunFolder(tmp_path, replace(RECIPE, seed=1), resume=resume)
    assert load_recipe(tmp_path / "recipe.toml") == RECIPE


def test_folders_and_files_that_hold_something_else_are_left_alone(tmp_path):
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(UserError, match="no run folder"):
        RunFolder(tmp_path, RECIPE)
    with pytest.raises(UserError, match="no run folder"):
        RunFolder(tmp_path / "thesis.doc", RECIPE)
    assert os.listdir(tmp_path) == ["thesis.doc"]


def test_a_folder_below_a_file_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        RunFolder(tmp_path / "file" / "run", RECIPE)


def test_a_damaged_recipe_in_the_folder_is_explained(tmp_path):
    RunFolder(tmp_path, RECIPE)
    (tmp_path / "recipe.toml").write_text("seed = = 1")
    with pytest.raises(UserError, match="not a readable TOML"):
        RunFolder(tmp_path, RECIPE, resume=True)


def test_fingerprints_stand_for_values_and_contents(tmp_path):
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint(None)) == 12
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"x" * (3 << 20))
    two.write_bytes(b"x" * (3 << 20))
    assert file_fingerprint(one) == file_fingerprint(two)
    two.write_bytes(b"x" * (3 << 20) + b"y")
    assert file_fingerprint(one) != file_fingerprint(two)


def test_texts_and_values_are_written_whole(tmp_path):
    run = RunFolder(tmp_path, RECIPE)
    run.write_text("note.txt", "Å and ±")
    run.write_json("values.json", {"x": 1.5})
    assert (tmp_path / "note.txt").read_text("utf-8") == "Å and ±"
    assert json.loads((tmp_path / "values.json").read_text()) == {"x": 1.5}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "note.txt", "recipe.toml", "stages", "values.json", "versions.json",
    ]  # fmt: skip
