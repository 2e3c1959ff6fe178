from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import ndimage

from micrographia.metrics.memorisation import memorisation
from micrographia.metrics.microstructure import compare_microstructures
from micrographia.plots import figures

matplotlib.use("agg")


def blobs(n: int, seed: int, size: int = 32) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(n, size + 16, size + 16))
    return ndimage.gaussian_filter(noise, (0, 2, 2))[:, 8:-8, 8:-8] > 0.02


def drawn(figure: Figure) -> set[str]:
    """Every text of the figure once it has been drawn."""
    figure.savefig(io.BytesIO(), dpi=50)
    return {t.get_text() for t in figure.findobj(Text) if t.get_text()}


def test_every_measure_is_drawn_with_its_bands():
    comparison = compare_microstructures(blobs(40, 0), blobs(30, 1), n_bootstrap=50)
    figure = figures.microstructure_figure(comparison)
    texts = drawn(figure)
    assert {"real (40 images)", "generated (30)", "two-point correlation", "chord lengths"} <= texts
    assert "distance r (px)" in texts
    assert len(figure.axes) == 8
    for axes in figure.axes:
        assert len(axes.collections) == 2  # bands
        looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines[:2]}
        assert len(looks) == 2
        assert len({line.get_linestyle() for line in axes.lines[:2]}) == 2
    two_point = comparison.measures["two_point"]
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), two_point.real.value)
    np.testing.assert_allclose(figure.axes[1].lines[1].get_ydata(), two_point.generated.value)


def test_lengths_have_the_unit_of_the_pixel_and_densities_stay_normalised():
    figure = figures.microstructure_figure(
        compare_microstructures(blobs(20, 0), blobs(20, 1), pixel_size_A=40, n_bootstrap=20)
    )
    assert "distance r (nm)" in drawn(figure)
    assert figure.axes[1].lines[0].get_xdata()[-1] == pytest.approx(16 * 4)
    length, density = figure.axes[6].lines[0].get_data()
    assert np.sum(density) * (length[1] - length[0]) == pytest.approx(1, abs=0.02)


def test_what_is_not_defined_is_said():
    nothing = np.zeros((9, 32, 32), bool)
    figure = figures.microstructure_figure(compare_microstructures(blobs(20, 0), nothing, n_bootstrap=0))
    assert "not defined: none in one of the sets" in drawn(figure)
    assert not any(axes.collections for axes in figure.axes)


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_neighbours_stand_above_each_other(channels):
    rng = np.random.default_rng(0)
    training, held_out, new = (blobs(20, k) + 0.1 * rng.normal(size=(20, 32, 32)) for k in range(3))
    generated = np.concatenate([new, np.rot90(training[7:9], 1, (1, 2))])
    found = memorisation(generated, training, held_out)
    if channels:
        generated, training = (np.repeat(x[:, None], channels, axis=1) for x in (generated, training))
    figure = figures.neighbours_figure(generated, training, found, columns=4)
    texts = drawn(figure)
    assert {"1.00", "number 7", "number 8", "generated", "training"} <= texts
    assert len(figure.axes) == 8
    above, below = (np.asarray(figure.axes[k].images[0].get_array()) for k in (0, 4))
    assert above.ndim == (3 if channels == 3 else 2)
    np.testing.assert_allclose(above, below, atol=1e-6)  # the copy, and its source turned as the copy is
    weights = [axes.title.get_fontweight() for axes in figure.axes[:4]]
    assert weights[:2] == ["bold", "bold"]
