"""Codes, the paths between them, and the way back from an image to its style."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from micrographia.synthesize.latents import (
    classes_in_turn,
    codes_of,
    linear_path,
    noise_of,
    project,
    spherical_path,
)
from micrographia.synthesize.stylegan import Mapping, StyleGenerator

SEEDS = st.integers(0, 2**62)


def two_codes(seed: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = torch.randn(2, size, generator=torch.Generator().manual_seed(seed))
    return a, 3 * b


@given(SEEDS, st.integers(2, 64), st.integers(2, 12))
@settings(max_examples=50, deadline=None)
def test_a_great_circle_turns_evenly_and_its_lengths_follow(seed: int, size: int, steps: int) -> None:
    a, b = two_codes(seed, size)
    path = spherical_path(a, b, steps)
    assert path.shape == (steps, size)
    torch.testing.assert_close(path[[0, -1]], torch.stack([a, b]), rtol=1e-4, atol=1e-4)
    lengths = torch.linspace(float(a.norm()), float(b.norm()), steps)
    torch.testing.assert_close(path.norm(dim=1), lengths, rtol=1e-3, atol=1e-3)
    unit = (path / path.norm(dim=1, keepdim=True)).double()
    chords = (unit[1:] - unit[:-1]).norm(dim=1)  # of equal angles
    torch.testing.assert_close(chords, chords.mean().expand_as(chords), rtol=1e-2, atol=1e-3)


def test_a_quarter_of_a_circle() -> None:
    path = spherical_path(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]), 3)
    torch.testing.assert_close(path, torch.tensor([[2.0, 0], [2**0.5, 2**0.5], [0, 2]]))
    straight = linear_path(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]), 3)
    torch.testing.assert_close(straight, torch.tensor([[2.0, 0], [1, 1], [0, 2]]))


@pytest.mark.parametrize("factor", [-1.0, 1.0, -0.5, 2.0])
def test_codes_in_line_are_joined_by_a_straight_line(factor: float) -> None:
    a = torch.tensor([1.0, 0.0, 0.0])
    path = spherical_path(a, factor * a, 5)
    torch.testing.assert_close(path, linear_path(a, factor * a, 5))
    assert bool(path.isfinite().all())


def test_the_straight_way_loses_length_and_the_round_way_does_not() -> None:
    a, b = codes_of([1, 2], 256)
    middle = [float(path(a, b, 3)[1].norm()) for path in (linear_path, spherical_path)]
    typical = 256**0.5
    assert middle[0] < 0.8 * typical
    assert middle[1] == pytest.approx(typical, rel=0.1)


def test_a_mapping_network_runs_along_one_circle_either_way() -> None:
    """It normalises its codes: the straight line is the great circle at another pace, with the same ends and middle."""
    a, b = codes_of([3, 4], 64)
    b = b * a.norm() / b.norm()
    mapping = Mapping(64, 2)
    with torch.no_grad():
        straight, circle = (mapping(path(a, b, 5)) for path in (linear_path, spherical_path))
    torch.testing.assert_close(straight[[0, 2, 4]], circle[[0, 2, 4]], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(straight[1], circle[1], rtol=1e-3)


@given(st.lists(st.integers(0, 2**70), min_size=1, max_size=4), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_codes_and_noise_are_functions_of_their_own_seed(seeds: list[int], latent: int) -> None:
    shapes = [(4, 4), (8, 6)]
    codes, noise = codes_of(seeds, latent), noise_of(seeds, shapes)
    assert codes.shape == (len(seeds), latent)
    assert [tuple(n.shape) for n in noise] == [(len(seeds), 1, *shape) for shape in shapes]
    for k, seed in enumerate(seeds):
        assert torch.equal(codes[k], codes_of([seed], latent)[0])
        for many, one in zip(noise, noise_of([seed], shapes), strict=True):
            assert torch.equal(many[k], one[0])


def test_codes_and_noise_are_normal_and_independent() -> None:
    codes = codes_of(range(500), 40).numpy()
    assert abs(codes.mean()) < 0.03
    assert codes.std() == pytest.approx(1, abs=0.02)
    noise = noise_of(range(500), [(40, 1)])[0][:, 0, :, 0].numpy()
    assert abs(np.corrcoef(codes.ravel(), noise.ravel())[0, 1]) < 0.03


@given(st.integers(1, 7), st.integers(1, 40))
def test_classes_come_in_turn(classes: int, n: int) -> None:
    found = classes_in_turn(classes, n, torch.device("cpu"))
    assert found is not None
    counts = np.bincount(found.numpy(), minlength=classes)
    assert counts.sum() == n
    assert counts.max() - counts.min() <= 1
    assert classes_in_turn(0, n, torch.device("cpu")) is None


def test_projection_finds_an_image_that_the_model_drew() -> None:
    torch.manual_seed(0)
    generator = StyleGenerator(16, latent=8, width=8, widest=16, mapping_layers=2).eval()
    with torch.no_grad():
        for layer in (generator.first_image, *generator.images):
            layer.conv.weight *= 0.3  # within the grey levels -1 to 1
        generator.mean_style.copy_(generator.mapping(codes_of(range(1000), 8)).mean(dim=0))
        style = generator.mapping(codes_of([5], 8))
        goal = generator.synthesise(style)[0]
        start = generator.synthesise(generator.mean_style[None])[0]
    before = float((start - goal).square().mean().sqrt())
    losses: list[float] = []
    found, drawn, difference = project(generator, goal, steps=150, watch=lambda _, loss: losses.append(loss))
    assert difference < 0.05 * before
    assert losses[-1] < 0.001 * losses[0]
    assert difference == pytest.approx(float((drawn - goal).square().mean().sqrt()), rel=1e-5)
    assert found.shape == style[0].shape
