"""Follow the tensors that no weights supplied through what wraps the model, and into the copies that it makes."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from torch import nn

from runner.tensors import TensorEntry, same_bits, tensor_entries
from runner.training.pretrained.loaded import Loaded
from runner.training.pretrained.prefixes import shape_of


def new_entries(loaded: Loaded) -> list[TensorEntry]:
    """Return the parameters and buffers of a model that no weights supplied; none if there are no weights."""
    return [entry for entry in tensor_entries(loaded.model).values() if (loaded.new or frozenset()) & {*entry.names}]


def names_of_new(model: nn.Module, new: Sequence[TensorEntry], known: Collection[int]) -> frozenset[str]:
    """Return the names that new tensors, and copies of them, have in a model.

    `new`: the tensors, by their names before something wrapped the model. `known`: the ids of all tensors before; only what
    came later can be a copy. Where a wrapper trains only the copy, or only the original, the other one is not used and left
    out: peft's `modules_to_save` trains a copy of a layer, and keeps the layer for when the adapters are disabled.
    """
    entries = tensor_entries(model).values()
    later = [entry for entry in entries if id(entry.tensor) not in known]
    names: set[str] = set()
    for each in new:
        found = [entry for entry in entries if entry.tensor is each.tensor]
        found += [entry for entry in later if _is_copy(entry, each)]
        trained = [entry for entry in found if entry.tensor.requires_grad]
        names.update(name for entry in trained or found for name in entry.names)
    return frozenset(names)


def _is_copy(entry: TensorEntry, original: TensorEntry) -> bool:
    """Return whether a tensor has the bits of another one, and its name but for what a wrapper put before or into it.

    On the meta device, where there are no bits, name, shape and dtype decide.
    """
    one, other = entry.tensor, original.tensor
    if shape_of(one) is None or shape_of(one) != shape_of(other) or one.dtype != other.dtype or one.device != other.device:
        return False
    if not any(_has_name_of(name, before) for name in entry.names for before in original.names):
        return False
    return one.is_meta or same_bits(one, other)


def _has_name_of(name: str, before: str) -> bool:
    """Return whether a name ends with the name `before`, which may be parted once: `a.weight` is in `x.a.copy.weight`."""
    parts = [re.escape(part) for part in before.split(".")]
    parted = [r"\.".join(parts[:at]) + r"\.(.*\.)?" + r"\.".join(parts[at:]) for at in range(1, len(parts))]
    return any(re.fullmatch(rf"(.*\.)?{pattern}", name) for pattern in parted or parts)
