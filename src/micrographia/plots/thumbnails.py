"""Patches as small pictures: one scaling for all, several channels in colour, mosaics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from micrographia.errors import UserError

#: Tints of channels: two or three added give no confusion for the colour-blind (blue, orange, green).
TINTS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7")


def thumbnails(patches: np.ndarray, limits: Sequence[tuple[float, float]] | None = None) -> np.ndarray:
    """Scale patches to what can be shown, all by the same limits.

    Parameters
    ----------
    patches : ``[N, H, W]`` or ``[N, C, H, W]``
        One channel is shown in grey, up to four each in its tint, added.
    limits : per channel (black, white), optional
        Without: from :func:`limits_of`.

    Returns
    -------
    float32 ``[N, H, W]`` or ``[N, H, W, 3]``, 0 to 1.
    """
    stack = _channels(patches)
    limits = limits_of(patches) if limits is None else limits
    shown = [np.clip((stack[:, c] - low) / (high - low), 0, 1) for c, (low, high) in enumerate(limits)]
    if len(shown) == 1:
        return shown[0].astype(np.float32)
    colour = sum(s[..., None] * np.array(to_rgb(TINTS[c])) for c, s in enumerate(shown))
    return np.clip(colour, 0, 1).astype(np.float32)


def limits_of(patches: np.ndarray) -> list[tuple[float, float]]:
    """(black, white) of each channel: the 0.5 % and 99.8 % quantiles over all patches."""
    stack = _channels(patches)
    found = []
    for c in range(stack.shape[1]):
        values = stack[:: max(len(stack) // 2000, 1), c]
        low, high = np.quantile(values, [0.005, 0.998])
        if high <= low:
            low, high = float(values.min()), float(values.max())
        found.append((float(low), float(high)) if high > low else (float(low), float(low) + 1.0))
    return found


def mosaic(pictures: np.ndarray, gap: int = 1) -> np.ndarray:
    """Lay pictures ``[R, C, H, W]`` or ``[R, C, H, W, 3]`` side by side, white lines of `gap` px between."""
    rows, columns, height, width = pictures.shape[:4]
    colours = pictures.shape[4:]
    sheet = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, *colours), np.float32)
    for r in range(rows):
        for c in range(columns):
            top, left = r * (height + gap), c * (width + gap)
            sheet[top : top + height, left : left + width] = pictures[r, c]
    return sheet


def shrunk(pictures: np.ndarray, edge_px: int) -> np.ndarray:
    """Pictures from :func:`thumbnails` as 8-bit, their longer edge at most `edge_px`."""
    eight_bit = (np.clip(pictures, 0, 1) * 255).round().astype(np.uint8)
    height, width = pictures.shape[1:3]
    factor = min(edge_px / max(height, width), 1.0)
    if factor == 1.0:
        return eight_bit
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    small = [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BOX)) for p in eight_bit]
    return np.stack(small)


def _channels(patches: np.ndarray) -> np.ndarray:
    stack = np.asarray(patches, np.float32)
    stack = stack[:, None] if stack.ndim == 3 else stack
    if stack.ndim != 4 or 0 in stack.shape:
        raise UserError(
            f"Patches must be [N, H, W] or [N, C, H, W] and not empty, got {list(np.shape(patches))}."
        )
    if stack.shape[1] > len(TINTS):
        raise UserError(
            f"At most {len(TINTS)} channels can be shown in colour, got {stack.shape[1]}; choose some."
        )
    if not np.isfinite(stack).all():
        raise UserError("The patches hold NaN or infinite values; leave those out.")
    return stack
