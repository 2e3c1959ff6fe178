import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from micrographia.detect.network import ResidualUNet, balanced_loss, class_weights
from micrographia.nets.blocks import Residual, Up, pad_to_multiple


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    net = ResidualUNet(3, width=8, levels=2, blocks=1)
    for p in net.parameters():  # residual branches start at zero: let them act
        torch.nn.init.normal_(p, 0, 0.2)
    return net.eval()


@pytest.mark.parametrize("size", [(64, 64), (33, 65), (8, 8), (2, 2), (9, 130), (17, 3)])
@torch.inference_mode()
def test_any_size_in_is_the_same_size_out(network, size):
    assert network(torch.randn(2, 1, *size)).shape == (2, 3, *size)


@torch.inference_mode()
def test_a_shift_by_the_stride_shifts_the_output(network):
    # A spot on an empty field: nothing touches the border, so only the place changes.
    image = torch.zeros(1, 1, 192, 192)
    image[..., 80:100, 80:100] = torch.randn(20, 20)
    moved = torch.roll(image, (network.multiple, 2 * network.multiple), (-2, -1))
    one, two = network(image), network(moved)
    assert one.std() > 0
    back = torch.roll(two, (-network.multiple, -2 * network.multiple), (-2, -1))
    assert torch.allclose(back[..., 48:-48, 48:-48], one[..., 48:-48, 48:-48], atol=1e-4)


@torch.inference_mode()
def test_padding_does_not_reach_into_the_image(network):
    image = torch.randn(1, 1, 64, 64)
    assert torch.equal(network(image), network(image.clone()))
    padded, size = pad_to_multiple(torch.randn(1, 2, 13, 22), 8)
    assert (padded.shape, size) == ((1, 2, 16, 24), (13, 22))
    assert torch.equal(padded[..., 15, :22], padded[..., 12, :22])


def test_every_weight_learns():
    net = ResidualUNet(2, width=8)
    x, target = torch.randn(2, 1, 32, 32), torch.rand(2, 2, 32, 32)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):  # the zero convolutions shield what is before them in the first step
        optimizer.zero_grad()
        balanced_loss(net(x), target, torch.ones(2)).backward()
        optimizer.step()
    assert all(p.grad.abs().max() > 0 for p in net.parameters())


def test_a_new_block_is_the_identity_and_up_keeps_a_constant():
    x = torch.randn(2, 16, 9, 9)
    assert torch.equal(Residual(16)(x), x)
    up = Up(16, 8)(torch.ones(1, 16, 5, 5))
    assert up.shape == (1, 8, 10, 10)
    assert torch.allclose(up, up[..., :1, :1].expand_as(up), atol=1e-6)


def test_with_unit_weights_the_loss_is_plain_cross_entropy():
    logits, target = torch.randn(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    assert torch.allclose(
        balanced_loss(logits, target, torch.ones(3)), binary_cross_entropy_with_logits(logits, target)
    )


def test_the_weight_of_a_kind_multiplies_its_pixels():
    target = torch.zeros(1, 1, 10, 10)
    target[..., :5] = 1  # half of the pixels
    wrong_inside = torch.where(target == 1, -3.0, -3.0)
    plain, heavy = (balanced_loss(wrong_inside, target, torch.tensor([w])) for w in (1.0, 9.0))
    miss, hit = (binary_cross_entropy_with_logits(torch.tensor(-3.0), torch.tensor(t)) for t in (1.0, 0.0))
    assert plain == pytest.approx(float(miss + hit) / 2)
    assert heavy == pytest.approx(float(9 * miss + hit) / 2)


def test_the_loss_of_a_batch_is_the_mean_of_its_parts():
    logits, target, weights = (
        torch.randn(4, 2, 8, 8),
        torch.rand(4, 2, 8, 8).round(),
        torch.tensor([3.0, 20.0]),
    )
    parts = [balanced_loss(logits[i : i + 2], target[i : i + 2], weights) for i in (0, 2)]
    torch.testing.assert_close(balanced_loss(logits, target, weights), sum(parts) / 2)


def test_balancing_multiplies_the_odds_that_are_optimal():
    # One pixel in five belongs to the kind: the best constant logit is log(1/4), plus log w when balanced.
    target = torch.zeros(1, 1, 10, 10)
    target[..., :2] = 1
    grid = torch.linspace(-4, 4, 1601)
    for weight in (1.0, 4.0):
        losses = [balanced_loss(v.expand(1, 1, 10, 10), target, torch.tensor([weight])) for v in grid]
        best = grid[int(torch.stack(losses).argmin())]
        assert float(best) == pytest.approx(float(torch.log(torch.tensor(weight / 4))), abs=0.01)


def test_rare_kinds_weigh_more_within_bounds():
    labels = torch.zeros(2, 4, 50, 50)
    labels[:, 0, :, :30] = 1
    labels[:, 1, :, :2] = 1
    labels[0, 2, 0, 0] = 1
    weights = class_weights(labels)
    assert weights[0] == 1
    assert weights[1] == pytest.approx(0.96 / 0.04)
    assert weights[2] == weights[3] == class_weights(labels, cap=400).max() == 400
    assert class_weights(labels, cap=10).max() == 10
