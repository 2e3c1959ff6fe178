"""The picture of an inspection: image, spectrum with the spots found, profile, histogram, numbers."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from micrographia.inspect import Inspection
from micrographia.micrograph import Micrograph, robust_scale
from micrographia.periodicity import Spectrum, power_spectrum
from micrographia.plots.palette import COLOURS
from micrographia.plots.pictures import image_axes, scale_bar


def inspection_figure(micrograph: Micrograph, inspection: Inspection) -> Figure:
    """Show an image and everything `inspect_image` says about it."""
    spectrum = power_spectrum(micrograph.data)
    figure = Figure(figsize=(11.5, 7.2), layout="constrained")
    axes = figure.subplot_mosaic(
        [["image", "detail", "spectrum"], ["profile", "histogram", "table"]], height_ratios=[1.35, 1]
    )
    scaled = robust_scale(micrograph.data)[0]
    image_axes(axes["image"], scaled, inspection.best_pixel_size_A, title=micrograph.name, limits=(-1.1, 1.1))
    _detail(axes["detail"], scaled, inspection)
    _spectrum(axes["spectrum"], spectrum, inspection)
    _profile(axes["profile"], spectrum, inspection)
    axes["histogram"].hist(micrograph.data.ravel(), bins=100, color=COLOURS[0])
    axes["histogram"].set(xlabel="intensity", ylabel="pixels")
    _table(axes["table"], inspection)
    return figure


def _detail(axes: Axes, scaled: np.ndarray, inspection: Inspection) -> None:
    """The middle of the image enlarged, with one unit cell."""
    half = int(4 * (inspection.lattice_constant_px or 16))
    top, left = (max(0, n // 2 - half) for n in scaled.shape)
    part = scaled[top : scaled.shape[0] - top, left : scaled.shape[1] - left]
    image_axes(axes, part, inspection.best_pixel_size_A, title="middle, with unit cell", limits=(-1.2, 1.4))
    if inspection.vectors_px is None:
        return
    centre = np.array(part.shape[::-1]) / 2
    for vector, colour in zip(inspection.vectors_px, COLOURS[1:3], strict=True):
        arrow = {"arrowstyle": "->", "color": colour, "lw": 2}
        axes.annotate("", xy=tuple(centre + vector), xytext=tuple(centre), arrowprops=arrow)


def _spectrum(axes: Axes, spectrum: Spectrum, inspection: Inspection) -> None:
    limit = 1 / inspection.information_limit_px if inspection.information_limit_px else 0.5
    reach = min(0.5, 1.35 * max([limit, *np.hypot(*inspection.spots[:, 2:4].T)]))
    power = np.log10(spectrum.power + 1e-30)
    low = np.log10(spectrum.noise_power() + 1e-30) - 0.7
    axes.imshow(power, cmap="gray", extent=(-0.5, 0.5, 0.5, -0.5), vmin=low, vmax=np.quantile(power, 0.9999))
    for q, colour, size in (
        (inspection.spots[:, 2:4], COLOURS[1], 70),
        (inspection.other_spots[:, :2], COLOURS[5], 30),
    ):
        x, y = np.concatenate([q, -q]).T
        axes.scatter(x, y, s=size, facecolors="none", edgecolors=colour, linewidths=1)
    if inspection.information_limit_px:
        axes.add_patch(Circle((0, 0), limit, fill=False, color=COLOURS[2], linestyle="--", linewidth=1))
    axes.set(xlim=(-reach, reach), ylim=(reach, -reach))
    axes.set_axis_off()
    axes.set_title("log power: lattice (orange), other spots (blue), limit", fontsize=7, loc="left")
    if inspection.best_pixel_size_A:
        scale_bar(axes, 1 / inspection.best_pixel_size_A, unit="1/Å")


def _profile(axes: Axes, spectrum: Spectrum, inspection: Inspection) -> None:
    unit = inspection.best_pixel_size_A or 1.0
    axes.semilogy(
        spectrum.radial_frequency / unit, spectrum.radial_power, color=COLOURS[0], label="between spots"
    )
    if len(inspection.spots):
        q = np.hypot(*inspection.spots[:, 2:4].T)
        height = inspection.spots[:, 4] * spectrum.background(inspection.spots[:, 2:4])
        axes.plot(q / unit, height, "o", color=COLOURS[1], ms=4, label="lattice spots")
    axes.axhline(inspection.noise**2, color="0.5", lw=1, ls=":", label="noise")
    if inspection.information_limit_px:
        axes.axvline(
            1 / inspection.information_limit_px / unit, color=COLOURS[2], ls="--", lw=1, label="limit"
        )
    axes.set_ylim(bottom=0.3 * inspection.noise**2 + 1e-30)
    axes.set(xlabel=f"spatial frequency (1/{'Å' if inspection.best_pixel_size_A else 'px'})", ylabel="power")
    axes.legend(fontsize=7, frameon=False)


def _table(axes: Axes, inspection: Inspection) -> None:
    def number(value: float | None, form: str, unit: str = "") -> str:
        return "unknown" if value is None else f"{value:{form}}{unit}"

    ratio = inspection.pixel_size_ratio
    rows = [
        ("lattice", inspection.kind),
        ("confidence", number(inspection.confidence, ".2f")),
        ("lattice constant", number(inspection.lattice_constant_px, ".2f", " px")),
        ("angle", number(inspection.angle_deg, ".2f", "°")),
        ("second grain", number(inspection.second_angle_deg, ".1f", "°")),
        ("material", inspection.material or "not given"),
        ("pixel, lattice", number(inspection.lattice_pixel_size_A, ".4f", " Å")),
        ("pixel, given", number(inspection.pixel_size_A, ".4f", " Å")),
        ("given / lattice", number(ratio, ".3f")),
        ("limit", number(inspection.information_limit_pm, ".0f", " pm")),
        ("", number(inspection.information_limit_px, ".1f", " px")),
        ("signal to noise", number(inspection.snr, ".2f")),
        ("noise", number(inspection.noise, ".3g")),
        ("shear", number(inspection.shear_percent, ".1f", " %")),
        ("anisotropy", number(inspection.anisotropy_percent, ".1f", " %")),
        ("row jitter", number(inspection.row_jitter_px, ".2f", " px")),
    ]
    axes.set_axis_off()
    for k, (label, value) in enumerate(rows):
        column, row = divmod(k, 8)
        _text(axes, 0.52 * column, 0.98 - 0.085 * row, label, "0.35")
        _text(axes, 0.52 * column + 0.29, 0.98 - 0.085 * row, value, "black")
    for k, warning in enumerate(inspection.warnings):
        _text(axes, 0, 0.26 - 0.13 * k, textwrap.fill(warning, 62), COLOURS[2])


def _text(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    axes.text(x, y, text, transform=axes.transAxes, fontsize=8, va="top", color=colour)
