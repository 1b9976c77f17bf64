"""Read the `requires_grad` flags of a model again and again, and say what has been frozen and unfrozen in between."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import NamedTuple

from torch import Tensor, nn

from runner.freezing.selection import Selection, select_by_ids

_flag_of = attrgetter("requires_grad")


class Switched(NamedTuple):
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
        self.flags = list(map(_flag_of, self.parameters))

    def changes(self, ignored: Iterable[Tensor] = ()) -> Switched | None:
        """Read all flags but those of the parameters in `ignored`, and return what has changed; None if nothing has."""
        flags = list(map(_flag_of, self.parameters))
        if flags == self.flags:
            return None
        skipped = set(map(id, ignored))
        flags = [
            old if id(each) in skipped else new for each, old, new in zip(self.parameters, self.flags, flags, strict=True)
        ]
        if flags == self.flags:
            return None
        before, self.flags = self._declared(), flags
        after = self._declared()
        return Switched(_without(after, before), _without(before, after))

    def _declared(self) -> Selection:
        """Return what the flags that were read last declare frozen."""
        frozen = {id(each) for each, flag in zip(self.parameters, self.flags, strict=True) if not flag}
        return select_by_ids(self.model, frozen, self.buffers)

    @property
    def are_all_frozen(self) -> bool:
        """Whether there are parameters, and none of them had `requires_grad` when the flags were last read."""
        return bool(self.flags) and not any(self.flags)


def _without(one: Selection, other: Selection) -> Selection:
    """Return what is in one selection and not in the other."""
    return Selection(
        parameters={name: each for name, each in one.parameters.items() if each not in other},
        buffers={name: each for name, each in one.buffers.items() if each not in other},
    )
