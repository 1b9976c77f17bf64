"""What the flags of the parameters declared in mid-run: which tensors became trainable or frozen, and when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from runner.contract import Row, names_in
from runner.errors import listed

MAX_SENTENCES = 4  # a loop may change the flags every few steps
AGAIN = "the flags changed again later"


@dataclass(frozen=True)
class FlagChange:
    """Parameters whose `requires_grad` was switched between two steps.

    Attributes:
        names: their names.
        frozen: whether the flag is False now.
        step: the number of the first step that is made with the new flags, or of the last one that was made before.
        is_before: whether `step` is the one that comes now; False if the steps are not counted any more.
    """

    names: tuple[str, ...]
    frozen: bool
    step: int
    is_before: bool

    @property
    def since(self) -> str:
        """Since when the flags are so, in words."""
        return f"from step {self.step} on" if self.is_before else f"after step {self.step}"

    @property
    def until(self) -> str:
        """Until when they were not, in words."""
        return f"before step {self.step}" if self.is_before else f"up to step {self.step}"


def tell(change: FlagChange, changes: list[FlagChange], sentences: list[str], what: str) -> None:
    """Add a change to the others, and a sentence about it to the sentences; of many changes, the first ones are told.

    `what`: what the flags say, such as `the flags declare frozen`.
    """
    changes.append(change)
    if len(changes) <= MAX_SENTENCES:
        sentences.append(f"{change.since}, {what}: {listed(change.names, most=4)}")
    elif len(changes) == MAX_SENTENCES + 1:
        sentences.append(AGAIN)


def declared_at(row: Row, changes: Iterable[FlagChange]) -> str:
    """Return when the tensor of a row was declared frozen, such as `before step 3`; empty if no change is about it."""
    found = [each for each in changes if not names_in(row).isdisjoint(each.names)]
    if len(found) > 1:
        return "at times"
    return "".join(each.since if each.frozen else each.until for each in found)
