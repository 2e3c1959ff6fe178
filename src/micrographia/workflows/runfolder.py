"""The run folder: stages that are done once, and everything a run leaves behind.

Each stage writes into ``stages/<name>-<hash of its inputs>/``. A stage whose inputs did not change and that
came to its end is not run again; one that was interrupted goes on where its own checkpoints left it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from micrographia.errors import UserError
from micrographia.files import atomic_path, json_text
from micrographia.training import distributed
from micrographia.workflows.explore_recipe import ExploreRecipe
from micrographia.workflows.recipe import Recipe, differences, load_recipe, to_toml
from micrographia.workflows.synthesize_recipe import SynthesizeRecipe


class RunFolder:
    """A folder that belongs to one recipe.

    Parameters
    ----------
    path : path
        Created where missing.
    recipe : Recipe, ExploreRecipe or SynthesizeRecipe
    resume : bool
        Continue in a folder that holds an earlier run of the same recipe.
    free : tuple of str
        Beginnings of keys that may have changed, because what they set is done anew each time.

    Raises
    ------
    UserError
        The folder holds a run already and `resume` is False; it holds a run of another recipe; or it holds
        something else.
    """

    def __init__(
        self,
        path: str | Path,
        recipe: Recipe | ExploreRecipe | SynthesizeRecipe,
        resume: bool = False,
        free: tuple[str, ...] = (),
    ) -> None:
        self.path = Path(path)
        distributed.by_first(lambda: self._claim(recipe, resume, free))

    def _claim(
        self, recipe: Recipe | ExploreRecipe | SynthesizeRecipe, resume: bool, free: tuple[str, ...]
    ) -> None:
        stored = self.path / "recipe.toml"
        if stored.exists():
            earlier = load_recipe(stored)
            changed = [c for c in differences(earlier, recipe) if not c.startswith(free)]
            if changed:
                raise UserError(
                    f"{self.path} holds a run of another recipe ({'; '.join(changed[:3])}"
                    f"{' ...' if len(changed) > 3 else ''}); choose another --out."
                )
            if not resume:
                raise UserError(
                    f"{self.path} holds this run already; continue it with --resume, or choose another --out."
                )
        elif self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir())):
            raise UserError(
                f"{self.path} exists and is no run folder; choose an empty or new folder with --out."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_text("recipe.toml", to_toml(recipe))  # first: it makes the folder a run folder
            (self.path / "stages").mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.path}: the run folder cannot be made ({error.strerror}); choose another --out."
            ) from error
        self.write_json("versions.json", versions())

    def stage(
        self,
        name: str,
        inputs: Any,
        work: Callable[[Path], None],
        say: Callable[[str], None] = print,
        together: bool = False,
    ) -> Path:
        """Run `work(folder)` unless it was done with the same JSON-ready `inputs`; return its folder.

        Of several processes (``torchrun``) the first works alone, or all of them `together`: a training,
        after which only the first may write.
        """
        key = fingerprint(inputs)
        folder = self.path / "stages" / f"{name}-{key}"
        done = folder / "done.json"
        if distributed.from_first(done.exists()):
            say(f"{name}: done before")
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        say(f"{name}: started")
        start = time.monotonic()
        if together:
            work(folder)
        else:
            distributed.by_first(lambda: work(folder))
        seconds = round(time.monotonic() - start, 1)
        told = json.dumps({"stage": name, "inputs": inputs, "seconds": seconds}, indent=1, default=str)
        distributed.by_first(lambda: self.write_text(str(done.relative_to(self.path)), told))
        say(f"{name}: done in {seconds:.0f} s")
        return folder

    def require_inputs(self, inputs: dict[str, str]) -> None:
        """Note what the run works on; refuse a folder that was run on something else, or results would mix."""
        path = self.path / "inputs.json"

        def check_and_note() -> None:
            if path.exists() and json.loads(path.read_text("utf-8")) != inputs:
                raise UserError(f"{self.path} holds a run on other images or sites; choose another --out.")
            self.write_json("inputs.json", inputs)

        distributed.by_first(check_and_note)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file into the run folder, completely or not at all."""
        with atomic_path(self.path / name) as temporary:
            temporary.write_text(text, "utf-8")

    def write_json(self, name: str, values: Any) -> None:
        """Write a JSON file into the run folder, completely or not at all."""
        self.write_text(name, json_text(values) + "\n")


def fingerprint(values: Any) -> str:
    """Return twelve hexadecimal digits that stand for JSON-ready values."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_fingerprint(path: Path) -> str:
    """Return twelve hexadecimal digits that stand for a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """Return the versions of everything that can change a result."""
    out = {"python": platform.python_version(), "platform": platform.platform(), "cores": str(os.cpu_count())}
    for name in (
        "micrographia",
        "torch",
        "numpy",
        "scipy",
        "scikit-learn",
        "scikit-image",
        "ase",
        "rosettasciio",
    ):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "not installed"
    return out
