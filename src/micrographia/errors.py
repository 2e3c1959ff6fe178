"""The one exception a user ever needs to see."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

#: The largest seed of a recipe: PyTorch's generators take 64 bits.
LARGEST_SEED = 1e18


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    The command line prints it as one line and exits with code 2. Everything else that
    escapes is a defect of ours and exits with code 1.
    """


def check_ranges(where: str, settings: Any, **ranges: tuple[float, float]) -> None:
    """Raise `UserError` if a field of `settings` lies outside its range (low, high); NaN lies outside all.

    Parameters
    ----------
    where : str
        What the settings are called in a recipe; "" for its top.
    """
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            told = f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"
            raise UserError(f"{where}.{name} = {value}: give {told}.".lstrip("."))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is what NumPy or PyTorch, on whatever device, raise when memory does not suffice."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # Linux, Windows, MPS, and oneDNN, which says no more.
    told = ("can't allocate memory", "not enough memory", "out of memory", "could not create a primitive")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in told)


def did_you_mean(wrong: str, valid: Iterable[str]) -> str:
    """Return a hint naming the valid word nearest to `wrong`, then all valid words."""
    words = sorted(valid)
    near = difflib.get_close_matches(wrong, words, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{hint} Valid: {', '.join(words)}."
