"""When it is frozen: a schedule turns the selection into the phases of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from runner.errors import ConfigError
from runner.freezing.groups import Group
from runner.freezing.selection import Selection


@dataclass(frozen=True)
class Phase:
    """A part of a run in which the same tensors are frozen.

    Attributes:
        first: its first step, counted from 1.
        selection: what is frozen in it.
        groups: the optimizer's parameter groups in it. A schedule leaves them empty, because they depend on the method.
    """

    first: int
    selection: Selection
    groups: tuple[Group, ...] = ()


def constant(selection: Selection) -> list[Phase]:
    """Return one phase: frozen from the first step on."""
    return [Phase(1, selection)]


def after(selection: Selection, step: int) -> list[Phase]:
    """Return two phases: nothing is frozen before `step`, the selection is frozen from `step` on.

    Raises ConfigError unless `step` is a whole number of 1 or more.
    """
    if not isinstance(step, int) or isinstance(step, bool) or step < 1:
        raise ConfigError(f"schedule.step is {step!r}; give the first step that is frozen, a whole number of 1 or more")
    nothing = replace(selection, parameters={}, buffers={}, modules={}, notes=())
    return [Phase(1, nothing), Phase(step, selection)] if step > 1 else constant(selection)


def reached_phases(phases: Sequence[Phase], steps: int) -> Iterator[tuple[Phase, int]]:
    """Yield each phase that begins within a run of `steps` steps, with its number of steps in the run."""
    last_steps = [phase.first - 1 for phase in phases[1:]] + [steps]
    for phase, last in zip(phases, last_steps, strict=True):
        if phase.first <= steps:
            yield phase, min(last, steps) - phase.first + 1
