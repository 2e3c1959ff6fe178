"""Augmentation does what the paper says, can be differentiated, and can be undone in distribution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from micrographia.errors import UserError
from micrographia.synthesize import augment as module
from micrographia.synthesize.augment import (
    AdaptiveProbability,
    AugmentConfig,
    amplify_bands,
    apply_transforms,
    augment,
    draw_transforms,
    resample,
)

CLASSES = ("blit", "geom", "color", "filter", "noise", "cutout")
NONE = AugmentConfig(**dict.fromkeys(CLASSES, False))
ALL = AugmentConfig(**dict.fromkeys(CLASSES, True))
CPU = torch.device("cpu")


def only(name: str) -> AugmentConfig:
    return replace(NONE, **{name: True})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_images(n: int, channels: int = 1, height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    return torch.rand((n, channels, height, width), generator=seeded(seed)) * 2 - 1


def rotation(degrees: float, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Where a picture turned counter-clockwise on the screen, enlarged, then shifted, comes from."""
    a = np.deg2rad(degrees)
    forward = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) * scale
    whole = np.eye(3)
    whole[:2, :2], whole[:2, 2] = forward, shift
    return torch.tensor(np.linalg.inv(whole))[None]


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 15, 20), (2, 1, 9)])
def test_nothing_happens_at_zero_probability(shape):
    images = noise_images(6, *shape)
    assert torch.equal(augment(images, 0.0, ALL, seeded()), images)


def test_images_that_drew_nothing_are_left_alone_bit_for_bit():
    images = noise_images(200, 3, seed=1)
    for name in CLASSES:
        changed = (augment(images, 0.05, only(name), seeded(2)) != images).flatten(1).any(1).float().mean()
        assert 0.01 < changed < 0.35, name


@pytest.mark.parametrize("name", CLASSES)
def test_any_shape_any_channels(name):
    for shape in ((1, 16, 16), (4, 12, 21), (3, 5, 4), (1, 1, 7)):
        out = augment(noise_images(8, *shape), 1.0, only(name), seeded())
        assert out.shape == (8, *shape)
        assert torch.isfinite(out).all()


def test_blits_are_the_symmetries_of_the_square_and_shifts_of_at_most_an_eighth():
    images = noise_images(400, seed=3)
    transforms = draw_transforms(400, (1, 16, 16), 1.0, only("blit"), seeded(4))
    out = apply_transforms(images, transforms)
    found, shifts = [], []
    for image, moved, back in zip(images[:, 0].numpy(), out[:, 0].numpy(), transforms.blit, strict=True):
        x, y = (-(torch.linalg.inv(back) @ torch.tensor([0.0, 0, 1]))[:2]).round().int().tolist()
        assert max(abs(x), abs(y)) <= 2
        shifts.append((x, y))
        padded = [np.pad(s, 4, mode="reflect") for s in _symmetries(image)]
        matches = [np.array_equal(p[4 + y : 20 + y, 4 + x : 20 + x], moved) for p in padded]
        assert sum(matches) == 1
        found.append(matches.index(True))
    # x-flip with probability 1/2, then any quarter turn: all eight alike.
    assert np.bincount(found, minlength=8).min() > 25
    assert np.unique(shifts, axis=0).shape == (25, 2)


def _symmetries(image: np.ndarray) -> list[np.ndarray]:
    return [np.rot90(m, k) for m in (image, image[:, ::-1]) for k in range(4)]


@pytest.mark.parametrize(("p", "mirrored", "turned"), [(1.0, 0.5, 0.75), (0.4, 0.2, 0.3)])
def test_blits_happen_as_often_as_they_should(p, mirrored, turned):
    back = draw_transforms(8000, (1, 64, 64), p, only("blit"), seeded(5)).blit
    assert (torch.linalg.det(back) < 0).float().mean() == pytest.approx(mirrored, abs=0.02)
    straight = (back[:, 0, 0].abs() == 1) & (back[:, 1, 1] == 1)
    assert 1 - straight.float().mean() == pytest.approx(turned, abs=0.02)


def test_blit_without_a_shift_keeps_every_pixel():
    images = noise_images(50, 2, 4, 4)  # an eighth of four pixels rounds to none
    out = augment(images, 1.0, only("blit"), seeded(1))
    assert torch.equal(out.flatten(2).sort().values, images.flatten(2).sort().values)


def _waves(x: Tensor, y: Tensor) -> Tensor:
    return torch.cos(0.31 * x + 0.17 * y + 0.4) + 0.5 * torch.sin(0.23 * x - 0.52 * y)


