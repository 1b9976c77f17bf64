"""Builders for the torch optimizers that accept only some kinds of parameters, gradients or parameter groups.

Where such an optimizer cannot work, SkippedError is raised, and the run is then skipped instead of failing.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch

from runner.errors import ConfigError, SkippedError
from runner.freezing.groups import Group


def Muon(groups: list[Group], **options: Any) -> torch.optim.Optimizer:
    """Build torch.optim.Muon from parameter groups (each with a `name`) and keyword arguments of Muon.

    Raises SkippedError, with which the run is skipped, if a parameter is not a matrix or if the installed torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise SkippedError(f"Muon needs torch 2.9 or newer; this is torch {torch.__version__}")
    for group in groups:
        for parameter in group["params"]:
            if parameter.dim() != 2:
                shape = "x".join(map(str, parameter.shape)) or "()"
                raise SkippedError(
                    f"Muon steps only matrices; the group {group['name']} has a tensor of shape {shape}: "
                    "freeze all others and use method=exclude, or name the matrices: groups=module groups.names=[...]"
                )
    return torch.optim.Muon(groups, **options)


@wraps(torch.optim.LBFGS, assigned=(), updated=())  # the config is checked against the signature of torch's class
def LBFGS(groups: list[Group], **options: Any) -> torch.optim.Optimizer:
    """Build torch.optim.LBFGS, which takes a single parameter group.

    Raises ConfigError if the config asks for several groups. Raises SkippedError, with which the run is skipped, if the
    freezing method split the single group. Also raises SkippedError if there are no parameters and torch is older than 2.14,
    because LBFGS then fails. A step with a line search raises SkippedError at a learning rate of 0, because the search
    divides by the learning rate.
    Source: https://github.com/pytorch/pytorch/pull/191666
    """
    if len(groups) > 1:
        names = [group["name"] for group in groups]
        if len({name.removesuffix("/frozen") for name in names}) == 1:
            raise SkippedError("LBFGS takes one group, and this method needs a second for what is frozen")
        raise ConfigError(f"optimizer: LBFGS takes one group, not {len(names)} ({names[0]}, ...); give groups=one")
    if torch.__version__ < "2.14" and not any(group["params"] for group in groups):
        raise SkippedError(f"LBFGS without parameters needs torch 2.14 or newer; this is torch {torch.__version__}")
    optimizer = torch.optim.LBFGS(groups, **options)
    optimizer.register_step_pre_hook(_refuse_line_search_at_lr_0)
    return optimizer


@wraps(torch.optim.SparseAdam, assigned=(), updated=())
def SparseAdam(groups: list[Group], **options: Any) -> torch.optim.Optimizer:
    """Build torch.optim.SparseAdam from parameter groups and keyword arguments of SparseAdam.

    A step of the optimizer raises SkippedError, with which the run is skipped, if a gradient is dense.
    """
    optimizer = torch.optim.SparseAdam(groups, **options)
    optimizer.register_step_pre_hook(_refuse_dense_gradients)
    return optimizer


def _refuse_line_search_at_lr_0(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Raise SkippedError if LBFGS would begin a line search with a learning rate of 0; a hook called before each step."""
    if any(group["lr"] == 0 and group["line_search_fn"] and group["params"] for group in optimizer.param_groups):
        raise SkippedError("the line search of LBFGS divides by the learning rate, which is 0 here")


def _refuse_dense_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Raise SkippedError if the gradient of any parameter is dense; a hook called before each step."""
    for group in optimizer.param_groups:
        if any(parameter.grad is not None and not parameter.grad.is_sparse for parameter in group["params"]):
            raise SkippedError("SparseAdam steps sparse gradients alone, such as those of Embedding(sparse=True)")
