from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from micrographia.errors import UserError
from micrographia.synthesize.dcgan import DCDiscriminator, DCGenerator, measure_batch_norm


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("resolution", [16, 32, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_every_size(resolution, channels):
    generator = DCGenerator(resolution, channels, latent=5, base=2)
    discriminator = DCDiscriminator(resolution, channels, base=2)
    images = generator(torch.randn(2, 5))
    assert images.shape == (2, channels, resolution, resolution)
    assert images.abs().max() <= 1
    assert discriminator(images).shape == (2,)
    assert generator.latent == 5


def test_the_taught_layout_has_the_parameters_that_everybody_counts():
    """64², three channels, codes of 100: 3,576,704 and 2,765,568, as in PyTorch's own DCGAN tutorial."""
    generator, discriminator = DCGenerator(64, 3), DCDiscriminator(64, 3)
    assert sum(p.numel() for p in generator.parameters()) == 3_576_704
    assert sum(p.numel() for p in discriminator.parameters()) == 2_765_568
    assert [norm.num_features for norm in generator.norms] == [512, 256, 128, 64]
    assert [conv.out_channels for conv in discriminator.halving] == [64, 128, 256, 512]
    weights = torch.cat([conv.weight.flatten() for conv in generator.doubling])
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)


def test_larger_images_add_coarse_layers():
    widths = [norm.num_features for norm in DCGenerator(256, base=4).norms]
    assert widths == [32, 32, 32, 16, 8, 4]


@pytest.mark.parametrize("slope", [0.2, 0.0])
@pytest.mark.parametrize("classes", [0, 3])
def test_every_weight_learns(slope, classes):
    generator = DCGenerator(32, 2, latent=7, base=4, classes=classes)
    discriminator = DCDiscriminator(32, 2, base=4, slope=slope, classes=classes)
    labels = torch.arange(12) % classes if classes else None
    F.softplus(-discriminator(generator(torch.randn(12, 7), labels), labels)).mean().backward()
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_classes_change_images_and_logits():
    generator = DCGenerator(16, 1, latent=6, base=8, classes=2).eval()
    discriminator = DCDiscriminator(16, 1, base=8, classes=2).eval()
    z, zeros = torch.randn(4, 6), torch.zeros(4, dtype=torch.long)
    images = generator(z, zeros)
    assert not torch.allclose(images, generator(z, zeros + 1))
    assert not torch.allclose(discriminator(images, zeros), discriminator(images, zeros + 1))
    with pytest.raises(ValueError, match="give labels"):
        generator(z)
    with pytest.raises(ValueError, match="give labels"):
        discriminator(images)


def test_plain_rectifiers_are_the_slope_zero():
    torch.manual_seed(1)
    leaky = DCDiscriminator(16, base=4)
    torch.manual_seed(1)
    plain = DCDiscriminator(16, base=4, slope=0)
    images = torch.randn(6, 1, 16, 16, requires_grad=True)
    assert torch.equal(leaky.judge.weight, plain.judge.weight)
    (through_leaky,) = torch.autograd.grad(leaky(images).sum(), images)
    (through_plain,) = torch.autograd.grad(plain(images).sum(), images)
    assert not torch.allclose(through_leaky, through_plain)


def test_each_network_learns_against_the_other_at_rest():
    generator, discriminator = DCGenerator(16, latent=8, base=8), DCDiscriminator(16, base=8)
    adams = [torch.optim.Adam(n.parameters(), 2e-3, betas=(0.5, 0.999)) for n in (generator, discriminator)]
    disc = torch.where(
        torch.linspace(-1, 1, 16)[:, None] ** 2 + torch.linspace(-1, 1, 16) ** 2 < 0.4, 0.8, -0.8
    )
    telling, fooling = [], []
    for _ in range(30):
        real, fake = disc + 0.1 * torch.randn(16, 1, 16, 16), generator(torch.randn(16, 8)).detach()
        loss = F.softplus(-discriminator(real)).mean() + F.softplus(discriminator(fake)).mean()
        adams[1].zero_grad()
        loss.backward()
        adams[1].step()
        telling.append(float(loss.detach()))
    for _ in range(30):
        loss = F.softplus(-discriminator(generator(torch.randn(16, 8)))).mean()
        adams[0].zero_grad()
        loss.backward()
        adams[0].step()
        fooling.append(float(loss.detach()))
    assert telling[0] > 1
    assert telling[-1] < 0.5 * telling[0]
    assert fooling[-1] < 0.5 * fooling[0]


def test_statistics_of_the_normalisation_measured_anew():
    generator = DCGenerator(16, latent=8, base=8)
    for parameter in generator.parameters():
        parameter.data *= 3  # as if it were averaged weights that no batch has passed through
    generator.eval()
    codes = torch.randn(256, 8)
    before = generator(codes)
    measure_batch_norm(generator, codes)
    after = generator(codes)
    assert not generator.training
    reference = generator.train()(codes)
    assert all(norm.momentum == 0.1 for norm in generator.norms)
    assert (after - reference).abs().mean() < 0.05 * (before - reference).abs().mean()


def test_bad_input():
    for network in (DCGenerator, DCDiscriminator):
        for resolution in (8, 48, 2048):
            with pytest.raises(UserError, match="power of two"):
                network(resolution)
    with pytest.raises(ValueError, match="for a discriminator of"):
        DCDiscriminator(16, base=4)(torch.zeros(2, 1, 32, 32))