@given(st.floats(-180, 180), st.floats(0.8, 1.5), st.floats(-3, 3), st.floats(-3, 3))
@settings(max_examples=25, deadline=None)
def test_resampling_follows_the_matrix(degrees, scale, right, down):
    middle = torch.arange(41, dtype=torch.float64) - 20
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    back = rotation(degrees, scale, (right, down))
    out = resample(_waves(x, y)[None, None], back)[0, 0]
    source = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ back[0].T
    expected = _waves(source[..., 0], source[..., 1])
    inside = (source[..., :2].abs() < 16).all(dim=-1) & (x.abs() < 17) & (y.abs() < 17)
    assert (out - expected)[inside].abs().max() < 0.03


def test_turns_are_counter_clockwise_on_the_screen():
    image = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    image[0, 0, 10, 17] = 1  # right of the middle
    out = resample(image, rotation(90))
    assert out.flatten().argmax() == 3 * 21 + 10  # above it


def test_resampling_with_nothing_to_do_keeps_what_an_image_can_hold():
    middle = torch.arange(32, dtype=torch.float64)
    image = torch.cos(np.pi * 18 / 31 * middle)[None, None, None].expand(1, 1, 32, 32)
    out = resample(image, torch.eye(3, dtype=torch.float64)[None])
    assert (out - image).abs().max() < 0.06  # 58 % of the Nyquist frequency, edges included


def test_shrinking_does_not_alias():
    stripes = (torch.arange(64) % 2 * 2.0 - 1).expand(1, 1, 64, 64)
    back = rotation(0, scale=1 / 1.6)
    out = resample(stripes, back)
    grid = nn.functional.affine_grid(back[:, :2].float(), [1, 1, 64, 64], align_corners=True)
    naive = nn.functional.grid_sample(stripes, grid, align_corners=True, padding_mode="reflection")
    assert naive.std() > 0.4  # plain interpolation invents coarse stripes
    assert out.std() < 0.15 * naive.std()


def test_mirrored_edges_continue_the_image():
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    out = resample(ramp, rotation(0, shift=(4, 0)))[0, 0, 8]
    np.testing.assert_allclose(out[:5], [4, 3, 2, 1, 0], atol=0.15)
    np.testing.assert_allclose(out[6:15], np.arange(2, 11), atol=0.15)


def test_scales_and_turns_are_drawn_from_the_papers_distributions():
    forward = torch.linalg.inv(
        draw_transforms(6000, (1, 100, 50), 1.0, only("geom"), seeded(6)).geom.double()
    )
    singular = torch.linalg.svdvals(forward[:, :2, :2])
    isotropic, stretch = singular.prod(1).sqrt().log2(), (singular[:, 0] / singular[:, 1]).sqrt().log2()
    assert isotropic.mean() == pytest.approx(0, abs=0.01)
    assert isotropic.std() == pytest.approx(0.2, abs=0.006)
    assert stretch.square().mean().sqrt() == pytest.approx(0.2, abs=0.006)
    shift = forward[:, :2, 2]
    np.testing.assert_allclose(shift.std(0), [0.125 * 50, 0.125 * 100], rtol=0.04)
    angle = torch.atan2(forward[:, 0, 1], forward[:, 0, 0])
    assert torch.histc(angle, 8, -np.pi, np.pi).min() > 0.8 * 6000 / 8


def test_either_turn_happens_with_the_one_probability():
    forward = torch.linalg.inv(draw_transforms(8000, (1, 64, 64), 0.4, only("geom"), seeded(7)).geom)
    linear = forward[:, :2, :2]
    gram = linear.mT @ linear
    unstretched = (gram[:, 0, 0] / gram[:, 1, 1] - 1).abs() + gram[:, 0, 1].abs() < 1e-5
    turned = linear[unstretched][:, 0, 1].abs() > 1e-6
    assert unstretched.float().mean() == pytest.approx(0.6, abs=0.02)
    assert turned.float().mean() == pytest.approx(0.4, abs=0.025)
    shifted = (forward[:, 0, 2] != 0).float().mean()
    assert shifted == pytest.approx(0.4, abs=0.02)


def test_grey_images_are_brightened_stretched_and_inverted():
    drawn = draw_transforms(8000, (1, 8, 8), 1.0, only("color"), seeded(8)).color
    gain, offset = drawn[:, 0, 0], drawn[:, 0, 1]
    assert (gain < 0).float().mean() == pytest.approx(0.5, abs=0.02)
    assert gain.abs().log2().mean() == pytest.approx(0, abs=0.02)
    assert gain.abs().log2().std() == pytest.approx(0.5, abs=0.02)
    assert (offset / gain).std() == pytest.approx(0.2, abs=0.01)
    image = noise_images(1).expand(8000, 1, 16, 16)[:5]
    out = apply_transforms(image, draw_transforms(5, (1, 16, 16), 1.0, only("color"), seeded(8)))
    assert torch.unique(out[0]).shape == torch.unique(image[0]).shape  # pixel by pixel


