"""Check the arguments of a config node against the signature of its `_target_`."""

from __future__ import annotations

import builtins
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from traceback import walk_tb
from typing import Any

from runner.config.schema import Model
from runner.errors import ConfigError, did_you_mean

_cached_signature = lru_cache(maxsize=256)(inspect.signature)


def _signature(target: Callable[..., Any]) -> inspect.Signature:
    """Return `inspect.signature(target)`, from a cache if the target was seen before; the cache keeps no object alive."""
    return inspect.signature(target) if inspect.ismethod(target) else _cached_signature(target)


def takes(target: Callable[..., Any], name: str) -> bool:
    """Return whether a function or class has a parameter of this name."""
    try:
        return name in _signature(target).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return False


def argument_key(key: str, name: str) -> str:
    """Return the key of an argument of the node `key`: those of `model.build` are keys of `model`."""
    return f"model.{name}" if key == "model.build" else f"{key}.{name}"


def check_arguments(
    *, target: Callable[..., Any], path: str, key: str, args: Sequence[Any], kwargs: Mapping[str, Any], is_partial: bool
) -> None:
    """Raise ConfigError if the target's signature does not accept the arguments, or if a string is given for a number.

    `path` is the target's dotted path and `key` is where the node is in the config, both for the message. With `is_partial`,
    required arguments may be missing. Targets without a signature, such as some builtins, are not checked.
    """
    try:
        signature = _signature(target)
    except (TypeError, ValueError):  # some builtins have no signature
        return
    parameters = signature.parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in kwargs:
            if name not in parameters:
                raise _takes_no(path, key, name, parameters)
    try:
        (signature.bind_partial if is_partial else signature.bind)(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(f"{key}: wrong arguments for {path}: {error}; its signature is {signature}") from error
    refuse_text_for_numbers(target=target, path=path, key=key, kwargs=kwargs)


def refuse_text_for_numbers(*, target: Callable[..., Any], path: str, key: str, kwargs: Mapping[str, Any]) -> None:
    """Raise ConfigError if a string is given for an argument whose default is a number or a bool, unless it may be a text.

    It may if the parameter's annotation says so, as for `padding="same"` of a convolution. `path`, `key`: for the message.
    """
    try:
        parameters = _signature(target).parameters
    except (TypeError, ValueError):
        return
    for name in (name for name, value in kwargs.items() if isinstance(value, str) and name in parameters):
        default, annotation = parameters[name].default, str(parameters[name].annotation)
        if type(default) in (builtins.int, builtins.float, builtins.bool) and not re.search(r"\bstr\b", annotation):
            raise ConfigError(
                f"{argument_key(key, name)} is {kwargs[name]!r}; {path} expects a number or true/false, such as {default!r}"
            )


def refuse_unexpected(error: TypeError, *, key: str, given: Mapping[str, Any]) -> None:
    """Raise ConfigError if a target passed an argument of the config on to a function that does not take it.

    `error`: what the call raised. The message suggests names of the function's parameters. The function is looked for in the
    frame that called it.
    """
    found = re.match(r"(.+)\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if not found or found[2] not in given:
        return
    *_, (frame, _) = walk_tb(error.__traceback__)
    callee, there = found[1].removesuffix(".__init__"), [*frame.f_locals.values(), *frame.f_globals.values()]
    called = next((each for each in there if getattr(each, "__qualname__", "") == callee), None)
    try:
        parameters = [*_signature(called).parameters] if callable(called) else []
    except (TypeError, ValueError):
        parameters = []
    raise _takes_no(callee, key, found[2], parameters) from error


def _takes_no(path: str, key: str, name: str, parameters: Iterable[str]) -> ConfigError:
    """Return the error for an argument that a target does not take. Near names are suggested, keys of `model` included."""
    near = did_you_mean(name, parameters)
    if key == "model.build":
        near = did_you_mean(name, [*parameters, *(each.name for each in fields(Model))])
        near = near.replace(" mean ", " mean model.").replace(" or ", " or model.")
    return ConfigError(f"{argument_key(key, name)}: {path} takes no {name}{near}")


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
