"""Which phase begins at which step: as planned, or as a schedule decides that is asked during the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from runner.freezing.phases.check import check_phase
from runner.freezing.phases.phase import Phase, Plan, Values
from runner.freezing.selection import Selection


class Timetable:
    """Says before each step of a run whether the next phase begins, and asks the plan for it if it is not known beforehand.

    The plan is not asked at a step at which a phase begins that was planned.

    Args:
        plan: the plan of the run.
        phases: the phases so far; a phase that is found during the run is inserted behind the present one.
        parameters: {name: parameter} of the model.
        selection: what the config declares frozen.
    """

    def __init__(self, plan: Plan, phases: list[Phase], parameters: Mapping[str, Tensor], *, selection: Selection) -> None:
        self.plan, self.phases, self.selection = plan, phases, selection
        self.present = 0  # the index of the present phase
        blocks = {block: [parameters[name] for name in names] for block, names in plan.blocks.items()}
        self.watched = BlockValues(blocks) if plan.observe else None

    def next_begins(self, step: int, losses: Callable[[], Sequence[Tensor]]) -> bool:
        """Return whether the next phase begins at `step`, after all steps before it; the present one is then the next.

        `losses`: a function that returns the losses of all steps so far, or of as many of the last as the plan's window has.
        """
        is_planned = self._next_is_at(step)
        if self.watched and self.plan.observe and step > 1 and (step - 1) % self.plan.window == 0 and not is_planned:
            phase = self.plan.observe(step - 1, self.watched.read(losses()[-self.plan.window :]))
            if phase is not None:
                check_phase(phase, self.plan, self.selection)
                self.phases.insert(self.present + 1, replace(phase, first=step))
        if not self._next_is_at(step):
            return False
        self.present += 1
        return True

    def _next_is_at(self, step: int) -> bool:
        """Return whether there is a next phase, which begins at `step`."""
        return self.present + 1 < len(self.phases) and self.phases[self.present + 1].first == step

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
