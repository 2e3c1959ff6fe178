"""What the commands share: the parser's manners, common options, and how the user is told things."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from micrographia.errors import LARGEST_SEED, UserError


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, **{"max_help_position": 28, **settings})


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviations, and help that keeps its examples' lines."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
            **settings,
        )
        self.add_argument("-h", "--help", action="help", help="show this help and exit")
        # Without defaults of their own these may stand before or after the command.
        for flag, text in (
            ("--debug", "show the traceback of an error"),
            ("--quiet", "tell nothing but results and errors"),
        ):
            self.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)

    def error(self, message: str) -> NoReturn:
        """Turn a wrong use of the command line into a `UserError`."""
        raise UserError(f"{message} (see {self.prog} --help)")


def command_group(parser: argparse.ArgumentParser, title: str, metavar: str) -> Any:
    """Return the place to which :func:`add_command` adds."""
    return parser.add_subparsers(title=f"{title}s", metavar=metavar, parser_class=Parser)


def add_command(
    group: Any,
    name: str,
    summary: str,
    examples: str,
    run: Callable[[argparse.Namespace], None] | None = None,
) -> Parser:
    """Add a command whose help ends with examples."""
    lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    parser = group.add_parser(name, help=summary, description=f"{summary}.", epilog=f"examples:\n{lines}")
    if run is not None:
        parser.set_defaults(run=run)
    return parser


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add the positional images."""
    parser.add_argument(
        "images", nargs="+", metavar="IMAGES", help="files, folders, or patterns such as 'scan_*.dm4'"
    )


def add_pixel_size(parser: argparse.ArgumentParser) -> None:
    """Add --pixel-size."""
    parser.add_argument(
        "--pixel-size", type=angstrom, metavar="Å", help="pixel size of the images in Å (overrides their own)"
    )


def add_recipe(parser: argparse.ArgumentParser, default: str | None = "wse2") -> None:
    """Add --recipe and --set."""
    parser.add_argument(
        "--recipe", default=default, metavar="NAME|FILE", help="built-in recipe or TOML file [%(default)s]"
    )
    add_changes(parser)


def add_changes(parser: argparse.ArgumentParser) -> None:
    """Add --set."""
    parser.add_argument(
        "--set", action="append", default=[], dest="changes", metavar="KEY=VALUE",
        help="change one key of the recipe, for example seed=3 (repeatable)",
    )  # fmt: skip


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", default=None, metavar="NAME", help="auto, cpu, cuda or mps [auto]")


def angstrom(text: str) -> float:
    """Read a length in Å."""
    try:
        value = float(text)
    except ValueError:
        hint = "0.02 nm = 20 pm = 0.2 Å"
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a number; give Å without the unit ({hint})"
        ) from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be greater than 0")
    return value


def positive(text: str) -> int:
    """Read a whole number greater than zero."""
    return _whole_number(text, 1)


def seed_number(text: str) -> int:
    """Read a whole number from zero to the largest that every random generator takes."""
    return _whole_number(text, 0, LARGEST_SEED)


def _whole_number(text: str, least: int, most: float = math.inf) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} must be at least {least}")
    if value > most:
        raise argparse.ArgumentTypeError(f"{text} must be at most {most:g}")
    return value


def speaks() -> bool:
    """Whether this process tells what it does: the first one of those that ``torchrun`` starts."""
    return os.environ.get("RANK", "0") == "0"


def teller(arguments: argparse.Namespace) -> Callable[[str], None]:
    """Return the function that tells what is going on: on stderr, or nothing with --quiet."""
    if getattr(arguments, "quiet", False) or not speaks():
        return lambda message: None
    return lambda message: print(message, file=sys.stderr, flush=True)
