"""torch's optimizers that do not serve every kind of parameter, gradient or group: where one cannot, the run is skipped."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch

from runner.errors import ConfigError, SkippedError
from runner.freezing.groups import Group


def Muon(groups: list[Group], **options: Any) -> torch.optim.Optimizer:
    """torch.optim.Muon; raises SkippedError unless every parameter is a matrix, and where torch is older than it."""
    if not hasattr(torch.optim, "Muon"):
        raise SkippedError(f"Muon came with torch 2.9, and this is torch {torch.__version__}")
    for group in groups:
        for parameter in group["params"]:
            if parameter.dim() != 2:
                shape = "x".join(map(str, parameter.shape)) or "()"
                raise SkippedError(
                    f"Muon steps matrices alone; the group {group['name']} holds a tensor of shape {shape}: "
                    "method=exclude, where all others are frozen, or groups=module groups.names=[...] hand it matrices alone"
                )
    return torch.optim.Muon(groups, **options)


@wraps(torch.optim.LBFGS, assigned=(), updated=())  # an argument is checked against this signature
def LBFGS(groups: list[Group], **options: Any) -> torch.optim.Optimizer:
    """torch.optim.LBFGS, which takes one group: raises ConfigError for more, SkippedError where it is the method's doing.

    Before torch 2.14 it cannot step without parameters, which raises SkippedError, as does a step at a learning rate of 0,
    for its line search would divide by it. Source: https://github.com/pytorch/pytorch/pull/191666
    """
    if len(groups) > 1:
        names = [group["name"] for group in groups]
        if len({name.removesuffix("/frozen") for name in names}) == 1:
            raise SkippedError("LBFGS takes one group, and this method needs a second for what is frozen")
        raise ConfigError(f"optimizer: LBFGS takes one group, not {len(names)} ({names[0]}, ...); give groups=one")
    if torch.__version__ < "2.14" and not any(group["params"] for group in groups):
        raise SkippedError(f"LBFGS without a parameter steps from torch 2.14 on, and this is torch {torch.__version__}")
    optimizer = torch.optim.LBFGS(groups, **options)
    optimizer.register_step_pre_hook(_refuse_a_search_from_zero)
    return optimizer


@wraps(torch.optim.SparseAdam, assigned=(), updated=())
def SparseAdam(groups: list[Group], **options: Any) -> torch.optim.Optimizer:
    """torch.optim.SparseAdam; a step that finds a dense gradient raises SkippedError."""
    optimizer = torch.optim.SparseAdam(groups, **options)
    optimizer.register_step_pre_hook(_refuse_dense_gradients)
    return optimizer


def _refuse_a_search_from_zero(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if any(group["lr"] == 0 and group["line_search_fn"] and group["params"] for group in optimizer.param_groups):
        raise SkippedError("LBFGS searches along a line from its learning rate on, and cannot from one of 0")


def _refuse_dense_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        if any(parameter.grad is not None and not parameter.grad.is_sparse for parameter in group["params"]):
            raise SkippedError("SparseAdam steps sparse gradients alone, such as those of Embedding(sparse=True)")
