"""Check the arguments of a config node against the signature of its `_target_`."""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from runner.errors import ConfigError, did_you_mean


@lru_cache(maxsize=256)
def _signature(target: Callable[..., Any]) -> inspect.Signature:
    """Return `inspect.signature(target)`, from a cache if the target was seen before."""
    return inspect.signature(target)


def check_arguments(
    *, target: Callable[..., Any], path: str, key: str, args: Sequence[Any], kwargs: Mapping[str, Any], is_partial: bool
) -> None:
    """Raise ConfigError if the target's signature does not accept the arguments, or if a string is given for a number.

    A string is refused for a keyword argument whose default is a number or a bool. `path` is the target's dotted path and
    `key` is where the node is in the config, both for the message. With `is_partial`, required arguments may be missing.
    Targets without a signature, such as some builtins, are not checked.
    """
    try:
        signature = _signature(target)
    except (TypeError, ValueError):  # some builtins have no signature
        return
    parameters = signature.parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in kwargs:
            if name not in parameters:
                raise ConfigError(f"{key}.{name}: {path} takes no {name}{did_you_mean(name, parameters)}")
    try:
        (signature.bind_partial if is_partial else signature.bind)(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(f"{key}: wrong arguments for {path}: {error}; its signature is {signature}") from error
    for name, value in kwargs.items():
        default = parameters[name].default if name in parameters else None
        if isinstance(value, str) and type(default) in (builtins.int, builtins.float, builtins.bool):
            raise ConfigError(f"{key}.{name} is {value!r}; {path} expects a number or true/false, such as {default!r}")


def lacks_arguments(target: Callable[..., Any], args: Sequence[Any], names: Iterable[str]) -> bool:
    """Return whether a call with these positional arguments and keywords would lack an argument without a default."""
    try:
        bound = _signature(target).bind_partial(*args, **dict.fromkeys(names))
    except (TypeError, ValueError):  # arguments that it does not take, or a builtin without a signature
        return False
    needed = (p for p in _signature(target).parameters.values() if p.default is p.empty)
    return any(p.name not in bound.arguments and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in needed)
