"""How learning rates fall."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def hold_then_decay(optimizer: Optimizer, hold: float, steps: int) -> LambdaLR:
    """Full learning rate for a fraction `hold` of the steps, then a straight line to zero at their end."""
    held = hold * steps

    def share(step: int) -> float:
        return 1.0 if step < held else max(0.0, (steps - step) / max(steps - held, 1))

    return LambdaLR(optimizer, share)
