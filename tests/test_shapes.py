"""Sets of known class and pose are what they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from micrographia.errors import UserError
from micrographia.simulate.shapes import SUITS, cards, motifs, rotated_digits


@pytest.mark.parametrize("draw", [cards, motifs, rotated_digits])
def test_patches_are_turned_counter_clockwise_by_the_angle_they_state(draw):
    extra = {"noise": 0} if draw is motifs else {}
    turned, plain = (draw(8, size_px=33, rotation_deg=r, seed=5, **extra) for r in (90, 0))
    np.testing.assert_array_equal(turned.kind, plain.kind)
    for image, original, angle in zip(turned.images, plain.images, turned.angle_deg, strict=True):
        expected = ndimage.rotate(original, angle, reshape=False, order=1)  # counter-clockwise on the screen
        wrong = ndimage.rotate(original, -angle, reshape=False, order=1)
        inside = np.hypot(*(np.mgrid[:33, :33] - 16)) < 16
        errors = [np.abs(image - other)[inside].mean() for other in (expected, wrong)]
        assert errors[0] < 0.03 * np.ptp(original) or errors[0] < 0.3 * errors[1]


def test_shifts_move_the_centre_of_mass():
    moved, still = (motifs(5, size_px=40, shift_px=s, noise=0, seed=1) for s in (5, 0))
    for one, other, shift in zip(moved.images, still.images, moved.shift_px, strict=True):
        y, x = np.subtract(ndimage.center_of_mass(one), ndimage.center_of_mass(other))
        np.testing.assert_allclose([x, y], shift, atol=0.15)


def test_cards_are_four_suits_and_reproducible():
    first, second = cards(60, seed=3), cards(60, seed=3)
    np.testing.assert_array_equal(first.images, second.images)
    assert set(first.kind) == set(range(len(SUITS)))
    assert first.images.min() == 0
    assert first.images.max() == 1
    assert first.images.shape == (60, 48, 48)


def test_diamonds_alone_have_a_half_turn():
    truth = cards(20, size_px=48, rotation_deg=0)
    for image, fold in zip(truth.images, truth.symmetry, strict=True):
        assert (np.abs(image - image[::-1, ::-1]).max() < 0.5) == (fold == 2)


def test_impossible_requests_are_explained():
    for wrong in (lambda: cards(0), lambda: motifs(3, shift_px=-1), lambda: rotated_digits(5, digits=[11])):
        with pytest.raises(UserError):
            wrong()
