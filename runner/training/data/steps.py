"""Cut each pass over the data into the batches of its training steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any


@dataclass(frozen=True)
class StepBatches:
    """The batches that one training step takes; all are of one pass.

    Attributes:
        epoch: the number of the pass, counted from 0.
        batches: the batches, as they were read.
        move: a function that returns a batch on the device of the model; called when the batch is taken.
    """

    epoch: int
    batches: list[Any]
    move: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return map(self.move, self.batches)


def cut_in_steps(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield the batches of one pass in lists of `size`, each list just before its step; the last one may be shorter."""
    rest = iter(batches)
    while step := list(islice(rest, size)):
        yield step


def batches_of(steps: Iterable[StepBatches], sizes: list[int]) -> Iterator[Any]:
    """Yield the batches of the steps one by one, and append to `sizes` how many a step has, before its first one."""
    for step in steps:
        sizes.append(len(step))
        yield from step


def batches_in_step(sizes: list[int], number: int) -> int:
    """Return how many batches the step `number` (from 1) has, by the list that `batches_of` fills.

    The last entry counts where a method gives a step batches that the data did not give.
    """
    return sizes[min(number, len(sizes)) - 1]
