"""Find out what one batch does to a model: which gradients backward makes, and what the forward pass writes to."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from runner.proof.changes import snapshot
from runner.proof.replay import gradient_kind
from runner.seeding import preserve_random_state
from runner.tensors import same_bits, tensor_entries, tensor_resolver

Task = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Effect:
    """What one batch does to a model in one phase.

    Attributes:
        gradients: what backward does to the gradient of each parameter, by its id: makes it `present` or `zero`, sets it to
            None (`dropped`), or leaves it alone (`untouched`).
        written: the names of the tensors that the forward pass writes to.
    """

    gradients: Mapping[int, str] = field(default_factory=dict)
    written: frozenset[str] = frozenset()


def effect_of_batch(model: nn.Module, parameters: Sequence[Tensor], task: Task, batch: Any) -> Effect:
    """Return what one batch does, by running forward and backward.

    Gradients are restored afterwards; what the forward pass writes stays in the model.
    """
    written: set[str] = set()

    def forward_backward() -> None:
        before = snapshot(model)
        loss = task(model, batch)
        resolve = tensor_resolver(tensor_entries(model))
        for name, entry in before.entries.items():
            after = resolve(entry)
            if after is None or not same_bits(before.values[name], after):
                written.add(name)
        if loss.requires_grad:
            loss.backward()

    gradients = _gradient_effects(parameters, forward_backward)
    return Effect(gradients, frozenset(written))


def effect_of_flags(parameters: Sequence[Tensor]) -> Effect:
    """Return what a batch would do to the parameters, judging only by `requires_grad` and the hooks of each one.

    Hooks are called on a copy of one element, because they may be the user's own and have side effects.
    """
    return Effect({id(p): _gradient_effect_of_flags(p) for p in parameters})


def _gradient_effect_of_flags(parameter: Tensor) -> str:
    """Return what backward would do to this gradient: `present`, `zero`, `dropped` or `untouched`."""
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
    """Return what `backward` does to each gradient, by the id of the parameter; restores the gradients.

    Calls it with gradients of None. Where they stay None, a second call with zeros tells `dropped` from `untouched`.
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
    """Set each gradient to its initial value, call `backward`, and return the kind of each gradient by parameter id."""
    for parameter in parameters:
        parameter.grad = initial_gradient(parameter)
    backward()
    return {id(parameter): gradient_kind(parameter) for parameter in parameters}
