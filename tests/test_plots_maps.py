from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text

from micrographia.errors import UserError
from micrographia.plots.colouring import UNKNOWN, by_angle, by_class, by_small_angle, by_value, circular_mean
from micrographia.plots.comparison import comparison_figure
from micrographia.plots.courses import populations_figure, time_histograms
from micrographia.plots.maps import movie_sheet, site_map

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(60, 80)).astype(np.float32)


def saved(figure: Figure) -> str:
    figure.savefig(io.BytesIO(), dpi=50)
    return " | ".join(t.get_text() for t in figure.findobj(Text) if t.get_text())


def atoms(frames: int = 1) -> pd.DataFrame:
    y, x = (a.ravel() for a in np.mgrid[5:60:6, 5:80:6])
    tables = [
        pd.DataFrame(
            {"frame": t, "x_px": x, "y_px": y, "z1": x / 40 + t, "angle_deg": 29.0 + t, "cluster": x % 3}
        )
        for t in range(frames)
    ]
    return pd.concat(tables, ignore_index=True)


def test_map_puts_a_coloured_disc_on_every_atom_with_a_scale_bar():
    sites = atoms()
    sites.loc[4, "z1"] = np.nan
    colouring = by_value(sites["z1"], "latent z1")
    figure = site_map(IMAGE, sites, "z1", colouring, pixel_size_A=0.25, title="movie 1")
    text = saved(figure)
    assert "5 Å" in text
    assert "latent z1" in text
    discs = figure.axes[0].findobj(PolyCollection)[0]
    centres = np.array([path.vertices[:-1].mean(axis=0) for path in discs.get_paths()])
    assert centres == pytest.approx(sites[["x_px", "y_px"]].to_numpy(float), abs=1e-6)
    assert discs.get_facecolor()[4].tolist() == list(to_rgba(UNKNOWN))
    width = np.ptp(discs.get_paths()[0].vertices[:, 0])
    assert 0.5 < width < 6  # discs do not touch


def test_a_map_without_atoms_or_with_one_or_on_a_constant_image():
    for n in (0, 1):
        saved(site_map(np.ones((30, 30)), atoms().head(n), "z1", by_value(np.zeros(n), "z1")))


@given(st.floats(-720, 720), st.sampled_from([1, 2, 3, 4, 6]))
def test_angle_colours_know_the_symmetry(angle, fold):
    colouring = by_angle(symmetry=fold)
    same = colouring.colours(np.array([angle, angle + 360 / fold, angle - 720 / fold]))
    assert np.abs(same - same[0]).max() < 0.02
    ends = colouring.colours(np.array([180 / fold - 1e-6, -180 / fold + 1e-6]))
    assert np.abs(ends[0] - ends[1]).max() < 0.05  # no seam


def test_small_angles_use_the_whole_colour_range_across_the_seam():
    angles = np.array([28.0, 29, 30, -30, -29, -28])  # modulo 60: 28 to 32
    colouring = by_small_angle(angles, symmetry=6)
    assert colouring.high - colouring.low == pytest.approx(4, abs=0.3)
    first, middle, last = colouring.colours(np.array([28.0, 30, -28]))[:, :3]
    assert first[0] - first[2] > 0.4  # brown
    assert last[2] - last[0] > 0.1  # violet
    assert middle.min() > 0.95
    assert abs(circular_mean(angles, 6)) == pytest.approx(30, abs=1e-6)


def test_classes_beyond_six_differ_in_shape():
    names = [f"ring {k}" for k in range(8)]
    sites = atoms().assign(ring=lambda t: np.array(names)[np.arange(len(t)) % 8])
    figure = site_map(IMAGE, sites, "ring", by_class(names, "rings"))
    paths = figure.axes[0].findobj(PolyCollection)[0].get_paths()
    assert len(paths[0].vertices) != len(paths[7].vertices)
    text = saved(figure)
    assert "ring 7 (16)" in text
    grey = by_class([0, 1]).colours(np.array([0, 5]))[1]
    assert grey.tolist() == list(to_rgba(UNKNOWN))


