"""Several processes, one model: what `torchrun` needs, and nothing else.

Each process computes the gradients of its own share of the batch; `optimizer_step` averages them before
the step, so that all processes hold the same weights for ever. This is what DistributedDataParallel does,
in the open: its hooks assume one forward per backward, which a GAN breaks. Running statistics (batch
normalisation) are not averaged; the first process's are kept.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from micrographia.errors import UserError


def rank_and_world() -> tuple[int, int]:
    """Return this process's number and the number of processes; (0, 1) without ``torchrun``."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def join() -> None:
    """Join the other processes that ``torchrun`` started, if it did and we have not yet."""
    if rank_and_world()[1] > 1 and not dist.is_initialized():
        # The first optimiser imports it, and what it then finds of the process group it keeps alive, with its threads.
        import torch._dynamo

        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        # The others may wait long for what the first does alone.
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=timedelta(days=7))
        # Its threads must end before the interpreter does, or a process that has done its work may end in SIGABRT.
        atexit.register(dist.destroy_process_group)


def shard(batch: Any) -> Any:
    """Return this process's equal share of a batch: arrays or tensors ``[N, ...]``, tuples or dicts of them.

    Raises
    ------
    UserError
        N is not a multiple of the number of processes (the mean of the means would not be the mean).
    """
    rank, world = rank_and_world()
    if isinstance(batch, Mapping):
        return {key: shard(value) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(shard(value) for value in batch)
    if len(batch) % world:
        raise UserError(
            f"A batch of {len(batch)} cannot be shared by {world} processes; use a multiple of {world}."
        )
    share = len(batch) // world
    return batch[rank * share : (rank + 1) * share]


def optimizer_step(optimizer: Optimizer, max_gradient_norm: float = 0.0) -> None:
    """Average the gradients of the optimiser's parameters over all processes, clip them (0 = not), step.

    Every process must have run the same graph, so that the same parameters have gradients.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    _average([p.grad for p in parameters if p.grad is not None])
    if max_gradient_norm > 0:
        nn.utils.clip_grad_norm_(parameters, max_gradient_norm)
    optimizer.step()


def equalise(networks: Iterable[nn.Module]) -> None:
    """Give every process the first one's weights and buffers."""
    if rank_and_world()[1] > 1:
        for network in networks:
            for tensor in network.state_dict().values():
                dist.broadcast(tensor, src=0)


def mean_over_processes(values: list[float], device: torch.device) -> list[float]:
    """Average each value over all processes."""
    if rank_and_world()[1] == 1:
        return values
    total = torch.tensor(
        values, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device
    )
    _average([total])
    return total.tolist()


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in any process."""
    return mean_over_processes([float(flag)], device)[0] > 0


def is_first() -> bool:
    """Whether this is the process that writes and reports."""
    return rank_and_world()[0] == 0


def by_first(work: Callable[[], None]) -> None:
    """Let the first process do `work`; the others wait until it is done, and fail as it does."""
    error: UserError | None = None
    if is_first():
        try:
            work()
        except UserError as raised:
            error = raised
    told = from_first(error and str(error))
    if told is not None:
        raise error or UserError(told)


def alone(what: str) -> None:
    """Raise `UserError` under ``torchrun``, for what one process does."""
    if rank_and_world()[1] > 1:
        raise UserError(f"{what} runs in one process; start it without torchrun.")


def from_first(value: Any) -> Any:
    """Return the first process's `value` in every process."""
    if rank_and_world()[1] == 1:
        return value
    join()
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _average(tensors: list[Tensor]) -> None:
    """Average tensors of one type over all processes, in place, in a single message."""
    world = rank_and_world()[1]
    if world == 1 or not tensors:
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    flat /= world
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
