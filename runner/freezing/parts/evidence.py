"""What the named parts of a model are found by: what the user says, what one forward pass showed, and flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """What one forward pass on a real batch showed of a model; names are those of `named_modules` and `named_parameters`.

    Attributes:
        heads: the modules, or parameters, that make what the loss is made of; empty if `problem` says why none is known.
        problem: why the head is not known, a clause for a message; "" if it is.
        takes_picture: the modules that were called with a picture of the batch itself, outermost first.
        takes_other: the modules in the model that were called with any other tensor of the batch.
    """

    heads: tuple[str, ...] = ()
    problem: str = ""
    takes_picture: tuple[str, ...] = ()
    takes_other: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """What the named parts of one model are found by.

    Attributes:
        head: the pattern or patterns that `@head` stands for; None to find it.
        classes: the number of outputs of the head, where it is known.
        trial: what a forward pass showed; None if there was none.
        trainable: the names of the parameters that had `requires_grad` when the model was built.
    """

    head: str | Sequence[str] | None = None
    classes: int | None = None
    trial: Trial | None = None
    trainable: frozenset[str] = frozenset()
