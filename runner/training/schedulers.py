"""Factors for torch's LambdaLR and MultiplicativeLR, and functions that build combined learning-rate schedulers."""

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
    """Return 1 / sqrt(1 + step), by which LambdaLR multiplies the initial learning rate."""
    return float((1 + step) ** -0.5)


def nine_tenths(step: int) -> float:
    """Return 0.9 whatever the step is; MultiplicativeLR multiplies the learning rate by it after each step."""
    return 0.9


def warm_up_then_cosine(optimizer: Optimizer, warm_up: int, steps: int) -> SequentialLR:
    """Return a scheduler under which the learning rate first rises and then falls.

    The rate rises linearly from a tenth of the optimizer's rate to the whole of it in the first `warm_up` steps, then
    follows a cosine down to 0, which it reaches at step `steps`.
    """
    linear, cosine = LinearLR(optimizer, 0.1, total_iters=warm_up), CosineAnnealingLR(optimizer, max(1, steps - warm_up))
    return SequentialLR(optimizer, [linear, cosine], milestones=[warm_up])


def warm_up_and_decay(optimizer: Optimizer, warm_up: int, gamma: float) -> ChainedScheduler:
    """Return a scheduler that multiplies the learning rate by two factors.

    One rises linearly from 0.1 to 1 in the first `warm_up` steps and then stays 1. The other is `gamma ** step`, from the
    first step on.
    """
    return ChainedScheduler([LinearLR(optimizer, 0.1, total_iters=warm_up), ExponentialLR(optimizer, gamma)], optimizer)
