"""The simplest trainable model: one network, one loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from micrographia.training.distributed import optimizer_step


class Supervised:
    """A network that learns to map the first tensor of a batch to the others.

    Parameters
    ----------
    network : module
    loss : callable
        ``loss(network(inputs), *targets) -> scalar``, a mean over the batch. The prediction is float32
        whatever the precision of the network.
    optimizer : Optimizer
    scheduler : LRScheduler, optional
        Stepped once per training step.
    accumulate : int
        Micro-batches per step: the gradients are those of the whole batch, the memory that of one part.
    max_gradient_norm : float
        Longer gradients are clipped to this length; 0 = never.
    """

    ema_networks = ("network",)

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[..., Tensor],
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        accumulate: int = 1,
        max_gradient_norm: float = 0.0,
    ):
        self.network, self.loss, self.optimizer = network, loss, optimizer
        self.accumulate, self.max_gradient_norm = accumulate, max_gradient_norm
        self.networks = {"network": network}
        self.optimizers = {"network": optimizer}
        self.schedulers = {"network": scheduler} if scheduler else {}
        self.ema: dict[str, nn.Module] = {}  # filled by the training loop

    def training_step(
        self, batch: Sequence[Tensor], step: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Take one optimiser step on a batch ``(inputs [N, ...], *targets [N, ...])``."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=batch[0].device)
        for weight, (inputs, *targets) in micro_batches(batch, self.accumulate):
            loss = weight * self.loss(self.network(inputs).float(), *targets)
            loss.backward()
            total += loss.detach()
        optimizer_step(self.optimizer, self.max_gradient_norm)
        return {"loss": total}


def micro_batches(batch: Sequence[Tensor], parts: int) -> Iterator[tuple[float, Sequence[Tensor]]]:
    """Split the tensors ``[N, ...]`` of a batch together; yield each part's share of N and the part.

    The shares weight the parts' mean losses so that they add up to the mean over the whole batch.
    """
    if parts == 1:
        yield 1.0, batch
        return
    n = len(batch[0])
    for part in zip(*(tensor.tensor_split(min(parts, n)) for tensor in batch), strict=True):
        yield len(part[0]) / n, part
