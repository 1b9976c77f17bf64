"""What the gradient of a parameter is: none, zero, present, and whether it is finite."""

from __future__ import annotations

import torch
from torch import Tensor

from runner.shards import local


def gradient_kind(parameter: Tensor) -> str:
    """Return `none` if a parameter's `.grad` is None, `zero` if all elements of it are 0, otherwise `present`."""
    if parameter.grad is None:
        return "none"
    return "present" if bool(_values(parameter.grad).any()) else "zero"


def has_finite_gradient(parameter: Tensor) -> bool:
    """Return whether all elements of a parameter's gradient are finite, or it has no gradient."""
    return parameter.grad is None or bool(torch.isfinite(_values(parameter.grad)).all())


def _values(gradient: Tensor) -> Tensor:
    """Return the elements of a gradient; of a sparse one, those that it stores, and of a DTensor, those of this process."""
    gradient = local(gradient)
    return gradient.coalesce().values() if gradient.is_sparse else gradient
