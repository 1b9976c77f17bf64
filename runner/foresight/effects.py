"""Find out what one batch does to a model: which parameters get a gradient, and which tensors the forward pass changes."""

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
from runner.training.loop import Task


@dataclass(frozen=True)
class Effect:
    """What one batch does to a model while certain layers are frozen.

    Attributes:
        gradients: {id of a parameter: what backward does to its gradient}. `present`: the gradient has values other than 0;
            `zero`: all are 0; `dropped`: a hook sets it to None; `untouched`: backward leaves it as it was.
        written: the names of the parameters and buffers that the forward pass changes.
    """

    gradients: Mapping[int, str] = field(default_factory=dict)
    written: frozenset[str] = frozenset()


def effect_of_batch(model: nn.Module, parameters: Sequence[Tensor], task: Task, batch: Any) -> Effect:
    """Run forward and backward on one batch, and return what they do to gradients, parameters and buffers.

    `parameters`: those whose gradients are examined. `task`: a function (model, batch) -> loss. The old gradients are put
    back; changes that the forward pass makes, such as in BatchNorm statistics, stay in the model.
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
    """Return what backward would do to each gradient, without a batch: judge by `requires_grad` and the parameter's hooks.

    The hooks may be the user's own and change what they are given, so they get a copy of one element of the parameter.
    """
    return Effect({id(p): _gradient_effect_of_flags(p) for p in parameters})


def _gradient_effect_of_flags(parameter: Tensor) -> str:
    """Return what backward would do to the gradient: `present`, `zero`, `dropped` or `untouched` (explained in Effect)."""
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
    """Return {id of a parameter: what `backward` does to its gradient}; the values are explained in Effect.

    Calls `backward` with all gradients set to None. If some stay None, calls it again with gradients of zeros: only those
    that a hook sets to None (`dropped`) are None after that. Puts the old gradients back at the end.
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

    Returns {id of a parameter: its gradient afterwards, as `none`, `zero` (all elements are 0) or `present`}.
    """
    for parameter in parameters:
        parameter.grad = initial_gradient(parameter)
    backward()
    return {id(parameter): gradient_kind(parameter) for parameter in parameters}
