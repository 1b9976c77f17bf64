"""A phase of a run, and a plan of phases: what a schedule returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from torch import nn

from runner.freezing.groups import Group
from runner.freezing.selection import Selection

Factor = float | Callable[[int], float]
"""What the scheduled learning rate is multiplied by: a number of 0 or more, or a function of the number of the step."""

Blocks = Mapping[str, Sequence[str]]
"""{name of a block: the names of its parameters}, in the order from the input of the model to its head."""


@dataclass(frozen=True)
class Phase:
    """A span of a run's steps in which the same parameters and modules are frozen. It lasts until the next phase begins.

    Attributes:
        first: the number of the phase's first step, counted from 1.
        selection: the parameters, buffers and modules that are frozen during the phase.
        groups: the optimizer's parameter groups during the phase. A schedule leaves the tuple empty; it is filled in later,
            when the freezing method is known.
        factors: {block: factor} by which the scheduled learning rate of a block's parameters is multiplied; 1 where a block
            is not named.
    """

    first: int
    selection: Selection
    groups: tuple[Group, ...] = ()
    factors: Mapping[str, Factor] = field(default_factory=dict)


@dataclass(frozen=True)
class Values:
    """What a schedule that decides during the run is told about the steps since it was asked last.

    Attributes:
        loss: the mean loss of these steps.
        weights: {block: the Euclidean norm of its parameters when these steps began}.
        changes: {block: the Euclidean norm of their change in these steps}.
        gradients: {block: the Euclidean norm of their gradients in the last of these steps}; without blocks that have none.
    """

    loss: float
    weights: Mapping[str, float]
    changes: Mapping[str, float]
    gradients: Mapping[str, float]


@dataclass(frozen=True)
class Plan:
    """The phases of a run, and what else a schedule says about it.

    Attributes:
        phases: the phases that are known beforehand. The first one begins at step 1.
        blocks: the blocks that the schedule freezes, thaws, or gives factors. Each has a parameter group of its own.
        drops_state: whether the optimizer state of a parameter is deleted when it becomes frozen.
        window: after how many steps `observe` is asked each time.
        observe: a function (number of the last step, Values) that returns the phase that begins now, or None if the present
            one goes on; None if all phases are known beforehand.
    """

    phases: list[Phase]
    blocks: Blocks = field(default_factory=dict)
    drops_state: bool = False
    window: int = 0
    observe: Callable[[int, Values], Phase | None] | None = None

    @cached_property
    def thaws(self) -> bool:
        """Whether a phase trains what an earlier one froze, or may do so."""
        names = [set(phase.selection.parameters) for phase in self.phases]
        return self.observe is not None or any(not earlier <= later for earlier, later in pairwise(names))


@dataclass(frozen=True)
class Run:
    """What a schedule may ask of the run that it is for.

    Attributes:
        model: the model as built.
        steps: the number of training steps.
        steps_a_pass: the number of training steps of a pass over the data.
        seed: the seed of the run.
        is_length_known: whether the number of steps follows from the data or the config; False if it is the default for data
            without a length.
    """

    model: nn.Module
    steps: int
    steps_a_pass: int
    seed: int = 0
    is_length_known: bool = True


def reached_phases(phases: Sequence[Phase], steps: int) -> Iterator[tuple[Phase, int]]:
    """Yield (phase, number of its steps) for each phase that begins within a run of `steps` steps.

    If the run ends within a phase, only the phase's steps up to the end of the run are counted.
    """
    last_steps = [phase.first - 1 for phase in phases[1:]] + [steps]
    for phase, last in zip(phases, last_steps, strict=True):
        if phase.first <= steps:
            yield phase, min(last, steps) - phase.first + 1
