"""What is frozen when: a schedule turns what is declared frozen into the phases of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from runner.build import build
from runner.config import Config
from runner.errors import ConfigError
from runner.selection import Selection


@dataclass(frozen=True)
class Phase:
    """From step `first` on (counted from 1), `selection` is what is frozen."""

    first: int
    selection: Selection


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


def build_phases(config: Config, selection: Selection) -> list[Phase]:
    """What is frozen when."""
    phases = build(config.schedule, "schedule", selection)
    if not isinstance(phases, list) or not phases or not all(isinstance(phase, Phase) for phase in phases):
        raise ConfigError(f"schedule gave a {type(phases).__name__}; it must give a list of runner.schedule.Phase")
    firsts = [phase.first for phase in phases]
    frozen = [set(phase.selection.parameters) for phase in phases]
    if firsts[0] != 1 or firsts != sorted(set(firsts)):
        raise ConfigError(f"schedule gave phases that begin at the steps {firsts}; they must begin at 1 and go up")
    if any(not before <= later for before, later in pairwise(frozen)):
        raise ConfigError(
            "schedule thaws what an earlier phase froze; each phase must freeze what the one before did, or more"
        )
    return phases
