"""Mapping over nested values, such as batches and the states of optimizers."""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return a copy of a nested value in which each leaf (everything that is no container) is replaced by `function(leaf)`.

    Containers are those of torch's pytree (tuples, lists, dicts, named tuples, registered classes) and instances of any
    other class of MutableMapping. These other mappings are copied by `copy.copy`, so that the copies have the same
    attributes.
    """

    def map_mapping(leaf: Any) -> Any:
        if not isinstance(leaf, MutableMapping):
            return function(leaf)
        copied = copy.copy(leaf)
        for key in leaf:
            copied[key] = map_leaves(leaf[key], function)
        return copied

    return tree_map(map_mapping, value)


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return a copy of a nested value (dicts, lists, tuples) in which each tensor is replaced by `function(tensor)`."""
    return map_leaves(value, lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf)


def leaves_in(value: Any) -> list[Any]:
    """Return all leaves of a nested value (dicts, lists, tuples) in order; a leaf is everything that is no container."""
    leaves: list[Any] = []
    map_leaves(value, leaves.append)
    return leaves


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors in a nested value (dicts, lists, tuples), in order."""
    return [leaf for leaf in leaves_in(value) if isinstance(leaf, Tensor)]
