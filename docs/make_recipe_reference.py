"""Print docs/recipes.md: every key of a recipe with its type, default and help, from the dataclasses themselves.

python docs/make_recipe_reference.py > docs/recipes.md
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Literal

from micrographia.workflows.recipe import BUILT_IN, JOURNEYS, built_in, field_help, to_toml

INTRODUCTION = """\
# Recipes: every key

<!-- Written by docs/make_recipe_reference.py; do not edit by hand. -->

A recipe holds everything that a run depends on. It is a TOML file; every key has a default, so a file holds only
what differs. `micrographia recipe wse2` prints a complete, commented one; see
[Write a recipe](howto/recipe.md) for how to use it.

Lengths are in Å, energies in keV, angles in mrad or degrees; the unit stands in the name. Values are given without
it. Unknown keys, wrong types and values out of range are errors that name the nearest valid one.
"""


def reference() -> str:
    """Return the page as Markdown."""
    parts = [INTRODUCTION, _built_in()]
    for journey, recipe in JOURNEYS.items():
        defaults = toml_lines(recipe())
        parts.append(f"## {journey}\n")
        parts += [
            _section(path, kind, text, defaults[path]) for path, kind, text in sections(recipe, recipe())
        ]
    return "\n".join(parts)


def toml_lines(recipe: Any) -> dict[str, dict[str, str]]:
    """Return section -> key -> value of a recipe, as TOML writes them."""
    out: dict[str, dict[str, str]] = {"": {}}
    section = ""
    for line in to_toml(recipe, comments=False).splitlines():
        if line.startswith("["):
            section = line.strip("[]")
            out[section] = {}
        elif line:
            key, _, value = line.partition(" = ")
            out[section][key] = value
    return out


def sections(kind: type, default: Any, path: str = "", text: str = "") -> Iterator[tuple[str, type, str]]:
    """Yield (path, dataclass, help) of a recipe's sections, outermost first."""
    yield path, kind, text
    for f in fields(kind):
        value = getattr(default, f.name)
        if is_dataclass(value):
            inner = f"{path}.{f.name}" if path else f.name
            yield from sections(type(value), value, inner, field_help(kind).get(f.name, ""))


def _section(path: str, kind: type, text: str, defaults: dict[str, str]) -> str:
    title = f"### `[{path}]`" if path else "### Top level"
    hints, told = typing.get_type_hints(kind), field_help(kind)
    lines = [title, "", text or _first_line(kind), ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{k}` | {type_name(hints[k])} | `{v}` | {told.get(k, '')} |" for k, v in defaults.items()]
    return "\n".join([*lines, ""])


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def type_name(kind: Any) -> str:
    """Return how a user writes a value of this type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{json.dumps(a)}`" for a in arguments)
    if origin is tuple:
        return "[low, high]" if len(arguments) == 2 else "numbers"
    if origin is dict:
        return "table of numbers"
    if origin in (typing.Union, types.UnionType):
        return type_name(next(a for a in arguments if a is not type(None)))
    return {int: "whole number", float: "number", str: "text", bool: "true/false"}[kind]


def _built_in() -> str:
    lines = ["## Built-in recipes", "", "What each changes against the defaults below.", ""]
    for name in BUILT_IN:
        recipe = built_in(name)
        own, defaults = toml_lines(recipe), toml_lines(type(recipe)())
        changed = [
            f"`{section}{'.' if section else ''}{key} = {value}`"
            for section, values in own.items()
            for key, value in values.items()
            if key != "name" and value != defaults[section][key]
        ]
        lines.append(f"- **{name}**: {', '.join(changed) or 'nothing'}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(reference(), end="")
