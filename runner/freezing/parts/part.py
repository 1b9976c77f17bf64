"""A named part, such as `@norms`: how it is found in a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from runner.freezing.parts.evidence import Evidence
from runner.freezing.words import Words


@dataclass(frozen=True)
class Part:
    """How a named part is found.

    Attributes:
        find: takes a model, Evidence, and the words of messages; returns the names of the modules and parameters of the
            model that are the part, or patterns for them; none if the model has no such part.
        absent: what a message says of a model that has no such part, a clause such as `it has no norm layer`.
        may_be_absent: whether a model without the part is no mistake.
    """

    find: Callable[[nn.Module, Evidence, Words], Sequence[str]]
    absent: str
    may_be_absent: bool = False
