"""A config node is the object: `{_target_: dotted.path, key: value, ...}` -> what that target returns."""

from __future__ import annotations

import builtins
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, TypeVar

from runner.errors import ConfigError, did_you_mean

Kind = TypeVar("Kind")
DIRECTIVES = ("_target_", "_args_", "_partial_")
UNSUPPORTED = {"_convert_", "_recursive_"}  # of Hydra's own directives
LIBRARIES = ("runner", "torch", "torchvision")  # their ValueErrors tell what is wrong with an argument


def build(node: Mapping[str, Any], key: str, *args: Any, **kwargs: Any) -> Any:
    """Call the node's `_target_` with its keys, after `args`; nested nodes are built first.

    `key` is where the node stands in the config. `_partial_: true` returns the call unmade, `_args_` adds positional
    arguments. Raises ConfigError where the target does not exist, does not take these arguments (bound against its
    signature before the call), or is a library's and answers them with an error of its own; whatever else passes.
    """
    path = node.get("_target_")
    if not isinstance(path, str):
        raise ConfigError(f"{key}._target_ is {path!r}; give the dotted path of a class or function")
    target = locate(path, f"{key}._target_")
    for name in UNSUPPORTED & node.keys():
        raise ConfigError(f"{key}.{name} is not supported: nested nodes are always built, and containers are plain ones")
    given = {name: _nested(value, f"{key}.{name}") for name, value in node.items() if name not in DIRECTIVES}
    args = (*args, *(_nested(value, f"{key}._args_") for value in node.get("_args_", ())))
    given.update(kwargs)
    unmade = bool(node.get("_partial_"))
    _bind(target=target, path=path, key=key, args=args, given=given, unmade=unmade)
    if unmade:
        return partial(target, *args, **given)
    try:
        return target(*args, **given)
    except ConfigError:
        raise
    except (ValueError, TypeError, LookupError, RuntimeError) as error:
        if path.split(".")[0] not in LIBRARIES:  # a bug in the user's own class is no mistake in the config
            raise
        raise ConfigError(f"{key}: {path} refused its arguments: {error}") from error


def build_a(kind: type[Kind], node: Mapping[str, Any], key: str, *args: Any) -> Kind:
    """Build a node as `build` does, and refuse what is not of this kind by ConfigError."""
    built = build(node, key, *args)
    if not isinstance(built, kind):
        raise ConfigError(f"{key} gave a {type(built).__name__}; it must give a {kind.__module__}.{kind.__qualname__}")
    return built


def locate(path: str, key: str) -> Callable[..., Any]:
    """Import a dotted path to a class or function; ConfigError says which part of it does not exist."""
    parts = path.split(".")
    if not all(parts):
        raise ConfigError(f"{key}: {path!r} is malformed; give the dotted path of a class or function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a user's own module in the current folder, under the console script too
    module, depth = None, 0
    for count in range(len(parts) - 1, 0, -1):
        try:
            module, depth = import_module(".".join(parts[:count])), count
            break
        except ModuleNotFoundError as error:
            if not f"{path}.".startswith(f"{error.name}."):
                raise ConfigError(
                    f"{key}: importing {path} needs the module {error.name}, which is not installed"
                ) from error
    if module is None:
        raise ConfigError(f"{key}: {path!r} does not exist; there is no module {parts[0]!r} here")
    found: Any = module
    for place, name in enumerate(parts[depth:], depth):
        if not hasattr(found, name):
            where = ".".join(parts[:place])
            raise ConfigError(f"{key}: {path!r} does not exist; {where} has no {name}{_instead(path, name, found)}")
        found = getattr(found, name)
    if not callable(found):
        raise ConfigError(f"{key}: {path} is a {type(found).__name__}; it must be a class or function")
    return found


def _instead(path: str, name: str, found: Any) -> str:
    """Where the last name of one of our own paths is defined, else what is near in the object that was reached."""
    last, home = path.rpartition(".")[2], Path(__file__).parent.parent
    if path.startswith("runner."):
        defined = re.compile(rf"^(class|def) {re.escape(last)}\b", re.M)
        files = [file for file in home.rglob("*.py") if defined.search(file.read_text(encoding="utf-8"))]
        if len(files) == 1:
            return f"; did you mean {'.'.join(('runner', *files[0].relative_to(home).with_suffix('').parts, last))}?"
    modules = [module.name for module in iter_modules(getattr(found, "__path__", []))]
    return did_you_mean(name, [*modules, *dir(found)])


def _nested(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return build(value, key)
        return {name: _nested(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [_nested(item, f"{key}[{index}]") for index, item in enumerate(value)]
    return value


@lru_cache(maxsize=256)
def _signature(target: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(target)


def _bind(
    target: Callable[..., Any], path: str, key: str, args: tuple[Any, ...], given: dict[str, Any], unmade: bool
) -> None:
    try:
        signature = _signature(target)
    except (TypeError, ValueError):  # some builtins have none to read
        return
    parameters = signature.parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in given:
            if name not in parameters:
                raise ConfigError(f"{key}.{name}: {path} takes no {name}{did_you_mean(name, parameters)}")
    try:
        (signature.bind_partial if unmade else signature.bind)(*args, **given)
    except TypeError as error:
        raise ConfigError(f"{key}: {path} cannot be called so: {error}; it takes {signature}") from error
    for name, value in given.items():
        default = parameters[name].default if name in parameters else None
        if isinstance(value, str) and type(default) in (builtins.int, builtins.float, builtins.bool):
            raise ConfigError(f"{key}.{name} is {value!r}; {path} expects a number or true/false, such as {default!r}")
