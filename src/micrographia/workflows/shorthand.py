"""From the words of the field to a recipe, and a recipe's check before anything long begins."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from micrographia.errors import UserError, did_you_mean
from micrographia.simulate.crystals import DICHALCOGENIDES, MATERIALS
from micrographia.simulate.defects import parse_kind
from micrographia.simulate.scenes import draw_scene
from micrographia.training.device import choose_device
from micrographia.workflows.recipe import BUILT_IN, Recipe, built_in, load_recipe

#: Material -> the built-in recipe to start from; other dichalcogenides start from that of WSe2.
RECIPES = {
    str(values["specimen"]["material"]): name for name, values in BUILT_IN.items() if "specimen" in values
}
#: Fraction of sites with a defect in the training images where the recipe says nothing: enough to learn from.
CONCENTRATION = 0.02
_WORDS = re.compile(
    r"(?:(?P<count>single|mono|double|di)-?)?(?:(?P<element>[a-z]{1,2})-)?vacanc(?:y|ies)", re.IGNORECASE
)


def recipe_for(material: str, defects: Sequence[str] = (), changes: Sequence[str] = ()) -> Recipe:
    """Return the recipe to find some kinds of defects in a material, called after the material.

    A material that has a built-in recipe leaves it its name.

    Parameters
    ----------
    material : str
        A built-in material in any case, or a structure file.
    defects : sequence of str
        Exact kinds or everyday names (see :func:`defect_kind`); none = those of the material's recipe.
    changes : sequence of "key=value"
        On top of everything.

    Raises
    ------
    UserError
        There is no such material or defect, or a change cannot be made.
    """
    known = {name.lower(): name for name in MATERIALS}
    if material.lower() in known:
        material = known[material.lower()]
    elif not Path(material).is_file():
        raise UserError(
            f"There is no material '{material}', nor a structure file.{did_you_mean(material, MATERIALS)}"
        )
    name = RECIPES.get(material, "wse2")
    usual = built_in(name).specimen.defects
    kinds = [defect_kind(defect, material) for defect in defects]
    if material == "single-atoms":
        elements = kinds or list(usual)
        if len(elements) > 1:
            raise UserError("single-atoms: name one element to find, for example --defect Re.")
        first = [f"specimen.element={elements[0]}"]
    elif kinds:
        first = [f"specimen.defects={_table({kind: usual.get(kind, CONCENTRATION) for kind in kinds})}"]
    elif material in RECIPES:
        first = []
    elif material in DICHALCOGENIDES:
        chalcogen = material.removesuffix("2")[1 if material.startswith("W") else 2 :]
        first = [f"specimen.defects={_table({f'vacancy-{n}{chalcogen}': CONCENTRATION for n in (1, 2)})}"]
    else:
        raise UserError(f"{material}: say what to find, for example --defect vacancy-1O.")
    called = name if material in RECIPES else Path(material).stem.lower()
    ours = [f"name={json.dumps(called)}", f"specimen.material={json.dumps(material)}"]
    return load_recipe(name, [*ours, *first, *changes])


def defect_kind(name: str, material: str = "") -> str:
    """Translate an everyday name into the kind's exact one.

    ``Se-vacancy`` and ``vacancy-Se`` -> ``vacancy-1Se``, ``double-Se-vacancy`` -> ``vacancy-2Se``; in
    graphene ``vacancy`` -> ``vacancy-1C`` and ``double-vacancy`` -> ``divacancy-C``. Exact kinds stay.

    Raises
    ------
    UserError
        The name means nothing.
    """
    words = _WORDS.fullmatch(name.strip().replace("_", "-").replace(" ", "-"))
    if words:
        double = (words["count"] or "").lower() in ("double", "di")
        if material == "graphene":
            return "divacancy-C" if double else f"vacancy-1{(words['element'] or 'C').capitalize()}"
        if words["element"] is None:
            raise UserError(f"'{name}': say of which element, for example Se-vacancy.")
        return f"vacancy-{2 if double else 1}{words['element'].capitalize()}"
    try:
        parsed = parse_kind(name)
    except UserError:
        elements = re.findall("[A-Z][a-z]?", material) if material in MATERIALS else []
        usual = [w for el in elements for w in (f"{el}-vacancy", f"double-{el}-vacancy", f"vacancy-1{el}")]
        if not difflib.get_close_matches(name, usual):
            raise
        raise UserError(f"Cannot understand the defect '{name}'.{did_you_mean(name, usual)}") from None
    return f"vacancy-{parsed.n}{parsed.old}" if parsed.action == "vacancy" else name


def check_recipe(recipe: Recipe) -> None:
    """Make sure, in a moment, that a recipe can be run: the device is there, the crystal has those defects.

    Raises
    ------
    UserError
        It cannot.
    """
    choose_device(recipe.device)
    if not recipe.specimen.defects:
        raise UserError(
            'recipe: specimen.defects is empty; name what to find, for example { "vacancy-1Se" = 0.03 }.'
        )
    draw_scene(recipe.specimen, (40.0, 40.0), np.random.default_rng(0))


def _table(values: dict[str, float]) -> str:
    return f"{{ {', '.join(f'{json.dumps(key)} = {value}' for key, value in values.items())} }}"
