"""The command line: parses, calls the workflows, turns errors into one line and an exit code.

Nothing heavy is imported here or in the modules beside it: they import what they need inside the command, so
that ``micrographia --help`` answers at once.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout

from micrographia.cli import completion, journeys, looking, steps, synthesize
from micrographia.cli.parser import Parser, command_group, speaks
from micrographia.errors import UserError, is_out_of_memory


def build_parser() -> Parser:
    """Return the whole command line as a parser."""
    parser = Parser(
        prog="micrographia",
        description="Turns electron micrographs into knowledge with generative models: finds defects without\n"
        "labels, explores structure, makes new micrographs, and says how far to trust the result.",
        epilog="""examples:
  micrographia demo                                  the whole journey on generated data
  micrographia inspect scan.dm4 --material WSe2      check scale, lattice, resolution, noise
  micrographia find scans/ --material WSe2 --defect Se-vacancy --out my-run
  micrographia synthesize fit sem/ --out my-model    learn to make images like these
  micrographia recipe wse2 > wse2.toml               a commented recipe to change
  micrographia run wse2.toml --images scans/ --out my-run

Every command explains itself: micrographia COMMAND --help""",
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    commands = command_group(parser, "command", "COMMAND")
    journeys.add_commands(commands)
    looking.add_commands(commands)
    steps.add_commands(commands)
    synthesize.add_commands(commands)
    completion.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 (yours to mend), 1 (ours), or 130 (interrupted)."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Threads that wait for work must sleep: where others use the cores, spinning costs most of the CPU.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    debug = "--debug" in words
    if not debug:  # what is wrong with a file we say ourselves
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        return _run(words)
    except KeyboardInterrupt:
        return _complain(_how_to_resume(words), 130)
    except BrokenPipeError:
        # The reader (head, less) has gone; silence Python's own complaint at exit, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        if isinstance(error, UserError):
            return _complain(f"micrographia: error: {_one_line(error)}", 2)
        if is_out_of_memory(error):
            mend = "work on smaller images, on fewer of them at once, or where there is more memory"
            return _complain(f"micrographia: error: out of memory ({_one_line(error)}): {mend}.", 2)
        if isinstance(error, OSError) and error.filename:  # A locked folder, a full disk: not ours to mend.
            told = f"{error.filename}: {error.strerror}; check the path, its permissions and the free space"
            return _complain(f"micrographia: error: {told}.", 2)
        hint = "run it again with --debug to see where, and please report it"
        return _complain(
            f"micrographia: internal error: {type(error).__name__}: {_one_line(error)} ({hint})", 1
        )


def _run(words: list[str]) -> int:
    parser = build_parser()
    arguments = parser.parse_args(words)
    if arguments.version:
        from micrographia import __version__

        print(f"micrographia {__version__}")
        return 0
    if not hasattr(arguments, "run"):
        # A group without its command (nothing at all, or `translate`) shows what there is.
        parser.parse_args([*words, "--help"])
    with redirect_stdout(None) if not speaks() else nullcontext():
        arguments.run(arguments)
    sys.stdout.flush()
    return 0


def _complain(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or "no reason given"


def _how_to_resume(words: list[str]) -> str:
    command = [word for word in words if not word.startswith("-")][:2]
    again = list(words)
    if command[:1] in (["run"], ["find"], ["explore"], ["demo"]) or command == ["synthesize", "fit"]:
        again += [] if "--resume" in words else ["--resume"]
    elif command[1:] != ["fit"]:
        return "micrographia: interrupted; nothing was left half-written."
    return f"micrographia: interrupted; what was done is saved. Go on with: micrographia {shlex.join(again)}"
