"""Functions for torch's learning-rate schedulers, and schedulers that combine others."""

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
    """Return the factor 1 / sqrt(1 + step), for LambdaLR."""
    return float((1 + step) ** -0.5)


def nine_tenths(step: int) -> float:
    """Return the factor 0.9 for every step, for MultiplicativeLR."""
    return 0.9


def warm_up_then_cosine(optimizer: Optimizer, warm_up: int, steps: int) -> SequentialLR:
    """Return a scheduler: linear from a tenth of the rate over `warm_up` steps, then a cosine down to 0 at step `steps`."""
    linear, cosine = LinearLR(optimizer, 0.1, total_iters=warm_up), CosineAnnealingLR(optimizer, max(1, steps - warm_up))
    return SequentialLR(optimizer, [linear, cosine], milestones=[warm_up])


def warm_up_and_decay(optimizer: Optimizer, warm_up: int, gamma: float) -> ChainedScheduler:
    """Return a scheduler: linear from a tenth of the rate over `warm_up` steps, and a factor `gamma` in every step."""
    return ChainedScheduler([LinearLR(optimizer, 0.1, total_iters=warm_up), ExponentialLR(optimizer, gamma)], optimizer)