def test_movie_sheet_spreads_frames_and_shares_one_key():
    sites = atoms(11)
    figure = movie_sheet(np.stack([IMAGE] * 11), sites, "z1", by_value(sites["z1"], "z1"), 0.25, shown=6)
    text = saved(figure)
    assert [t for t in text.split(" | ") if t.startswith("frame")] == [
        f"frame {t}" for t in (0, 2, 4, 6, 8, 10)
    ]
    assert text.count("5 Å") == 6
    discs = [a.findobj(PolyCollection)[0].get_facecolor()[0] for a in figure.axes[:6]]
    assert not np.allclose(discs[0], discs[5])  # the same atom, later


def test_comparison_shows_every_method_and_window():
    sites = atoms()
    found = [
        (method, window, np.arange(len(sites)) % 4, RNG.random((4, 9, 9)))
        for window in ("4 Å", "8 Å")
        for method in ("GMM", "AE", "rVAE")
    ]
    figure = comparison_figure(IMAGE, sites["x_px"], sites["y_px"], found, 0.25)
    text = saved(figure)
    assert "rVAE, 8 Å" in text
    assert len(figure.axes) == 12
    for wrong in ([], found[:5], [*found, found[0]]):
        with pytest.raises(UserError, match="every method with every window"):
            comparison_figure(IMAGE, sites["x_px"], sites["y_px"], wrong)


def test_time_histogram_follows_the_mean():
    table = atoms(30)
    figure = time_histograms(table, ["z1", "angle_deg"], symmetry=6)
    text = saved(figure)
    assert "angle (°)" in text
    mean = figure.axes[0].lines[0].get_ydata()
    assert mean == pytest.approx(table.groupby("frame")["z1"].mean().to_numpy(), abs=1e-6)


def test_the_mean_angle_does_not_jump_at_the_end_of_the_circle():
    angles = (np.repeat(np.linspace(170, 190, 21), 50) + np.tile([-2.0, 2.0], 525) + 180) % 360 - 180
    table = pd.DataFrame({"frame": np.repeat(np.arange(21), 50), "angle_deg": angles})
    mean, low, high = (line.get_ydata() for line in time_histograms(table, ["angle_deg"]).axes[0].lines)
    assert np.diff(mean) == pytest.approx(1, abs=1e-6)
    assert high - low == pytest.approx(4, abs=1e-6)


def test_histograms_bear_constant_missing_and_single_values():
    table = pd.DataFrame({"frame": [0, 0, 1], "z1": 1.0, "z2": np.nan, "z3": [1.0, np.nan, np.nan]})
    assert "no values" in saved(time_histograms(table, ["z1", "z2", "z3"]))


def test_populations_are_shares_of_each_frame():
    table = pd.DataFrame({"frame": [0, 0, 0, 0, 1, 1, 1, 1], "cluster": [0, 0, 0, 1, 0, 1, 1, np.nan]})
    figure = populations_figure(table, names=["bulk", "edge"])
    assert "edge" in saved(figure)
    bulk, edge = (line.get_ydata() for line in figure.axes[0].lines)
    assert bulk == pytest.approx([0.75, 1 / 3])
    assert edge == pytest.approx([0.25, 2 / 3])
    assert list(figure.axes[1].lines[0].get_ydata()) == [4, 3]


def test_eight_classes_have_eight_looks():
    table = pd.DataFrame({"frame": np.repeat([0, 1], 8), "cluster": np.tile(np.arange(8), 2)})
    lines = populations_figure(table).axes[0].get_lines()
    assert len({(line.get_color(), str(line.get_linestyle())) for line in lines}) == 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: site_map(IMAGE, atoms(), "z9", by_angle()), "no column 'z9'; it has frame, x_px"),
        (lambda: movie_sheet(IMAGE, atoms(), "z1", by_angle()), r"frames \[T, H, W\]"),
        (lambda: by_angle(symmetry=0), "symmetry of 0"),
        (lambda: by_class([]), "at least one class"),
        (lambda: time_histograms(atoms(), ["z9"]), "z9"),
        (lambda: populations_figure(atoms(), "ring"), "no column 'ring'"),
        (lambda: populations_figure(atoms().assign(cluster=np.nan)), "no atom has a value"),
    ],
)
def test_what_cannot_be_mapped_is_told(call, message):
    with pytest.raises(UserError, match=message):
        call()
