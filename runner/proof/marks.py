"""Marks of a tensor that cost nothing to read, and what they say about who wrote to it between two comparisons of bits."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

Mark = tuple[int, int]


def mark_of(tensor: Tensor) -> Mark:
    """Return (version, address of the data): a write in place raises the version, and `p.data = x` changes the address.

    An equal mark proves nothing: a fused optimizer, BatchNorm and a write through `.data` leave it as it is.
    """
    return -1 if tensor.is_inference() else tensor._version, tensor.data_ptr()


@dataclass
class Window:
    """What happened to a frozen tensor since the last comparison that found its bits unchanged, the steps in between.

    Attributes:
        begin: the number of the step after which that comparison was made; 0 if it was made on entry.
        mark: the mark of the tensor when it was last read; None if it was not read yet.
        steps: the number of the last step that has begun since, minus `begin`.
        reached: whether one of them could have written the tensor: it had a gradient, or its mark changed in the step.
        written_before: the numbers of the steps before which its mark changed, after the step before had ended.
        written_in_step: whether its mark changed in a step.
        written_between: whether its bits changed between two steps.
    """

    begin: int = 0
    mark: Mark | None = None
    steps: int = 0
    reached: bool = False
    written_before: list[int] = field(default_factory=list)
    written_in_step: bool = False
    written_between: bool = False

    @property
    def is_before_first_step(self) -> bool:
        """Whether the tensor may have been written before the first step, and no mark shows that it was written later."""
        return self.begin == 0 and self.steps > 0 and all(number == 1 for number in self.written_before)

    def read(self, tensor: Tensor, before_step: int | None, can_be_stepped: bool) -> None:
        """Read the mark; if it changed, other code wrote the tensor before step `before_step`, or, if that is None, a step.

        `can_be_stepped`: whether the optimizer has the tensor. If not, a change in its step was made by other code too.
        """
        mark = mark_of(tensor)
        if before_step is not None:
            self.steps = before_step - self.begin
        if self.mark is not None and mark != self.mark:
            if before_step is not None:
                self.written_before.append(before_step)
            else:
                self.written_in_step = True
                self.reached |= can_be_stepped
        self.mark = mark
