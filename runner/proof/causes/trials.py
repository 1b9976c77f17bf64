"""Step copies of an optimizer, with one thing changed at a time, and see which tensors move."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from runner.proof.causes.fresh_state import FreshState, has_made_one_step, numbers_changed
from runner.proof.causes.optimizer_copy import copy_optimizer, step_copy
from runner.seeding import preserve_random_state
from runner.shards import local
from runner.tensors import same_bits

Edit = Callable[[Optimizer], None]  # changes the copy of an optimizer before it is stepped


class Trials:
    """Steps of copies of an optimizer, each with something else changed, to see which tensors they move.

    The first step, with nothing changed, is done on creation; this raises what the step raises.

    Attributes:
        moved: the names of the tensors that the step moves when nothing is changed.
        after_one_step: the names of the tensors for which the optimizer has made exactly one step so far.
        rewritten: the names of the tensors that need no gradient and whose gradient the step writes to.
        fresh_state: an edit that removes the state of the optimizer.
        errors: what the trials have raised, and what else they could not decide.
    """

    def __init__(self, optimizer: Optimizer, tensors: Mapping[str, Tensor], with_closure: bool) -> None:
        self.optimizer, self.tensors, self.with_closure = optimizer, tensors, with_closure
        stepped, copy_of = stepped_copy(optimizer, (), with_closure)  # not kept: it takes as much memory as the model
        numbers = numbers_changed(optimizer, stepped)
        self.moved = moved_from(tensors, tensors, copy_of)
        self.after_one_step = {
            name
            for name, tensor in tensors.items()
            if id(tensor) in copy_of and has_made_one_step(optimizer, stepped, tensor, copy_of[id(tensor)], numbers=numbers)
        }
        self.fresh_state = FreshState(numbers)
        self.errors: list[str] = []
        self.starts = dict(tensors)  # {name: the value before a trial}
        self.edits: tuple[Edit, ...] = ()  # made in every trial
        self.rewritten = {name for name in self.moved if _is_rewritten(tensors[name], copy_of[id(tensors[name])].grad)}

    def try_step(self, how: str, *edits: Edit, without_gradient: Collection[str] = ()) -> set[str] | None:
        """Return the names of the tensors that the step moves after `edits`; None if it raises, which is recorded.

        `how`: says in the error message what was changed. `without_gradient`: names of tensors; their gradients are zeroed.
        """

        def prepare(copy_of: dict[int, Tensor]) -> None:
            for name, tensor in self.tensors.items():
                tensor_copy = copy_of.get(id(tensor))
                if tensor_copy is None:
                    continue
                if self.starts[name] is not tensor:
                    tensor_copy.detach().copy_(self.starts[name])
                if name in without_gradient and tensor_copy.grad is not None:
                    tensor_copy.grad = torch.zeros_like(tensor_copy)

        try:
            _, copy_of = stepped_copy(self.optimizer, (*self.edits, *edits), self.with_closure, prepare)
        except Exception as error:  # a third-party optimizer may raise anything
            text = f"{type(error).__name__}: {error}"
            self.errors.append(f"{type(self.optimizer).__name__} could not be stepped {how} ({text})")
            return None
        return moved_from(self.tensors, self.starts, copy_of)

    def start_at_first_step(self) -> bool:
        """Let the trials begin with fresh state, and `moved` be what the first step moves but the present one does not.

        Returns whether there are such tensors. Some optimizers move a tensor in their first step only. A tensor of which
        that step has left only zeros or NaN starts with ones.
        """
        later = self.after_one_step - self.moved
        self.edits, self.rewritten = (self.fresh_state,), set()
        for name in later:
            tensor, part = self.tensors[name], local(self.tensors[name])
            if not part.any() or not part.isfinite().all():
                self.starts[name] = torch.ones_like(tensor)
        self.moved = (self.try_step("with fresh state") or set()) & later if later else set()
        return bool(self.moved)


def _is_rewritten(tensor: Tensor, after: Tensor | None) -> bool:
    """Return whether a step writes to the gradient of a tensor that needs none, so that backward does not write to it.

    `after`: the gradient of its copy after the step. If the gradient of the real one is read after a step, it may be what
    that step has written, such as weight decay.
    """
    grad = tensor.grad
    if tensor.requires_grad or grad is None or after is None or grad.is_sparse or after.is_sparse:
        return False
    return bool(local(after).any()) and not same_bits(grad, after)


def moved_from(tensors: Mapping[str, Tensor], starts: Mapping[str, Tensor], copy_of: Mapping[int, Tensor]) -> set[str]:
    """Return the names of the tensors whose copies after a step differ from `starts`, their values before it."""
    return {name for name, real in tensors.items() if id(real) in copy_of and not same_bits(starts[name], copy_of[id(real)])}


def stepped_copy(
    optimizer: Optimizer,
    edits: Sequence[Edit],
    with_closure: bool,
    prepare: Callable[[dict[int, Tensor]], None] = lambda copy_of: None,
) -> tuple[Optimizer, dict[int, Tensor]]:
    """Copy an optimizer and its parameters, change the copy by `edits` and `prepare`, and step it.

    Returns (the copy, {id(parameter): its copy}). `prepare` is called with the latter before the step. The random state is
    the same before each trial, and is restored. Raises what copying or stepping raises.
    """
    with preserve_random_state():
        optimizer_copy, copy_of = copy_optimizer(optimizer)
        prepare(copy_of)
        for edit in edits:
            edit(optimizer_copy)
        try:
            step_copy(optimizer_copy, with_closure)
        except Exception:
            if not any(isinstance(edit, FreshState) and not edit.keeps_entries for edit in edits):
                raise
        else:
            return optimizer_copy, copy_of
    kept = [edit.keeping_entries() if isinstance(edit, FreshState) else edit for edit in edits]
    return stepped_copy(optimizer, kept, with_closure, prepare)
