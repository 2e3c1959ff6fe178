from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from micrographia.errors import UserError
from micrographia.io import read_provenance
from micrographia.plots.gaussian_gan import gaussian_gan_figure, pixels
from micrographia.synthesize.gaussian import (
    MIXING,
    SHIFT,
    GaussianGAN,
    agreement,
    film_gaussian_gan,
    fit_gaussian_gan,
)


@pytest.fixture(scope="module")
def watched() -> tuple[GaussianGAN, list]:
    seen = []
    return fit_gaussian_gan(seed=0, watch=seen.append, watch_every=500), seen


def test_the_generator_recovers_mean_and_covariance(watched):
    """The worst of 16 seeds was 0.24 standard deviations off the mean; one of them lost half of its width."""
    gan, _ = watched
    found = agreement(gan.mean, gan.covariance)
    assert found["mean_error"] < 0.3
    assert found["narrowest"] > 0.7
    assert found["widest"] < 1.35
    assert np.allclose(gan.mean, SHIFT, atol=0.5)


def test_agreement_knows_a_line_from_an_ellipse():
    truth = MIXING.T @ MIXING
    assert agreement(SHIFT, truth) == pytest.approx({"mean_error": 0, "narrowest": 1, "widest": 1})
    values, axes = np.linalg.eigh(truth)
    line = values[1] * np.outer(axes[:, 1], axes[:, 1])
    assert np.abs(line - truth).max() < 0.1, "entry by entry a line looks right"
    assert agreement(SHIFT, line) == pytest.approx({"mean_error": 0, "narrowest": 0, "widest": 1}, abs=1e-6)
    wide = agreement(SHIFT + 2 * np.sqrt(values[0]) * axes[:, 0], 9 * truth)
    assert wide == pytest.approx({"mean_error": 2, "narrowest": 3, "widest": 3})


def test_mean_and_covariance_are_those_of_the_drawn_points(watched):
    gan, _ = watched
    points = gan.draw(200_000, seed=1)
    assert np.allclose(points.mean(axis=0), gan.mean, atol=0.02)
    assert np.allclose(np.cov(points.T), gan.covariance, atol=0.05)
    table = gan.table()
    assert table.loc["cov_xy", "truth"] == pytest.approx(1.95)
    assert table.loc["cov_yy", "generator"] == gan.covariance[1, 1]
    assert np.allclose(table["data"], table["truth"], atol=0.3), "A and b of the lecture made the data"
    assert table.loc["narrowest", "truth"] == pytest.approx(1)


def test_the_training_is_watched_from_before_its_first_step(watched):
    gan, seen = watched
    assert [snapshot.step for snapshot in seen] == [0, 500, 1000, 1500, 2000, 2500]
    assert seen[0].courses["narrowest"].iloc[0] < 0.5
    assert np.cov(seen[-1].generated.T)[1, 1] == pytest.approx(gan.covariance[1, 1], rel=0.2)
    assert np.array_equal(seen[-1].real, gan.data)
    errors = seen[-1].courses["mean_error"]
    assert errors.iloc[-1] < 0.5 * errors.iloc[0]
    assert gan.history["mean_error"].iloc[-1] == errors.iloc[-1]
    losses = seen[-1].courses.iloc[-1]
    assert losses["discriminator"] == pytest.approx(np.log(2), abs=0.03), "nothing left to tell apart"


def test_one_seed_one_result_and_watching_changes_nothing():
    seen = []
    first, second = fit_gaussian_gan(3, epochs=1), fit_gaussian_gan(3, epochs=1, watch=seen.append)
    assert np.array_equal(first.weight, second.weight)
    assert not np.array_equal(first.weight, fit_gaussian_gan(4, epochs=1).weight)


def test_the_figure_shows_the_state(watched):
    _, seen = watched
    figures = [gaussian_gan_figure(**vars(snapshot)) for snapshot in (seen[0], seen[-1])]
    frames = [pixels(figure) for figure in figures]
    assert frames[0].shape == frames[1].shape
    assert frames[0].shape[2] == 3
    ellipses = [figure.axes[0].patches[1] for figure in figures]
    axis = 2 * 2 * np.sqrt(np.linalg.eigvalsh(np.cov(seen[-1].generated.T))[1])
    assert ellipses[1].width == pytest.approx(axis), "two standard deviations to either side"
    assert ellipses[0].width != pytest.approx(axis, rel=0.1)
    # Seen from the centre the ellipse's long axis points where the points lie.
    assert np.tan(np.deg2rad(ellipses[1].angle)) == pytest.approx(2.1, abs=0.5)


def test_the_movie(tmp_path):
    gan = film_gaussian_gan(tmp_path / "gan.gif", seed=5, epochs=2)
    assert len(gan.history) == 3
    told = read_provenance(tmp_path / "gan.gif")
    assert (told["step"], told["seed"], told["epochs"]) == ("fit_gaussian_gan", 5, 2)
    assert read_provenance(tmp_path / "gan.png")["synthetic"] is True
    with Image.open(tmp_path / "gan.gif") as movie, Image.open(tmp_path / "gan.png") as last:
        assert movie.n_frames >= 3
        assert movie.size == last.size


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"beta1": 1.0}, {"beta1": -0.1}, {"watch_every": 0}, {"spread": 0}]
)
def test_impossible_settings(options):
    with pytest.raises(UserError, match=next(iter(options))):
        fit_gaussian_gan(**options)


def test_a_movie_that_cannot_be_written_is_told_before_the_training(tmp_path):
    with pytest.raises(UserError, match="no format of movies"):
        film_gaussian_gan(tmp_path / "gan.avi")
