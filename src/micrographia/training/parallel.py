"""Gradients of a sum of terms, computed side by side on the CPU.

A training step is a chain of small operations: PyTorch's own threads, which share out each operation, spend
much of their time waiting for each other. Terms of a loss that do not depend on each other (parts of a
batch, directions of a cycle) share out better as a whole, one thread each. The terms' gradients are added in
their order, so that the result does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from threading import Barrier
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Term = Callable[[], tuple[Tensor, Any]]
Result = TypeVar("Result")


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

    def add_up(term: Term) -> Any:
        loss, result = term()
        loss.backward(inputs=list(parameters))
        return result

    def gradients(term: Term) -> tuple[tuple[Tensor | None, ...], Any]:
        loss, result = term()
        return torch.autograd.grad(loss, parameters, allow_unused=True), result

    for parameter in parameters:
        parameter.grad = None
    if _workers(len(terms), at_once and parameters[0].device.type == "cpu") == 1:
        # One after the other they add up in place: large networks are not copied about.
        results = [add_up(term) for term in terms]
    else:
        done = side_by_side([partial(gradients, term) for term in terms], at_once=True)
        results = [result for _, result in done]
        for parameter, *parts in zip(parameters, *(g for g, _ in done), strict=True):
            # In the parameter's own memory format: fused optimizers walk through both in the order of memory.
            parameter.grad = torch.zeros_like(parameter)
            for part in parts:
                if part is not None:
                    parameter.grad += part
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return results


def side_by_side(functions: Sequence[Callable[[], Result]], at_once: bool) -> list[Result]:
    """Call functions, `at_once` in as many threads as PyTorch has, and return what they return in their order."""
    workers = _workers(len(functions), at_once)
    if workers > 1:
        threads_each = torch.get_num_threads() // workers
        return list(_pool(workers, threads_each).map(lambda function: function(), functions))
    return [function() for function in functions]


def _workers(functions: int, at_once: bool) -> int:
    return min(torch.get_num_threads(), functions) if at_once else 1


@lru_cache(maxsize=4)
def _pool(workers: int, threads_each: int) -> ThreadPoolExecutor:
    given, ready = torch.get_num_threads(), Barrier(workers + 1, timeout=60)

    def begin() -> None:
        torch.get_num_threads()  # or a thread's first operation would take the number of all threads anew
        torch.set_num_threads(threads_each)
        ready.wait()

    pool = ThreadPoolExecutor(workers, "gradients", begin)
    for _ in range(workers):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(given)  # or threads that others start later would have as few
    return pool
