"""Pictures of images: sets side by side with their spectra, and what was found where."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from micrographia.errors import UserError
from micrographia.metrics.matching import match_sites
from micrographia.micrograph import Micrograph, robust_scale
from micrographia.plots.palette import COLOURS, MARKERS

#: Largest spatial frequency shown in power spectra, 1/Å: beyond it no microscope here resolves anything.
MAX_FREQUENCY_PER_A = 1.2


def comparison_sheet(rows: Mapping[str, np.ndarray], pixel_size_A: float) -> Figure:
    """Show one image of several sets side by side, each with its power spectrum below.

    Parameters
    ----------
    rows : mapping of name to float image ``[H, W]``
        Cut to the same field (the smallest), robustly scaled, all shown with the same limits. The last one is
        the reference: its spectrum sets the limits of all spectra.
    pixel_size_A : float
        Of all images.
    """
    if not rows:
        raise UserError("comparison_sheet: give at least one image.")
    height = min(image.shape[0] for image in rows.values())
    width = min(image.shape[1] for image in rows.values())
    images = {name: _scaled(_centre(np.asarray(image), height, width)) for name, image in rows.items()}
    spectra = {name: _log_power(image, pixel_size_A) for name, image in images.items()}
    reference = list(spectra.values())[-1]
    low, high = np.quantile(reference, [0.05, 0.998])
    high = high if high > low else low + 1

    n = len(rows)
    figure = Figure(figsize=(max(2.3 * n, 3.0), 5.0), layout="constrained")
    axes = figure.subplots(2, n, squeeze=False)
    for (name, image), top, bottom in zip(images.items(), axes[0], axes[1], strict=True):
        image_axes(top, image, pixel_size_A, title=name, limits=(-1.3, 1.3))
        spectrum = spectra[name]
        bottom.imshow(spectrum, cmap="magma", vmin=low, vmax=high)
        bottom.set_axis_off()
        scale_bar(bottom, 1 / (pixel_size_A * max(height, width)), unit="1/Å")
    axes[1, 0].set_title("log power spectrum", fontsize=8, loc="left")
    return figure


def detections_figure(
    micrograph: Micrograph, sites: pd.DataFrame, truth: pd.DataFrame | None = None, tolerance_A: float = 1.0
) -> Figure:
    """Show the sites found in an image; where the truth is known, what is right, missed and false.

    Parameters
    ----------
    sites : DataFrame
        ``image, x_px, y_px, kind, confidence``; rows of other images are left out. Faint marks are unsure.
    truth : DataFrame, optional
        The same columns. Right = same kind within the tolerance, matched optimally.
    tolerance_A : float
        Taken as pixels when the pixel size is unknown.
    """
    height, width = micrograph.shape
    figure = Figure(figsize=(6.5, float(np.clip(6.2 * height / width + 0.5, 2.5, 12))), layout="constrained")
    axes = figure.subplots()
    image_axes(
        axes, _scaled(micrograph.data), micrograph.pixel_size_A, title=micrograph.name, limits=(-1.3, 1.6)
    )
    sites = _of_image(sites, micrograph.name)
    if truth is None:
        for k, (kind, some) in enumerate(sites.groupby("kind", sort=True)):
            _mark(axes, some, COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)], f"{kind} ({len(some)})")
    else:
        truth = _of_image(truth, micrograph.name)
        hit, missed, false = _outcomes(sites, truth, tolerance_A / (micrograph.pixel_size_A or 1.0))
        _mark(axes, hit, COLOURS[1], "o", f"found ({len(hit)})")
        _mark(axes, missed, COLOURS[2], "s", f"missed ({len(missed)})")
        _mark(axes, false, COLOURS[0], "^", f"false alarm ({len(false)})")
    if axes.collections:
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False
        )
    else:
        figure.supxlabel("no site found", fontsize=9)
    return figure


def image_axes(
    axes: Axes, image: np.ndarray, pixel_size_A: float | None, title: str, limits: tuple[float, float]
) -> None:
    """Draw an image in grey with its scale bar."""
    axes.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1])
    axes.set_axis_off()
    axes.set_title(title, fontsize=9, loc="left")
    scale_bar(axes, pixel_size_A)


def scale_bar(axes: Axes, pixel_size: float | None, unit: str = "Å", across_px: float | None = None) -> None:
    """Draw a bar of a round length, about a quarter of the image, into its lower left corner.

    `across_px` is the width of an image where the axes show several.
    """
    left, right = sorted(axes.get_xlim())
    scale = pixel_size or 1.0
    target = 0.28 * (across_px or right - left) * scale
    step = 10 ** np.floor(np.log10(target))
    length = max(m * step for m in (1, 2, 5) if m * step <= target)
    if pixel_size is None:
        label = f"{length:g} px"
    elif unit == "Å" and length >= 1e4:
        label = f"{length / 1e4:g} µm"
    elif unit == "Å" and length >= 10:
        label = f"{length / 10:g} nm"
    else:
        label = f"{length:g} {unit}"
    bar = AnchoredSizeBar(
        axes.transData, length / scale, label, "lower left", pad=0.3, sep=2, color="white", frameon=True,
        size_vertical=0.008 * (right - left), fontproperties=FontProperties(size=8),
    )  # fmt: skip
    bar.patch.set(facecolor="black", alpha=0.55, linewidth=0)
    axes.add_artist(bar)


def _outcomes(
    sites: pd.DataFrame, truth: pd.DataFrame, tolerance_px: float
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Split into sites that are right, true sites that are missed, and sites that are wrong."""
    right, seen = np.zeros(len(sites), bool), np.zeros(len(truth), bool)
    for kind in {*sites["kind"], *truth["kind"]}:
        a, b = np.flatnonzero(sites["kind"] == kind), np.flatnonzero(truth["kind"] == kind)
        found, true = (t.iloc[rows][["x_px", "y_px"]].to_numpy(float) for t, rows in ((sites, a), (truth, b)))
        i, j, _ = match_sites(found, true, tolerance_px)
        right[a[i]], seen[b[j]] = True, True
    return sites[right], truth[~seen], sites[~right]


