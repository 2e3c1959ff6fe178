"""The documentation agrees with the program: reference pages, commands, recipes and links."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from micrographia.cli.main import build_parser
from micrographia.workflows.recipe import BUILT_IN, Recipe, from_dict, load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/howto").glob("*.md")),
    *sorted((ROOT / "docs/models").glob("*.md")),
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    return sorted({line.partition(" > ")[0] for line in lines if line.startswith("micrographia ")})


def test_the_table_of_keys_is_up_to_date():
    script = ROOT / "docs" / "make_recipe_reference.py"
    printed = subprocess.run(
        [sys.executable, script], capture_output=True, check=True, encoding="utf-8"
    ).stdout
    assert (ROOT / "docs" / "recipes.md").read_text("utf-8") == printed, (
        "run: python docs/make_recipe_reference.py > docs/recipes.md"
    )


@pytest.mark.parametrize("command", commands())
def test_commands_in_the_documentation_are_understood(command):
    arguments = build_parser().parse_args(shlex.split(command)[1:])
    assert hasattr(arguments, "run")
    changes = getattr(arguments, "changes", [])
    if "translate.step=5" in changes:  # shown for its error message
        return
    name = getattr(arguments, "recipe", "wse2")
    load_recipe(name if name in BUILT_IN else "wse2", changes)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "toml")], ids=lambda p: p.name)
def test_recipes_in_the_documentation_are_valid(page):
    for text in blocks(page, "toml"):
        from_dict(Recipe, tomllib.loads(text))


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_in_the_documentation_compiles(page):
    for text in blocks(page, "python"):
        if not re.search(r"^def .*(->|\))[^:]*$", text, re.MULTILINE):  # signatures are no programs
            compile(text, str(page), "exec")


def test_readme_and_continuous_check_install_and_test_alike():
    readme, check = (ROOT / "README.md").read_text("utf-8"), (ROOT / ".ci" / "run").read_text("utf-8")
    assert '-c constraints.txt ".[test]"' in readme
    assert "-m pytest" in readme
    assert "-c constraints.txt" in check
    assert "python -m pytest" in check
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert pinned is not None
    assert f"torch=={pinned[1]}" in readme
    assert pinned[1] in check


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted((ROOT / "docs/models").glob("*.md")), ids=lambda p: p.stem)
def test_pages_of_models_print_what_they_say(page):
    check = [sys.executable, ROOT / "docs" / "run_models.py", "--check", page]
    done = subprocess.run(check, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
