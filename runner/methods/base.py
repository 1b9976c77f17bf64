"""What a freezing method may do, and the traps under which it may leak."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from runner.groups import Group
from runner.passes import Drawn
from runner.selection import Selection

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

    def feed(
        self,
        batches: Iterable[Drawn],
        model: nn.Module,
        task: Callable[[nn.Module, Any], Tensor],
        note: Callable[[str], None],
    ) -> Iterator[Any]:
        """Gather the batches of one phase, each when the loop asks for it; `note` takes what the user should be told."""
        return (drawn.batch for drawn in batches)

    def left_out(self) -> list[tuple[str, float]]:
        """What a meter is to know: the modules that some steps of the last phase did not run, and the share of those."""
        return []
