"""Gradients of a sum of terms, computed side by side on the CPU.

A training step is a chain of small operations: PyTorch's own threads, which share out each operation, spend
much of their time waiting for each other. Terms of a loss that do not depend on each other (parts of a
batch, directions of a cycle) share out better as a whole, one thread each. The terms' gradients are added in
their order, so that the result does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

Term = Callable[[], tuple[Tensor, Any]]


def backward_side_by_side(
    terms: Sequence[Term], parameters: Sequence[nn.Parameter], at_once: bool = True
) -> list[Any]:
    """Set every parameter's ``grad`` to the gradient of the sum of all terms' losses.

    Parameters
    ----------
    terms : callables without arguments
        Each returns its loss (scalar, on the parameters' device) and whatever else the caller wants back.
    parameters : parameters
    at_once : bool
        Run them at the same time on the CPU: none may then draw from a shared generator or change what
        another uses (dropout, batch normalisation).

    Returns
    -------
    list
        What the terms returned beside their losses, in their order.
    """

    def gradients(term: Term) -> tuple[tuple[Tensor | None, ...], Any]:
        loss, result = term()
        return torch.autograd.grad(loss, parameters, allow_unused=True), result

    threads = torch.get_num_threads()
    workers = min(threads, len(terms)) if at_once and parameters[0].device.type == "cpu" else 1
    if workers > 1:
        done = list(_pool(workers, threads // workers).map(gradients, terms))
    else:
        done = [gradients(term) for term in terms]
    for parameter, *parts in zip(parameters, *(g for g, _ in done), strict=True):
        # In the parameter's own memory format: fused optimizers walk through both in the order of memory.
        parameter.grad = torch.zeros_like(parameter)
        for part in parts:
            if part is not None:
                parameter.grad += part
    return [result for _, result in done]


@lru_cache(maxsize=4)
def _pool(workers: int, threads_each: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, "gradients", torch.set_num_threads, (threads_each,))
