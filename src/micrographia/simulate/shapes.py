"""Small images of known class and pose, to judge models that promise to take the pose out.

Every set is a function of its arguments and seed alone. Angles are counter-clockwise as seen on the screen;
shifts are where the centre of the object lies, from the centre of the patch (x right, y down).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits

from micrographia.errors import UserError

#: Points per pixel and axis from which the filled shapes are averaged.
OVERSAMPLING = 3


@dataclass(frozen=True)
class PoseSet:
    """Patches and the truth about them."""

    images: np.ndarray
    """float32 ``[N, H, W]``."""
    kind: np.ndarray
    """Class of each, int ``[N]``."""
    kinds: tuple[str, ...]
    """Name of each class."""
    angle_deg: np.ndarray
    """Rotation, ``[N]``."""
    shift_px: np.ndarray
    """Displacement (x, y), ``[N, 2]``."""
    content: np.ndarray
    """What else varies, ``[N, D]``: the shear of the cards, the two factors of the motifs."""
    symmetry: np.ndarray
    """Rotational symmetry of each object, ``[N]``: 2 if a half turn leaves it unchanged."""


def cards(
    n: int,
    size_px: int = 48,
    rotation_deg: float = 120.0,
    shear: float = 0.0,
    shift_px: float = 0.0,
    noise: float = 0.0,
    seed: int = 0,
) -> PoseSet:
    """Draw the four suits of playing cards as filled shapes, intensities 0 to 1.

    After the card set of Ziatdinov and Kalinin, "Robust feature disentanglement in imaging data via joint
    invariant variational autoencoders: from cards to atoms", arXiv:2104.10180 (2021).

    Parameters
    ----------
    n : int
    size_px : int
        Edge of the square patch; an upright card symbol spans about half of it.
    rotation_deg, shear, shift_px : float
        Each patch is rotated by up to ± `rotation_deg`, sheared along its own x axis by up to ± `shear`
        (shift in x per unit of y), and moved by up to ± `shift_px` in x and in y; uniform draws.
    noise : float
        Standard deviation of white noise added at the end.
    seed : int

    Raises
    ------
    UserError
        A negative range or fewer than one patch.
    """
    rng = _checked(n, size_px, seed, rotation_deg=rotation_deg, shear=shear, shift_px=shift_px, noise=noise)
    kind = rng.integers(4, size=n)
    angle = rng.uniform(-rotation_deg, rotation_deg, n)
    shift = rng.uniform(-shift_px, shift_px, (n, 2))
    sheared = rng.uniform(-shear, shear, n)
    images = np.empty((n, size_px, size_px), np.float32)
    for i in range(n):
        x, y = _own_coordinates(size_px, OVERSAMPLING, angle[i], shift[i])
        x = x - sheared[i] * y
        filled = _SUITS[kind[i]](x / 0.62, -y / 0.62)  # the suits are drawn with y upwards
        images[i] = filled.reshape(size_px, OVERSAMPLING, size_px, OVERSAMPLING).mean(axis=(1, 3))
    images += noise * rng.standard_normal(images.shape, dtype=np.float32)
    symmetry = np.where(kind == SUITS.index("diamonds"), 2, 1)
    return PoseSet(images, kind, SUITS, angle, shift, sheared[:, None], symmetry)


def motifs(
    n: int,
    size_px: int = 16,
    rotation_deg: float = 180.0,
    shift_px: float = 0.0,
    noise: float = 0.05,
    seed: int = 0,
) -> PoseSet:
    """Draw an atom with three unlike neighbours; the brightness of one and the distance of another vary.

    One class, no symmetry, two continuous factors (`PoseSet.content`, uniform from 0 to 1). Arguments as of
    :func:`cards`.
    """
    rng = _checked(n, size_px, seed, rotation_deg=rotation_deg, shift_px=shift_px, noise=noise)
    angle = rng.uniform(-rotation_deg, rotation_deg, n)
    shift = rng.uniform(-shift_px, shift_px, (n, 2))
    factors = rng.uniform(0, 1, (n, 2))
    images = np.zeros((n, size_px, size_px), np.float32)
    for i, (bright, far) in enumerate(factors):
        x, y = _own_coordinates(size_px, 1, angle[i], shift[i])
        atoms = [(0, 0, 0.8), (0, 0.52, 0.4 + 0.6 * bright), (100, 0.35 + 0.3 * far, 0.6), (215, 0.55, 0.5)]
        for direction, distance, height in atoms:
            u, v = distance * np.cos(np.deg2rad(direction)), -distance * np.sin(np.deg2rad(direction))
            images[i] += height * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 0.15**2))
    images += noise * rng.standard_normal(images.shape, dtype=np.float32)
    ones = np.ones(n, int)
    return PoseSet(images, ones - 1, ("motif",), angle, shift, factors, ones)


def rotated_digits(
    n: int,
    size_px: int = 16,
    rotation_deg: float = 60.0,
    digits: Sequence[int] = range(10),
    seed: int = 0,
) -> PoseSet:
    """Rotate scikit-learn's handwritten digits (8 x 8 pixels, enlarged), intensities 0 to 1.

    The same digit may be drawn several times at different angles. 0, 1 and 8 are scored modulo a half turn;
    6 and 9 are nearly each other's half turn.
    """
    rng = _checked(n, size_px, seed, rotation_deg=rotation_deg)
    source = load_digits()
    chosen = np.flatnonzero(np.isin(source.target, list(digits)))
    if not len(chosen):
        raise UserError(f"There are no digits {list(digits)}; choose from 0 to 9.")
    index = rng.choice(chosen, n, replace=len(chosen) < n)
    angle = rng.uniform(-rotation_deg, rotation_deg, n)
    images = np.empty((n, size_px, size_px), np.float32)
    # The digit spans a square inscribed in the circle that every rotation keeps inside the patch.
    step = 8 / (size_px / np.sqrt(2))
    for i, which in enumerate(index):
        c, s = np.cos(np.deg2rad(angle[i])), np.sin(np.deg2rad(angle[i]))
        matrix = step * np.array([[c, s], [-s, c]])  # screen (row, column) to the digit's own
        offset = 3.5 - matrix @ np.full(2, (size_px - 1) / 2)
        images[i] = ndimage.affine_transform(
            source.images[which] / 16, matrix, offset, (size_px, size_px), order=1
        )
    kind = source.target[index]
    symmetry = np.where(np.isin(kind, (0, 1, 8)), 2, 1)
    return PoseSet(images, kind, tuple("0123456789"), angle, np.zeros((n, 2)), np.zeros((n, 0)), symmetry)


def _checked(n: int, size_px: int, seed: int, **ranges: float) -> np.random.Generator:
    if n < 1 or size_px < 4:
        raise UserError(f"{n} patches of {size_px} px cannot be drawn; ask for at least 1 of at least 4 px.")
    for name, value in ranges.items():
        if not value >= 0:
            raise UserError(f"{name} = {value} is not possible; give 0 or more.")
    return np.random.default_rng(seed)


def _own_coordinates(
    size_px: int, oversampling: int, angle_deg: float, shift_px: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of all points in the frame of the turned and shifted object; the patch spans -1 to 1."""
    points = size_px * oversampling
    axis = (2 * np.arange(points) + 1) / points - 1
    x = axis[None, :] - 2 * shift_px[0] / size_px
    y = axis[:, None] - 2 * shift_px[1] / size_px
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    return c * x - s * y, s * x + c * y


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = 1.25 * x, 1.25 * y + 0.15
    return (x**2 + y**2 - 1) ** 3 - x**2 * y**3 < 0


def _stem(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (y < 0) & (y > -0.95) & (np.abs(x) < 0.1 + 0.35 * (y / 0.95) ** 2)


def _spade(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _heart(x, -y + 0.15) | _stem(x, y)


def _club(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    leaves = [(0.0, 0.5), (-0.47, -0.13), (0.47, -0.13)]
    return np.any([(x - u) ** 2 + (y - v) ** 2 < 0.4**2 for u, v in leaves], axis=0) | _stem(x, y)


def _diamond(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(x) / 0.7 + np.abs(y) / 0.95 < 1


_SUIT_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "clubs": _club,
    "diamonds": _diamond,
    "hearts": _heart,
    "spades": _spade,
}
SUITS = tuple(_SUIT_SHAPES)
_SUITS = tuple(_SUIT_SHAPES.values())
