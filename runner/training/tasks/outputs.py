"""Which values of a model's output the loss is taken of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from runner.errors import ConfigError, did_you_mean
from runner.training.tasks.wording import described, fields_of


def main_output(output: Any, fits: Callable[[Tensor], bool]) -> Any:
    """Return the output if it is a tensor, else the one tensor in it that fits, or the only tensor that it holds.

    Raises ConfigError if several tensors fit, or if none does and the output does not hold exactly one.
    """
    if isinstance(output, Tensor):
        return output
    tensors = {name: value for name, value in fields_of(output).items() if isinstance(value, Tensor) and value.dim()}
    fitting = {name: value for name, value in tensors.items() if fits(value)} or tensors
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    if not fitting:
        raise ConfigError(f"the model returned {described(output)}, in which there is no tensor to take the loss of")
    weights = ", ".join(f"{name}: {'0.3' if index else '1'}" for index, name in enumerate(list(fitting)[:3]))
    raise ConfigError(
        f"the model returned {described(output)}: say of which the loss is taken, and with which weights, such as "
        f"task.outputs={{{weights}}}"
    )


def weighted_outputs(output: Any, weights: Mapping[str | int, float]) -> dict[str, tuple[Any, float]]:
    """Return {field: (its value, its weight)} of an output, the one with the greatest weight first.

    A tensor, which many models return in eval mode, counts as that one. Other fields may be missing or None, as `aux` of a
    model without it is. Raises ConfigError if the first is missing, or if another is missing while the output holds a tensor
    that is not listed: then the name is a mistake.
    """
    listed = sorted(weights, key=lambda field: -weights[field])
    if isinstance(output, Tensor):
        return {str(listed[0]): (output, weights[listed[0]])}
    fields = fields_of(output)
    names = {field: _name(field, list(fields)) for field in listed}
    missing = [field for field in listed if names[field] is None]
    unlisted = [name for name, value in fields.items() if isinstance(value, Tensor) and name not in names.values()]
    if listed[0] in missing or (missing and unlisted):
        raise ConfigError(
            f"task.outputs names {missing[0]}, and the model returned {described(output)}"
            f"{did_you_mean(str(missing[0]), map(str, unlisted))}"
        )
    values = {field: fields[name] for field, name in names.items() if name is not None}
    return {str(field): (value, weights[field]) for field, value in values.items() if value is not None}


def main_of(chosen: Mapping[str, tuple[Any, float]]) -> Any:
    """Return the first output of `weighted_outputs` that is no tensor of shape (); the first one if there is no other."""
    values = [value for value, _ in chosen.values()]
    return next((value for value in values if not isinstance(value, Tensor) or value.dim()), values[0])


def _name(field: str | int, names: list[str | int]) -> str | int | None:
    """Return the name of a field; an index counts the fields of an output that has names. None if there is none."""
    if field in names:
        return field
    return names[field] if isinstance(field, int) and -len(names) <= field < len(names) else None
