"""What a freezing method may do, and the traps under which it may leak."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from runner.contract import Note
from runner.freezing.groups import Group
from runner.freezing.selection import Selection

TRAPS = {
    "any_step": "a plain optimizer step",
    "weight_decay": "an optimizer with weight decay",
    "optimizer_rule": "an optimizer that moves a parameter on a zero gradient, without decay or state (ASGD)",
    "optimizer_ignores_lr": "an optimizer that steps at a learning rate of 0 (Rprop)",
    "mid_run": "freezing in mid-run, gradients dropped to None: state that was gathered before",
    "zeros_mid_run": "freezing in mid-run while gradients are kept as zeros",
    "lbfgs_mid_run": "freezing in mid-run under LBFGS, whose direction spans all parameters",
    "scheduler_mid_run": "a scheduler that computes the rate from the initial one (LambdaLR), freezing in mid-run",
    "scheduler": "a scheduler that raises the learning rate of a group from 0 (OneCycleLR, CyclicLR, SWALR)",
}


@dataclass
class PhaseContext:
    """What a method may use as it feeds the batches of one phase.

    `not_run` counts, for each module by its name, the steps of the phase that do not run it: the cost of a step leaves it
    out of those. `note` takes what the user should be told.
    """

    model: nn.Module
    task: Callable[[nn.Module, Any], Tensor]
    note: Note
    not_run: Counter[str] = field(default_factory=Counter)


class FreezingMethod:
    """The four stages at which a method may act; each does nothing unless it is overridden.

    A method overrides the stage where it acts and nothing else, uses torch's own means (flags, groups, hooks, module
    swaps), and puts a callback on `undo` for whatever it changes in the model, so that leaving the stack restores it.
    """

    leaks_under: frozenset[str] = frozenset()
    """The traps of TRAPS under which what this method froze moves; the conformance tests hold it against the outcome."""

    def skip(self, model: nn.Module, selection: Selection) -> str | None:
        """The reason why this method cannot serve this model, or None."""
        return None

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        """Act on the model before the optimizer exists; returns the model to train."""
        return model

    def groups(self, groups: list[Group], selection: Selection) -> list[Group]:
        """Rewrite the optimizer's parameter groups, as cut by the config."""
        return groups

    def attach(self, optimizer: Optimizer, selection: Selection, undo: ExitStack) -> None:
        """Act on the optimizer once it exists."""

    def feed(self, batches: Iterable[Any], context: PhaseContext) -> Iterator[Any]:
        """Gather the batches of one phase, each when the loop asks for it.

        Each of `batches` has the batch itself, gathered as it is asked for, and the numbers of its samples: `batch`, `ids`.
        """
        return (drawn.batch for drawn in batches)
