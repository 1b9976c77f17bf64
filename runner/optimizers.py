"""torch's optimizers that do not serve every kind of parameter, gradient or group: where one cannot, the run is skipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from runner.errors import ConfigError, SkippedError
from runner.groups import Group


def Muon(groups: list[Group], **options: Any) -> torch.optim.Optimizer:
    """torch.optim.Muon; raises SkippedError unless every parameter is a matrix."""
    for group in groups:
        for parameter in group["params"]:
            if parameter.dim() != 2:
                shape = "x".join(map(str, parameter.shape))
                raise SkippedError(f"Muon steps matrices alone; the group {group['name']} holds a tensor of shape {shape}")
    return torch.optim.Muon(groups, **options)


def LBFGS(groups: list[Group], **options: Any) -> torch.optim.Optimizer:
    """torch.optim.LBFGS, which takes one group: raises ConfigError for more, SkippedError where it is the method's doing."""
    if len(groups) > 1:
        names = [group["name"] for group in groups]
        if len({name.removesuffix("/frozen") for name in names}) == 1:
            raise SkippedError("LBFGS takes one group, and this method needs a second for what is frozen")
        raise ConfigError(f"optimizer: LBFGS takes one group, not {len(names)} ({names[0]}, ...); give groups=one")
    return torch.optim.LBFGS(groups, **options)


class SparseAdam(torch.optim.SparseAdam):
    """torch.optim.SparseAdam; raises SkippedError at the first step that finds a dense gradient."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not parameter.grad.is_sparse:
                    raise SkippedError("SparseAdam steps sparse gradients alone, such as those of Embedding(sparse=True)")
        return super().step(closure)
