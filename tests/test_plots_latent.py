from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox
from matplotlib.text import Text

from micrographia.errors import UserError
from micrographia.latent.blocks import Classes, Condition, Continuous, Rotation, Scale, Translation
from micrographia.latent.manifold import draw_manifold, draw_traversals, draw_upright
from micrographia.latent.model import VaeConfig
from micrographia.latent.vae import VAE
from micrographia.plots.latent import latent_scatter, manifold_figure, reconstruction_sheet, traversal_figure
from micrographia.plots.matrices import confusion_figure, transition_figure
from micrographia.plots.thumbnails import limits_of, mosaic, shrunk, thumbnails
from micrographia.simulate.shapes import motifs

TRUTH = motifs(60, 12, rotation_deg=60, shift_px=1)


def saved(figure: Figure) -> str:
    """All text of a figure that can be drawn."""
    figure.savefig(io.BytesIO(), dpi=50)
    return " | ".join(t.get_text() for t in figure.findobj(Text) if t.get_text())


@pytest.fixture(scope="module")
def model() -> VAE:
    blocks = [Rotation(90), Translation(1.5), Scale(0.1), Continuous(3)]
    return VAE(blocks, VaeConfig(epochs=2, hidden=16, batch=20)).fit(TRUTH.images)


@pytest.fixture(scope="module")
def codes(model) -> np.ndarray:
    return model.transform(TRUTH.images)


def test_manifold_spans_the_codes_with_the_pose_at_rest(model, codes):
    drawn = draw_manifold(model, 5, codes, axes=("z1", "z3"))
    assert drawn.images.shape == (5, 5, 12, 12)
    names = list(model.get_feature_names_out())
    z1, z3 = codes[:, names.index("z1")], codes[:, names.index("z3")]
    assert drawn.names == ("z3", "z1")
    assert drawn.values[0, :, 1] == pytest.approx(np.linspace(*np.quantile(z1, [0.05, 0.95]), 5), abs=1e-5)
    assert drawn.values[0, 0, 0] == pytest.approx(np.quantile(z3, 0.95), abs=1e-5)  # upwards
    code = np.zeros((1, len(names)), np.float32)
    code[0, names.index("scale")] = 1
    for name, value in (("z1", drawn.values[2, 3, 1]), ("z3", drawn.values[2, 3, 0])):
        code[0, names.index(name)] = value
    code[0, names.index("z2")] = np.median(codes[:, names.index("z2")])
    assert drawn.images[2, 3] == pytest.approx(model.inverse_transform(code)[0], abs=1e-5)
    assert "z3" in saved(manifold_figure(drawn.images, drawn.values, drawn.names))


def test_traversals_vary_one_latent_each_the_pose_last(model, codes):
    drawn = draw_traversals(model, 4, codes)
    assert drawn.names == ("z1", "z2", "z3", "angle_deg", "shift_x_px", "shift_y_px", "scale")
    assert drawn.images.shape == (7, 4, 12, 12)
    assert drawn.values[3, [0, -1]].tolist() == [-90, 90]
    text = saved(traversal_figure(drawn.images, drawn.values, drawn.names))
    assert "angle (°)" in text
    assert "shift x (px)" in text


def test_upright_patches_have_no_pose(model, codes):
    other = codes.copy()
    other[:, :4] = [30, 1, -1, 1.1]  # angle, shifts, scale
    assert np.array_equal(draw_upright(model, codes), draw_upright(model, other))


def test_a_full_circle_is_not_drawn_twice_at_its_ends_and_classes_and_conditions_are_drawn():
    labels = np.arange(60) % 2
    blocks = [Rotation(180), Classes(2), Condition(1), Continuous(1)]
    model = VAE(blocks, VaeConfig(epochs=1, hidden=8, batch=20))
    dose = np.linspace(0, 1, 60)
    model.fit(TRUTH.images, labels, condition=dose)
    rows = draw_traversals(model, 4, class_index=1, condition=np.array([0.5]))
    assert rows.values[1].tolist() == [-135, -45, 45, 135]
    assert not np.array_equal(rows.images, draw_traversals(model, 4, condition=np.array([0.5])).images)
    with pytest.raises(UserError, match="no class 2"):
        draw_traversals(model, 4, class_index=2, condition=np.array([0.5]))


