"""The base class of all freezing methods, and the traps: the situations in which some methods leak."""

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
    "optimizer_rule": "an optimizer that changes a parameter whose gradient is zero, without weight decay or state (ASGD)",
    "optimizer_ignores_lr": "an optimizer that changes parameters at a learning rate of 0 (Rprop)",
    "mid_run": "freezing in mid-run, gradients set to None: the optimizer state of earlier steps remains",
    "zeros_mid_run": "freezing in mid-run, gradients kept as zeros",
    "lbfgs_mid_run": "freezing in mid-run under LBFGS, whose step direction depends on all parameters",
    "scheduler_mid_run": "freezing in mid-run, with a scheduler that computes the rate from the initial one (LambdaLR)",
    "scheduler": "a scheduler that raises the learning rate of a group from 0 (OneCycleLR, CyclicLR, SWALR)",
}


@dataclass
class PhaseContext:
    """What a method can use while it feeds the batches of one phase.

    Attributes:
        model: the model that is trained.
        task: computes the loss from the model and a batch.
        note: reports a message to the user.
        not_run: by module name, the number of steps of this phase in which the method skipped the module; the cost of a
            step excludes what is skipped.
    """

    model: nn.Module
    task: Callable[[nn.Module, Any], Tensor]
    note: Note
    not_run: Counter[str] = field(default_factory=Counter)


class FreezingMethod:
    """The stages at which a method can act; each of them does nothing by default.

    A method overrides only the stages that it needs and uses torch's own means (flags, parameter groups, hooks, module
    swaps). For everything that it changes in the model, it adds a callback to `undo` that restores it.
    """

    leaks_under: frozenset[str] = frozenset()
    """The keys of TRAPS under which this method leaks; tests check that it leaks exactly there."""

    def skip(self, model: nn.Module, selection: Selection) -> str | None:
        """Return the reason if this method does not work with this model and selection, otherwise None."""
        return None

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        """Change the model before the optimizer is built; return the model to train."""
        return model

    def groups(self, groups: list[Group], selection: Selection) -> list[Group]:
        """Return the optimizer's parameter groups, made from those that the config asks for."""
        return groups

    def attach(self, optimizer: Optimizer, selection: Selection, undo: ExitStack) -> None:
        """Change the optimizer after it is built."""

    def feed(self, batches: Iterable[Any], context: PhaseContext) -> Iterator[Any]:
        """Yield the batches of one phase, each built only when the training loop asks for it.

        `batches` are LazyBatch objects: `batch` builds the batch, `ids` are the numbers of its samples.
        """
        return (lazy_batch.batch for lazy_batch in batches)
