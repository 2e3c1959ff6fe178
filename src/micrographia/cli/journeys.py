"""Whole journeys: recipe, run, find, demo."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from micrographia.cli.parser import (
    add_changes,
    add_command,
    add_device,
    add_images,
    add_pixel_size,
    positive,
    teller,
)


def add_commands(group: Any) -> None:
    """Add the commands to the command line."""
    demo = add_command(
        group, "demo", "Show the whole journey on a small generated case with known truth",
        """micrographia demo
        micrographia demo --full --seeds 5 --out demo-full     every way of training, both days; resumable
        micrographia demo --full --out demo-full --resume""",
        run_demo,
    )  # fmt: skip
    demo.add_argument("--full", action="store_true", help="every training set, both days; takes hours")
    demo.add_argument("--seeds", type=positive, default=1, metavar="N", help="repeat with N seeds [1]")
    _add_run_folder(demo, "micrographia-demo")

    find = add_command(
        group, "find", "Find defects in your images, without labels",
        """micrographia find scans/ --material WSe2 --defect Se-vacancy --out my-run
        micrographia find 'scan_*.dm4' --material MoS2 --defect S-vacancy --defect double-S-vacancy
        micrographia find frames/*.tif --material graphene --defect Si --pixel-size 0.078
        micrographia find atoms.png --material single-atoms --defect Re""",
        run_find,
    )  # fmt: skip
    add_images(find)
    find.add_argument(
        "--material", required=True, help="WSe2, MoS2, graphene, SrTiO3, single-atoms, a structure file ..."
    )
    find.add_argument(
        "--defect", action="append", default=[], metavar="KIND", dest="defects",
        help="what to find: Se-vacancy, double-Se-vacancy, Si, vacancy-1Se, antisite-W-2Se ... (repeatable) "
        "[what the material's recipe names]",
    )  # fmt: skip
    _add_find_options(find, None)

    run = add_command(
        group, "run", "Find defects as a recipe says",
        """micrographia run wse2 --images scans/ --out my-run
        micrographia run my-recipe.toml --images a.dm4 b.dm4 --out my-run --resume
        micrographia run single-atoms --images *.png --out re --set element=Re --pixel-size 0.2""",
        run_recipe,
    )  # fmt: skip
    run.add_argument("recipe", metavar="RECIPE", help="built-in recipe or TOML file")
    run.add_argument(
        "--images",
        nargs="+",
        action="extend",
        required=True,
        metavar="PATH",
        help="files, folders or patterns",
    )
    _add_find_options(run, None)

    recipe = add_command(
        group, "recipe", "Print a commented recipe to start from",
        """micrographia recipe                                   which there are
        micrographia recipe wse2 > wse2.toml
        micrographia recipe single-atoms --set element=Pt > platinum.toml""",
        print_recipe,
    )  # fmt: skip
    recipe.add_argument("name", nargs="?", metavar="NAME", help="built-in recipe or TOML file")
    add_changes(recipe)


def _add_run_folder(parser: argparse.ArgumentParser, default: str | None) -> None:
    told = default or "micrographia-NAME"
    parser.add_argument(
        "--out", type=Path, default=default, metavar="FOLDER", help=f"the run folder [{told}]"
    )
    parser.add_argument("--resume", action="store_true", help="go on with an earlier run in that folder")


def _add_find_options(parser: argparse.ArgumentParser, default: str | None) -> None:
    _add_run_folder(parser, default)
    add_changes(parser)
    add_pixel_size(parser)
    add_device(parser)


def run_recipe(arguments: argparse.Namespace) -> None:
    """`micrographia run`."""
    from micrographia.workflows.recipe import load_recipe

    _find(load_recipe(arguments.recipe, [*arguments.changes, *_changes(arguments)]), arguments)


def run_find(arguments: argparse.Namespace) -> None:
    """`micrographia find`."""
    from micrographia.workflows.shorthand import recipe_for

    changes = [*arguments.changes, *_changes(arguments)]
    _find(recipe_for(arguments.material, arguments.defects, changes), arguments)


def _changes(arguments: argparse.Namespace) -> list[str]:
    out = []
    if arguments.pixel_size is not None:
        out.append(f"pixel_size_A={arguments.pixel_size}")
    if arguments.device is not None:
        out.append(f'device="{arguments.device}"')
    return out


def _find(recipe: Any, arguments: argparse.Namespace) -> None:
    from micrographia.workflows import shorthand

    shorthand.check_recipe(recipe)
    # A recipe that cannot be run fails before the rest is loaded.
    from micrographia.workflows.find import find_defects

    out = arguments.out or Path(f"micrographia-{recipe.name}")
    images = [Path(path) for path in arguments.images]
    find_defects(images, recipe, out, arguments.resume, teller(arguments))
    for name in ("defects.csv", "report.html"):
        if (out / name).exists():
            print(out / name)


def run_demo(arguments: argparse.Namespace) -> None:
    """`micrographia demo`."""
    from micrographia.workflows.demo import run_demo as demo

    out = Path(arguments.out)
    demo(out, arguments.full, arguments.seeds, arguments.resume, teller(arguments))
    print(out / "report.html")


def print_recipe(arguments: argparse.Namespace) -> None:
    """`micrographia recipe`."""
    from micrographia.workflows.recipe import BUILT_IN, built_in, load_recipe, to_toml

    if arguments.name is None:
        for name in BUILT_IN:
            specimen = built_in(name).specimen
            print(f"{name:14} {specimen.material}: {', '.join(specimen.defects)}")
    else:
        print(to_toml(load_recipe(arguments.name, arguments.changes)), end="")
