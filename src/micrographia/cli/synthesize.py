"""The verb synthesize: fit, sample, interpolate, project, evaluate, and sets to learn from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from micrographia.cli.parser import (
    add_changes,
    add_command,
    add_device,
    add_pixel_size,
    command_group,
    positive,
    seed_number,
    teller,
)


def add_commands(group: Any) -> None:
    """Add the commands to the command line."""
    verb = add_command(
        group, "synthesize", "Learn a population of micrographs; make new members of it; judge them",
        """micrographia synthesize microstructures --kind grains --n 2000 --out steel/
        micrographia synthesize fit steel/ --out steel-model
        micrographia synthesize sample steel-model --n 16 --out new/
        micrographia synthesize interpolate steel-model 3 8 --video --out path.gif""",
    )  # fmt: skip
    actions = command_group(verb, "action", "ACTION")
    _add_fit(actions)
    _add_sample(actions)
    _add_interpolate(actions)
    _add_project(actions)
    _add_evaluate(actions)
    _add_microstructures(actions)
    _add_gaussian(actions)


def _add_fit(actions: Any) -> None:
    fit = add_command(
        actions, "fit", "Train a generator on a folder of images, judge its samples, write a report",
        """micrographia synthesize fit micrographs/ --out my-model
        micrographia synthesize fit micrographs/ --recipe dcgan --resolution 64 --steps 2000 --out dcgan
        micrographia synthesize fit phases/ --set images.classes=true --out by-class       a class per sub-folder
        micrographia synthesize fit micrographs/ --out my-model --resume""",
        run_fit,
    )  # fmt: skip
    fit.add_argument(
        "images", nargs="+", metavar="FOLDER", help="folders, files, or patterns such as 'sem_*.tif'"
    )
    fit.add_argument(
        "--recipe", default="stylegan2-ada", metavar="NAME|FILE",
        help="stylegan2-ada, r3gan, dcgan, or a TOML file [%(default)s]",
    )  # fmt: skip
    fit.add_argument(
        "--resolution", type=positive, default=None, metavar="PX", help="edge of the images [64]"
    )
    fit.add_argument("--steps", type=positive, default=None, metavar="N", help="training steps [recipe's]")
    fit.add_argument("--seed", type=seed_number, default=None, help="fixes everything random [0]")
    fit.add_argument(
        "--out", type=Path, default=None, metavar="FOLDER", help="the run folder [micrographia-NAME]"
    )
    fit.add_argument("--resume", action="store_true", help="go on with an earlier run in that folder")
    add_changes(fit)
    add_pixel_size(fit)
    add_device(fit)


def _add_sample(actions: Any) -> None:
    sample = add_command(
        actions, "sample", "Draw new images; each is a function of its seed",
        """micrographia synthesize sample my-model --n 64 --out new/
        micrographia synthesize sample my-model/model.safetensors --seed 100 --truncation 0.7 --tif --out new/
        micrographia synthesize sample by-class --class martensite --out new/""",
        run_sample,
    )  # fmt: skip
    _add_model(sample)
    sample.add_argument("--n", type=positive, default=16, metavar="N", help="number of images [16]")
    sample.add_argument("--seed", type=seed_number, default=0, help="of the first image [0]")
    sample.add_argument("--tif", action="store_true", help="TIFF in the original number format [PNG]")
    _add_drawing(sample)
    sample.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="a new folder; with --n 1 also a new .png or .tif",
    )


def _add_interpolate(actions: Any) -> None:
    path = add_command(
        actions, "interpolate", "Draw the way between two images",
        """micrographia synthesize interpolate my-model 3 8 --video                  path-3-8.gif
        micrographia synthesize interpolate my-model 3 8 --video --out path.mp4
        micrographia synthesize interpolate my-model projected-1/ projected-2/ --video   between two real images
        micrographia synthesize interpolate my-model 3 8 --steps 9 --space z --linear --out frames/""",
        run_interpolate,
    )  # fmt: skip
    _add_model(path)
    path.add_argument(
        "start", type=_seed_or_style, metavar="A",
        help="seed of the first image, or the folder that project wrote of a real one",
    )  # fmt: skip
    path.add_argument("end", type=_seed_or_style, metavar="B", help="of the last image, the same")
    path.add_argument("--steps", type=positive, default=60, metavar="N", help="images on the way [60]")
    path.add_argument(
        "--space", choices=("z", "w"), default=None, help="between codes or styles [w; DCGAN: z]"
    )
    path.add_argument(
        "--linear", action=argparse.BooleanOptionalAction, default=None,
        help="along a straight line, or a great circle [a line in w, a circle in z]",
    )  # fmt: skip
    path.add_argument(
        "--video", action="store_true", help="write a video, there and back [by the suffix of --out]"
    )
    path.add_argument("--fps", type=positive, default=20, metavar="N", help="frames per second [20]")
    _add_drawing(path)
    path.add_argument(
        "--out", type=Path, default=None, metavar="PATH", help="NAME.gif, NAME.mp4 or a new folder [path-A-B]"
    )


def _add_project(actions: Any) -> None:
    project = add_command(
        actions, "project", "Find the code of a real image, and what the model makes of it",
        """micrographia synthesize project my-model sem_01.tif --out projected/""",
        run_project,
    )  # fmt: skip
    _add_model(project)
    project.add_argument(
        "image", type=Path, metavar="IMAGE", help="a real image; of a larger one the centre counts"
    )
    project.add_argument("--steps", type=positive, default=400, metavar="N", help="steps of the search [400]")
    project.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    add_device(project)


def _add_evaluate(actions: Any) -> None:
    evaluate = add_command(
        actions, "evaluate", "Compare a model's samples, or a folder of generated images, with real ones",
        """micrographia synthesize evaluate my-model --real held-out/ --out judged/
        micrographia synthesize evaluate generated/ --real micrographs/ --json
        micrographia synthesize evaluate my-model --real held-out/ --training micrographs/ --out judged/""",
        run_evaluate,
    )  # fmt: skip
    evaluate.add_argument(
        "generated", type=Path, metavar="MODEL|FOLDER", help="a run folder, model or images"
    )
    evaluate.add_argument("--real", nargs="+", type=Path, required=True, metavar="PATH", help="real images")
    evaluate.add_argument(
        "--training", nargs="+", type=Path, default=[], metavar="PATH",
        help="what the model learnt from: are the samples copies of it?",
    )  # fmt: skip
    evaluate.add_argument("--n", type=positive, default=1000, metavar="N", help="samples drawn [1000]")
    evaluate.add_argument(
        "--class", dest="label", default=None, metavar="NAME", help="judge this class alone"
    )
    evaluate.add_argument(
        "--threshold-each", action="store_true", help="find the phases of each image by its own threshold"
    )
    evaluate.add_argument(
        "--inception",
        type=Path,
        default=None,
        metavar="FILE",
        help="weights for distances of Inception's features (images scaled each by itself)",
    )
    evaluate.add_argument("--no-phases", action="store_true", help="the images do not show two phases")
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of text")
    evaluate.add_argument(
        "--out", type=Path, default=None, metavar="FOLDER", help="for a report with pictures"
    )
    add_device(evaluate)


def _add_microstructures(actions: Any) -> None:
    make = add_command(
        actions, "microstructures", "Generate dual-phase micrographs whose truth is known, to learn from",
        """micrographia synthesize microstructures --n 2000 --out steel/
        micrographia synthesize microstructures --kind field --fraction 0.3 --anisotropy 2 --n 500 --out rolled/""",
        run_microstructures,
    )  # fmt: skip
    make.add_argument(
        "--kind", choices=("field", "grains"), default="grains",
        help="Gaussian random field cut at a level, or grains with lamellar islands [grains]",
    )  # fmt: skip
    make.add_argument("--n", type=positive, default=1000, metavar="N", help="number of images [1000]")
    make.add_argument("--size-px", type=positive, default=64, metavar="PX", help="edge of an image [64]")
    make.add_argument("--fraction", type=float, default=0.35, metavar="F", help="area of the islands [0.35]")
    make.add_argument("--anisotropy", type=float, default=1.0, metavar="R", help="length over width [1]")
    make.add_argument("--seed", type=seed_number, default=0, help="fixes everything random [0]")
    make.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")


def _add_gaussian(actions: Any) -> None:
    gaussian = add_command(
        actions, "gaussian", "The smallest GAN: learn a Gaussian, and watch it learn",
        """micrographia synthesize gaussian --out gaussian/           an animation of the training, in seconds""",
        run_gaussian,
    )  # fmt: skip
    gaussian.add_argument("--seed", type=seed_number, default=0, help="fixes everything random [0]")
    gaussian.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a run folder or its model.safetensors")


def _seed_or_style(text: str) -> int | Path:
    """A seed, or (anything that is no number) the path of a style."""
    try:
        int(text)
    except ValueError:
        return Path(text)
    return seed_number(text)


def _add_drawing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--truncation", type=float, default=1.0, metavar="T",
        help="below 1: closer to the mean image, less diverse [1]",
    )  # fmt: skip
    parser.add_argument("--class", dest="label", default=None, metavar="NAME", help="the class to draw")
    add_device(parser)


def run_fit(arguments: argparse.Namespace) -> None:
    """`micrographia synthesize fit`."""
    from micrographia.errors import UserError
    from micrographia.workflows.recipe import load_recipe
    from micrographia.workflows.synthesize_recipe import SynthesizeRecipe

    given = {
        "gan.resolution": arguments.resolution, "gan.steps": arguments.steps, "seed": arguments.seed,
        "pixel_size_A": arguments.pixel_size,
    }  # fmt: skip
    changes = [f"{key}={value}" for key, value in given.items() if value is not None]
    if arguments.device is not None:
        changes.append(f'device="{arguments.device}"')
    recipe = load_recipe(arguments.recipe, [*changes, *arguments.changes])
    if not isinstance(recipe, SynthesizeRecipe):
        raise UserError(f"{arguments.recipe} is a recipe to {recipe.journey}; use micrographia run.")
    fit_recipe(recipe, arguments)


def fit_recipe(recipe: Any, arguments: argparse.Namespace) -> None:
    """Run a recipe of this journey."""
    from micrographia.workflows.synthesize import fit_synthesizer

    out = arguments.out or Path(f"micrographia-{recipe.name}")
    fit_synthesizer(
        [Path(path) for path in arguments.images], recipe, out, arguments.resume, teller(arguments)
    )
    for name in ("model.safetensors", "report.html"):
        print(out / name)


def run_sample(arguments: argparse.Namespace) -> None:
    """`micrographia synthesize sample`."""
    from micrographia.workflows.synthesize_steps import sample

    files = sample(
        arguments.model, arguments.n, arguments.seed, arguments.out, arguments.truncation, arguments.label,
        ".tif" if arguments.tif else ".png", arguments.device or "auto",
    )  # fmt: skip
    print(files[-1])


def run_interpolate(arguments: argparse.Namespace) -> None:
    """`micrographia synthesize interpolate`."""
    from micrographia.errors import UserError
    from micrographia.workflows.synthesize_steps import interpolate

    name = "-".join(
        ["path", *(e.name if isinstance(e, Path) else str(e) for e in (arguments.start, arguments.end))]
    )
    out = arguments.out or Path(f"{name}.gif" if arguments.video else name)
    if arguments.video and out.suffix.lower() not in (".gif", ".mp4"):
        raise UserError(f"{out}: a video needs a name that ends with .gif or .mp4.")
    interpolate(
        arguments.model, arguments.start, arguments.end, out, arguments.steps, arguments.space, arguments.linear,
        arguments.truncation, arguments.label, arguments.fps, arguments.device or "auto",
    )  # fmt: skip
    print(out)


def run_project(arguments: argparse.Namespace) -> None:
    """`micrographia synthesize project`."""
    from micrographia.workflows.synthesize_steps import project

    difference = project(
        arguments.model,
        arguments.image,
        arguments.out,
        arguments.steps,
        arguments.device or "auto",
        teller(arguments),
    )
    teller(arguments)(f"root mean square difference {difference:.3f} (of a range of 2)")
    print(arguments.out / "beside.png")


def run_evaluate(arguments: argparse.Namespace) -> None:
    """`micrographia synthesize evaluate`."""
    from micrographia.files import json_text
    from micrographia.workflows.synthesize_recipe import JudgeConfig
    from micrographia.workflows.synthesize_report import copies_told, numbers_table
    from micrographia.workflows.synthesize_steps import evaluate

    config = JudgeConfig(
        samples=arguments.n,
        phases=not arguments.no_phases,
        threshold_each=arguments.threshold_each,
        inception_weights=str(arguments.inception or ""),
    )
    found = evaluate(
        arguments.generated, arguments.real, arguments.out, arguments.training, config, arguments.label,
        arguments.device or "auto", teller(arguments),
    )  # fmt: skip
    if arguments.json:
        print(json_text(found.numbers))
    else:
        tables = [numbers_table(found)]
        tables += [found.microstructure.table()] if found.microstructure else []
        tables += [found.by_class] if found.by_class is not None else []
        for table in tables:
            print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"), end="\n\n")
        if found.memorisation is not None:
            print(copies_told(found.memorisation), end="\n\n")
        for warning in found.numbers["warnings"]:
            teller(arguments)(f"warning: {warning}")
    if arguments.out is not None:  # not among the JSON
        print(arguments.out / "report.html", file=sys.stderr if arguments.json else sys.stdout)


def run_microstructures(arguments: argparse.Namespace) -> None:
    """`micrographia synthesize microstructures`."""
    from micrographia.workflows.synthesize_steps import make_microstructures

    table = make_microstructures(
        arguments.kind, arguments.n, arguments.size_px, arguments.fraction, arguments.anisotropy, arguments.seed,
        arguments.out,
    )  # fmt: skip
    teller(arguments)(f"{len(table)} images, mean phase fraction {table['phase_fraction'].mean():.4f}")
    print(arguments.out)


def run_gaussian(arguments: argparse.Namespace) -> None:
    """`micrographia synthesize gaussian`."""
    from micrographia.workflows.synthesize_steps import learn_gaussian

    learn_gaussian(arguments.seed, arguments.out, teller(arguments))
    print(arguments.out / "training.gif")
