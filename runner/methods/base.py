"""The base class of all freezing methods, and TRAPS: situations in which some methods let frozen parameters change."""

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
from runner.sharing.folder import Sharing
from runner.tensors import map_tensors

Task = Callable[[nn.Module, Any], Tensor]  # task(model, batch) returns the loss

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


@dataclass(frozen=True)
class Example:
    """What a training step of this run does, for methods that try it on a copy of the model before the training begins.

    Attributes:
        task: a function `task(model, batch)` that returns the loss.
        batch: the first batch, on the device of the model; the first step trains on it.
        reread: a function that returns the batch as the second pass over the data would read it, on any device, or None if
            the data cannot be asked.
    """

    task: Task
    batch: Any
    reread: Callable[[], Any | None] | None = None

    def loss(self, model: nn.Module) -> Tensor:
        """Return the loss of the model on a copy of the batch. What the model or the task raises is passed on."""
        return self.task(model, map_tensors(self.batch, Tensor.clone))


@dataclass
class PhaseContext:
    """What a method's `feed` is given besides the batches, for one span of steps in which the same layers are frozen.

    Attributes:
        model: the model that is trained.
        task: a function `task(model, batch)` that returns the loss.
        note: a function that shows a message to the user.
        not_run: {module name: number of steps in this span in which the method skipped the module}. `feed` fills it in. The
            reported FLOPs of a step do not include the skipped forward passes.
    """

    model: nn.Module
    task: Task
    note: Note
    not_run: Counter[str] = field(default_factory=Counter)


class FreezingMethod:
    """A way to freeze parameters: the training calls its five methods in the order below, and each does nothing by default.

    A subclass overrides only the methods it needs. It uses torch's own means: flags, parameter groups, hooks, replaced
    modules. In every method, `selection` says which parameters and modules are frozen. A phase is a span of steps in which
    these stay the same; most runs have one. `undo` is a stack of callbacks that are called at the end of the phase. For each
    change to the model, the method adds a callback that reverses the change.
    """

    leaks_under: frozenset[str] = frozenset()
    """The keys of TRAPS (situations) in which frozen parameters change with this method; in all others they do not."""

    example: Example | None = None
    """What a training step does. A run sets it before it calls `skip`; it is None where a method is used by itself."""

    sharing: Sharing = Sharing()
    """What the run shares with other runs of a sweep; a run sets it together with `example`."""

    def skip(self, model: nn.Module, selection: Selection) -> str | None:
        """Return why this method cannot freeze the selected parameters in this model, or None if it can.

        If a reason is returned, the run is skipped.
        """
        return None

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        """Change the model so that the selected parameters stay frozen, and return the model to train.

        Called before the optimizer is built, and again for each later phase, with what is frozen in it. Callbacks added to
        `undo` are called at the end of the phase: they undo all that was done for it, whatever the next phase freezes.
        """
        return model

    def groups(self, groups: list[Group], selection: Selection) -> list[Group]:
        """Return the parameter groups to build the optimizer with.

        `groups`: the parameter groups that the config asks for, as the dicts that torch.optim takes. `selection`: what is
        frozen.
        """
        return groups

    def attach(self, optimizer: Optimizer, selection: Selection, undo: ExitStack) -> None:
        """Change the optimizer after it is built, for example register a hook on it.

        `selection`: what is frozen. Called for each phase; a callback added to `undo` is called at the end of the phase.
        """

    def feed(self, batches: Iterable[Any], context: PhaseContext) -> Iterator[Any]:
        """Yield the batches to train on, each only when the training loop asks for it.

        `batches`: the batches of the data, on the device of the model. Called once for each span of steps in which the same
        layers are frozen; `context` describes that span.
        """
        yield from batches