def test_what_cannot_be_drawn_is_told(model, codes):
    for call, message in (
        (lambda: draw_manifold(model, 5, axes=("z1", "z9")), "no latent 'z9'; choose from z1, z2, z3"),
        (lambda: draw_manifold(model, 1), "at least 2"),
        (lambda: draw_manifold(model, 5, codes[:, :2]), "Codes must be"),
        (lambda: latent_scatter(np.zeros(3), np.zeros(4)), "one length"),
        (lambda: latent_scatter(np.zeros(3), np.zeros(3), np.zeros((2, 4, 4))), "2 patches for 3 points"),
        (lambda: reconstruction_sheet(np.zeros((3, 4, 4)), np.zeros((3, 5, 5))), "differ in shape"),
        (lambda: thumbnails(np.zeros((4, 5))), "Patches must be"),
        (lambda: thumbnails(np.zeros((4, 5, 6, 6))), "At most 4 channels"),
        (lambda: thumbnails(np.full((2, 4, 4), np.nan)), "NaN"),
        (lambda: confusion_figure(np.zeros((2, 2)), ["a"], ["b"]), "counts"),
        (lambda: transition_figure(np.zeros((2, 3))), "square"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_scatter_draws_points_thumbnails_and_a_key():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 60))
    figure = latent_scatter(x, y, TRUTH.images, np.array(["edge", "bulk"])[np.arange(60) % 2])
    text = saved(figure)
    assert "edge (30)" in text
    assert "bulk (30)" in text
    boxes = [a for a in figure.axes[0].artists if isinstance(a, AnnotationBbox)]
    assert 10 < len(boxes) < 60
    places = {tuple(b.xy) for b in boxes}
    assert places <= set(zip(x, y, strict=True))  # every thumbnail lies on its own point
    points = figure.axes[0].findobj(PathCollection)[0].get_offsets()
    assert len(points) == 60


def test_scatter_by_value_has_a_colour_bar_and_bears_nan_and_equal_points():
    values = np.linspace(0, 1, 60)
    values[3] = np.nan
    assert "value" in saved(latent_scatter(np.zeros(60), np.zeros(60), TRUTH.images, values))
    saved(latent_scatter(np.zeros(1), np.zeros(1)))


def test_a_large_scatter_is_thinned_and_says_so():
    x = np.linspace(0, 1, 50_000)
    assert "20000 of 50000 points" in saved(latent_scatter(x, x))


def test_reconstruction_sheet_names_its_rows_and_angles():
    angles = np.arange(60.0)
    text = saved(reconstruction_sheet(TRUTH.images, TRUTH.images, TRUTH.images, angles, shown=4))
    assert "patch | " in text
    assert "upright" in text
    assert "59°" in text


def test_confusion_and_transitions_write_the_counts():
    assert "17" in saved(confusion_figure(np.array([[17, 1], [0, 4]]), ["a", "b"], [0, 1]))
    text = saved(transition_figure(np.array([[90, 10], [0, 0]]), ["[6,6,6]", "[5,6,7]"]))
    assert "0.90\n(90)" in text
    assert "nan" not in text


def test_thumbnails_scale_all_alike_and_mix_channels():
    dark, bright = np.zeros((1, 6, 6)), np.ones((1, 6, 6))
    both = thumbnails(np.concatenate([dark, bright]))
    assert both[0].max() == 0
    assert both[1].min() == 1
    assert thumbnails(np.full((2, 6, 6), 3.0)).std() == 0  # constant, no complaint
    two = np.zeros((1, 2, 6, 6))
    two[0, 1, 2] = 1
    picture = thumbnails(two)[0]
    assert picture.shape == (6, 6, 3)
    assert picture[2, 0].tolist() == pytest.approx([0xE6 / 255, 0x9F / 255, 0], abs=0.01)
    assert limits_of(two)[1] == (0.0, 1.0)


def test_mosaic_and_shrinking_keep_places():
    pictures = np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1) * np.ones((1, 1, 4, 5), np.float32) / 6
    sheet = mosaic(pictures, gap=2)
    assert sheet.shape == (2 * 4 + 2, 3 * 5 + 4)
    assert sheet[0, 7] == pytest.approx(1 / 6)
    assert sheet[6, 0] == pytest.approx(3 / 6)
    assert shrunk(pictures[0], 3).shape == (3, 2, 3)
    assert shrunk(pictures[0], 99).shape == (3, 4, 5)
