"""Single steps: simulate, translate fit|apply, detect fit|apply."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from micrographia.cli.parser import (
    add_command,
    add_device,
    add_images,
    add_pixel_size,
    add_recipe,
    command_group,
    positive,
    teller,
)
from micrographia.errors import UserError


def add_commands(group: Any) -> None:
    """Add the commands to the command line."""
    simulate = add_command(
        group, "simulate", "Simulate labelled images",
        """micrographia simulate --recipe wse2 --n 240 --out library.zarr
        micrographia simulate --recipe mos2 --noise-free --n 8 --size-px 512 --out pictures/
        micrographia simulate --recipe graphene-si --set specimen.strain=0.03 --out library.zarr""",
        run_simulate,
    )  # fmt: skip
    add_recipe(simulate)
    simulate.add_argument("--n", type=positive, default=8, metavar="N", help="number of images [8]")
    simulate.add_argument(
        "--size-px", type=positive, default=None, metavar="PX", help="edge of an image [recipe's]"
    )
    simulate.add_argument("--noise-free", action="store_true", help="no noise, distortion or contamination")
    simulate.add_argument("--seed", type=int, default=None, help="fixes everything random [recipe's]")
    _add_out(simulate, "a library (NAME.zarr), or a folder of TIFF files with sites.csv")

    translate = add_command(
        group, "translate", "Learn to make simulated images look like yours; apply it",
        """micrographia translate fit --library library.zarr --images scans/ --out translator.safetensors
        micrographia translate apply translator.safetensors library.zarr --out translated.zarr""",
    )  # fmt: skip
    actions = command_group(translate, "action", "ACTION")
    fit = add_command(
        actions, "fit", "Train a CycleGAN between a library and unlabelled images",
        """micrographia translate fit --library library.zarr --images scans/ --out translator.safetensors
        micrographia translate fit --library lib.zarr --images *.dm4 --out t.safetensors --set seed=3""",
        run_translate_fit,
    )  # fmt: skip
    _add_library(fit)
    fit.add_argument(
        "--images", nargs="+", action="extend", required=True, metavar="PATH", help="your images"
    )
    add_pixel_size(fit)
    _add_training(fit)
    apply = add_command(
        actions, "apply", "Translate a library or images of any size",
        """micrographia translate apply translator.safetensors library.zarr --out translated.zarr
        micrographia translate apply translator.safetensors scans/ --reverse --out like-simulated/""",
        run_translate_apply,
    )  # fmt: skip
    apply.add_argument("model", type=Path, metavar="MODEL", help="what `translate fit` wrote")
    add_images(apply)
    add_pixel_size(apply)
    apply.add_argument("--reverse", action="store_true", help="from experiment to simulation")
    _add_out(apply, "a library (NAME.zarr) for a library, else a folder of TIFF files")
    add_device(apply)

    detect = add_command(
        group, "detect", "Learn to find sites from labelled images; find them in others",
        """micrographia detect fit --library translated.zarr --out detector.safetensors
        micrographia detect apply detector.safetensors scans/ --out found/""",
    )  # fmt: skip
    actions = command_group(detect, "action", "ACTION")
    fit = add_command(
        actions, "fit", "Train the network that finds sites on a library",
        """micrographia detect fit --library library.zarr --out detector.safetensors
        micrographia detect fit --library library.zarr translated.zarr --out detector.safetensors""",
        run_detect_fit,
    )  # fmt: skip
    _add_library(fit, several=True)
    _add_training(fit)
    apply = add_command(
        actions, "apply", "Find sites in images of any size",
        """micrographia detect apply detector.safetensors scans/ --out found/
        micrographia detect apply detector.safetensors a.tif --pixel-size 0.2 --threshold 0.8 --out found/""",
        run_detect_apply,
    )  # fmt: skip
    apply.add_argument("model", type=Path, metavar="MODEL", help="what `detect fit` wrote")
    add_images(apply)
    add_pixel_size(apply)
    apply.add_argument(
        "--threshold",
        type=float,
        default=None,
        help="lowest raw confidence, 0 to 1 [adapted to these images]",
    )
    _add_out(apply, "folder for defects.csv and the images with their sites")
    add_device(apply)


def _add_out(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help=what)


def _add_library(parser: argparse.ArgumentParser, several: bool = False) -> None:
    parser.add_argument(
        "--library", type=Path, required=True, nargs="+" if several else None, metavar="LIBRARY",
        help="what `simulate` wrote",
    )  # fmt: skip


def _add_training(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument("--seed", type=int, default=None, help="fixes everything random [recipe's]")
    _add_out(parser, "the model file; an interrupted training goes on when called again")
    add_device(parser)


def _recipe(arguments: argparse.Namespace) -> Any:
    from micrographia.workflows.recipe import Recipe, load_recipe

    changes = list(arguments.changes)
    if arguments.seed is not None:
        changes.append(f"seed={arguments.seed}")
    if getattr(arguments, "device", None) is not None:
        changes.append(f'device="{arguments.device}"')
    recipe = load_recipe(arguments.recipe, changes)
    if not isinstance(recipe, Recipe):
        raise UserError(
            f"{arguments.recipe} is a recipe to {recipe.journey}; this step needs one to find defects."
        )
    return recipe


def run_simulate(arguments: argparse.Namespace) -> None:
    """`micrographia simulate`."""
    from micrographia.workflows.steps import simulate

    recipe = _recipe(arguments)
    size = arguments.size_px or recipe.library.size_px
    simulate(recipe, arguments.n, size, arguments.out, arguments.noise_free)
    print(arguments.out)


def run_translate_fit(arguments: argparse.Namespace) -> None:
    """`micrographia translate fit`."""
    from micrographia.workflows.steps import fit_translator

    fit_translator(
        _recipe(arguments),
        arguments.library,
        arguments.images,
        arguments.pixel_size,
        arguments.out,
        teller(arguments),
    )
    print(arguments.out)


def run_translate_apply(arguments: argparse.Namespace) -> None:
    """`micrographia translate apply`."""
    from micrographia.workflows.steps import apply_translator

    apply_translator(
        arguments.model,
        arguments.images,
        arguments.pixel_size,
        arguments.out,
        arguments.reverse,
        arguments.device or "auto",
        teller(arguments),
    )
    print(arguments.out)


def run_detect_fit(arguments: argparse.Namespace) -> None:
    """`micrographia detect fit`."""
    from micrographia.workflows.steps import fit_detector

    scores = fit_detector(_recipe(arguments), arguments.library, arguments.out)
    told = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    teller(arguments)(f"on held-out images of the library: {told}")
    print(arguments.out)


def run_detect_apply(arguments: argparse.Namespace) -> None:
    """`micrographia detect apply`."""
    from micrographia.workflows.steps import apply_detector

    sites, outside = apply_detector(
        arguments.model,
        arguments.images,
        arguments.pixel_size,
        arguments.out,
        arguments.threshold,
        arguments.device or "auto",
        teller(arguments),
    )
    for kind, count in sites["kind"].value_counts(sort=False).items():
        print(f"{kind:16} {count}")
    for message in outside:
        print(f"warning: {message}", file=sys.stderr)
    print(arguments.out / "defects.csv")
