"""Tensors, batches, outputs and signatures in words, for error messages."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter
from typing import Any

from torch import Tensor

from runner.errors import listed

OWN_TASK = "write a function (model, batch) -> loss and give task=custom task._target_=my.task"


def described(value: object) -> str:
    """Return a value in words for a message: `a tensor of shape (4,)`, `a dict with out and aux`, `an int`."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    name = type(value).__name__
    name = f"an {name}" if name[0] in "AEIOaeio" else f"a {name}"
    if names := fields_of(value):
        return (
            f"{name} with {listed([*map(str, names)], most=6)}"
            if isinstance(next(iter(names)), str)
            else f"{name} of {len(names)}"
        )
    return f"{name} of 0" if isinstance(value, (tuple, list)) else name


def typed(tensor: Tensor) -> str:
    """Return the dtype and shape of a tensor in words: `int64 of shape (4, 16)`."""
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def fields_of(value: Any) -> dict[str | int, Any]:
    """Return {name or index: value} of a mapping, tuple or list, or of an object's attributes; {} of anything else.

    A named tuple has names. Attributes are those that the object itself stores and that do not begin with an underscore.
    """
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, (tuple, list)):
        return dict(zip(getattr(value, "_fields", range(len(value))), value, strict=True))
    if isinstance(value, Tensor):
        return {}
    return {name: held for name, held in getattr(value, "__dict__", {}).items() if not name.startswith("_")}


def short_signature(parameters: Mapping[str, Parameter]) -> str:
    """Return the names that a forward pass takes, such as `forward(x, mask=None)`, without annotations and cut if long."""
    words = []
    for name, parameter in parameters.items():
        stars = (
            "*" if parameter.kind is Parameter.VAR_POSITIONAL else "**" if parameter.kind is Parameter.VAR_KEYWORD else ""
        )
        default = "" if parameter.default is Parameter.empty else f"={parameter.default!r}"
        words.append(stars + name + (default if len(default) < 9 else "=..."))
    return f"forward({', '.join([*words[:7], *(['...'] if len(words) > 7 else [])])})"
