"""Marks of a tensor that cost nothing to read, and what they say about who wrote to it between two comparisons of bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter

import torch
from torch import Tensor

from runner.shards import is_dtensor, local
from runner.tensors import same_bits

Mark = tuple[int, int]
_version_of, _gradient_of = attrgetter("_version"), attrgetter("grad")


def marks_of(tensors: Sequence[Tensor]) -> list[Mark]:
    """Return (version, address of the data) of each tensor: a write in place raises the version, `p.data = x` the other.

    An equal mark proves nothing: a fused optimizer, BatchNorm and a write through `.data` leave it as it is.
    """
    return list(zip(*_read_marks(tensors), strict=True))


def _read_marks(tensors: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    """Return (the version of each tensor, the address of the data of each)."""
    try:
        versions = list(map(_version_of, tensors))
    except RuntimeError:  # one was made in inference mode, and has no version
        versions = [-1 if tensor.is_inference() else tensor._version for tensor in tensors]
    try:
        addresses = list(map(Tensor.data_ptr, tensors))
    except RuntimeError:  # one is sparse, and has no address
        addresses = [tensor.data_ptr() if tensor.layout is torch.strided else 0 for tensor in tensors]
    if 0 in addresses:
        for number, tensor in enumerate(tensors):
            if is_dtensor(tensor):  # its memory is that of its local part, which has a version too
                part = local(tensor)
                versions[number] += 0 if part.is_inference() else part._version
                addresses[number] = part.data_ptr()
    return versions, addresses


@dataclass
class Window:
    """What happened to a frozen tensor since the last comparison that found its bits unchanged, the steps in between.

    Attributes:
        begin: the number of the step after which that comparison was made; 0 if it was made on entry.
        mark: the mark of the tensor when it was last read; None if it was not read yet.
        steps: how many steps later its bits were found changed.
        reached: whether one of them could have written the tensor: it had a gradient, or its mark changed in the step.
        written_in_step: whether its mark changed in one of the steps.
        written_before: the numbers of the steps before which its mark changed, after the step before had ended.
        written_between: whether its bits changed between two steps.
    """

    begin: int = 0
    mark: Mark | None = None
    steps: int = 0
    reached: bool = False
    written_in_step: bool = False
    written_before: list[int] = field(default_factory=list)
    written_between: bool = False

    @property
    def is_before_first_step(self) -> bool:
        """Whether the tensor may have been written before the first step, and no mark shows that it was written later."""
        return self.begin == 0 and all(number == 1 for number in self.written_before)

    def read(self, mark: Mark, before_step: int | None, can_be_stepped: bool) -> None:
        """Read the mark; if it changed, other code wrote the tensor before step `before_step`, or, if that is None, a step.

        `can_be_stepped`: whether the optimizer has the tensor. If not, a change in its step was made by other code too.
        """
        if mark != self.mark:
            if before_step is not None:
                self.written_before.append(before_step)
            else:
                self.reached |= can_be_stepped
                self.written_in_step |= can_be_stepped
            self.mark = mark


class WatchList:
    """The frozen tensors whose marks are read before and after each step of one optimizer.

    Args:
        own: (tensor, its window) for those that the optimizer has.
        other: the same for those that no optimizer has.
    """

    def __init__(self, own: Sequence[tuple[Tensor, Window]], other: Sequence[tuple[Tensor, Window]]) -> None:
        self.own_count = len(own)
        self.tensors = [tensor for tensor, _ in (*own, *other)]
        self.windows = [window for _, window in (*own, *other)]
        self.without_gradient = [tensor for tensor, window in own if not window.reached]
        for window, mark in zip(self.windows, marks_of(self.tensors), strict=True):
            window.mark = window.mark or mark
        marks = [window.mark or (0, 0) for window in self.windows]
        self.marks = [version for version, _ in marks], [address for _, address in marks]

    def read(self, before_step: int | None) -> None:
        """Read all marks; `before_step`: see `Window.read`. Also note which tensors have a gradient for the optimizer."""
        if before_step is not None and any(gradient is not None for gradient in map(_gradient_of, self.without_gradient)):
            for window, tensor in zip(self.windows, self.tensors[: self.own_count], strict=False):
                window.reached |= tensor.grad is not None
            self.without_gradient = [tensor for tensor in self.without_gradient if tensor.grad is None]
        marks = _read_marks(self.tensors)
        if marks != self.marks:
            for number, (mark, window) in enumerate(zip(zip(*marks, strict=True), self.windows, strict=True)):
                window.read(mark, before_step, can_be_stepped=number < self.own_count)
            self.marks = marks


@contextmanager
def writes_ignored(watched: Sequence[tuple[Tensor, Tensor, Window]]) -> Iterator[None]:
    """Do not count what the block writes to frozen tensors and puts back.

    `watched`: (tensor, the bits that it must have, its window). A tensor that has other bits after the block keeps its old
    mark, so that the write is noticed.
    """
    before = marks_of([tensor for tensor, _, _ in watched])
    try:
        yield
    finally:
        after = marks_of([tensor for tensor, _, _ in watched])
        for (tensor, reference, window), old, new in zip(watched, before, after, strict=True):
            if new != old == window.mark and same_bits(reference, tensor):
                window.mark = new
