"""Two-phase images measured: curves of real and generated ones with their bands; samples and their neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from micrographia.errors import UserError
from micrographia.metrics.memorisation import Memorisation, aligned_neighbours
from micrographia.metrics.microstructure import Measure, MicrostructureComparison
from micrographia.plots.palette import COLOURS, LINES

#: Real, generated: apart in colour and in dash.
_LOOKS: tuple[dict[str, Any], ...] = (
    {"color": COLOURS[0], "linestyle": LINES[0], "linewidth": 1.5},
    {"color": COLOURS[2], "linestyle": LINES[1], "linewidth": 1.5},
)
#: Measure, title, label of the horizontal axis, what the number is, its unit.
_PANELS = (
    ("phase_fraction", "phase fraction", "bright share of an image", "Wasserstein", ""),
    ("two_point", "two-point correlation", "distance r", "RMS", ""),
    ("two_point_x", "two-point, along x", "distance r", "RMS", ""),
    ("two_point_y", "two-point, along y", "distance r", "RMS", ""),
    ("lineal_path_x", "lineal path, along x", "length r", "RMS", ""),
    ("lineal_path_y", "lineal path, along y", "length r", "RMS", ""),
    ("chord_length", "chord lengths", "length", "Wasserstein", " px"),
    ("particle_diameter", "whole particles", "equivalent diameter", "Wasserstein", " px"),
)


def microstructure_figure(comparison: MicrostructureComparison) -> Figure:
    """Show every measure of real and generated images, with 95 % bands, its difference and noise floor.

    Measures of the bright phase: the distribution of its fraction over the images, the two-point correlation
    (dotted: the square of the real phase fraction, where distant points are independent), the lineal path, the
    densities of chord lengths (both directions) and of particle diameters. Lengths in Å, nm or µm where the
    pixel size is known, else in pixels.
    """
    figure = Figure(figsize=(11.0, 5.4), layout="constrained")
    panels = figure.subplots(2, 4).ravel()
    scale, unit = _length_unit(comparison)
    for axes, (name, title, abscissa, kind, of) in zip(panels, _PANELS, strict=True):
        measure = comparison.measures[name]
        is_length = name != "phase_fraction"
        step = scale if is_length else 1.0
        probability = name.startswith(("two_point", "lineal_path"))
        _curves(axes, measure, step, density=not probability, stairs=not is_length)
        axes.set_xlabel(f"{abscissa} ({unit})" if is_length else abscissa, fontsize=8)
        axes.set_title(title, fontsize=9, loc="left")
        floor = f"floor {measure.floor:.2g}" if np.isfinite(measure.floor) else "no floor: too few"
        told = f"{kind} {measure.difference:.2g}{of} ({floor})"
        if not np.isfinite(measure.difference):
            told = "not defined: none in one of the sets"
        axes.text(0.98, 0.97, told, transform=axes.transAxes, ha="right", va="top", fontsize=7, color="0.3")
        # Room for the number above the curves.
        axes.set_ylim(0, 1.14 * max(axes.get_ylim()[1], 1e-6))
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    square = float(comparison.real_fraction.mean()) ** 2
    for axes in panels[1:4]:
        axes.axhline(square, color="0.5", linestyle=":", linewidth=0.9, zorder=0)
    for axes, label in zip(
        panels, ("density", "probability", "", "", "probability", "", "density", "density"), strict=True
    ):
        axes.set_ylabel(label, fontsize=8)
    names = (
        f"real ({len(comparison.real_fraction)} images)",
        f"generated ({len(comparison.generated_fraction)})",
    )
    handles = panels[0].lines[:2]
    figure.legend(handles, names, loc="outside upper left", ncols=2, fontsize=9, frameon=False)
    return figure


def neighbours_figure(
    generated: np.ndarray, training: np.ndarray, found: Memorisation, columns: int = 6
) -> Figure:
    """Show the samples that are most like a training image, above the training image, turned to lie as they do.

    Parameters
    ----------
    generated, training : array, ``[N, H, W]`` or ``[N, C, H, W]``
        As given to `memorisation` (three channels are shown as colours, any other number by its mean), in one
        window, which is shared by all pictures.
    found : Memorisation
        Similarities above its threshold are bold.
    """
    if not len(found.generated.index):
        raise UserError("neighbours_figure: no generated image was judged.")
    which = found.closest(columns)
    samples = _pictures(np.asarray(generated)[found.generated.index[which]])
    nearest = _pictures(aligned_neighbours(training, found.generated, which))
    low, high = np.quantile(nearest, [0.002, 0.998])
    high = high if high > low else low + 1
    n, aspect = len(which), samples.shape[1] / samples.shape[2]
    figure = Figure(figsize=(1.55 * n + 0.5, 3.1 * aspect + 0.75), layout="constrained")
    panels = figure.subplots(2, n, squeeze=False)
    for k, pair in enumerate(zip(samples, nearest, strict=True)):
        for axes, picture in zip(panels[:, k], pair, strict=True):
            axes.imshow(np.clip((picture - low) / (high - low), 0, 1), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        similarity = found.generated.similarity[which[k]]
        copied = similarity > found.threshold
        panels[0, k].set_title(
            f"{similarity:.2f}", fontsize=9, color=COLOURS[2] if copied else "0.2",
            fontweight="bold" if copied else "normal",
        )  # fmt: skip
        panels[1, k].set_xlabel(f"number {found.generated.nearest[which[k]]}", fontsize=7, color="0.3")
    panels[0, 0].set_ylabel("generated", fontsize=9)
    panels[1, 0].set_ylabel("training", fontsize=9)
    others = "training images have with another" if found.by_training else "new real images have"
    told = f"similarity; bold: more than {found.threshold:.2f}, as {100 * found.chance:.2g} % of {others}"
    figure.suptitle(told, fontsize=8, color="0.3")
    return figure


def _length_unit(comparison: MicrostructureComparison) -> tuple[float, str]:
    """Units of length per pixel, and their name."""
    if comparison.pixel_size_A is None:
        return 1.0, "px"
    longest_A = comparison.measures["two_point"].at[-1] * comparison.pixel_size_A
    for per_unit_A, unit in ((1e4, "µm"), (10.0, "nm")):
        if longest_A >= 2 * per_unit_A:
            return comparison.pixel_size_A / per_unit_A, unit
    return comparison.pixel_size_A, "Å"


def _curves(axes: Axes, measure: Measure, scale: float, density: bool, stairs: bool) -> None:
    at = measure.at * scale
    shown = slice(None)
    if density and not stairs:  # up to where both distributions end
        weight = np.nan_to_num(measure.real.value) + np.nan_to_num(measure.generated.value)
        end = int(np.searchsorted(np.cumsum(weight), 0.998 * weight.sum())) + 2
        shown = slice(0, max(end, 4))
    for band, look in zip((measure.real, measure.generated), _LOOKS, strict=True):
        # A density is per unit of length, whatever the unit.
        value, low, high = (v[shown] / (scale if density else 1.0) for v in (band.value, band.low, band.high))
        axes.plot(at[shown], value, drawstyle="steps-mid" if stairs else "default", **look)
        if np.isfinite(low).all():
            axes.fill_between(
                at[shown],
                low,
                high,
                step="mid" if stairs else None,
                color=look["color"],
                alpha=0.2,
                linewidth=0,
            )


def _pictures(images: np.ndarray) -> np.ndarray:
    """``[N, H, W]``, or ``[N, H, W, 3]`` of three channels."""
    if images.ndim == 4:
        images = np.moveaxis(images, 1, -1) if images.shape[1] == 3 else images.mean(1)
    return images
