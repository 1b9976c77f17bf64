"""Which phase begins at which step: as planned, or as a schedule decides that is asked during the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from runner.errors import ConfigError
from runner.freezing.phases.phase import Phase, Plan, Values


class Timetable:
    """Says before each step of a run whether the next phase begins, and asks the plan for it if it is not known beforehand.

    Args:
        plan: the plan of the run.
        phases: the phases so far; a phase that is found during the run is appended.
        parameters: {name: parameter} of the model.
    """

    def __init__(self, plan: Plan, phases: list[Phase], parameters: Mapping[str, Tensor]) -> None:
        self.plan, self.phases = plan, phases
        self.present = 0  # the index of the present phase
        blocks = {block: [parameters[name] for name in names] for block, names in plan.blocks.items()}
        self.watched = BlockValues(blocks) if plan.observe else None

    def next_begins(self, step: int, losses: Callable[[], Sequence[Tensor]]) -> bool:
        """Return whether the next phase begins at `step`, after all steps before it; the present one is then the next.

        `losses`: a function that returns the losses of all steps so far, or of as many of the last as the plan's window has.
        """
        if self.watched and self.plan.observe and step > 1 and (step - 1) % self.plan.window == 0:
            phase = self.plan.observe(step - 1, self.watched.read(losses()[-self.plan.window :]))
            if phase is not None:
                check_found(phase)
                self.phases.append(replace(phase, first=step))
        if self.present + 1 < len(self.phases) and self.phases[self.present + 1].first == step:
            self.present += 1
            return True
        return False

    @property
    def copied_bytes(self) -> int:
        """The size of the copies of parameters that are kept to measure how far they move."""
        return self.watched.copied_bytes if self.watched else 0


class BlockValues:
    """Measures how far the parameters of each block moved since the last time, and how large their gradients are now."""

    def __init__(self, blocks: Mapping[str, Sequence[Tensor]]) -> None:
        self.blocks = blocks
        self.copies = {block: [each.detach().clone() for each in parameters] for block, parameters in blocks.items()}

    @property
    def copied_bytes(self) -> int:
        """The size of the copies."""
        return sum(copy.nbytes for copies in self.copies.values() for copy in copies)

    @torch.no_grad()
    def read(self, losses: Sequence[Tensor]) -> Values:
        """Return the values since the last call, and begin anew. `losses`: those of the steps since then."""
        weights, changes, gradients = {}, {}, {}
        for block, parameters in self.blocks.items():
            copies = self.copies[block]
            weights[block] = norm_of(copies)
            for each, copy in zip(parameters, copies, strict=True):
                copy.sub_(each)
            changes[block] = norm_of(copies)
            present = [each.grad for each in parameters if each.grad is not None]
            if present:
                gradients[block] = norm_of(present)
            for each, copy in zip(parameters, copies, strict=True):
                copy.copy_(each)
        return Values(float(torch.stack(list(losses)).double().mean()), weights, changes, gradients)


def norm_of(tensors: Sequence[Tensor]) -> float:
    """Return the Euclidean norm of all elements of several tensors, summed in float64."""
    squares = [torch.linalg.vector_norm(each.detach().to_dense().flatten(), dtype=torch.float64) ** 2 for each in tensors]
    return float(torch.stack([each.cpu() for each in squares]).sum().sqrt()) if squares else 0.0


def check_found(phase: object) -> None:
    """Raise ConfigError if a schedule that was asked during the run returned neither a phase nor None."""
    if not isinstance(phase, Phase):
        raise ConfigError(f"schedule: observe returned a {type(phase).__name__}; it must return a Phase, or None")
