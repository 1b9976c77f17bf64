"""Read the `requires_grad` flags of a model again and again, and say what has been frozen and unfrozen in between."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn

from runner.freezing.selection import Selection, select_by_ids


class FlagChanges(NamedTuple):
    """What the flags say now that they did not say before: what is frozen now, and what is trainable now."""

    frozen: Selection
    trainable: Selection


class Flags:
    """The flags of a model's parameters, as they were when they were last read.

    Args:
        model: the model. Parameters that it gains later are not read.
        buffers: with "frozen", the buffers of a module are frozen while all its parameters are; see `select`.
    """

    def __init__(self, model: nn.Module, buffers: str = "live") -> None:
        self.model, self.buffers = model, buffers
        self.parameters = list(model.parameters())
        self.frozen = {id(each) for each in self.parameters if not each.requires_grad}

    def changes(self, ignored: Iterable[Tensor] = ()) -> FlagChanges | None:
        """Read all flags but those of the parameters in `ignored`, and return what has changed; None if nothing has."""
        skipped = set(map(id, ignored))
        changed = {
            id(each)
            for each in self.parameters
            if each.requires_grad == (id(each) in self.frozen) and id(each) not in skipped
        }
        if not changed:
            return None
        before = select_by_ids(self.model, self.frozen, self.buffers)
        self.frozen ^= changed
        after = select_by_ids(self.model, self.frozen, self.buffers)
        return FlagChanges(_without(after, before), _without(before, after))

    @property
    def are_all_frozen(self) -> bool:
        """Whether there are parameters, and none of them had `requires_grad` when the flags were last read."""
        return bool(self.parameters) and len(self.frozen) == len(self.parameters)


def _without(one: Selection, other: Selection) -> Selection:
    """Return what is in one selection and not in the other."""
    return Selection(
        parameters={name: each for name, each in one.parameters.items() if each not in other},
        buffers={name: each for name, each in one.buffers.items() if each not in other},
    )
