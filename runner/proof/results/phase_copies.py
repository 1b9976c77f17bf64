"""Copies of all tensors as they were when a phase began, and how far the tensors have moved since then."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from runner.proof.changes import Change, measure_change
from runner.proof.following import Followed
from runner.tensors import copy_of, same_bits


class PhaseCopies:
    """The tensors as they were when the present phase began; a new copy is made only of those that moved in the last one.

    A copy is never written to: it may also be the reference of a row.
    """

    def __init__(self) -> None:
        self.values: dict[Followed, Tensor] = {}  # without those of the first phase, which are the references of the rows
        self.unmoved: dict[Followed, Change] = {}  # the changes of the tensors that kept their bits in the last phase

    def of(self, row: Followed) -> Tensor:
        """Return the copy of the tensor of a row; of one that appeared in this phase, that of when it was first seen."""
        return self.values.get(row, row.reference)

    def differ(self, row: Followed) -> bool:
        """Return whether the tensor of a row has other bits now than when this phase began."""
        return not same_bits(self.of(row), row.tensor)

    def change(self, row: Followed) -> Change:
        """Return how far the tensor of a row moved in the phase that ends; if it is frozen, its bits were just compared."""
        before, known = self.of(row), self.unmoved.pop(row, None)
        has_held = row.frozen and not row.evidence.differed and before is row.reference
        if known is not None and (has_held or not self.differ(row)):
            change = known  # the copy is the same as in the phase before, and so are its norms
        else:
            change = measure_change(before, before if has_held else row.tensor)
        if not change.moved:
            self.unmoved[row] = change
        return change

    def begin_span(self, row: Followed) -> None:
        """Compare a tensor that has just been declared frozen with its present values, the reference of its row."""
        if row in self.values and self.values[row] is not row.reference:
            self.unmoved.pop(row, None)
            self.values[row] = row.reference

    def renew(self, rows: Iterable[Followed]) -> None:
        """Begin a phase, after `change` was asked about each row: copy the tensors that moved in the one that has ended."""
        for row in rows:
            copied = self.of(row) if row in self.unmoved else None
            self.values.pop(row, None)  # before another copy is made
            self.values[row] = copy_of(row.tensor) if copied is None else copied
