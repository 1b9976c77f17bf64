"""The loss that a model computes itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from runner.training.tasks.calls import TARGET_NAMES, Call
from runner.training.tasks.losses import fits, is_integer_tensor
from runner.training.tasks.wording import OWN_TASK, described, fields_of


def loss_of_model(output: Any) -> tuple[Tensor, dict[str, Tensor]] | None:
    """Return the loss that an output holds, and its summands by name; None if it holds none.

    It is the output if that is a scalar, else its `loss`, else the sum of a mapping of scalars.
    """
    if _is_scalar(output):
        return output, {}
    fields = fields_of(output)
    if "loss" in fields:
        return (fields["loss"], {}) if _is_scalar(fields["loss"]) else None
    named = {name: value for name, value in fields.items() if isinstance(name, str)}
    return sum_of_scalars(named) if named else None


def sum_of_scalars(parts: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]] | None:
    """Return the sum of the parts of a loss, and the parts; None if one is no scalar."""
    return (sum_of(parts), parts) if all(map(_is_scalar, parts.values())) else None


def sum_of(parts: dict[str, Tensor]) -> Tensor:
    """Return the sum of tensors, added in their order."""
    total, *others = parts.values()
    for other in others:
        total = total + other
    return total


def classified(output: Any, call: Call) -> tuple[Tensor | None, Tensor | None]:
    """Return scores (N, C) of an output and the labels (N,) that the model was given; (None, None) if there is no such pair.

    The model itself computed the loss of them.
    """
    given = [call.kwargs[name] for name in TARGET_NAMES if name in call.kwargs]
    labels = [value for value in given if is_integer_tensor(value) and value.dim() == 1]
    if len(labels) != 1:
        return None, None
    values = [value for value in fields_of(output).values() if isinstance(value, Tensor) and value.dim() == 2]
    scores = [value for value in values if value.shape[1] > 1 and fits(functional.cross_entropy, value, labels[0])]
    return (scores[0], labels[0]) if len(scores) == 1 else (None, None)


def no_loss_message(model: nn.Module, call: Call, output: Any) -> str:
    """Return the message for an output that holds no loss although the batch has no separate target."""
    returned = f"the model returned {described(output)}"
    if not model.training and isinstance(output, (list, tuple)):
        return f"in eval mode {returned} and no loss, so that it cannot be evaluated; give evaluate=false, or {OWN_TASK}"
    target = next((name for name in TARGET_NAMES if name in call.kwargs), "FIELD")
    if scalars := [name for name, value in fields_of(output).items() if _is_scalar(value)]:
        return f"{returned} and no field `loss`: give task.outputs={{{scalars[0]}: 1}} if that is the loss"
    return f"{returned}, which is no loss, and there is no separate target: give task.target={target}, or task=causal_lm"


def _is_scalar(value: object) -> bool:
    """Return whether a value is a tensor of numbers with the shape ()."""
    return isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point()
