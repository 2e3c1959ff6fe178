"""Completion scripts for bash and zsh, made from the parser itself."""

from __future__ import annotations

import argparse
from typing import Any

from micrographia.cli.parser import add_command

_BASH = """# micrographia completion for bash; add to ~/.bashrc:  eval "$(micrographia completion bash)"
_micrographia() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} path= part known
    for part in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$path $part" in
            {paths}) path="$path $part" ;;
        esac
    done
    case "$path" in
        {cases}
    esac
    COMPREPLY=($(compgen -W "$known" -- "$word"))
    [[ $word == -* ]] || COMPREPLY+=($(compgen -f -- "$word"))
}}
complete -o filenames -F _micrographia micrographia
"""
_ZSH = """# micrographia completion for zsh; add to ~/.zshrc:  eval "$(micrographia completion zsh)"
autoload -Uz compinit bashcompinit && compinit -i && bashcompinit
"""


def add_commands(group: Any) -> None:
    """Add the command to the command line."""
    parser = add_command(
        group, "completion", "Print a script that completes commands and options in the shell",
        """eval "$(micrographia completion bash)"       in ~/.bashrc
        eval "$(micrographia completion zsh)"        in ~/.zshrc""",
        print_completion,
    )  # fmt: skip
    parser.add_argument("shell", choices=("bash", "zsh"))


def print_completion(arguments: argparse.Namespace) -> None:
    """`micrographia completion`."""
    from micrographia.cli.main import build_parser

    known = _words(build_parser())
    paths = "|".join(f'"{path}"' for path in known if path)
    cases = "\n        ".join(f'"{path}") known="{" ".join(words)}" ;;' for path, words in known.items())
    script = _BASH.format(paths=paths, cases=cases)
    print((_ZSH if arguments.shell == "zsh" else "") + script, end="")


def _words(parser: argparse.ArgumentParser, path: str = "") -> dict[str, list[str]]:
    """What may follow each command path: options, subcommands, choices."""
    out: dict[str, list[str]] = {path: []}
    for action in parser._actions:
        out[path] += [option for option in action.option_strings if option.startswith("--")]
        if isinstance(action, argparse._SubParsersAction):
            out[path] += action.choices
            for name, inner in action.choices.items():
                out |= _words(inner, f"{path} {name}")
        elif action.choices:
            out[path] += map(str, action.choices)
    return out
