"""Tell a layer that makes another number of classes in a checkpoint from any other difference of shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

Shapes = Mapping[
    str, tuple[Sequence[int], Sequence[int]]
]  # by name of a tensor: its shapes in the checkpoint and in the model


def makes_other_classes(model: nn.Module, differing: Shapes, classes: int) -> bool:
    """Return whether all tensors of another shape belong to layers that make another number of classes in the checkpoint.

    They do if each is of a layer that makes as many outputs as the tensor has rows, if its shapes differ in the rows alone,
    and if the rows are the same multiple of `classes` in the model as of one other number in the checkpoint: a detector has
    several numbers for each class.
    """
    numbers = set()
    for name, (given, wanted) in differing.items():
        if not (given and wanted and classes) or given[1:] != wanted[1:] or wanted[0] % classes:
            return False
        if wanted[0] not in _outputs(model, name):
            return False
        numbers.add(given[0] * classes / wanted[0])
    return len(numbers) == 1 and (number := numbers.pop()).is_integer() and number != classes


def _outputs(model: nn.Module, name: str) -> set[object]:
    """Return the numbers of outputs of the modules that a tensor is in: a parametrized weight is below its layer."""
    parts = name.split(".")[:-1]
    modules = [model.get_submodule(".".join(parts[:count])) for count in range(len(parts) + 1)]
    return {getattr(module, key, None) for module in modules for key in ("out_features", "out_channels")}
