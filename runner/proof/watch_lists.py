"""The frozen tensors whose marks are read around each step, by the optimizer that answers for them."""

from __future__ import annotations

from torch.optim import Optimizer

from runner.proof.marks import WatchList
from runner.proof.optimizers import KnownOptimizers


class WatchLists:
    """A list of frozen tensors for each optimizer, made anew when `clear` was called or the rows are assigned anew.

    Args:
        optimizers: the optimizers of the audit, which say which rows each one answers for.
    """

    def __init__(self, optimizers: KnownOptimizers) -> None:
        self.optimizers = optimizers
        self.lists: dict[int, WatchList] = {}  # by id of an optimizer
        self.assignment = 0  # the one of `optimizers` for which the lists were made

    def clear(self) -> None:
        """Make the lists anew when they are read next."""
        self.lists.clear()

    def read(self, optimizer: Optimizer, before_step: int | None = None) -> None:
        """Read the marks of the frozen tensors that `optimizer` answers for.

        `before_step`: the number of the step, if it begins now or its closure has just returned, so that a change of a mark
        was made by other code. None if the step ends now or calls its closure, so that it was made by the step.
        """
        if self.assignment != self.optimizers.assignment:
            self.lists.clear()
            self.assignment = self.optimizers.assignment
        if id(optimizer) not in self.lists:
            own, other = (
                [(row.tensor, row.window) for row in rows if row.frozen and not row.evidence.differed]
                for rows in (self.optimizers.own_rows(optimizer), self.optimizers.other_rows(optimizer))
            )
            self.lists[id(optimizer)] = WatchList(own, other)
        self.lists[id(optimizer)].read(before_step)
