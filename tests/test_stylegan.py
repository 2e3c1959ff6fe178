"""StyleGAN2's networks against the paper's own formulation, and what a GAN step must leave as it was."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch.nn import functional as F

from micrographia.errors import UserError
from micrographia.synthesize.resolution import RESOLUTIONS
from micrographia.synthesize.stylegan import (
    Mapping,
    StyledConv,
    StyleDiscriminator,
    StyleGenerator,
    detail_gain,
    fine_detail,
    group_deviation,
    group_spread,
    least_spread,
)


def reference_styled_conv(layer: StyledConv, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Karras et al. 2020, equations 1 to 3: weights of its own for each image, grouped convolution."""
    n, c_in, height, width = x.shape
    c_out, _, k, _ = layer.weight.shape
    style = layer.style(w)
    weight = layer.weight * layer.weight_gain * style[:, None, :, None, None]
    if layer.demodulate:
        weight = weight * torch.rsqrt(weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
    if not layer.up:
        out = F.conv2d(
            x.reshape(1, n * c_in, height, width),
            weight.reshape(n * c_out, c_in, k, k),
            padding=k // 2,
            groups=n,
        )
        return out.reshape(n, c_out, height, width)
    weight = weight.transpose(1, 2).reshape(n * c_in, c_out, k, k)
    out = F.conv_transpose2d(x.reshape(1, n * c_in, height, width), weight, stride=2, groups=n)
    out = out.reshape(n, c_out, *out.shape[-2:])
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = (4 * (line[:, None] * line)[None, None].repeat(c_out, 1, 1, 1)).to(x)
    return F.conv2d(F.pad(out, (1, 1, 1, 1)), kernel, groups=c_out)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
def test_the_shared_convolution_is_the_papers(up: bool, demodulate: bool) -> None:
    torch.manual_seed(0)
    layer = StyledConv(6, 5, 8, up=up, demodulate=demodulate).double()
    x, w = torch.randn(3, 6, 8, 8, dtype=torch.double), torch.randn(3, 8, dtype=torch.double)
    torch.testing.assert_close(layer(x, w), reference_styled_conv(layer, x, w).double(), rtol=1e-6, atol=1e-6)


def test_second_derivatives_are_right() -> None:
    torch.manual_seed(0)
    layer = StyledConv(2, 2, 3, up=True).double()
    x = torch.randn(2, 2, 4, 4, dtype=torch.double, requires_grad=True)
    w = torch.randn(2, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, w: layer(x, w), (x, w), atol=1e-4)


@pytest.mark.parametrize("resolution", [16, 64, 256])
def test_shapes_and_scale(resolution: int) -> None:
    torch.manual_seed(1)
    generator = StyleGenerator(resolution, channels=3, latent=16, width=4, widest=32, mapping_layers=2)
    critic = StyleDiscriminator(resolution, channels=3, latent=16, width=4, widest=32)
    images = generator(torch.randn(8, 16))
    assert images.shape == (8, 3, resolution, resolution)
    assert 0.1 < float(images.detach().std()) < 10  # normalised layers: no resolution vanishes or explodes
    assert critic(images).shape == (8,)
    assert [s[0] for s in generator.noise_shapes()][-1] == resolution


def test_the_largest_images_are_drawn_and_judged() -> None:
    generator = StyleGenerator(1024, latent=8, width=2, widest=8, mapping_layers=2, shape_px=(768, 1024))
    critic = StyleDiscriminator(1024, latent=8, width=2, widest=8)
    with torch.inference_mode():
        images = generator(torch.randn(4, 8))
        assert images.shape == (4, 1, 768, 1024)
        assert critic(images).shape == (4,)
        assert torch.isfinite(images).all()


def test_activations_keep_their_variance() -> None:
    torch.manual_seed(2)
    generator = StyleGenerator(64, latent=64, width=16, widest=128)
    seen = []
    for layer in (*generator.raising, *generator.refining):
        layer.register_forward_hook(
            lambda module, inputs, output: seen.append(float(output.detach().square().mean()))
        )
    generator(torch.randn(16, 64))
    # Blur and rectifier take some of it; nothing drifts with depth.
    assert all(0.1 < power < 2.5 for power in seen), seen
    assert seen[-1] > 0.3 * seen[0], seen


def test_mixed_styles_act_on_their_layers_only() -> None:
    torch.manual_seed(3)
    generator = StyleGenerator(32, latent=8, width=4, widest=16)
    a, b = generator.mapping(torch.randn(2, 8))
    coarse = torch.stack([a] * generator.style_count)
    mixed = coarse.clone()
    mixed[-1] = b  # the picture of the finest resolution alone
    one, other = generator.synthesise(torch.stack([coarse, mixed]))
    assert not torch.allclose(one, other)
    low = [F.avg_pool2d(x[None], 8) for x in (one, other)]
    assert float((low[0] - low[1]).detach().abs().max()) < float((one - other).detach().abs().max())


def test_noise_is_fixed_unless_given() -> None:
    torch.manual_seed(4)
    generator = StyleGenerator(32, latent=8, width=4, widest=16)
    for layer in (generator.first, *generator.raising, *generator.refining):
        torch.nn.init.constant_(layer.noise_strength, 0.5)
    z = torch.randn(2, 8)
    torch.testing.assert_close(generator(z), generator(z))
    noise = [torch.randn(2, 1, *shape) for shape in generator.noise_shapes()]
    assert not torch.allclose(generator(z), generator(z, noise=noise))


def test_truncation_moves_to_the_mean_style() -> None:
    generator = StyleGenerator(16, latent=8, width=4, widest=16)
    generator.mean_style.copy_(torch.arange(8.0))
    w = torch.randn(3, 8)
    torch.testing.assert_close(generator.truncated(w, 1.0), w)
    torch.testing.assert_close(generator.truncated(w, 0.0), torch.arange(8.0).expand(3, 8))


def test_truncation_keeps_the_class() -> None:
    generator = StyleGenerator(16, latent=8, width=4, widest=16, classes=2)
    generator.mean_style.copy_(torch.stack([torch.zeros(8), torch.ones(8)]))
    w, labels = torch.randn(3, 8), torch.tensor([0, 1, 1])
    torch.testing.assert_close(generator.truncated(w, 0.0, labels)[:, 0], torch.tensor([0.0, 1, 1]))
    layered = w[:, None].expand(-1, generator.style_count, -1)
    torch.testing.assert_close(
        generator.truncated(layered, 0.3, labels)[:, 2], generator.truncated(w, 0.3, labels)
    )
    of_no_class = generator.truncated(w, 0.0)
    torch.testing.assert_close(of_no_class, torch.full((3, 8), 0.5))


def test_deviation_within_groups() -> None:
    x = torch.zeros(8, 2, 3, 3)
    x[:4] = torch.arange(4.0)[:, None, None, None]
    found = group_deviation(x)
    assert found.shape == (8, 1, 3, 3)
    torch.testing.assert_close(found[:4], torch.full((4, 1, 3, 3), sqrt(1.25)), rtol=1e-4, atol=1e-4)
    assert float(found[4:].max()) < 1e-3  # the others are alike
    whole = torch.randn(8, 2, 4, 4)
    torch.testing.assert_close(group_deviation(whole)[:4], group_deviation(whole[:4]))


def test_a_verdict_hangs_on_the_group_and_on_no_other_image() -> None:
    torch.manual_seed(0)
    critic = StyleDiscriminator(16, latent=8, width=4, widest=16).eval()
    alike, varied = torch.randn(1, 1, 16, 16).expand(4, -1, -1, -1), torch.randn(4, 1, 16, 16)
    varied[0] = alike[0]
    among_alike, among_varied = critic(alike)[0], critic(varied)[0]
    assert float((among_alike - among_varied).detach().abs()) > 1e-3
    torch.testing.assert_close(
        critic(torch.cat([varied, alike]))[[0, 4]], torch.stack([among_varied, among_alike])
    )


def test_spread_tells_layouts_apart_not_noise() -> None:
    draw = torch.Generator().manual_seed(0)
    layout = torch.randn(1, 1, 8, 8, generator=draw).repeat_interleave(8, 2).repeat_interleave(8, 3)
    noise = torch.randn(16, 1, 64, 64, generator=draw)
    assert float(group_spread(layout.expand(8, -1, -1, -1)).max()) < 1e-5
    assert float(group_spread(layout + noise).max()) < 0.25  # averaged over 64 pixels, in both
    others = torch.randn(16, 1, 8, 8, generator=draw)
    torch.testing.assert_close(group_spread(others), torch.full((4,), sqrt(2)), rtol=0.2, atol=0)
    # A batch may be shared out in pieces of whole groups.
    torch.testing.assert_close(group_spread(others)[1:2], group_spread(others[4:8]))


def test_least_spread_is_exceeded_by_nearly_all_groups() -> None:
    images = torch.randn(400, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    share = float((group_spread(images) < least_spread(images)).float().mean())
    assert 0 < share < 0.15
    assert least_spread(images[:5]) > 0
    assert least_spread(torch.ones(6, 1, 16, 16)) < 1e-5


def test_fine_detail_is_what_a_smooth_image_lacks() -> None:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    ramp = (0.03 * x - 0.01 * y)[None, None]
    assert float(fine_detail(ramp)[..., 1:-1, 1:-1].abs().max()) < 1e-5
    noise = torch.randn(4, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    # 1 - 2 * 1/4 + (6/16)^2 of the variance of white noise is left.
    assert float(fine_detail(noise).std()) == pytest.approx(sqrt(0.640625), rel=0.02)


def test_the_gain_of_detail_makes_noise_as_strong_as_contrast() -> None:
    draw = torch.Generator().manual_seed(0)
    phases = F.interpolate((torch.randn(16, 1, 4, 4, generator=draw) > 0).float(), 64)
    noisy = phases + 0.05 * torch.randn(phases.shape, generator=draw)
    expected = 0.5 / (0.05 * sqrt(0.640625))
    assert detail_gain(noisy) == pytest.approx(
        expected, rel=0.2
    )  # though edges are most of detail's variance
    assert detail_gain(10 * noisy) == pytest.approx(detail_gain(noisy))
    assert detail_gain(torch.ones(2, 1, 16, 16)) == 1
    assert detail_gain(phases + 1e-4 * torch.randn(phases.shape, generator=draw)) == 30


def test_pictures_keep_their_precision_where_features_do_not() -> None:
    torch.manual_seed(7)
    generator = StyleGenerator(32, latent=8, width=8, widest=16)
    z, ramp = torch.randn(2, 8), torch.linspace(-1, 1, 64).expand(1, 1, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = generator.first(torch.randn(1, 16, 4, 4), torch.randn(1, 8), None)
        images, detail = generator(z), fine_detail(ramp)
    assert features.dtype == torch.bfloat16
    assert images.dtype == torch.float32
    assert len(images.unique()) > 0.9 * images.numel()  # the picture is no sum that was rounded to 8 bits
    assert float(detail[..., 1:-1, 1:-1].abs().max()) < 1e-6


def test_a_critic_that_is_shown_detail_sees_faint_noise_sooner() -> None:
    def loss_after(steps: int, detail: float) -> float:
        torch.manual_seed(6)
        critic = StyleDiscriminator(16, latent=8, width=8, widest=16, detail=detail)
        optimizer = torch.optim.Adam(critic.parameters(), 0.003, (0.0, 0.99))
        for _ in range(steps):
            smooth = torch.randn(16, 1, 4, 4)
            smooth = F.interpolate(smooth, size=16, mode="bicubic")
            logits = critic(torch.cat([smooth + 0.05 * torch.randn_like(smooth), smooth]))
            loss = F.softplus(-logits[:16]).mean() + F.softplus(logits[16:]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    assert loss_after(100, detail=10.0) < 0.5 * loss_after(100, detail=0.0)


def test_classes_change_image_and_verdict() -> None:
    torch.manual_seed(5)
    generator = StyleGenerator(16, latent=8, width=4, widest=16, classes=3)
    critic = StyleDiscriminator(16, latent=8, width=4, widest=16, classes=3)
    z = torch.randn(1, 8).expand(3, 8)
    images = generator(z, torch.arange(3))
    assert not torch.allclose(images[0], images[1])
    one, other = critic(images, torch.tensor([0, 1, 2])), critic(images, torch.tensor([1, 2, 0]))
    assert not torch.allclose(one, other)
    with pytest.raises(UserError, match="which class"):
        generator(z)


def test_images_that_are_no_square() -> None:
    generator = StyleGenerator(64, latent=8, width=4, widest=16, shape_px=(48, 64))
    critic = StyleDiscriminator(64, latent=8, width=4, widest=16)
    images = generator(torch.randn(4, 8))
    assert images.shape == (4, 1, 48, 64)
    assert critic(images).shape == (4,)


def test_mapping_ignores_the_length_of_a_code() -> None:
    mapping = Mapping(8, 2)
    z = torch.randn(4, 8)
    torch.testing.assert_close(mapping(z), mapping(3 * z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("resolution", [0, 8, 48, 2048])
def test_other_resolutions_are_refused(resolution: int) -> None:
    with pytest.raises(UserError, match="power of two"):
        StyleGenerator(resolution)
    assert resolution not in RESOLUTIONS


def test_grain_is_white_of_its_strength_and_follows_the_brightness():
    generator = StyleGenerator(32, latent=16, width=4, widest=16)
    shapes = generator.noise_shapes()
    assert shapes[-1] == (32, 32)
    w = torch.randn(1, 16)
    still = [torch.zeros(400, 1, *shape) for shape in shapes]
    with torch.no_grad():
        generator.grain.strength.fill_(2.0)
        generator.grain.slope.fill_(0.5)
        plain = generator.synthesise(w.expand(400, -1), still)
        grainy = generator.synthesise(w.expand(400, -1), [*still[:-1], torch.randn(400, 1, *shapes[-1])])
    spread = (grainy - plain).std(dim=0)
    expected = 0.2 * (1 + 0.5 * plain[0])
    assert float((spread / expected.abs()).mean()) == pytest.approx(1.0, abs=0.01)
    noise = (grainy - plain)[:, 0]
    assert abs(float((noise[:, :, 1:] * noise[:, :, :-1]).mean() / noise.square().mean())) < 0.01


def test_without_noise_there_is_no_grain():
    generator = StyleGenerator(32, latent=16, width=4, widest=16)
    w = torch.randn(2, 16)
    before = generator.synthesise(w)
    with torch.no_grad():
        generator.grain.strength.fill_(5.0)
    assert torch.equal(generator.synthesise(w), before)