def _mark(axes: Axes, sites: pd.DataFrame, colour: str, marker: str, label: str) -> None:
    opacity = 0.35 + 0.65 * sites["confidence"].to_numpy(float).clip(0, 1)
    # A dark rim below each mark keeps it visible on bright and dark ground alike.
    for edge, weight in (("black", 3.2), (colour, 1.9)):
        axes.scatter(
            sites["x_px"],
            sites["y_px"],
            s=70,
            marker=marker,
            facecolors="none",
            edgecolors=[to_rgba(edge, alpha) for alpha in opacity],
            linewidths=weight,
        )
    # Of no site a scatter plot would leave the legend without a mark.
    axes.plot(
        [], [], marker, color=colour, markerfacecolor="none", markeredgewidth=1.9, markersize=8, label=label
    )


def _of_image(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return table[table["image"].isin([name, ""])].reset_index(drop=True)


def _centre(image: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def _scaled(image: np.ndarray) -> np.ndarray:
    """Scale robustly; a constant image is shown as mid-grey instead of refused."""
    return robust_scale(image)[0] if np.ptp(image) > 0 else np.zeros(image.shape, np.float32)


def _log_power(image: np.ndarray, pixel_size_A: float) -> np.ndarray:
    """Centred log10 power spectrum of the Hann-windowed image, up to `MAX_FREQUENCY_PER_A`."""
    height, width = image.shape
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[None, 1:-1]
    n = max(height, width)  # zero padding: square pixels in frequency
    power = np.abs(np.fft.fft2((image - image.mean()) * window, (n, n))) ** 2 / (window**2).sum()
    keep = np.abs(np.fft.fftshift(np.fft.fftfreq(n, pixel_size_A))) <= MAX_FREQUENCY_PER_A
    return np.log10(np.fft.fftshift(power)[np.ix_(keep, keep)] + 1e-6)
