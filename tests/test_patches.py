from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from micrographia.errors import UserError
from micrographia.patches import apply_tiled, dihedral, dihedral_inverse, random_crops


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_crops_keep_images_and_labels_together_and_repeat():
    images = noise(3, 1, 40, 50)
    labels = (images > 0).to(torch.uint8).repeat(1, 2, 1, 1)
    patches, patch_labels = random_crops(images, labels, 16, 30, np.random.default_rng([1, 2]))
    assert patches.shape == (30, 1, 16, 16)
    assert patch_labels.shape == (30, 2, 16, 16)
    assert patch_labels.dtype == torch.uint8
    assert torch.equal(patch_labels[:, :1], (patches > 0).to(torch.uint8))
    again, _ = random_crops(images, labels, 16, 30, np.random.default_rng([1, 2]))
    assert torch.equal(patches, again)
    assert len({round(float(p.sum()), 4) for p in patches}) > 20


def test_crops_reach_every_pixel():
    images = torch.arange(36.0).reshape(1, 1, 6, 6)
    patches, _ = random_crops(images, images, 4, 200, np.random.default_rng(0))
    assert set(patches.unique().tolist()) == set(range(36))


def test_crops_refuse_what_does_not_fit():
    with pytest.raises(UserError, match="hold no patch of 64 x 64"):
        random_crops(noise(1, 1, 32, 80), noise(1, 1, 32, 80), 64, 1, np.random.default_rng(0))
    with pytest.raises(UserError, match="do not belong together"):
        random_crops(noise(1, 1, 32, 32), noise(1, 1, 32, 31), 8, 1, np.random.default_rng(0))


def test_dihedral_is_the_group_of_the_square():
    square = noise(2, 5, 5)
    turned = [dihedral(square, k) for k in range(8)]
    for k in range(8):
        assert torch.equal(dihedral_inverse(turned[k], k), square)
        assert not any(torch.equal(turned[k], turned[j]) for j in range(k))
    assert turned[1][0, -1, 0] == square[0, 0, 0], "a quarter turn takes the top left to the bottom left"
    with pytest.raises(ValueError, match="0 to 7"):
        dihedral(square, 8)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(4, 40), st.integers(4, 40), st.floats(0, 0.99),
    st.integers(1, 5), st.booleans(),
)  # fmt: skip
def test_identity_comes_back_for_any_geometry(height, width, tall, wide, share, batch, extend):
    image = noise(2, height, width)
    out = apply_tiled(lambda t: t, image, (tall, wide), int(share * min(tall, wide)), batch, extend)
    assert out.shape == image.shape
    torch.testing.assert_close(out, image, rtol=0, atol=1e-5)


def test_convolution_is_exact_when_the_overlap_is_four_radii():
    image, kernel = noise(1, 150, 130), noise(1, 1, 9, 9, seed=1)
    out = apply_tiled(lambda t: F.conv2d(t, kernel, padding=4), image, 64, 16)
    whole = F.conv2d(F.pad(image[None], (4, 4, 4, 4), mode="reflect"), kernel)[0]
    torch.testing.assert_close(out, whole, rtol=0, atol=1e-4)
    narrow = apply_tiled(lambda t: F.conv2d(t, kernel, padding=4), image, 64, 4)
    assert (narrow - whole).abs().max() > 1, "the test must be able to fail"


def test_a_function_that_knows_borders_gets_the_image_as_it_is():
    kernel = noise(1, 1, 9, 9, seed=1)
    seen = []

    def function(tiles: torch.Tensor) -> torch.Tensor:
        seen.append(tiles.shape)
        return F.conv2d(tiles, kernel, padding=4)  # zeros at the border: the worst that it could make of it

    for height, width in ((112, 160), (64, 64)):
        image = noise(1, height, width)
        out = apply_tiled(function, image, 64, 16, extend=False)
        torch.testing.assert_close(out, F.conv2d(image[None], kernel, padding=4)[0], rtol=0, atol=1e-4)
    assert [shape[0] for shape in seen] == [6, 1]


def test_function_with_a_stride_sees_one_phase():
    def halve(tiles: torch.Tensor) -> torch.Tensor:
        return F.interpolate(F.avg_pool2d(tiles, 4), scale_factor=4)

    image = noise(1, 128, 128)
    # The margin (8) is a multiple of the stride as well, so the phase is that of the whole image.
    torch.testing.assert_close(apply_tiled(halve, image, 64, 32), halve(image[None])[0], atol=1e-5, rtol=0)


def test_more_channels_out_than_in():
    out = apply_tiled(lambda t: torch.cat([t, 2 * t], 1), noise(1, 30, 30), 16, 8)
    torch.testing.assert_close(out[1], 2 * out[0])


def test_no_seam_in_the_power_spectrum():
    """Every tile gets a gain of its own and darker edges, as networks do: no lines at the tile frequency."""
    side, tile, overlap = 512, 64, 32

    def spectrum(overlap: int) -> np.ndarray:
        rng = np.random.default_rng(5)
        ramp = torch.arange(tile)
        edge = 1 - 0.3 * torch.exp(-torch.minimum(ramp, tile - 1 - ramp) / 3.0)

        def uneven(tiles: torch.Tensor) -> torch.Tensor:
            gains = torch.as_tensor(rng.normal(1, 0.1, len(tiles)), dtype=torch.float32)
            return tiles * gains[:, None, None, None] * edge * edge[:, None]

        image = 1 + 0.1 * noise(1, side, side)
        out = apply_tiled(uneven, image, tile, overlap)[0].numpy()
        return np.abs(np.fft.fft2(out - out.mean())) ** 2 / side**2

    def line(power: np.ndarray, step: int) -> float:
        """Power at harmonics 2 to 6 of the tile frequency, on the axes, over that of white noise nearby."""
        index = side // step * np.arange(2, 7)
        floor = np.median(power[side // 4 : side // 2, side // 4 : side // 2])
        return float((power[index, 0].mean() + power[0, index].mean()) / 2 / floor)

    assert line(spectrum(0), tile) > 1000
    assert line(spectrum(overlap), tile - overlap) < 10


def test_overlap_must_be_smaller_than_the_tile():
    with pytest.raises(UserError, match="0 to 15"):
        apply_tiled(lambda t: t, noise(1, 30, 30), 16, 16)
