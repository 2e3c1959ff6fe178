from __future__ import annotations

import io
import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from micrographia.errors import UserError
from micrographia.micrograph import Micrograph
from micrographia.plots import figures
from micrographia.plots.synthesis import enlarged, rows_figure, sheet_figure
from micrographia.sites import make_sites

matplotlib.use("agg")
PIXEL_A = 0.2


def lattice(size: int = 96, noise: float = 0.1, seed: int = 0) -> np.ndarray:
    y, x = np.mgrid[:size, :size] * PIXEL_A
    wave = np.cos(2 * np.pi * x / 3.2) + np.cos(2 * np.pi * y / 3.2)
    return (wave + noise * np.random.default_rng(seed).standard_normal((size, size))).astype(np.float32)


def saved(figure: Figure) -> bytes:
    assert isinstance(figure, Figure)
    file = io.BytesIO()
    figure.savefig(file, dpi=60)
    assert file.getbuffer().nbytes > 2000
    return file.getvalue()


def scale_bars(figure: Figure) -> list[str]:
    texts = {t.get_text() for t in figure.findobj(Text) if t.get_text()}
    return sorted(t for t in texts if re.fullmatch(r"[\d.]+ (Å|nm|µm|px|1/Å)", t))


@pytest.fixture
def sets() -> dict[str, np.ndarray]:
    return {
        "noise-free": np.stack([lattice(noise=0.0)] * 2),
        "experimental": np.stack([lattice(noise=0.5, seed=k) for k in range(3)]),
    }


def test_comparison_sheet_shows_each_set_and_its_spectrum(sets):
    figure = figures.comparison_sheet(
        {**{k: v[0] for k, v in sets.items()}, "flat": np.ones((80, 70))}, PIXEL_A
    )
    saved(figure)
    assert len(figure.axes) == 6
    assert scale_bars(figure) == ["0.5 1/Å", "2 Å"]  # 70 px of 0.2 Å; ±1.2 /Å
    assert {a.images[0].get_array().shape for a in figure.axes[:3]} == {(80, 70)}


def test_comparison_spectrum_has_its_peaks_at_the_lattice_frequency():
    figure = figures.comparison_sheet({"lattice": lattice(128, noise=0.0)}, PIXEL_A)
    spectrum = np.array(figure.axes[1].images[0].get_array())
    middle = spectrum.shape[0] // 2
    right_half = spectrum[middle, middle + 3 :]
    frequency = (3 + right_half.argmax()) / (128 * PIXEL_A)
    assert frequency == pytest.approx(1 / 3.2, abs=1 / (128 * PIXEL_A))


def test_nothing_to_compare_is_refused():
    with pytest.raises(UserError, match="at least one"):
        figures.comparison_sheet({}, PIXEL_A)
    with pytest.raises(UserError, match="at least one"):
        figures.histogram_figure({})


def test_histograms_and_radial_spectra_draw_one_line_per_set(sets):
    sets = {"flat": np.ones((2, 96, 96), np.float32), **sets}
    for figure in (figures.histogram_figure(sets), figures.radial_spectrum_figure(sets, PIXEL_A)):
        saved(figure)
        assert [line.get_label() for line in figure.axes[0].lines] == list(sets)
        looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
        assert len({c for c, _ in looks}) == len({s for _, s in looks}) == 3
    saved(figures.histogram_figure({"flat": sets["flat"]}))


def test_detections_are_marked_per_kind_with_their_number():
    image = Micrograph(lattice(), PIXEL_A, "a.tif")
    sites = pd.concat(
        [
            make_sites("a.tif", [10, 20, 30], [10, 20, 30], "vacancy-1Se", [0.2, 0.9, 1.0]),
            make_sites("a.tif", [50.0], [60.0], "vacancy-2Se"),
            make_sites("another.tif", [1.0], [2.0], "vacancy-2Se"),
        ]
    )
    figure = figures.detections_figure(image, sites)
    saved(figure)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["vacancy-1Se (3)", "vacancy-2Se (1)"]
    assert scale_bars(figure) == ["5 Å"]
    opacity = figure.axes[0].collections[1].get_edgecolors()[:, 3]
    assert opacity[0] < opacity[1] < opacity[2]


def test_detections_are_judged_where_the_truth_is_known():
    image = Micrograph(lattice(), PIXEL_A, "a.tif")
    truth = pd.concat(
        [
            make_sites("a.tif", [10, 40, 70], [10, 40, 70], "Si"),
            make_sites("a.tif", [20.0], [80.0], "vacancy-1C"),
        ]
    )
    found = make_sites("a.tif", [12, 40, 60, 20], [10, 42, 60, 80], "Si")  # the last one is of another kind
    figure = figures.detections_figure(image, found, truth, tolerance_A=0.5)
    saved(figure)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "found (2)",
        "missed (2)",
        "false alarm (2)",
    ]