def test_colours_turn_about_the_grey_axis():
    drawn = draw_transforms(4000, (3, 8, 8), 1.0, only("color"), seeded(9)).color
    matrix = drawn[:, :, :3].double()
    grey = torch.full((3,), 1 / np.sqrt(3), dtype=torch.float64)
    # Grey stays grey: brightness, contrast and inversion act on it alone, alike in all channels.
    along = matrix @ grey
    assert (along - (along @ grey)[:, None] * grey).abs().max() < 1e-5
    assert (drawn[:, :, 3] - drawn[:, :1, 3]).abs().max() < 1e-5
    # Across it contrast times saturation scale by one factor: sigma² = 0.5² + 1² octaves.
    across = torch.linalg.norm(matrix @ torch.tensor([1.0, -1, 0], dtype=torch.float64), dim=1) / np.sqrt(2)
    assert across.log2().std() == pytest.approx(np.sqrt(1.25), rel=0.04)
    # And hue turns it by any angle.
    first, second = torch.tensor([1.0, -1, 0]) / np.sqrt(2), torch.tensor([1.0, 1, -2]) / np.sqrt(6)
    turned = matrix @ first.double()
    angle = torch.atan2(turned @ second.double(), turned @ first.double())
    assert torch.histc(angle, 8, -np.pi, np.pi).min() > 0.8 * 4000 / 8


def test_two_channels_know_saturation_but_no_hue():
    matrix = draw_transforms(50, (2, 8, 8), 1.0, only("color"), seeded(3)).color[:, :, :2]
    grey, difference = torch.ones(2), torch.tensor([1.0, -1.0])
    gains = (matrix @ grey)[:, 0], (matrix @ difference)[:, 0]
    torch.testing.assert_close(matrix @ difference, gains[1][:, None] * difference)
    assert ((gains[1] / gains[0]).abs().log2().abs() > 0.05).float().mean() > 0.8


def test_octave_bands_add_up_and_lie_where_they_should():
    image = noise_images(1, 1, 40, 33).double()
    torch.testing.assert_close(amplify_bands(image, torch.ones(1, 4)), image)
    x = torch.arange(256, dtype=torch.float64)
    for band, frequency in enumerate((1 / 64, 0.09, 0.18, 0.4)):  # cycles per pixel, middles of the octaves
        gains = torch.ones(1, 4)
        gains[0, band] = 3
        wave = torch.cos(2 * np.pi * frequency * x).expand(1, 1, 4, 256)
        # Along y the image is constant: what happens there happens to the lowest band.
        out = amplify_bands(wave, gains) / (3 if band == 0 else 1)
        gain = out[0, 0, 0, 64:192].std() / wave[0, 0, 0, 64:192].std()
        assert gain > 2.2, band  # short filters have soft edges
        others = amplify_bands(wave, gains.flip(1)) / (3 if band == 3 else 1)
        assert others[0, 0, 0, 64:192].std() / wave[0, 0, 0, 64:192].std() < 1.6, band


def test_band_gains_keep_the_expected_power():
    gains = draw_transforms(3000, (1, 8, 8), 0.1, only("filter"), seeded(2)).bands
    power = gains.square() @ torch.tensor([10.0, 1, 1, 1]) / 13
    # Where one band at most was drawn; several in a row keep it only on average.
    kept = ((power - 1).abs() < 1e-5).float().mean()
    assert kept > 0.93
    assert (gains != 1).any(1).float().mean() == pytest.approx(1 - 0.9**4, abs=0.03)


def test_noise_has_a_half_normal_strength():
    out = augment(torch.zeros(3000, 1, 16, 16), 1.0, only("noise"), seeded(3))
    strength = out.flatten(1).std(dim=1)
    assert strength.mean() == pytest.approx(0.1 * np.sqrt(2 / np.pi), rel=0.05)
    assert strength.square().mean().sqrt() == pytest.approx(0.1, rel=0.05)
    assert out.mean() == pytest.approx(0, abs=1e-3)


