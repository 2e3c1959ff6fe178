"""Colours, markers and dashes that stay apart for the colour-blind and in grey print."""

from __future__ import annotations

#: Okabe and Ito's palette (Wong, Nature Methods 8, 441, 2011), without its black and yellow.
COLOURS = ("#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
