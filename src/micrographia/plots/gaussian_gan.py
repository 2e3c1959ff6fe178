"""A GAN of points in the plane at work: what is real, what is generated, what the discriminator believes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from micrographia.plots.palette import COLOURS, LINES, MARKERS


def gaussian_gan_figure(
    step: int,
    real: np.ndarray,
    generated: np.ndarray,
    probability: np.ndarray,
    extent: tuple[float, float, float, float],
    courses: pd.DataFrame,
) -> Figure:
    """Draw one state of the training; ``gaussian_gan_figure(**vars(snapshot))`` draws a `Snapshot`.

    Left, the points with ellipses of two standard deviations, on a map of what the discriminator takes for the
    chance that a point is real: at the end it should be one half wherever there are points. Right, the
    losses, with ln 2 where nothing can be told apart; how far off the mean is, and how wide the cloud, compared
    with the truth, in its narrowest and widest direction (both should be 1).

    Parameters
    ----------
    step : int
        Steps taken.
    real, generated : ``[N, 2]``, ``[M, 2]``
    probability : ``[h, w]``
        On a grid over `extent`, y upwards.
    extent : (x0, x1, y0, y1)
    courses : DataFrame
        Columns step, discriminator, generator, mean_error, narrowest, widest.
    """
    figure = Figure(figsize=(7.6, 4.2), dpi=90)
    # Placed by hand: a layout that is worked out anew for each frame would take longer than the training.
    grid = figure.add_gridspec(
        2, 2, width_ratios=[1.15, 1], left=0.065, right=0.97, bottom=0.12, top=0.93, wspace=0.3, hspace=0.12
    )
    points = figure.add_subplot(grid[:, 0])
    belief = points.imshow(
        probability, extent=extent, origin="lower", cmap="gray", vmin=0, vmax=1, alpha=0.6, aspect="auto"
    )
    for k, (cloud, name) in enumerate([(real, "real"), (generated, "generated")]):
        colour = COLOURS[2 * k]
        points.plot(*cloud.T, MARKERS[2 * k], color=colour, ms=2.2, mew=0, alpha=0.6, label=name)
        points.add_patch(_ellipse(cloud, colour))
    points.set(xlim=extent[:2], ylim=extent[2:], xlabel="x", ylabel="y")
    points.text(0.97, 0.03, f"step {step}", ha="right", transform=points.transAxes)
    points.legend(fontsize=8, loc="upper left", markerscale=2.5)
    figure.colorbar(belief, ax=points, pad=0.02)
    points.set_title("grey: chance of being real, says the discriminator", fontsize=8, loc="right")

    losses, errors = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
    _lines(losses, courses, ("discriminator", "generator"))
    losses.axhline(np.log(2), color="0.5", lw=0.8, ls=":")
    losses.set(ylabel="loss")
    losses.tick_params(labelbottom=False)
    _lines(errors, courses, ("mean_error", "narrowest", "widest"))
    errors.axhline(1, color="0.5", lw=0.8, ls=":")
    errors.set(ylabel="true standard deviations", xlabel="step", ylim=(0, None))
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """A figure as uint8 ``[H, W, 3]``, a frame of a movie."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _ellipse(cloud: np.ndarray, colour: str) -> Ellipse:
    """Two standard deviations of a cloud of points."""
    variances, axes = np.linalg.eigh(np.cov(cloud.T))
    width, height = 4 * np.sqrt(np.maximum(variances[::-1], 0))
    angle = np.rad2deg(np.arctan2(axes[1, 1], axes[0, 1]))
    return Ellipse(tuple(cloud.mean(axis=0)), width, height, angle=angle, fill=False, ec=colour, lw=1.8)


def _lines(axes: Axes, courses: pd.DataFrame, names: tuple[str, ...]) -> None:
    for name, colour, dashes in zip(names, (COLOURS[3], COLOURS[4], COLOURS[0]), LINES, strict=False):
        axes.plot(courses["step"], courses[name], color=colour, ls=dashes, label=name.replace("_", " "))
    axes.legend(fontsize=7, frameon=False)
    axes.grid(alpha=0.25)
