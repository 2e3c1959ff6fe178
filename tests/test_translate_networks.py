import pytest
import torch
from torch import nn

from micrographia.translate.networks import (
    CompactGenerator,
    DoublingProduct,
    FourierView,
    HalvingProduct,
    KhanDiscriminator,
    KhanGenerator,
    PatchDiscriminator,
)


def _seeded(build, *arguments):
    torch.manual_seed(0)
    return build(*arguments)


def _image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------------------------- generators


@torch.inference_mode()
def test_a_new_compact_generator_is_nearly_the_identity():
    generator, x = _seeded(CompactGenerator, 16, 2), _image(2, 1, 64, 64)
    y = generator(x, torch.randn_like(x))
    assert (y - x).abs().max() < 0.3
    assert (y - x).std() < 0.1
    assert not torch.equal(x, y)


@pytest.mark.parametrize("size", [(64, 64), (63, 65), (33, 48), (7, 5), (2, 2)])
@torch.inference_mode()
def test_a_compact_generator_keeps_any_size(size):
    generator, x = _seeded(CompactGenerator, 8, 1), _image(1, 1, *size)
    assert generator(x, torch.randn_like(x)).shape == x.shape


def test_every_weight_of_the_compact_generator_learns_and_the_noise_matters():
    generator, x = _seeded(CompactGenerator, 8, 2), _image(2, 1, 32, 32)
    optimizer = torch.optim.SGD(generator.parameters(), 0.1)
    for _ in range(2):  # the zero convolutions shield what is before them in the first step
        optimizer.zero_grad()
        (generator(x, torch.randn_like(x)) - 1).square().mean().backward()
        optimizer.step()
    assert all(p.grad.abs().max() > 0 for p in generator.parameters())
    with torch.inference_mode():
        one, two = generator(x, torch.zeros_like(x)), generator(x, torch.randn_like(x))
    assert (one - two).std() > 1e-3


@pytest.fixture(scope="module")
def khan():
    return _seeded(KhanGenerator, 8)


@pytest.mark.parametrize("size", [(256, 256), (100, 300)])
@torch.inference_mode()
def test_the_papers_generator_keeps_the_size(khan, size):
    x = _image(1, 1, *size)
    y = khan(x, torch.zeros_like(x))
    assert y.shape == x.shape
    assert y.abs().max() <= 2


def _innermost_gradients(generator: KhanGenerator) -> list[float]:
    """Largest gradient of the 2x2 -> 1x1 convolution and of the 1x1 -> 2x2 one."""
    generator.zero_grad()
    x, target = _image(2, 1, 256, 256), torch.randn(2, 1, 256, 256)
    (generator(x, torch.zeros_like(x)) - target).square().mean().backward()
    return [float(stack[0].weight.grad.abs().max()) for stack in (generator.downs[7], generator.ups[0])]


