"""Check the arguments of a config node against the signature of its `_target_`."""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Callable, Mapping, Sequence
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


def lacks_arguments(target: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a function cannot be called with these arguments, but can with more of them."""
    try:
        signature = _signature(target)
        signature.bind_partial(*args, **kwargs)
    except (TypeError, ValueError):  # it has no signature, or does not accept the arguments
        return False
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return True
    return False


def takes_anything(target: Callable[..., Any]) -> bool:
    """Return whether the signature of a function is just (*args) or (*args, **kwargs), as that of many decorators is."""
    try:
        kinds = [each.kind for each in _signature(target).parameters.values()]
    except (TypeError, ValueError):
        return False
    return inspect.Parameter.VAR_POSITIONAL in kinds and {*kinds} <= {
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    }