def test_cutouts_are_squares_of_half_the_edge_anywhere():
    out = augment(torch.ones(2000, 2, 20, 32), 1.0, only("cutout"), seeded(4))
    blank = (out == 0).all(dim=1)
    assert torch.equal(blank, (out == 0).any(dim=1))
    heights, widths = blank.any(dim=2).sum(1), blank.any(dim=1).sum(1)
    assert torch.equal(blank.sum((1, 2)), heights * widths)  # rectangles
    assert heights.max() <= 11
    assert widths.max() <= 17
    # A middle anywhere: at each edge a quarter of the squares' length is lost on average for an eighth of them.
    assert blank.float().mean() == pytest.approx((0.5 - 2 * 0.25**2 / 2) ** 2, abs=0.01)


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_are_exact_once_and_twice(channels):
    config = replace(ALL, noise=False)
    images = noise_images(3, channels, 6, 7).double().requires_grad_()
    transforms = draw_transforms(3, (channels, 6, 7), 0.9, config, seeded(11))

    def through(images: Tensor) -> Tensor:
        return apply_transforms(images, transforms)

    assert torch.autograd.gradcheck(through, (images,))
    # Augmentation is linear; a critic's square makes the second derivatives something.
    assert torch.autograd.gradgradcheck(lambda x: through(x).square().sum(), (images,))


def test_the_gradient_penalty_reaches_the_critic_through_augmentation():
    critic = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(4 * 14 * 14, 1))
    images = noise_images(8, seed=5).requires_grad_()
    logits = critic(augment(images, 0.8, ALL, seeded(6)))
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    slope.square().sum().backward()
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all() for p in critic[0].parameters() if p.dim() > 1
    )
    assert critic[0].weight.grad.abs().sum() > 0


def test_draws_are_reproducible_independent_and_can_be_shared_out():
    images = noise_images(1).expand(12, 1, 16, 16)
    first, again, other = (augment(images, 0.9, ALL, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(image.flatten().tolist()) for image in first}) == 12
    transforms = draw_transforms(12, (1, 16, 16), 0.9, ALL, seeded(1))
    parts = [apply_transforms(images[s], transforms[s]) for s in (slice(0, 5), slice(5, 12))]
    torch.testing.assert_close(torch.cat(parts), first)
    assert len(transforms) == 12


def test_a_probability_may_be_a_tensor():
    images = noise_images(5)
    by_tensor = augment(images, torch.tensor(0.7), ALL, seeded(3))
    assert torch.equal(by_tensor, augment(images, 0.7, ALL, seeded(3)))


def test_half_precision_and_autocast_do_not_coarsen_positions():
    images = noise_images(8, 1, 64, 64).bfloat16()
    transforms = draw_transforms(8, (1, 64, 64), 1.0, ALL, seeded(3))
    with torch.autocast("cpu", torch.bfloat16):
        out = apply_transforms(images, transforms)
    assert torch.equal(out, apply_transforms(images.float(), transforms))


# ------------------------------------------------------------ does it leak?

#: A picture that is its own mirror image, in four directions.
ARROW = torch.tensor([[0.0, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 0], [0, 1, 1, 0]])
ARROWS = torch.stack([torch.rot90(ARROW, k) for k in range(4)])


def directions_after(shares: list[float], p: float, n: int, seed: int) -> Tensor:
    """Shares of the four directions in an augmented population of arrows."""
    which = torch.multinomial(torch.tensor(shares), n, replacement=True, generator=seeded(seed))
    out = augment(ARROWS[which, None], p, only("blit"), seeded(seed + 1))
    same = (out == ARROWS[None]).all(dim=3).all(dim=2)
    assert (same.sum(1) == 1).all()
    return same.double().mean(dim=0)


def test_below_one_the_original_population_can_be_recovered():
    truth, n = [0.5, 0.3, 0.15, 0.05], 200_000
    # What augmentation makes of each pure population: the Markov operator.
    operator = torch.stack(
        [directions_after(one, 0.8, n, 10 + i) for i, one in enumerate(torch.eye(4).tolist())]
    )
    seen = directions_after(truth, 0.8, n, 50)
    assert (seen - torch.tensor(truth)).abs().max() > 0.1  # it does hide the truth
    recovered = torch.linalg.solve(operator.T, seen)
    np.testing.assert_allclose(recovered, truth, atol=0.06)
    # Turns leave 1 - p = 0.2 of every difference between directions; mirrors 0.2 of that between left and right.
    np.testing.assert_allclose(torch.linalg.svdvals(operator), [1, 0.2, 0.2, 0.04], atol=0.01)


def test_at_one_quarter_turns_leave_nothing_of_it():
    for shares in ([1.0, 0, 0, 0], [0.1, 0.2, 0.3, 0.4]):
        np.testing.assert_allclose(directions_after(shares, 1.0, 100_000, 3), 0.25, atol=0.006)


# ------------------------------------------------------------ how often


