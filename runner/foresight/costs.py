"""The timetable of a run and what a step would cost in each phase, counted without values, so that no weight need exist."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from runner.assemble.setup import Setup
from runner.assemble.switching import begin_phase
from runner.cost.copies import count_step
from runner.cost.flops import META, REAL, StepCount
from runner.cost.meter import CountingMeter
from runner.cost.phases import names_frozen
from runner.display.table import Column, number
from runner.display.units import bytes_text, digits_text, flops_text, percent_text
from runner.errors import listed
from runner.freezing.phases.factors import factor_at
from runner.freezing.phases.phase import Blocks, Phase, reached_phases

MOST_ROWS = 20  # of the table; what later phases cost is said in a sentence
Cells = tuple[str, ...]
COLUMNS = (
    Column("steps"),
    Column("trains", least=12),
    number("factor", 1),
    number("FLOPs"),
    number("cost"),
    number("saved", 2),
    number("gradients", 3),
)


@dataclass(frozen=True)
class PlannedPhase:
    """What is known beforehand of a phase, that is, of a span of steps in which the same parameters are frozen.

    Attributes:
        first, last: the numbers of its first and its last step.
        trains: which blocks or how many parameters train; "" if that is not worth a column.
        factor: what their scheduled learning rates are multiplied by; "" if that is 1.
        counted: the costs of a step.
    """

    first: int
    last: int
    trains: str
    factor: str
    counted: StepCount

    @property
    def flops(self) -> int | None:
        """The FLOPs of forward and backward, or None if they are not known."""
        return _total_flops(self.counted)


@dataclass(frozen=True)
class PlannedCosts:
    """What a step would cost in each phase of a run.

    Attributes:
        phases: the phases that the run reaches, as far as they are known beforehand.
        unfrozen: the costs of a step in which everything trains.
        elements: the number of elements of all parameters.
        always_trained: the number of those that train in every phase.
        has_blocks: whether the schedule acts on blocks of the model.
        window: after how many steps the schedule is asked each time for the next phase, 0 if all phases are known.
    """

    phases: tuple[PlannedPhase, ...]
    unfrozen: StepCount | None
    elements: int
    always_trained: int
    has_blocks: bool = False
    window: int = 0

    def rows(self) -> Iterator[Cells]:
        """Yield the cells of a table with one row for each of the first phases, in the order of COLUMNS."""
        for phase in self.phases[:MOST_ROWS]:
            steps = f"{phase.first}-{phase.last}" if phase.first < phase.last else f"{phase.first}"
            if self.window and phase is self.phases[-1]:
                steps = f"from {phase.first}"
            flops = flops_text(phase.flops) or "unknown"
            memory = (bytes_text(phase.counted.saved_bytes), bytes_text(phase.counted.gradient_bytes))
            yield (steps, phase.trains, phase.factor, flops, percent_text(self._share([phase])), *memory)

    def sentences(self) -> Iterator[str]:
        """Yield sentences: what the table shows and leaves out, what the run costs, and what could not be counted."""
        yield "cost: the FLOPs of a step, of those of training everything; saved: for backward"
        if self.has_blocks:
            has_factors = any(phase.factor for phase in self.phases)
            factor = "; factor: what their scheduled learning rates are multiplied by" if has_factors else ""
            yield f"trains: which blocks of the schedule do{factor}"
        if rest := self.phases[MOST_ROWS:]:
            more = "1 more phase follows" if len(rest) == 1 else f"{len(rest)} more phases follow"
            yield f"{more}, to step {rest[-1].last}, in which a step costs {self._costs_text(rest)}"
        of_run = self._share(self.phases)
        if self.window:
            asked = f"{self.window} steps" if self.window > 1 else "step"
            yield f"phases are found during the run: the schedule is asked after every {asked}; this is how it begins"
        elif len(self.phases) > 1 and of_run is not None:
            yield f"over the run: {percent_text(of_run)} of the FLOPs of training everything"
        always = percent_text(self.always_trained / self.elements) if self.elements else "none"
        yield f"{self.always_trained:,} of {self.elements:,} weights are trained in every step ({always})"
        counts = [*(phase.counted for phase in self.phases), *([self.unfrozen] if self.unfrozen else [])]
        if unpriced := sorted({name for counted in counts for name in counted.unpriced}):
            yield f"no formula for the FLOPs of {listed(unpriced, most=4)}"

    def _costs_text(self, phases: Sequence[PlannedPhase]) -> str:
        """Return the cost of a step in these phases, from the least to the most."""
        shares = [share for phase in phases if (share := self._share([phase])) is not None]
        if len(shares) < len(phases):
            return "an unknown share"
        return " to ".join(dict.fromkeys(map(percent_text, (min(shares), max(shares)))))

    def _share(self, phases: Sequence[PlannedPhase]) -> float | None:
        """Return the FLOPs of all steps of some phases, of those of training everything in them; None if not known."""
        total = _total_flops(self.unfrozen)
        steps = [phase.last - phase.first + 1 for phase in phases]
        flops = [phase.flops * number for phase, number in zip(phases, steps, strict=True) if phase.flops is not None]
        return sum(flops) / (sum(steps) * total) if total and len(flops) == len(phases) else None


def plan_costs(setup: Setup, batch: Any) -> PlannedCosts | None:
    """Count what a step costs in each phase, once for each distinct set of what is frozen; return None with `cost=off`.

    `batch`: the first batch. Afterwards `setup` cannot be used to train: only one phase of each set is left in it, and the
    last one has begun. Raises what the task and the model raise.
    """
    if not isinstance(setup.meter, CountingMeter):
        return None
    reached = list(reached_phases(setup.phases, setup.config.steps))
    is_found = setup.plan.observe is not None
    frozen = {id(each) for phase, _ in reached for each in phase.selection.parameters.values()}
    if is_found:  # any of these may be frozen later
        frozen |= {id(each) for each in setup.selection.parameters.values()}
    counts = count_sets(setup, [phase for phase, _ in reached], batch)
    counted_on = META if all(counted.counted_on == META for counted in counts.values()) else REAL
    copied = setup.meter.copy_like(counted_on, setup.before.entries)
    return PlannedCosts(
        phases=tuple(
            PlannedPhase(
                first=phase.first,
                last=phase.first + steps - 1,
                trains=trained_text(setup, phase) if setup.plan.blocks or len(reached) > 1 else "",
                factor=factor_text(setup.plan.blocks, phase, phase.first + steps - 1),
                counted=counts[names_frozen(phase.selection)],
            )
            for phase, steps in reached
        ),
        unfrozen=count_step(copied, setup.task, batch) if copied else None,
        elements=sum(parameter.numel() for parameter in setup.parameters),
        always_trained=sum(parameter.numel() for parameter in setup.parameters if id(parameter) not in frozen),
        has_blocks=bool(setup.plan.blocks),
        window=setup.plan.window if is_found else 0,
    )


def count_sets(setup: Setup, phases: Sequence[Phase], batch: Any) -> dict[frozenset[str], StepCount]:
    """Return {names of what is frozen: the costs of a step} for each distinct set that is frozen in some phases.

    Only the first phase of each set begins, and stays in `setup`.
    """
    first_of = {names_frozen(phase.selection): phase for phase in reversed(phases)}
    setup.phases[:] = sorted(first_of.values(), key=lambda phase: phase.first)
    counts = {}
    for position, phase in enumerate(list(setup.phases)):
        if position:
            begin_phase(setup, position)
        setup.model.train()
        counts[names_frozen(phase.selection)] = count_step(setup.model, setup.task, batch)
    return counts


def trained_text(setup: Setup, phase: Phase) -> str:
    """Return which blocks of the schedule train in a phase; how many parameters do if the schedule has no blocks."""
    if not (blocks := setup.plan.blocks):
        return f"{sum(each not in phase.selection for each in setup.parameters)} of {len(setup.parameters)} parameters"
    trained = _trained_blocks(blocks, phase)
    if len(trained) in (0, len(blocks)):
        return "all blocks" if trained else "no block"
    places = [list(blocks).index(block) for block in trained]
    if len(trained) > 2 and places[-1] - places[0] == len(trained) - 1:
        return f"{trained[0]} to {trained[-1]}"
    return listed(trained, most=3)


def factor_text(blocks: Blocks, phase: Phase, last: int) -> str:
    """Return what the learning rates of the blocks that train in a phase are multiplied by, from the least to the most.

    `last`: the number of the phase's last step. Returns "" if all factors are 1.
    """
    factors = [phase.factors.get(block, 1.0) for block in _trained_blocks(blocks, phase)]
    values = {factor_at(factor, step) for factor in factors for step in (phase.first, last)}
    if values <= {1.0}:
        return ""
    return " to ".join(dict.fromkeys(digits_text(value, 3) for value in (min(values), max(values))))


def _trained_blocks(blocks: Blocks, phase: Phase) -> list[str]:
    """Return the names of the blocks of which some parameter trains in a phase."""
    return [block for block, names in blocks.items() if not phase.selection.parameters.keys() >= set(names)]


def _total_flops(counted: StepCount | None) -> int | None:
    """Return the FLOPs of forward and backward, or None if they are not known."""
    return counted.flops_forward + counted.flops_backward if counted and not counted.unpriced else None
