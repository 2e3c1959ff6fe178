"""Pictures that a latent model draws: its manifold, traversals of each latent, patches turned upright."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from micrographia.errors import UserError
from micrographia.latent.vae import VAE, columns_of

#: The prior's quantiles from which codes are drawn when no codes of data are given.
PRIOR_RANGE = (0.05, 0.95)


@dataclass(frozen=True)
class Drawn:
    """Patches drawn from codes on a grid."""

    images: np.ndarray
    """``[rows, columns, H, W]`` or ``[rows, columns, C, H, W]``."""
    values: np.ndarray
    """Of a traversal the value of the row's latent, ``[rows, columns]``; of a manifold (row, column), ``[rows,
    columns, 2]``."""
    names: tuple[str, ...]
    """Of a traversal the latent of each row; of a manifold those of the rows and of the columns."""


def draw_manifold(
    model: VAE,
    steps: int = 9,
    codes: np.ndarray | None = None,
    axes: Sequence[str] = ("z1", "z2"),
    class_index: int = 0,
    condition: np.ndarray | None = None,
) -> Drawn:
    """Draw upright patches over a plane of two latents: the first from left to right, the second upwards.

    Parameters
    ----------
    model : VAE
    steps : int
        Per axis.
    codes : ``[N, D]``, optional
        As `VAE.transform` returns them: the plane spans their 5 % to 95 % quantiles, other latents stay at
        their medians. Without: quantiles of the prior, others at 0.
    axes : two names
    class_index : int
        The class drawn, where the model has classes.
    condition : float ``[n]`` or one label, optional
        Where the model needs one.
    """
    names = _names(model)
    for name in axes:
        if name not in names or name.startswith("class"):
            raise UserError(f"The model has no latent '{name}'; choose from {', '.join(_latents(names))}.")
    base, low, high = _span(model, names, codes, class_index)
    first, second = (names.index(name) for name in axes)
    along = _steps(low[first], high[first], steps, names[first])
    up = _steps(low[second], high[second], steps, names[second])[::-1]
    grid = np.tile(base, (steps * steps, 1))
    grid[:, first], grid[:, second] = np.tile(along, steps), np.repeat(up, steps)
    images = model.inverse_transform(grid, _given(condition, len(grid)))
    values = np.stack([grid[:, second], grid[:, first]], axis=1).reshape(steps, steps, 2)
    return Drawn(images.reshape(steps, steps, *images.shape[1:]), values, (axes[1], axes[0]))


def draw_traversals(
    model: VAE,
    steps: int = 9,
    codes: np.ndarray | None = None,
    class_index: int = 0,
    condition: np.ndarray | None = None,
) -> Drawn:
    """Vary one latent at a time, the pose included, the others at rest. Arguments as of :func:`draw_manifold`."""
    names = _names(model)
    base, low, high = _span(model, names, codes, class_index)
    latents = _latents(names)
    grid = np.tile(base, (len(latents) * steps, 1))
    for r, name in enumerate(latents):
        column = names.index(name)
        grid[r * steps : (r + 1) * steps, column] = _steps(low[column], high[column], steps, name)
    images = model.inverse_transform(grid, _given(condition, len(grid)))
    values = np.stack([grid[r * steps : (r + 1) * steps, names.index(n)] for r, n in enumerate(latents)])
    return Drawn(images.reshape(len(latents), steps, *images.shape[1:]), values, tuple(latents))


def draw_upright(model: VAE, codes: np.ndarray, condition: np.ndarray | None = None) -> np.ndarray:
    """Patches ``[N, ...]`` of `codes` with the pose taken out: no rotation, no shift, scale 1."""
    codes, names = np.array(codes, np.float32), _names(model)
    for i, name in enumerate(names):
        if name in _REST:
            codes[:, i] = _REST[name]
    return model.inverse_transform(codes, condition)


#: What the names of content begin with: of the code, and of values that some patches were told.
_CODE = ("z", "value")
#: The pose that changes nothing.
_REST = {"angle_deg": 0.0, "shift_x_px": 0.0, "shift_y_px": 0.0, "scale": 1.0}


def _names(model: VAE) -> list[str]:
    return [str(name) for name in model.get_feature_names_out()]


def _latents(names: Sequence[str]) -> list[str]:
    """What can be varied, the code first."""
    inner = [names[i] for i in columns_of(names, *_CODE)]
    return inner + [name for name in names if name in _REST]


def _span(
    model: VAE, names: list[str], codes: np.ndarray | None, class_index: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes at rest, and the lower and upper end of each column."""
    classes = columns_of(names, "class")
    if classes and not 0 <= class_index < len(classes):
        raise UserError(f"The model has no class {class_index}; choose from 0 to {len(classes) - 1}.")
    base = np.array([_REST.get(name, 0.0) for name in names], np.float32)
    values = columns_of(names, "value")
    width = np.ones(len(names), np.float32)
    if values:  # in the units of what was told
        base[values], width[values] = model.value_scale
    low, high = base + width * norm.ppf(PRIOR_RANGE[0]), base + width * norm.ppf(PRIOR_RANGE[1])
    if codes is not None:
        codes = np.asarray(codes, np.float32)
        if codes.ndim != 2 or codes.shape[1] != len(names) or not len(codes):
            raise UserError(
                f"Codes must be [N, {len(names)}] ({', '.join(names)}), got {list(codes.shape)}: give what "
                "transform returned."
            )
        if classes and (codes[:, classes].argmax(axis=1) == class_index).any():
            codes = codes[codes[:, classes].argmax(axis=1) == class_index]
        quantiles = np.quantile(codes, [*PRIOR_RANGE, 0.5], axis=0)
        low, high = quantiles[0], quantiles[1]
        inner = columns_of(names, *_CODE)
        base[inner] = quantiles[2, inner]
    for i, name in enumerate(names):
        if name == "angle_deg":  # the prior's whole range: steps of data say little of a circle
            reach = float(next(b.range_deg for b in model.blocks if hasattr(b, "range_deg")))
            low[i], high[i] = -reach, reach
        elif name == "scale" and codes is None:
            low[i], high[i] = 0.8, 1.25
    if classes:
        base[classes[class_index]] = 1.0
    return base, low, high


def _steps(low: float, high: float, steps: int, name: str) -> np.ndarray:
    if steps < 2:
        raise UserError(f"{steps} steps show nothing that varies; ask for at least 2.")
    if name == "angle_deg" and high - low == 360:  # both ends would be the same picture
        return low + 360 * (np.arange(steps) + 0.5) / steps
    return np.linspace(low, high, steps)


def _given(condition: np.ndarray | None, n: int) -> np.ndarray | None:
    if condition is None:
        return None
    one = np.asarray(condition)
    return np.repeat(one[None], n, axis=0)
