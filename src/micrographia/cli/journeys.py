"""Whole journeys: recipe, run, find, explore, demo (synthesize has a room of its own)."""

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
    angstrom,
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

    explore = add_command(
        group, "explore", "Find atoms, learn what varies around them, and map it back",
        """micrographia explore movie.tif --window 8 --model rvae --pixel-size 0.1
        micrographia explore frames/*.dm4 --recipe explore-graphene --out my-movie
        micrographia explore scan.emd --model joint_rvae --classes 3 --set latent.members=5
        micrographia explore domains.tif --model shift_vae --set atoms.find=grid --set atoms.grid_A=10""",
        run_explore,
    )  # fmt: skip
    add_images(explore)
    explore.add_argument(
        "--recipe", default="explore", metavar="RECIPE", help="built-in or TOML file [explore]"
    )
    explore.add_argument("--window", type=angstrom, default=None, metavar="Å", help="edge of the patches [8]")
    explore.add_argument("--model", default=None, help="rvae, shift_vae, vae, ae, joint_rvae ... [rvae]")
    explore.add_argument("--latents", type=positive, default=None, metavar="N", help="continuous latents [2]")
    explore.add_argument("--classes", type=int, default=None, metavar="K", help="classes or clusters [4]")
    _add_sites(explore)
    _add_find_options(explore, None)

    run = add_command(
        group, "run", "Run what a recipe says: find, explore or synthesize",
        """micrographia run wse2 --images scans/ --out my-run
        micrographia run my-recipe.toml --images a.dm4 b.dm4 --out my-run --resume
        micrographia run single-atoms --images *.png --out re --set element=Re --pixel-size 0.2
        micrographia run explore-graphene --images movie.tif --out movie
        micrographia run stylegan2-ada --images micrographs/ --out model""",
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
    _add_sites(run)
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


def _add_sites(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sites", type=Path, default=None, metavar="FILE",
        help="explore: table of sites to use instead of finding atoms (CSV or Parquet: image or frame, x_px, y_px, kind; label or "
        "value where the model learns from them)",
    )  # fmt: skip


def _add_find_options(parser: argparse.ArgumentParser, default: str | None) -> None:
    _add_run_folder(parser, default)
    add_changes(parser)
    add_pixel_size(parser)
    add_device(parser)


def run_recipe(arguments: argparse.Namespace) -> None:
    """`micrographia run`."""
    from micrographia.cli.synthesize import fit_recipe
    from micrographia.errors import UserError
    from micrographia.workflows.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, [*arguments.changes, *_changes(arguments)])
    if arguments.sites is not None and recipe.journey != "explore":
        raise UserError(f"--sites is for recipes to explore; {arguments.recipe} is one to {recipe.journey}.")
    if recipe.journey == "find":
        _find(recipe, arguments)
    elif recipe.journey == "explore":
        _explore(recipe, arguments, arguments.sites)
    else:
        fit_recipe(recipe, arguments)


def run_find(arguments: argparse.Namespace) -> None:
    """`micrographia find`."""
    from micrographia.workflows.shorthand import recipe_for

    changes = [*arguments.changes, *_changes(arguments)]
    _find(recipe_for(arguments.material, arguments.defects, changes), arguments)


def run_explore(arguments: argparse.Namespace) -> None:
    """`micrographia explore`."""
    from micrographia.errors import UserError
    from micrographia.workflows.explore_recipe import ExploreRecipe
    from micrographia.workflows.recipe import load_recipe

    given = {
        "patches.window_A": arguments.window, "latent.model": arguments.model,
        "latent.latents": arguments.latents, "latent.classes": arguments.classes,
    }  # fmt: skip
    changes = [f"{key}={value}" for key, value in given.items() if value is not None]
    recipe = load_recipe(arguments.recipe, [*changes, *arguments.changes, *_changes(arguments)])
    if not isinstance(recipe, ExploreRecipe):
        raise UserError(
            f"{arguments.recipe} is a recipe to find defects; use micrographia run, or --recipe explore."
        )
    _explore(recipe, arguments, arguments.sites)


def _explore(recipe: Any, arguments: argparse.Namespace, sites: Path | None) -> None:
    from micrographia.workflows.explore import explore

    out = arguments.out or Path(f"micrographia-{recipe.name}")
    images = [Path(path) for path in arguments.images]
    explore(images, recipe, out, sites, arguments.resume, teller(arguments))
    for name in ("atoms.csv", "report.html"):
        print(out / name)


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
    from micrographia.workflows.demo import summarise

    out = Path(arguments.out)
    table = demo(out, arguments.full, arguments.seeds, arguments.resume, teller(arguments))
    print(summarise(table).to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    print(out / "report.html")


def print_recipe(arguments: argparse.Namespace) -> None:
    """`micrographia recipe`."""
    from micrographia.workflows.recipe import BUILT_IN, built_in, load_recipe, to_toml

    if arguments.name is None:
        for name in BUILT_IN:
            recipe = built_in(name)
            if recipe.journey == "find":
                told = f"find in {recipe.specimen.material}: {', '.join(recipe.specimen.defects)}"
            elif recipe.journey == "explore":
                told = f"explore {recipe.material or 'any atoms'}: {recipe.latent.model}"
            else:
                told = f"synthesize: {recipe.gan.network}, {recipe.gan.loss} loss, {recipe.gan.resolution} px"
            print(f"{name:17} {told}")
    else:
        print(to_toml(load_recipe(arguments.name, arguments.changes)), end="")
