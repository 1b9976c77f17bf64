"""Which shapes of batches a run was fed, and the mean of the costs of a step over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from runner.cost.flops import META, REAL, StepCount
from runner.cost.shares import total_bytes
from runner.errors import listed
from runner.tensors import map_tensors, tensors_in

MOST_SHAPES, MOST_BYTES = 16, 2**28  # of the batches that are kept, one for each shape; the first is always kept
Shapes = tuple[tuple[tuple[int, ...], str], ...]  # shape and dtype of each tensor of a batch


def shapes_of(batch: Any) -> Shapes:
    """Return the shape and the dtype of each tensor in a batch."""
    return tuple((tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors_in(batch))


@dataclass
class FedBatches:
    """The batches that a run was fed: how many steps had which shapes, and one batch of each shape.

    Attributes:
        steps: {shapes of a batch: number of steps with such a batch}.
        examples: {shapes of a batch: the first batch with these shapes}, in the memory of the CPU, so that they take none of
            a GPU's. Only the first MOST_SHAPES shapes, and not more than MOST_BYTES besides the first batch.
    """

    steps: dict[Shapes, int] = field(default_factory=dict)
    examples: dict[Shapes, Any] = field(default_factory=dict)
    _bytes: int = 0

    def add(self, batch: Any) -> Shapes:
        """Count a batch that is about to be fed, and return its shapes."""
        shapes = shapes_of(batch)
        self.steps[shapes] = self.steps.get(shapes, 0) + 1
        if self.steps[shapes] == 1 and len(self.examples) < MOST_SHAPES:
            size = total_bytes(batch)
            if not self.examples or self._bytes + size <= MOST_BYTES:
                self.examples[shapes] = map_tensors(batch, Tensor.cpu)
                self._bytes += size
        return shapes

    def mean(
        self,
        count: Callable[[Any, Shapes], StepCount],
        device: torch.device,
        some_steps: Mapping[Shapes, int] | None = None,
    ) -> StepCount:
        """Return the mean of `count(batch on the device, its shapes)` over the steps whose shapes have an example.

        `some_steps`: {shapes of a batch: number of steps} for the mean over a part of the run's steps; if none of these
        shapes has an example, it is that over all. The peak memory includes the batch.
        """
        steps = self.steps if some_steps is None or self.examples.keys().isdisjoint(some_steps) else some_steps
        counts = []
        for shapes in [key for key in self.examples if key in steps]:
            batch = map_tensors(self.examples[shapes], lambda tensor: tensor.to(device))
            counted, size = count(batch, shapes), total_bytes(batch)
            counts.append((replace(counted, peak_bytes=counted.peak_bytes + size), steps[shapes]))
        return mean_count(counts)

    @property
    def note(self) -> str:
        """A sentence about the shapes that costs are the mean of; "" if all batches had the same shapes."""
        if len(self.steps) == 1:
            return ""
        some = f"the first {len(self.examples)} of " if len(self.examples) < len(self.steps) else ""
        return f"a step is the mean over {some}the {len(self.steps)} shapes of batches that were fed"


def count_notes(counts: Sequence[StepCount], fed: FedBatches) -> Iterator[str]:
    """Yield sentences about what is not known of some steps' costs, and about the batches that they were counted for."""
    if unpriced := sorted({name for counted in counts for name in counted.unpriced}):
        register = "torch.utils.flop_counter.register_flop_formula can give one"
        yield f"FLOPs are not known: no formula for {listed(unpriced, most=4)}; {register}"
    if unmeasured := sorted({name for counted in counts for name in counted.unmeasured}):
        yield f"saved bytes and peak memory are not known: what {listed(unmeasured)} keeps is only known on real tensors"
    if any(counted.depends_on_values for counted in counts):
        yield "the step reads values or draws numbers: other batches may take other FLOPs than the one it was counted on"
    if fed.note:
        yield fed.note


def mean_count(counts: Sequence[tuple[StepCount, int]]) -> StepCount:
    """Return the mean of the costs of a step, rounded to whole FLOPs and bytes.

    The peak memory and the bytes of gradients are the most of any step.

    `counts`: pairs of the costs of a step, and the number of such steps.
    """
    steps = sum(number for _, number in counts)

    def mean(value: Callable[[StepCount], int]) -> int:
        return round(sum(value(counted) * number for counted, number in counts) / steps)

    def joined(value: Callable[[StepCount], Sequence[str]]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for counted, _ in counts for name in value(counted)))

    def mean_by_module(value: Callable[[StepCount], Mapping[str, int]]) -> dict[str, int]:
        modules: Counter[str] = Counter()
        for counted, number in counts:
            modules.update({name: number * flops for name, flops in value(counted).items()})
        return {name: round(flops / steps) for name, flops in modules.items()}

    return StepCount(
        flops_forward=mean(lambda counted: counted.flops_forward),
        flops_backward=mean(lambda counted: counted.flops_backward),
        saved_bytes=mean(lambda counted: counted.saved_bytes),
        gradient_bytes=max(counted.gradient_bytes for counted, _ in counts),
        peak_bytes=max(counted.peak_bytes for counted, _ in counts),
        gradients=joined(lambda counted: counted.gradients),
        parameter_order=joined(lambda counted: counted.parameter_order),
        flops_by_module=mean_by_module(lambda counted: counted.flops_by_module),
        flops_again_by_module=mean_by_module(lambda counted: counted.flops_again_by_module),
        backward_through=joined(lambda counted: counted.backward_through),
        unpriced=joined(lambda counted: counted.unpriced),
        unmeasured=joined(lambda counted: counted.unmeasured),
        depends_on_values=any(counted.depends_on_values for counted, _ in counts),
        counted_on=META if all(counted.counted_on == META for counted, _ in counts) else REAL,
    )
