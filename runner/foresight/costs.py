"""What a step would cost in each phase of a run, counted without values, so that no weight need exist."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from runner.assemble.setup import Setup
from runner.assemble.switching import begin_phase
from runner.cost.flops import StepCount, count_step
from runner.cost.meter import CountingMeter
from runner.display.table import Column, number
from runner.display.units import bytes_text, flops_text, percent_text
from runner.errors import listed
from runner.freezing.schedule import reached_phases

Cells = tuple[str, ...]
COLUMNS = (Column("steps"), number("FLOPs"), number("cost"), number("saved", 1), number("gradients", 2))


@dataclass(frozen=True)
class PlannedCosts:
    """What a step would cost in each phase of a run; a phase is a span of steps in which the same parameters are frozen.

    Attributes:
        phases: (first step, last step, the costs of a step) of each phase that the run reaches.
        unfrozen: the costs of a step in which everything trains.
        elements: the number of elements of all parameters.
        always_trained: the number of those that train in every phase.
    """

    phases: tuple[tuple[int, int, StepCount], ...]
    unfrozen: StepCount | None
    elements: int
    always_trained: int

    def rows(self) -> Iterator[Cells]:
        """Yield the cells of a table with one row for each phase, in the order of COLUMNS."""
        total = _total_flops(self.unfrozen)
        for first, last, counted in self.phases:
            flops = _total_flops(counted)
            share = flops / total if flops is not None and total else None
            memory = (bytes_text(counted.saved_bytes), bytes_text(counted.gradient_bytes))
            yield (f"{first}-{last}", flops_text(flops) or "unknown", percent_text(share), *memory)

    def sentences(self) -> Iterator[str]:
        """Yield sentences: what the table shows, which weights always train, and what could not be counted."""
        yield "cost: the FLOPs of a step, of those of training everything; saved: for backward"
        share = percent_text(self.always_trained / self.elements) if self.elements else "none"
        yield f"{self.always_trained:,} of {self.elements:,} weights are trained in every step ({share})"
        counts = [*(counted for _, _, counted in self.phases), *([self.unfrozen] if self.unfrozen else [])]
        if unpriced := sorted({name for counted in counts for name in counted.unpriced}):
            yield f"no formula for the FLOPs of {listed(unpriced, most=4)}"


def plan_costs(setup: Setup, batch: Any) -> PlannedCosts | None:
    """Count what a step costs in each phase; return None with `cost=off`.

    `batch`: the first batch. Afterwards the last phase of `setup` has begun. Raises what the task and the model raise.
    """
    if not isinstance(setup.meter, CountingMeter):
        return None
    task, phases = setup.task, []
    frozen: set[int] = set()
    for position, (phase, steps) in enumerate(reached_phases(setup.phases, setup.config.steps)):
        if position:
            begin_phase(setup, position)
        setup.model.train()
        frozen |= {id(parameter) for parameter in phase.selection.parameters.values()}
        phases.append((phase.first, phase.first + steps - 1, count_step(setup.model, task, batch)))
    copied = setup.meter.copy_like(phases[-1][2].counted_on, setup.before.entries)
    unfrozen = count_step(copied, task, batch) if copied else None
    return PlannedCosts(
        phases=tuple(phases),
        unfrozen=unfrozen,
        elements=sum(parameter.numel() for parameter in setup.parameters),
        always_trained=sum(parameter.numel() for parameter in setup.parameters if id(parameter) not in frozen),
    )


def _total_flops(counted: StepCount | None) -> int | None:
    """Return the FLOPs of forward and backward, or None if they are not known."""
    return counted.flops_forward + counted.flops_backward if counted and not counted.unpriced else None
