"""Find the norm layers of a model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from runner.freezing.parts.evidence import Evidence
from runner.freezing.words import Words

NORM_CLASSES = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
)


def find_norms(model: nn.Module, evidence: Evidence, words: Words) -> Sequence[str]:
    """Return the names of the norm layers of a model; see `is_norm`."""
    return [name for name, module in model.named_modules(remove_duplicate=False) if is_norm(module)]


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm layer: of one of torch's classes, of a subclass, or by its name and parameters.

    By name: `norm` is in the name of its class, in any case, and it has a scale of its own and no larger tensor. So it is
    with a class that has only buffers, as torchvision's FrozenBatchNorm2d, but not with a block that contains a norm.
    """
    if isinstance(module, NORM_CLASSES):
        return True
    own = list(module.parameters(recurse=False))
    if "norm" not in type(module).__name__.lower() or len(own) < len(list(module.parameters())):
        return False
    has_statistics = "running_mean" in dict(module.named_buffers(recurse=False))
    return (bool(own) or has_statistics) and all(map(_is_scale, own))


def _is_scale(parameter: Tensor) -> bool:
    """Return whether a parameter has values along one dimension at most, as (C) or (1, C, 1, 1); a matrix (1, C) has not."""
    return parameter.dim() != 2 and parameter.numel() == max(parameter.shape, default=1)
