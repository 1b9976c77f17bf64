"""The structure of a batch: how mappings, tuples and lists are nested in it, and what kind of value stands where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from runner.errors import ConfigError

Structure = Any  # nested tuples of texts


def structure_of(batch: Any, is_nested: bool = False) -> Structure:
    """Return the structure of a batch: keys, lengths of tuples, and kinds of values; equal for batches of the same form.

    A list whose items all have one structure may have any length, as a list of pictures has, and so may such a tuple within
    a batch. A whole batch that is a tuple, or a list of tensors, is a row of fields. `is_nested`: whether `batch` is a part
    of one.
    """
    if isinstance(batch, Tensor):
        return "a tensor"
    if isinstance(batch, Mapping):
        items = sorted((str(key), structure_of(value, True)) for key, value in batch.items())
        return ("a mapping", tuple(items))
    if isinstance(batch, (tuple, list)):
        parts = tuple(structure_of(part, True) for part in batch)
        is_sequence = is_nested or (isinstance(batch, list) and parts[:1] != ("a tensor",))
        if is_sequence and len(set(parts)) == 1:
            return ("a list", parts[:1])
        return ("a row", parts)
    return type(batch).__name__


def described_structure(structure: Structure) -> str:
    """Return a structure in words, such as `(a tensor, a tensor)` or `{x: a tensor, y: a tensor}`."""
    if isinstance(structure, str):
        return structure
    kind, parts = structure
    if kind == "a mapping":
        return "{" + ", ".join(f"{key}: {described_structure(part)}" for key, part in parts) + "}"
    inner = ", ".join(map(described_structure, parts))
    return f"[{inner}, ...]" if kind == "a list" else f"({inner})"


def refuse_other_structure(batch: Any, number: int, first: Structure | None) -> Structure:
    """Return the structure of the batch. Raises ConfigError if it is not `first`, the structure of the first batch.

    `number`: the number of the batch, counted from 1 over all passes.
    """
    structure = structure_of(batch)
    if first is not None and structure != first:
        given, expected = described_structure(structure), described_structure(first)
        raise ConfigError(f"data: batch {number} is {given}, the batches before were {expected}; give one form")
    return structure
