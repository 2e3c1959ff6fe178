"""Matrices of classes: found against true, and from one frame to the next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from micrographia.errors import UserError


def confusion_figure(
    counts: np.ndarray, true_names: Sequence[object], found_names: Sequence[object]
) -> Figure:
    """Show how found classes fall on true ones (`latent.compare.match_classes`).

    Colour: share of the true class; numbers: atoms.
    """
    counts = np.asarray(counts)
    if counts.shape != (len(true_names), len(found_names)):
        raise UserError(
            f"confusion_figure: {list(counts.shape)} counts for {len(true_names)} x {len(found_names)}."
        )
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return _matrix(
        share,
        [[str(c) for c in row] for row in counts],
        true_names,
        found_names,
        "found",
        "true",
        "share of class",
    )


def transition_figure(counts: np.ndarray, names: Sequence[object] | None = None) -> Figure:
    """Show how often an atom of one class (rows) is of another (columns) in the next frame.

    Colour and upper number: share of the row; in brackets: how often seen.

    Parameters
    ----------
    counts : ``[k, k]``
    """
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not len(counts):
        raise UserError(f"transition_figure: counts must be square [k, k], got {list(counts.shape)}.")
    names = list(range(len(counts))) if names is None else list(names)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    told = [
        [f"{s:.2f}\n({c:g})" if c else "" for s, c in zip(shares, row, strict=True)]
        for shares, row in zip(share, counts, strict=True)
    ]
    return _matrix(share, told, names, names, "class in the next frame", "class", "share of the row")


def _matrix(
    share: np.ndarray,
    told: Sequence[Sequence[str]],
    row_names: Sequence[object],
    column_names: Sequence[object],
    columns: str,
    rows: str,
    label: str,
) -> Figure:
    """Draw a matrix of shares (0 to 1) with text in its cells."""
    height, width = share.shape
    figure = Figure(figsize=(2.2 + 0.62 * width, 1.3 + 0.5 * height), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for r in range(height):
        for c in range(width):
            axes.text(
                c, r, told[r][c], ha="center", va="center", fontsize=8,
                color="white" if share[r, c] > 0.6 else "0.15",
            )  # fmt: skip
    long = max((len(str(name)) for name in column_names), default=0) > 7
    axes.set_xticks(
        range(width), [str(n) for n in column_names], fontsize=8,
        rotation=40 if long else 0, ha="right" if long else "center", rotation_mode="anchor" if long else None,
    )  # fmt: skip
    axes.set_yticks(range(height), [str(n) for n in row_names], fontsize=8)
    axes.set(xlabel=columns, ylabel=rows)
    figure.colorbar(picture, ax=axes, label=label, shrink=0.8, pad=0.02)
    return figure
