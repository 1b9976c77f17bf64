"""A model some of whose tensors come from weights, and the names of those that do not."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Loaded:
    """A model with weights; a target of `model.build` may return one in place of a module.

    Attributes:
        model: the model.
        new: the names of the parameters and buffers that the weights did not supply; they have the values that the model
            was built with. None if there are no weights.
        notes: messages for the user.
    """

    model: nn.Module
    new: frozenset[str] | None = None
    notes: tuple[str, ...] = ()
