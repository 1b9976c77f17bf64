"""What a step would cost in each phase of a run, counted without values, so that no weight need exist."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from runner.assemble.setup import Setup, begin_phase
from runner.cost.flops import StepCount, count_step
from runner.cost.meter import CountingMeter
from runner.display.units import in_gflop, in_mib, in_percent
from runner.errors import listed
from runner.freezing.schedule import reached_phases

Cells = tuple[str, ...]
HEADINGS = ("steps", "GFLOP a step", "of training everything", "saved for backward", "gradients of backward")


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
        """Yield the cells of a table with one row for each phase, in the order of HEADINGS."""
        total = _total_flops(self.unfrozen)
        for first, last, counted in self.phases:
            flops = _total_flops(counted)
            share = flops / total if flops is not None and total else None
            memory = (f"{in_mib(size)} MiB" for size in (counted.saved_bytes, counted.gradient_bytes))
            yield (f"{first}-{last}", in_gflop(flops) or "unknown", in_percent(share), *memory)

    def sentences(self) -> Iterator[str]:
        """Yield sentences about what the table does not say: which weights always train, and what could not be counted."""
        share = f"{self.always_trained / self.elements:.2%}" if self.elements else "none"
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
    for number, (phase, steps) in enumerate(reached_phases(setup.phases, setup.config.steps)):
        if number:
            begin_phase(setup, number)
        setup.model.train()
        frozen |= {id(parameter) for parameter in phase.selection.parameters.values()}
        phases.append((phase.first, phase.first + steps - 1, count_step(setup.model, task, batch)))
    copied = setup.meter.copy_like(phases[-1][2], setup.before.entries)
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
