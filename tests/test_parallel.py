"""Gradients side by side: the same as one backward pass, whatever the number of threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from micrographia.training import parallel
from micrographia.training.parallel import backward_side_by_side


@pytest.fixture
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 1, 3))


def terms(network, n=5):
    inputs = torch.randn(n, 2, 1, 20, 20, generator=torch.Generator().manual_seed(1))

    def term(x):
        loss = network(x).square().mean()
        return loss, float(loss.detach())

    return [lambda x=x: term(x) for x in inputs]


def test_it_is_the_gradient_of_the_sum(network):
    sum(term()[0] for term in terms(network)).backward()
    expected = [p.grad.clone() for p in network.parameters()]
    losses = backward_side_by_side(terms(network), list(network.parameters()))
    assert losses == [term()[1] for term in terms(network)]
    for parameter, wanted in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted)


def test_the_number_of_threads_changes_no_bit(network):
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            backward_side_by_side(terms(network), list(network.parameters()))
            assert torch.get_num_threads() == threads
            results.append([p.grad.clone() for p in network.parameters()])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_workers_and_threads_of_others_keep_their_numbers(network):
    before = torch.get_num_threads()
    parallel._pool.cache_clear()
    try:
        torch.set_num_threads(4)
        backward_side_by_side(terms(network, 2), list(network.parameters()))
        assert torch.get_num_threads() == 4
        with ThreadPoolExecutor(1) as others:
            assert others.submit(torch.get_num_threads).result() == 4

        def number(_) -> int:  # after an operation that is shared out
            torch.ones(2000, 2000).sum()
            return torch.get_num_threads()

        assert set(parallel._pool(2, 2).map(number, range(8))) == {2}
    finally:
        torch.set_num_threads(before)
        parallel._pool.cache_clear()


def test_a_term_need_not_use_every_parameter(network):
    first, last = network[0], network[2]
    parts = [
        lambda: (first.weight.sum(), None),
        lambda: (last.weight.sum() + first.bias.sum() + last.bias.sum(), None),
    ]
    backward_side_by_side(parts, list(network.parameters()))
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in network.parameters())


def test_gradients_lie_in_memory_as_their_parameters_do():
    layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    inputs = torch.randn(2, 3, 8, 8)
    before = layer.weight.detach().clone()
    terms = [lambda i=i: (layer(inputs[i : i + 1]).square().sum(), None) for i in range(2)]
    backward_side_by_side(terms, list(layer.parameters()))
    assert layer.weight.grad.stride() == layer.weight.stride()
    expected = before - 0.1 * layer.weight.grad.sign()  # the first step of Adam
    torch.optim.Adam(layer.parameters(), 0.1, fused=True).step()
    torch.testing.assert_close(layer.weight.detach(), expected, atol=1e-4, rtol=1e-4)


def test_an_error_in_a_term_reaches_the_caller(network):
    def broken():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        backward_side_by_side([broken, broken], list(network.parameters()))
