"""Schedules: functions that say from which step on the selected layers are frozen.

A schedule takes a Selection (what is frozen) and returns a list of phases, which are spans of steps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from runner.contract import PhaseRecord
from runner.errors import ConfigError, is_integer
from runner.freezing.groups import Group
from runner.freezing.selection import Selection


@dataclass(frozen=True)
class Phase:
    """A span of a run's steps in which the same parameters and modules are frozen. It lasts until the next phase begins.

    Attributes:
        first: the number of the phase's first step, counted from 1.
        selection: the parameters, buffers and modules that are frozen during the phase.
        groups: the optimizer's parameter groups during the phase. A schedule leaves the tuple empty; it is filled in later,
            when the freezing method is known.
    """

    first: int
    selection: Selection
    groups: tuple[Group, ...] = ()


def constant(selection: Selection) -> list[Phase]:
    """Return a list with one phase (span of steps): the selection is frozen from the first step to the last."""
    return [Phase(1, selection)]


def after(selection: Selection, step: int) -> list[Phase]:
    """Return two phases (spans of steps): nothing is frozen before step number `step`, the selection is frozen from then on.

    With `step` 1 there is only the second phase. Raises ConfigError unless `step` is a whole number of 1 or more.
    """
    if not is_integer(step) or step < 1:
        raise ConfigError(
            f"schedule.step is {step!r}; give the number of the first step at which the layers are frozen, 1 or more"
        )
    nothing = replace(selection, parameters={}, buffers={}, modules={}, names=frozenset(), notes=())
    return [Phase(1, nothing), Phase(step, selection)] if step > 1 else constant(selection)


def reached_phases(phases: Sequence[Phase], steps: int) -> Iterator[tuple[Phase, int]]:
    """Yield (phase, number of its steps) for each phase that begins within a run of `steps` steps.

    If the run ends within a phase, only the phase's steps up to the end of the run are counted.
    """
    last_steps = [phase.first - 1 for phase in phases[1:]] + [steps]
    for phase, last in zip(phases, last_steps, strict=True):
        if phase.first <= steps:
            yield phase, min(last, steps) - phase.first + 1


def phase_records(phases: Sequence[Phase], steps: int, parameters: Collection[Tensor]) -> list[PhaseRecord]:
    """Return each phase that a run of `steps` steps reached: its steps, and how many tensors were frozen and trained in it.

    `parameters`: all parameters of the model, each once.
    """
    records: list[PhaseRecord] = []
    for phase, count in reached_phases(phases, steps):
        frozen = {id(tensor) for tensor in (*phase.selection.parameters.values(), *phase.selection.buffers.values())}
        trained = sum(id(parameter) not in frozen for parameter in parameters)
        last = phase.first + count - 1
        records.append({"first_step": phase.first, "last_step": last, "frozen": len(frozen), "trained": trained})
    return records
