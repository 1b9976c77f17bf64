"""Schedules of the learning rate that torch builds from functions or from other schedulers."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    SequentialLR,
)


def inverse_square_root(step: int) -> float:
    """The factor 1 / sqrt(1 + step)."""
    return float((1 + step) ** -0.5)


def nine_tenths(step: int) -> float:
    """The factor 0.9, at every step."""
    return 0.9


def warm_up_then_cosine(optimizer: Optimizer, warm_up: int, steps: int) -> SequentialLR:
    """Linear from a tenth of the rate over `warm_up` steps, then a cosine down to 0 at `steps`."""
    warm, cosine = LinearLR(optimizer, 0.1, total_iters=warm_up), CosineAnnealingLR(optimizer, max(1, steps - warm_up))
    return SequentialLR(optimizer, [warm, cosine], milestones=[warm_up])


def warm_up_and_decay(optimizer: Optimizer, warm_up: int, gamma: float) -> ChainedScheduler:
    """Linear from a tenth of the rate over `warm_up` steps, times an exponential decay."""
    return ChainedScheduler([LinearLR(optimizer, 0.1, total_iters=warm_up), ExponentialLR(optimizer, gamma)], optimizer)
