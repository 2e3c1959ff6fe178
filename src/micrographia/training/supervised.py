"""The simplest trainable model: one network, one loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from micrographia.training.distributed import optimizer_step
from micrographia.training.parallel import backward_side_by_side


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
        Micro-batches per step: the gradients are those of the whole batch, the memory that of one part. On
        the CPU the parts are computed side by side (see `training.parallel`): with more than one, the
        network may not use dropout or batch normalisation there.
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
        parts = list(micro_batches(batch, self.accumulate))
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        losses = backward_side_by_side([partial(self._part, *part) for part in parts], parameters)
        optimizer_step(self.optimizer, self.max_gradient_norm)
        return {"loss": torch.stack(losses).sum()}

    def _part(self, weight: float, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        inputs, *targets = batch
        loss = weight * self.loss(self.network(inputs).float(), *targets)
        return loss, loss.detach()


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
