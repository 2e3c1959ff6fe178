"""How a quantity becomes colour: values, angles (cyclic, modulo a symmetry), classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle

from micrographia.errors import UserError
from micrographia.plots.palette import COLOURS, MARKERS

#: What has no value: NaN, or a class that is not listed.
UNKNOWN = "0.6"


@dataclass(frozen=True)
class Colouring:
    """A colour for every value, and how the key is drawn."""

    label: str
    colormap: Colormap
    low: float = 0.0
    high: float = 1.0
    period: float = 0.0
    """More than 0: values are taken modulo this, as near as possible to the middle of `low` and `high`."""
    classes: tuple[object, ...] = ()
    """Not empty: values are these labels."""

    def colours(self, values: np.ndarray) -> np.ndarray:
        """RGBA ``[N, 4]``; what is NaN or no listed class is grey."""
        values = np.asarray(values)
        if self.classes:
            place = {name: k for k, name in enumerate(self.classes)}
            return np.array([self._class(place.get(v)) for v in values.tolist()]).reshape(-1, 4)
        numbers = np.asarray(values, float)
        if self.period:
            start = (self.low + self.high - self.period) / 2
            numbers = start + np.mod(numbers - start, self.period)
        rgba = self.colormap(Normalize(self.low, self.high, clip=True)(np.nan_to_num(numbers)))
        rgba[~np.isfinite(numbers)] = to_rgba(UNKNOWN)
        return rgba

    def marker(self, name: object) -> str:
        """Classes differ in their marks, too."""
        return (
            MARKERS[self.classes.index(name) // len(COLOURS) % len(MARKERS)] if name in self.classes else "o"
        )

    def _class(self, k: int | None) -> tuple[float, float, float, float]:
        return to_rgba(UNKNOWN) if k is None else to_rgba(COLOURS[k % len(COLOURS)])


def by_value(values: np.ndarray, label: str) -> Colouring:
    """From dark to bright between the 2 % and 98 % quantiles of `values`."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    low, high = np.quantile(finite, [0.02, 0.98]) if len(finite) else (0.0, 1.0)
    if high <= low:
        low, high = low - 0.5, low + 0.5
    return Colouring(label, colormaps["viridis"], float(low), float(high))


def by_angle(label: str = "angle (°)", symmetry: int = 1) -> Colouring:
    """Round the circle, modulo a rotational symmetry: with 6, angles from -30° to 30° use all colours."""
    if symmetry < 1:
        raise UserError(f"A rotational symmetry of {symmetry} is not possible; give 1 or more.")
    turn = 360 / symmetry
    told = label if symmetry == 1 else f"{label}, modulo {turn:g}°"
    return Colouring(told, colormaps["twilight_shifted"], -turn / 2, turn / 2, period=turn)


def by_small_angle(
    angles_deg: np.ndarray, label: str = "angle (°)", symmetry: int = 1, span_deg: float = 0.0
) -> Colouring:
    """Angles about their (circular) mean, modulo a symmetry: for grains that differ by a few degrees.

    `span_deg`: half the range of colours; without, what holds 98 % of the angles.
    """
    turn = 360 / symmetry
    finite = np.asarray(angles_deg, float)
    finite = finite[np.isfinite(finite)]
    middle = circular_mean(finite, symmetry) if len(finite) else 0.0
    away = np.abs(np.mod(finite - middle + turn / 2, turn) - turn / 2)
    span = span_deg or (float(np.quantile(away, 0.98)) if len(finite) else turn / 2)
    span = min(max(span, 0.1), turn / 2)
    told = label if symmetry == 1 else f"{label}, modulo {turn:g}°"
    return Colouring(told, colormaps["PuOr"], middle - span, middle + span, period=turn)


def by_class(classes: Sequence[object], label: str = "class") -> Colouring:
    """One colour per class, in the order given; with more than six, marks tell apart what colours do not."""
    names = tuple(np.asarray(classes).tolist())
    if not names:
        raise UserError("by_class: name at least one class.")
    return Colouring(label, ListedColormap(COLOURS), classes=names)


def circular_mean(angles_deg: np.ndarray, symmetry: int = 1) -> float:
    """Mean angle modulo ``360 / symmetry`` degrees, between minus and plus half of that."""
    turned = np.exp(1j * np.deg2rad(np.asarray(angles_deg, float)) * symmetry)
    return float(np.rad2deg(np.angle(turned.mean())) / symmetry)


def draw_key(figure: Figure, axes: Axes | Sequence[Axes], colouring: Colouring, values: np.ndarray) -> None:
    """Draw a colour bar, or a legend of the classes with the number of each, beside the axes."""
    if colouring.classes:
        counts = {name: int((np.asarray(values) == name).sum()) for name in colouring.classes}
        handles = [
            Line2D([], [], linestyle="", marker=MarkerStyle(colouring.marker(name)), markersize=7, color=colour,
                   label=f"{name} ({counts[name]})")
            for name, colour in zip(colouring.classes, colouring.colours(np.array(colouring.classes)), strict=True)
        ]  # fmt: skip
        figure.legend(
            handles=handles, title=colouring.label, loc="outside right upper", fontsize=8, title_fontsize=8,
            frameon=False,
        )  # fmt: skip
        return
    mappable = ScalarMappable(Normalize(colouring.low, colouring.high), colouring.colormap)
    bar = figure.colorbar(mappable, ax=axes, label=colouring.label, shrink=0.75, pad=0.02, aspect=28)
    if colouring.period and np.isclose(colouring.high - colouring.low, colouring.period):
        bar.set_ticks(np.linspace(colouring.low, colouring.high, 5).tolist())
    bar.outline.set_visible(False)


def axis_label(name: str) -> str:
    """A column's name as one would say it: ``angle_deg`` is ``angle (°)``."""
    for ending, unit in (("_deg", "°"), ("_px", "px"), ("_A", "Å")):
        if name.endswith(ending):
            return f"{name.removesuffix(ending).replace('_', ' ')} ({unit})"
    return name.replace("_", " ")