class _NormalisedAsPublished(nn.Module):
    """What ``InstanceNorm2d`` computes; PyTorch's own refuses a single value while training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(dim=(-2, -1), keepdim=True)
        return centred / (x.var(dim=(-2, -1), keepdim=True, unbiased=False) + 1e-5).sqrt()


def test_the_innermost_level_learns_and_with_the_published_normalisation_would_not():
    torch.manual_seed(0)
    repaired = KhanGenerator(8)
    assert min(_innermost_gradients(repaired)) > 1e-9

    torch.manual_seed(0)
    published = KhanGenerator(8)
    down = published.downs[7]
    published.downs[7] = nn.Sequential(down[0], _NormalisedAsPublished(), down[2])
    assert max(_innermost_gradients(published)) == 0

    dead = sum(p.numel() for p in (published.downs[7][0].weight, published.ups[0][0].weight))
    share = dead / sum(p.numel() for p in published.parameters())
    assert share == pytest.approx(0.15, abs=0.06)


@pytest.mark.parametrize(
    ("product", "plain"), [(HalvingProduct, nn.Conv2d), (DoublingProduct, nn.ConvTranspose2d)]
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(2, 2), (8, 6), (11, 9)])  # up to and beyond as many positions as weights
def test_a_product_of_matrices_is_the_convolution(product, plain, bias, size):
    layer, twin = _seeded(product, 3, 5, bias), plain(3, 5, 4, stride=2, padding=1, bias=bias)
    twin.load_state_dict(layer.state_dict())
    answers = []
    for network in (layer, twin):
        x = _image(2, 3, *size).requires_grad_()
        y = network(x)
        answers.append([y, *torch.autograd.grad(y.square().sum(), [x, *network.parameters()])])
    for mine, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------------- discriminators


@pytest.mark.parametrize("build", [PatchDiscriminator, KhanDiscriminator])
def test_discriminators_score_pieces_and_give_the_image_a_gradient(build):
    critic = _seeded(build)
    x = _image(2, 1, 64, 96).requires_grad_()
    scores = critic(x)
    assert scores.shape[:2] == (2, 1)
    assert scores.shape[3] > scores.shape[2] > 1
    scores.sum().backward()
    assert x.grad.abs().max() > 0


def test_spectral_normalisation_bounds_the_slope():
    critic = _seeded(PatchDiscriminator, 1, 16)
    with torch.no_grad():
        for p in critic.parameters():
            p.mul_(100)
        for _ in range(20):  # the power iteration follows
            critic(_image(1, 1, 64, 64))
    for layer in critic.layers:
        if hasattr(layer, "parametrizations"):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2) < 1.2


# ---------------------------------------------------------------------------------------------------- Fourier view


def _textured(n: int, seed: int) -> torch.Tensor:
    """Blurred noise of unit contrast and a little white noise on a large offset: a steep spectrum."""
    noise, white = torch.randn(2, n, 1, 32, 32, generator=torch.Generator().manual_seed(seed))
    blurred = nn.functional.avg_pool2d(nn.functional.pad(noise, (2, 2, 2, 2), mode="circular"), 5, 1)
    return 100 + 5 * blurred + 0.2 * white


def test_on_real_patches_the_view_is_standardised():
    view = FourierView(32)
    view.standardise_by(_textured(256, 0))
    seen = view(_textured(256, 1))
    assert seen.shape == (256, 1, 32, 16)
    assert seen.mean().abs() < 0.1
    assert seen.std() == pytest.approx(1, abs=0.1)
    by_frequency = seen.mean(dim=(0, 1))
    assert by_frequency.abs().mean() < 0.15  # no frequency dominates, low or high
    assert seen.std(dim=(0, 1)).min() > 0.6


def test_gain_shows_and_offset_and_place_do_not():
    view = FourierView(32)
    view.standardise_by(_textured(64, 0))
    x = _textured(4, 1)
    assert torch.allclose(view(x + 7), view(x), atol=0.02)
    assert (view(3 * x) - view(x)).mean() > 0.5


def test_a_lattice_is_a_bright_spot_at_its_frequency():
    view = FourierView(32)
    columns = torch.arange(32.0)
    stripes = torch.cos(2 * torch.pi * 4 * columns / 32).expand(1, 1, 32, 32)
    row, column = divmod(int(view(stripes)[0, 0].argmax()), 16)
    assert (row, column) == (16, 4)  # zero frequency of the rows in the middle


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_a_constant_patch_has_a_finite_gradient(value):
    view = FourierView(32)
    view.standardise_by(_textured(64, 0))
    x = torch.full((1, 1, 32, 32), value, requires_grad=True)
    view(x).square().sum().backward()
    assert torch.isfinite(x.grad).all()


def test_constant_real_patches_do_not_divide_by_zero():
    view = FourierView(16)
    view.standardise_by(torch.ones(8, 1, 16, 16))
    assert torch.isfinite(view(_image(2, 1, 16, 16))).all()


def test_the_statistics_travel_with_the_weights():
    view, other = FourierView(32), FourierView(32)
    view.standardise_by(_textured(64, 0))
    other.load_state_dict(view.state_dict())
    x = _textured(3, 2)
    assert torch.equal(view(x), other(x))


def test_noise_is_no_outlier_of_thousands_beside_noise_free_images():
    """Else the Fourier discriminator of noise-free simulations drowns every other loss."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    clean = torch.stack([torch.cos((x + i) / 3) * torch.cos(y / 4) for i in range(16)])[:, None]
    view = FourierView(64)
    view.standardise_by(clean)
    noisy = clean + 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    assert view(noisy).abs().mean() < 10
    assert view(noisy).mean() > 1  # and it is seen
