"""Copies of training images are caught, however they are disguised; independent images are not."""

import numpy as np
import pytest
from scipy import ndimage

from micrographia.errors import UserError
from micrographia.metrics import memorisation as module
from micrographia.metrics.memorisation import aligned_neighbours, memorisation, nearest_images


def population(n: int, seed: int, shape=(64, 64), margin: int = 0) -> np.ndarray:
    """Two phases with noise; a margin to cut moved copies from."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(n, shape[0] + 2 * margin + 24, shape[1] + 2 * margin + 24))
    field = ndimage.gaussian_filter(noise, (0, 3, 3))[:, 12:-12, 12:-12]
    return ((field > 0.02) + 0.2 * rng.normal(size=field.shape)).astype(np.float32)


MARGIN = 6
WIDE = population(80, 0, margin=MARGIN)
TRAINING = WIDE[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
HELD_OUT = population(40, 1)


def noisy(images: np.ndarray, level: float = 0.5) -> np.ndarray:
    return images + level * images.std() * np.random.default_rng(5).normal(size=images.shape)


def moved(dy: int, dx: int, n: int = 20) -> np.ndarray:
    return WIDE[:n, MARGIN + dy : MARGIN + dy + 64, MARGIN + dx : MARGIN + dx + 64]


@pytest.mark.parametrize(
    "copies",
    [
        noisy(TRAINING[:20]),
        noisy(np.rot90(TRAINING[:20], 1, (1, 2))),
        noisy(TRAINING[:20, :, ::-1]),
        noisy(moved(5, -3)),
        noisy(moved(-3, 4).transpose(0, 2, 1)),
        ndimage.gaussian_filter(TRAINING[:20], (0, 1.5, 1.5)),
        3 * TRAINING[:20] - 7,
    ],
    ids=["noisy", "turned", "mirrored", "moved", "moved and transposed", "blurred", "brighter"],
)
def test_copies_are_caught(copies):
    result = memorisation(copies, TRAINING, HELD_OUT)
    assert result.score == 1
    np.testing.assert_array_equal(result.generated.nearest, np.arange(20))


def test_independent_images_are_not():
    result = memorisation(population(60, 2), TRAINING, HELD_OUT)
    assert result.chance == pytest.approx(1 / 41)
    assert result.score < 0.12  # binomial: 60 images of chance 0.024
    assert result.threshold < 0.5
    # Without held-out images the training images serve as their own reference.
    alone = memorisation(population(60, 2), TRAINING)
    assert alone.score < 0.12
    assert (alone.reference.nearest != np.arange(80)).all()
    assert alone.threshold == pytest.approx(result.threshold, abs=0.08)


def test_the_score_is_the_share_of_copies():
    mixed = np.concatenate([noisy(TRAINING[:15]), population(35, 3)])
    result = memorisation(mixed, TRAINING, HELD_OUT)
    assert result.score == pytest.approx(0.3, abs=0.08)
    assert set(result.closest(15)) == set(range(15))
    assert result.numbers()["memorisation_score"] == result.score
    assert result.numbers()["memorisation_n_held_out"] == 40


def test_real_images_that_were_trained_on_hide_no_copies():
    copies = noisy(TRAINING[:20])
    some = memorisation(copies, TRAINING, np.concatenate([HELD_OUT, TRAINING[:5]]))
    assert (some.score, some.known, len(some.reference.index)) == (1, 5, 40)
    none_else = memorisation(copies, TRAINING, TRAINING.copy())
    assert (none_else.score, none_else.known) == (1, 80)
    assert not some.by_training
    few_others = memorisation(copies, TRAINING, np.concatenate([HELD_OUT[:7], TRAINING[:5]]))
    assert (few_others.score, few_others.known, few_others.by_training) == (1, 5, True)
    assert few_others.numbers()["memorisation_n_held_out"] == 0
    twice = memorisation(copies, np.concatenate([TRAINING, TRAINING[:3]]))  # a folder that holds some twice
    assert (twice.score, twice.known) == (1, 0)
    assert twice.threshold == memorisation(copies, TRAINING).threshold


def test_exact_copies_have_similarity_one_and_are_turned_back():
    turned = np.stack([np.rot90(x, k) for k, x in enumerate(TRAINING[:4])])
    turned = np.concatenate([turned, turned[:, ::-1]])
    found = nearest_images(turned, TRAINING)
    np.testing.assert_allclose(found.similarity, 1, atol=1e-4)
    np.testing.assert_array_equal(aligned_neighbours(TRAINING, found, np.arange(8)), turned)
    assert len(set(found.symmetry)) > 2


def test_oblong_images_and_odd_sizes():
    training = population(20, 0, (40, 71))
    copies = noisy(training[:8, ::-1])
    result = memorisation(copies, training, population(20, 1, (40, 71)))
    assert result.score == 1
    np.testing.assert_array_equal(result.generated.nearest, np.arange(8))
    assert set(result.generated.symmetry) == {6}  # turned by half and mirrored
    small = population(20, 0, (21, 21))
    assert memorisation(small[:5, :, ::-1], small, population(20, 1, (21, 21))).score == 1


def test_too_many_images_are_thinned_by_a_seeded_choice(monkeypatch):
    monkeypatch.setattr(module, "MOST_PAIRS", 80 * 10)
    copies = noisy(np.concatenate([TRAINING[:20], TRAINING[:20]]))
    result = memorisation(copies, TRAINING, HELD_OUT, seed=4)
    assert len(result.generated.index) == 10
    np.testing.assert_array_equal(result.generated.nearest, result.generated.index % 20)
    np.testing.assert_array_equal(
        memorisation(copies, TRAINING, HELD_OUT, seed=4).generated.index, result.generated.index
    )


def test_constant_images_resemble_nothing():
    flat = np.full((9, 64, 64), 3.0)
    result = memorisation(flat, TRAINING, HELD_OUT)
    assert result.score == 0
    np.testing.assert_allclose(result.generated.similarity, 0, atol=1e-5)
    assert np.isfinite(memorisation(TRAINING[:9], flat, HELD_OUT).generated.similarity).all()


def test_bad_input():
    with pytest.raises(UserError, match="one size"):
        memorisation(TRAINING[:9, :32], TRAINING, HELD_OUT)
    with pytest.raises(UserError, match="at least 8 held-out"):
        memorisation(TRAINING[:9], TRAINING, HELD_OUT[:7])
    with pytest.raises(UserError, match="training images without"):
        memorisation(TRAINING[:9], TRAINING[:5])
    with pytest.raises(UserError, match="8 different training images, got 1"):
        memorisation(TRAINING[:9], TRAINING[:1].repeat(9, 0))
    with pytest.raises(UserError, match="NaN"):
        memorisation(np.where(TRAINING > 1.3, np.nan, TRAINING), TRAINING, HELD_OUT)
