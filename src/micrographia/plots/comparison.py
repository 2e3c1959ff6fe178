"""Descriptors side by side: classes of several methods and windows on one image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from micrographia.errors import UserError
from micrographia.plots.colouring import by_class
from micrographia.plots.maps import draw_sites
from micrographia.plots.thumbnails import limits_of, mosaic, thumbnails


def comparison_figure(
    image: np.ndarray,
    x_px: np.ndarray,
    y_px: np.ndarray,
    found: Sequence[tuple[str, str, np.ndarray, np.ndarray]],
    pixel_size_A: float | None = None,
) -> Figure:
    """Show classes by several methods and windows on one image, and below each the mean patch of each class.

    Parameters
    ----------
    image : ``[H, W]``
    x_px, y_px : ``[N]``
        The atoms of this image.
    found : sequence of (method, window, labels int ``[N]``, means ``[k, ...]``)
        Of `latent.compare.compare_descriptors`, for those atoms: every method with every window.
    """
    methods = list(dict.fromkeys(method for method, *_ in found))
    windows = list(dict.fromkeys(window for _, window, *_ in found))
    pairs = {(method, window) for method, window, *_ in found}
    if not found or len(pairs) != len(found) or len(found) != len(methods) * len(windows):
        raise UserError("comparison_figure: give every method with every window, once.")
    sites = pd.DataFrame({"x_px": x_px, "y_px": y_px})
    aspect = image.shape[0] / image.shape[1]
    picture, strip = 2.9 * aspect + 0.25, 0.62
    figure = Figure(figsize=(3.0 * len(methods), (picture + strip) * len(windows)), layout="constrained")
    panels = figure.subplots(
        2 * len(windows), len(methods), squeeze=False, height_ratios=[picture, strip] * len(windows)
    )
    for method, window, labels, means in found:
        r, c = 2 * windows.index(window), methods.index(method)
        colouring = by_class(range(len(means)))
        table = sites.assign(label=np.asarray(labels))
        draw_sites(panels[r, c], image, table, "label", colouring, pixel_size_A, f"{method}, {window}")
        below, (height, width) = panels[r + 1, c], means.shape[-2:]
        sheet = mosaic(thumbnails(means, limits_of(means))[None], 3)
        below.imshow(sheet, cmap="gray", vmin=0, vmax=1)
        for k, colour in enumerate(colouring.colours(np.arange(len(means)))):
            corner = (k * (width + 3) - 1.5, -1.5)
            below.add_patch(
                Rectangle(corner, width + 2, height + 2, fill=False, edgecolor=colour, linewidth=2)
            )
        below.set(xlim=(-3, sheet.shape[1] + 2), ylim=(sheet.shape[0] + 2, -3))
        below.set_axis_off()
    return figure