@pytest.mark.parametrize("pixel_size_A", [None, 0.2, 40.0])
def test_detections_on_a_constant_image_without_sites(pixel_size_A):
    image = Micrograph(np.ones((64, 100)), pixel_size_A, "flat")
    nothing = make_sites("flat", [], [], "Si")
    saved(figures.detections_figure(image, nothing))
    figure = figures.detections_figure(image, nothing, nothing)
    saved(figure)
    expected = {None: "20 px", 0.2: "5 Å", 40.0: "100 nm"}[pixel_size_A]
    assert scale_bars(figure) == [expected]


@pytest.mark.parametrize(("pixel_size_A", "expected"), [(None, []), (2.0, "2 nm"), (2000.0, "2 µm")])
def test_scale_bars_of_sheets_are_of_one_image(pixel_size_A, expected):
    images = np.random.default_rng(0).uniform(-1, 1, (5, 1, 48, 48))
    for draw in (sheet_figure, rows_figure):
        figure = draw({"one": images, "other": images}, pixel_size_A=pixel_size_A)
        saved(figure)
        assert scale_bars(figure) == [expected] * bool(expected)


def test_stamps_are_enlarged_by_whole_pixels():
    pictures = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    large = enlarged(pictures, 8)
    assert large.shape == (2, 6, 10)
    np.testing.assert_array_equal(large[:, 1::2, ::2], pictures)
    np.testing.assert_array_equal(enlarged(pictures, 2), pictures)


def test_losses_with_gaps_and_watched_distances():
    steps = np.arange(0, 100, 10)
    history = pd.DataFrame(
        {"step": steps, "seconds": steps / 3, "cycle": 1 / (1 + steps), "adversarial": 0.5}
    )
    history["frechet"] = np.where(steps % 50 == 0, 100.0 / (1 + steps), np.nan)
    figure = figures.loss_figure(history)
    saved(figure)
    assert len(figure.axes) == 2
    assert [line.get_label() for line in figure.axes[0].lines] == ["cycle", "adversarial"]
    assert len(figure.axes[1].lines[0].get_xdata()) == 2
    saved(figures.loss_figure(pd.DataFrame({"step": [], "loss": []})))
    with pytest.raises(UserError, match="step"):
        figures.loss_figure(pd.DataFrame({"loss": [1.0]}))


def test_precision_recall_marks_the_chosen_threshold():
    curve = pd.DataFrame(
        {"threshold": [0.9, 0.5, 0.1], "precision": [1, 0.9, 0.5], "recall": [0.3, 0.8, 0.95]}
    )
    figure = figures.precision_recall_figure(
        {"ours": curve, "nothing": curve.iloc[:0]}, {"ours": 0.45, "nothing": 0.5}
    )
    saved(figure)
    (dot,) = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert (*dot.get_xdata(), *dot.get_ydata()) == (0.8, 0.9)


def test_the_number_of_classes_has_its_curves():
    curve = pd.DataFrame(
        {"classes": [2, 3, 4], "entropy": 0.1, "mutual_information": [0.0, 0.01, 0.2],
         "agreement": [1.0, 0.98, 0.7], "error": [0.3, 0.2, 0.19]}
    )  # fmt: skip
    figure = figures.classes_figure(curve)
    saved(figure)
    assert [list(axes.lines[0].get_ydata()) for axes in figure.axes] == [
        [1.0, 0.98, 0.7], [0.0, 0.01, 0.2], [0.3, 0.2, 0.19]
    ]  # fmt: skip
    with pytest.raises(UserError, match="lacks agreement"):
        figures.classes_figure(curve.drop(columns="agreement"))


def test_reliability_conditions_and_scores_are_drawn():
    curve = pd.DataFrame(
        {"low": [0.0, 0.5], "high": [0.5, 1.0], "confidence": [0.3, 0.8], "fraction_true": [0.25, 0.9],
         "standard_error": [0.1, 0.05], "n": [12, 40]}
    )  # fmt: skip
    saved(figures.reliability_figure(curve))
    table = pd.DataFrame(
        [("counts_per_A2", 3.0, 3000.0, 30.0, 100.0, 300.0, 0.9), ("speckle", 0.0, 0.5, 0.1, 0.2, 0.3, 0.1),
         ("fixed", 1.0, 1.0, 1.0, 1.0, 1.0, 0.0)],
        columns=["condition", "prior_low", "prior_high", "q05", "median", "q95", "r2"],
    )  # fmt: skip
    figure = figures.conditions_figure(table)
    saved(figure)
    dot = next(line for line in figure.axes[0].lines if line.get_marker() == "o")
    assert dot.get_xdata()[0] == pytest.approx(np.log(100 / 3) / np.log(1000))
    scores = pd.DataFrame({"precision": [0.1, 0.9], "recall": [np.nan, 0.95], "f1": [0.1, 0.92]})
    scores = scores.assign(f1_low=[0.05, 0.9], f1_high=[0.2, 0.94]).set_axis(["noise-free", "fitted"])
    saved(figures.score_bars(scores))
