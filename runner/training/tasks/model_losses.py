"""The loss that a model computes itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from runner.errors import ConfigError
from runner.training.tasks.forward import TARGET_NAMES, Call, forward_signature, takes_target
from runner.training.tasks.losses import fits, is_integer_tensor
from runner.training.tasks.wording import OWN_TASK, described, fields_of


def loss_of_model(output: Any) -> tuple[Tensor, dict[str, Tensor]] | None:
    """Return the loss that an output holds, and its summands by name; None if it holds none.

    It is the output if that is a scalar, else its `loss`, else the sum of a mapping of scalars.
    """
    if is_scalar(output):
        return output, {}
    fields = fields_of(output)
    if "loss" in fields:
        return (fields["loss"], {}) if is_scalar(fields["loss"]) else None
    named = {name: value for name, value in fields.items() if isinstance(name, str)}
    return sum_of_scalars(named) if named else None


def sum_of_scalars(parts: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]] | None:
    """Return the sum of the parts of a loss, and the parts; None if one is no scalar."""
    return (sum_of(parts), parts) if all(map(is_scalar, parts.values())) else None


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


def refuse_loss_beside_target(model: nn.Module, call: Call, output: Any, fits: Callable[[Any, Any], bool]) -> None:
    """Raise ConfigError if the model returned a scalar, alone or beside its scores, and the batch has a separate target.

    `fits`: whether an output may be the scores for a target. The message has the keys that add the scalar to the loss, that
    leave it out, and that take it as the loss.
    """
    fields: dict[str | int, Any] = {"": output} if isinstance(output, Tensor) else fields_of(output)
    scalars = [name for name, value in fields.items() if is_scalar(value)]
    if not scalars:
        return
    tensors = [name for name, value in fields.items() if isinstance(value, Tensor) and value.dim()]
    scores = [name for name in tensors if fits(fields[name], call.target)] or tensors
    whole = "task=model_loss" if call.kwargs or takes_target(model, call) else "task=model_loss task.call=first"
    whole += "" if loss_of_model(output) is not None else f" task.outputs={{{scalars[0]}: 1}}"
    returned = f"the model returned {described(output)}"
    if not scores:
        raise ConfigError(f"{returned}, a loss of its own, and the batch has a separate target: give {whole}")
    alone = ", ".join(f"{name}: {'0.3' if index else '1'}" for index, name in enumerate(scores[:2]))
    added = ", ".join(f"{name}: 0.01" for name in scalars[:2])
    raise ConfigError(
        f"{returned}, and the batch has a separate target: the scalar {scalars[0]} would be left out of the loss; give "
        f"task.outputs={{{alone}, {added}}} to add it with a weight, task.outputs={{{alone}}} to leave it out, or {whole} "
        "if it is the whole loss"
    )


def no_loss_message(model: nn.Module, call: Call, output: Any, batch: Any) -> str:
    """Return the message for an output that holds no loss although the batch has no separate target.

    Where the batch has a label under another name than the model's, the message has the fields that give it to the model.
    """
    returned = f"the model returned {described(output)}"
    if not model.training and isinstance(output, (list, tuple)):
        return f"in eval mode {returned} and no loss, so that it cannot be evaluated; give evaluate=false, or {OWN_TASK}"
    target = next((name for name in TARGET_NAMES if name in call.kwargs), "FIELD")
    if scalars := [name for name, value in fields_of(output).items() if is_scalar(value)]:
        return f"{returned} and no field `loss`: give task.outputs={{{scalars[0]}: 1}} if that is the loss"
    if fields := _fields_with_label(model, call, batch):
        return f"{returned}, which is no loss, and was given no labels: give task.fields={{{fields}}}"
    return f"{returned}, which is no loss, and there is no separate target: give task.target={target}, or task=causal_lm"


def _fields_with_label(model: nn.Module, call: Call, batch: Any) -> str:
    """Return the fields that give a mapping's label, or the second of a pair, as the model's labels; "" if unknown."""
    parameters = list(forward_signature(model).parameters)
    wanted = next((name for name in TARGET_NAMES if name in parameters and name not in call.kwargs), None)
    fields: dict[str | int, str] = {name: name for name in call.kwargs}
    label: str | int | None = None
    if isinstance(batch, Mapping):
        label = next((name for name in TARGET_NAMES if name in batch and name not in fields), None)
    elif len(call.args) == 2 and parameters:
        fields, label = {0: parameters[0]}, 1
    if wanted is None or label is None:
        return ""
    return ", ".join(f"{field}: {argument}" for field, argument in {**fields, label: wanted}.items())


def is_scalar(value: object) -> bool:
    """Return whether a value is a tensor of numbers with the shape ()."""
    return isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point()
