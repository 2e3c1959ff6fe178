"""The one exception a user ever needs to see."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    The command line prints it as one line and exits with code 2. Everything else that
    escapes is a defect of ours and exits with code 1.
    """


def did_you_mean(wrong: str, valid: Iterable[str]) -> str:
    """Return a hint naming the valid word nearest to `wrong`, then all valid words."""
    words = sorted(valid)
    near = difflib.get_close_matches(wrong, words, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{hint} Valid: {', '.join(words)}."