def feed(probability: AdaptiveProbability, sign: float, steps: int, images: int = 16) -> list[float]:
    course = []
    for _ in range(steps):
        probability.update(sign, 1, images, CPU)
        course.append(probability.p)
    return course


def test_probability_rises_while_the_critic_knows_too_much_and_falls_after():
    probability = AdaptiveProbability(AugmentConfig(target=0.6, adapt_images=640))
    up = feed(probability, 0.9, 20)
    assert up[-1] == pytest.approx(20 * 16 / 640)
    assert sorted(up) == up
    assert up[2] == 0  # moves every fourth step
    down = feed(probability, 0.3, 12)
    assert down[-1] == pytest.approx(8 * 16 / 640)


def test_probability_stays_where_transformations_can_be_undone():
    probability = AdaptiveProbability(AugmentConfig(adapt_images=100))
    assert feed(probability, -1.0, 8)[-1] == 0
    assert feed(probability, 1.0, 40)[-1] == 0.8
    assert 0.1 < feed(probability, 0.0, 4)[-1] < 0.2


def test_it_rises_ten_times_as_fast_by_unseen_images_unless_told_otherwise():
    for config, fast, slow in ((AugmentConfig(), 0.16, 0.016), (AugmentConfig(adapt_images=1e5), 0.08, 0.08)):
        for by_unseen, p in ((True, fast), (False, slow)):
            probability = AdaptiveProbability(config)
            for _ in range(4):
                probability.update(1.0, 1.0, 2000, CPU, by_unseen)
            assert probability.p == pytest.approx(p)


def test_the_mean_counts_not_the_last_look():
    probability = AdaptiveProbability(AugmentConfig(adapt_images=64))
    told = [probability.update(sign, 1, 1, CPU) for sign in (1.0, 1.0, 1.0, 0.0)]
    assert told == [None, None, None, 0.75]
    assert probability.p > 0


@pytest.mark.parametrize(
    ("looks", "overfit"),
    [
        ([(3, 3)] * 4, 1),
        ([(0, 3)] * 4, 0),
        ([(1.5, 3)] * 4, 0.5),
        ([(-9, 3)] * 4, -1),
        ([(9, 3)] * 4, 1),
        # One of the means, to which a look of small numbers adds little.
        ([(4, 4), (4, 4), (4, 4), (-1, 0.01)], 11 / 12.01),
        ([(1, -3)] * 4, 0),
        ([(-1, -3)] * 4, 0),
        ([(1, 0)] * 4, 0),
    ],
)
def test_overfitting_is_the_share_of_the_way_to_generated_images(looks, overfit):
    probability = AdaptiveProbability(AugmentConfig())
    assert [probability.update(*look, 1, CPU) for look in looks][-1] == pytest.approx(overfit)


def test_all_processes_count(monkeypatch):
    """The other process's critic is undecided: together they are below the target."""
    monkeypatch.setattr(module.distributed, "rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(
        module.distributed, "mean_over_processes", lambda values, device: [values[0] / 2, values[1]]
    )
    probability = AdaptiveProbability(AugmentConfig(p=0.5, adapt_images=640))
    feed(probability, 1.0, 2)
    # In the middle of an interval, too: the first process's state is what all resume from.
    assert float(probability.state()["augment_part"]) == float(probability.state()["augment_whole"]) / 2
    assert feed(probability, 1.0, 2)[-1] < 0.5


def test_a_fixed_probability_stays():
    assert set(feed(AdaptiveProbability(AugmentConfig(target=0.0, p=0.4)), 1.0, 20)) == {0.4}


def test_a_resumed_probability_goes_on_as_if_nothing_had_happened():
    whole, first = (AdaptiveProbability(AugmentConfig(adapt_images=500)) for _ in range(2))
    signs = np.random.default_rng(0).uniform(0.2, 1, 31)
    for sign in signs:
        whole.update(sign, 1, 7, CPU)
    for sign in signs[:14]:  # in the middle of an interval
        first.update(sign, 1, 7, CPU)
    second = AdaptiveProbability(AugmentConfig(adapt_images=500))
    second.load_state(first.state())
    for sign in signs[14:]:
        second.update(sign, 1, 7, CPU)
    assert second.p == whole.p
    assert 0 < whole.p < 1


@pytest.mark.parametrize(
    "wrong",
    [{"target": 1.0}, {"target": float("nan")}, {"adapt_images": -1}, {"p": 1.1}, {"p": float("nan")}],
)
def test_impossible_settings_are_explained(wrong):
    with pytest.raises(UserError, match="augment"):
        AugmentConfig(**wrong)
