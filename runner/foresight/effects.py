"""Find out what one batch does to a model: which parameters get a gradient, and which tensors the forward pass changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from runner.proof.causes.gradients import gradient_kind
from runner.proof.changes import Snapshot, snapshot
from runner.seeding import preserve_random_state
from runner.tensors import same_bits, tensor_entries, tensor_resolver
from runner.training.loop import Task


@dataclass(frozen=True)
class Effect:
    """What one batch does to a model while certain layers are frozen.

    Attributes:
        gradients: {id of a parameter: what backward does to its gradient}. `present`: the gradient has elements other than
            0. `zero`: all elements are 0. `dropped`: a hook sets the gradient to None. `untouched`: backward leaves the
            gradient as it was.
        written: the names of the parameters and buffers that the forward pass changes.
    """

    gradients: Mapping[int, str] = field(default_factory=dict)
    written: frozenset[str] = frozenset()


def effect_of_batch(model: nn.Module, parameters: Sequence[Tensor], task: Task, batch: Any) -> Effect:
    """Run the forward and backward pass on one batch, and return what they do to gradients, parameters and buffers.

    `parameters`: the parameters whose gradients are examined. `task`: a function (model, batch) -> loss. Afterwards the
    parameters have their old gradients again. Changes that the forward pass makes, such as in BatchNorm statistics, stay.
    """
    written: set[str] = set()

    def forward_backward() -> None:
        before = snapshot(model)
        loss = task(model, batch)
        written.update(names_changed(before, model))
        if loss.requires_grad:
            loss.backward()

    gradients = _gradient_effects(parameters, forward_backward)
    return Effect(gradients, frozenset(written))


def names_changed(before: Snapshot, model: nn.Module) -> Iterator[str]:
    """Yield the names of the tensors in `before` that have other bits now, or are no longer in the model."""
    resolve = tensor_resolver(tensor_entries(model))
    for name, entry in before.entries.items():
        after = resolve(entry)
        if after is None or not same_bits(before.values[name], after):
            yield name


def effect_of_flags(parameters: Sequence[Tensor]) -> Effect:
    """Predict from `requires_grad` and hooks, without a batch, what backward would do to the gradient of each parameter.

    The returned Effect has only `gradients`. If a parameter has hooks, they are called on a copy of its first element,
    because a user's own hook may change the tensor that it is given.
    """
    return Effect({id(p): _gradient_effect_of_flags(p) for p in parameters})


def _gradient_effect_of_flags(parameter: Tensor) -> str:
    """Predict from `requires_grad` and hooks what backward would do to a parameter's gradient.

    Returns `present`, `zero`, `dropped` or `untouched`; `Effect.gradients` explains these words.
    """
    if not parameter.requires_grad:
        return "untouched"
    if not (parameter._backward_hooks or parameter._post_accumulate_grad_hooks):
        return "present"
    element = parameter.detach().reshape(-1)[:1].clone().requires_grad_()
    element._backward_hooks = OrderedDict(parameter._backward_hooks or {})
    element._post_accumulate_grad_hooks = OrderedDict(parameter._post_accumulate_grad_hooks or {})
    with preserve_random_state():
        return _gradient_effects([element], lambda: element.sum().backward())[id(element)]


def _gradient_effects(parameters: Sequence[Tensor], backward: Callable[[], None]) -> dict[int, str]:
    """Return {id of a parameter: what `backward` does to its gradient}, in the words that `Effect.gradients` explains.

    First all gradients are set to None and `backward` is called. If the gradient of a parameter with `requires_grad=True` is
    still None, all gradients are set to zeros and `backward` is called again: a gradient that is None after both calls was
    set to None by a hook (`dropped`). At the end the parameters get their old gradients back.
    """
    old_gradients = [parameter.grad for parameter in parameters]
    from_none = _gradient_kinds_after(backward, parameters, lambda parameter: None)
    effects = {tensor_id: "untouched" if kind == "none" else kind for tensor_id, kind in from_none.items()}
    if any(from_none[id(parameter)] == "none" and parameter.requires_grad for parameter in parameters):
        from_zeros = _gradient_kinds_after(backward, parameters, torch.zeros_like)
        effects.update({i: "dropped" for i, kind in from_none.items() if kind == from_zeros[i] == "none"})
    for parameter, gradient in zip(parameters, old_gradients, strict=True):
        parameter.grad = gradient
    return effects


def _gradient_kinds_after(
    backward: Callable[[], None], parameters: Sequence[Tensor], initial_gradient: Callable[[Tensor], Tensor | None]
) -> dict[int, str]:
    """Set each gradient to `initial_gradient(parameter)`, then call `backward`.

    Returns {id of a parameter: a word for its gradient after `backward`}. The word is `none` (there is no gradient), `zero`
    (all elements are 0) or `present` (some element is not 0).
    """
    for parameter in parameters:
        parameter.grad = initial_gradient(parameter)
    backward()
    return {id(parameter): gradient_kind(parameter) for parameter in parameters}
