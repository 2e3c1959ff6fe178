"""Cutting images into patches for training, and applying a network to images of any size without seams."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from micrographia.errors import UserError


def random_crops(
    images: Tensor, labels: Tensor, size: int, count: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Cut `count` square patches at random places, each turned or flipped at random, labels alike.

    Parameters
    ----------
    images : tensor ``[N, C, H, W]``
    labels : tensor ``[N, K, H, W]``
        Any dtype; stays aligned with the images.
    size : int
        Edge of a patch in pixels.
    count : int
        Number of patches; the image, the place and the orientation of each are drawn independently.
    rng : numpy Generator

    Returns
    -------
    patches : tensor ``[count, C, size, size]``
    patch_labels : tensor ``[count, K, size, size]``

    Raises
    ------
    UserError
        Images and labels do not fit each other, or are smaller than a patch.
    """
    n, _, height, width = images.shape
    if labels.ndim != 4 or (labels.shape[0], *labels.shape[2:]) != (n, height, width):
        raise UserError(
            f"Images {tuple(images.shape)} and labels {tuple(labels.shape)} do not belong together."
        )
    if min(height, width) < size or n == 0:
        raise UserError(
            f"{n} images of {height} x {width} pixels hold no patch of {size} x {size}; "
            "choose a smaller patch."
        )
    which = rng.integers(n, size=count)
    tops = rng.integers(height - size + 1, size=count)
    lefts = rng.integers(width - size + 1, size=count)
    turns = rng.integers(8, size=count)
    draws = [tuple(map(int, draw)) for draw in zip(which, tops, lefts, turns, strict=True)]

    def cut(stack: Tensor) -> Tensor:
        return torch.stack(
            [dihedral(stack[i, :, top : top + size, left : left + size], k) for i, top, left, k in draws]
        )

    return cut(images), cut(labels)


def dihedral(tensor: Tensor, k: int) -> Tensor:
    """Turn the last two axes by `k` mod 4 quarters counter-clockwise on the screen; ``k >= 4`` mirrors first.

    ``k`` = 0 to 7 are the eight symmetries of a square; 0 is the identity.
    """
    if not 0 <= k < 8:
        raise ValueError(f"k must be 0 to 7, got {k}")
    return torch.rot90(tensor.flip(-1) if k >= 4 else tensor, k % 4, (-2, -1))


def dihedral_inverse(tensor: Tensor, k: int) -> Tensor:
    """Undo :func:`dihedral` with the same `k`."""
    if not 0 <= k < 8:
        raise ValueError(f"k must be 0 to 7, got {k}")
    turned = torch.rot90(tensor, -(k % 4), (-2, -1))
    return turned.flip(-1) if k >= 4 else turned


@torch.inference_mode()
def apply_tiled(
    function: Callable[[Tensor], Tensor],
    image: Tensor,
    tile: int | tuple[int, int],
    overlap: int,
    batch: int = 8,
    extend: bool = True,
) -> Tensor:
    """Apply `function` to overlapping tiles of one image and blend the results without seams.

    A quarter of the overlap at each edge of a tile, where `function` lacks its surroundings, is thrown
    away; over the rest of the overlap the tiles fade into each other with raised cosines (Hann tapers)
    that sum to 1. The image is extended by reflection, so its border has surroundings too and it may be
    smaller than a tile. Hence a shift-invariant function that looks at most ``overlap // 4`` pixels far
    gives exactly what it would give on the whole (reflected) image; one with strides does where
    ``tile - overlap`` and ``overlap // 4`` are multiples of its stride.

    Parameters
    ----------
    function : callable
        ``[B, C, height, width of a tile]`` -> ``[B, C', height, width of a tile]``.
    image : tensor ``[C, H, W]``
    tile, overlap : int
        Edge of a tile (or its height and width), and overlap of neighbouring tiles, in pixels.
    batch : int
        Tiles per call of `function`.
    extend : bool
        False: the first tiles begin where the image does, and what `function` gives at its border counts.
        Saves time with a network that learnt from patches and so knows borders.

    Returns
    -------
    tensor ``[C', H, W]``, where `function` puts it

    Raises
    ------
    UserError
        The overlap is not smaller than the tile.
    """
    tall, wide = tile if isinstance(tile, tuple) else (tile, tile)
    if not 0 <= overlap < min(tall, wide):
        edge = min(tall, wide)
        raise UserError(
            f"The overlap of tiles must be 0 to {edge - 1} pixels for tiles of {edge}, got {overlap}."
        )
    margin = overlap // 4
    beyond = margin if extend else 0
    height, width = image.shape[-2:]
    tops, rows = _grid(height, tall, tall - overlap, beyond)
    lefts, columns = _grid(width, wide, wide - overlap, beyond)
    if (len(rows), len(columns)) == (height, width) == (tall, wide):  # one tile is the image itself
        return function(image[None])[0]
    extended = image[:, rows.to(image.device)][:, :, columns.to(image.device)]
    corners = [(top, left) for top in tops for left in lefts]

    total = weight = torch.empty(0)
    for start in range(0, len(corners), batch):
        some = corners[start : start + batch]
        tiles = function(torch.stack([extended[:, y : y + tall, x : x + wide] for y, x in some]))
        if start == 0:
            window = (_taper(tall, overlap, margin)[:, None] * _taper(wide, overlap, margin)).to(tiles)
            total = tiles.new_zeros(tiles.shape[1], len(rows), len(columns))
            weight = tiles.new_zeros(len(rows), len(columns))
        for (y, x), result in zip(some, tiles, strict=True):
            total[:, y : y + tall, x : x + wide] += result * window
            weight[y : y + tall, x : x + wide] += window
    inside = (..., slice(beyond, beyond + height), slice(beyond, beyond + width))
    return total[inside] / weight[inside]


def _grid(length: int, tile: int, step: int, beyond: int) -> tuple[range, Tensor]:
    """Starts of the tiles along one axis of the extended image, and the source pixel of every place."""
    steps = max(0, -(-(length + 2 * beyond - tile) // step))
    position = torch.arange(steps * step + tile) - beyond
    period = max(2 * (length - 1), 1)
    folded = position.remainder(period)
    return range(0, steps * step + 1, step), torch.minimum(folded, period - folded).clamp(max=length - 1)


def _taper(tile: int, overlap: int, margin: int) -> Tensor:
    """Weight along one edge of a tile: next to 0 over `margin`, a raised cosine over the other overlap, 1."""
    inset = torch.arange(tile) - margin + 0.5
    inset = torch.minimum(inset, inset.flip(0))
    ramp = (inset / max(overlap - 2 * margin, 1)).clamp(0, 1)
    return (torch.sin(torch.pi / 2 * ramp) ** 2).clamp_min(1e-6)  # not 0, for where no other tile reaches
