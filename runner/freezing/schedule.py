"""What is frozen when: a schedule turns what is declared frozen into the phases of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from runner.errors import ConfigError
from runner.freezing.groups import Group
from runner.freezing.selection import Selection


@dataclass(frozen=True)
class Phase:
    """From step `first` on (counted from 1), `selection` is what is frozen, and `groups` are the optimizer's.

    A schedule leaves the groups empty, for they depend on the method.
    """

    first: int
    selection: Selection
    groups: tuple[Group, ...] = ()


def constant(selection: Selection) -> list[Phase]:
    """Frozen from the first step on."""
    return [Phase(1, selection)]


def after(selection: Selection, step: int) -> list[Phase]:
    """Frozen from `step` on; everything trains before. Raises ConfigError unless `step` is a whole number of 1 or more."""
    if not isinstance(step, int) or isinstance(step, bool) or step < 1:
        raise ConfigError(f"schedule.step is {step!r}; give the first step to train frozen, a whole number of 1 or more")
    nothing = replace(selection, parameters={}, buffers={}, modules={}, notes=())
    return [Phase(1, nothing), Phase(step, selection)] if step > 1 else constant(selection)


def spans(phases: Sequence[Phase], batches: int) -> Iterator[tuple[Phase, int]]:
    """Each phase that is reached, and the number of its batches."""
    ends = [phase.first - 1 for phase in phases[1:]] + [batches]
    for phase, end in zip(phases, ends, strict=True):
        if phase.first <= batches:
            yield phase, min(end, batches) - phase.first + 1
