"""Build what a config node declares: `{_target_: dotted.path, key: value, ...}` -> `dotted.path(key=value, ...)`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, TypeGuard, TypeVar

from runner.config.schema import values_by_key
from runner.config.signature import (
    check_arguments,
    lacks_arguments,
    refuse_text_for_numbers,
    refuse_unexpected,
    takes,
    takes_anything,
)
from runner.errors import ConfigError, SkippedError, did_you_mean, place_in_user_code

T = TypeVar("T")
LIBRARY_BUILDERS = "runner.training.pretrained."  # the functions `NAME_model` there build the models of the library NAME
DIRECTIVES = ("_target_", "_args_", "_partial_")
NEVER_IN_THE_CURRENT_FOLDER = ("runner", "torch", "torchvision")


def build(node: Mapping[str, Any], key: str, *args: Any, **kwargs: Any) -> Any:
    """Call the function or class named by the node's `_target_` and return the result.

    `node` is a dict from the config. Its key `_args_` lists positional arguments, which follow `args`. Its other keys become
    keyword arguments, besides `kwargs`. A value in the node that has a `_target_` itself is built first. With
    `_partial_: true` the target is not called: the result is a `functools.partial`. `key` is where the node is in the
    config, such as `model.build`, for error messages.

    Raises ConfigError if the target does not exist, or refuses its arguments: it cannot be called with them, or raises an
    error in which no line of the user's own code takes part. Other errors are those of the user's code and are passed on
    unchanged.
    """
    return build_converted(node, key, _unchanged, *args, **kwargs)


def build_converted(node: Mapping[str, Any], key: str, convert: Callable[[Any], Any], *args: Any, **kwargs: Any) -> Any:
    """Build a config node as `build` does; `convert` is given each object that it or a node in it gives, and replaces it."""
    path: Any = node.get("_target_")
    target = locate(path, f"{key}._target_")
    given = {name: value for name, value in node.items() if name not in DIRECTIVES}
    arguments = {name: build_nested(value, f"{key}.{name}", convert) for name, value in given.items()}
    args = (*args, *(build_nested(value, f"{key}._args_", convert) for value in node.get("_args_", ())))
    arguments.update(kwargs)
    if node.get("_partial_"):
        check_arguments(target=target, path=path, key=key, args=args, kwargs=arguments, is_partial=True)
        return partial(target, *args, **arguments)
    return convert(call(target, path, key, args=args, kwargs=arguments))


def call(target: Callable[..., Any], path: str, key: str, *, args: Sequence[Any] = (), kwargs: Mapping[str, Any]) -> Any:
    """Call a target with the arguments that the config gives and return the result. `path`, `key`, errors: see `build`.

    A signature need not tell the truth. So the call itself decides whether the arguments are right, and only an error is
    worded from the signature; except that a text for a number is refused before, as not every target would notice.
    """
    refuse_text_for_numbers(target=target, path=path, key=key, kwargs=kwargs)
    try:
        return target(*args, **kwargs)
    except (ConfigError, SkippedError):
        raise
    except Exception as error:
        if isinstance(error, TypeError):
            check_arguments(target=target, path=path, key=key, args=args, kwargs=kwargs, is_partial=False)
        if place_in_user_code(error):  # a bug in the user's own code
            raise
        if isinstance(error, TypeError):
            refuse_unexpected(error, key=key, given=kwargs)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{_refuser(path, key)}: {reason}") from error


def _refuser(path: str, key: str) -> str:
    """Return what refused its arguments, for a message: a target, or the library whose models a target of ours builds."""
    if not path.startswith(LIBRARY_BUILDERS):
        return f"{key}: {path} refused its arguments"
    library = path.rpartition(".")[2].rpartition("_")[0]
    return f"model={library} refused" if key == "model.build" else f"{key}: {library} refused"


def _unchanged(built: Any) -> Any:
    """Return the object itself."""
    return built


def build_function(node: Mapping[str, Any] | str, key: str) -> Any:
    """Return the function that a node or a dotted path names; a class is built, as `build` does.

    A function that lacks arguments, which a run passes to it later, is returned uncalled, as a partial with those of the
    node. One that the node gives all its arguments is called and returns the function. `key` and errors: see `build`.
    """
    is_path = isinstance(node, str)
    node = {"_target_": node} if isinstance(node, str) else node
    target = locate(node["_target_"], f"{key}._target_")
    given = {name: value for name, value in node.items() if name not in DIRECTIVES}
    if not isinstance(target, type) and lacks_arguments(target, node.get("_args_", ()), given):
        node = {**node, "_partial_": True}
    try:
        return build(node, key)
    except (TypeError, LookupError, ConfigError) as error:
        reason = error.__cause__ if isinstance(error, ConfigError) else error
        if (
            not isinstance(reason, (TypeError, LookupError))
            or isinstance(target, type)
            or given
            or node.get("_args_")
            or not takes_anything(target)
        ):
            raise
        path = node["_target_"]
        advice = f"{key}={{_target_: {path}, _partial_: true}}" if is_path else f"++{key}._partial_=true"
        raise ConfigError(
            f"{key}: {path} takes any arguments and fails without ({reason}); give {advice} if it is the function itself, "
            "or decorate it with functools.wraps"
        ) from error


def names_function(value: Any) -> TypeGuard[Mapping[str, Any] | str]:
    """Return whether a value in the config is a dotted path or a node with a `_target_`, which `build_function` takes."""
    return "." in value if isinstance(value, str) else isinstance(value, Mapping) and "_target_" in value


def check_node(node: Mapping[str, Any], key: str, given: int) -> None:
    """Raise ConfigError if the signature of the node's target does not accept its arguments; nothing is called.

    `key`: where the node is in the config. `given`: how many positional arguments a run passes to the target, besides the
    node's own.
    """
    target = locate(node["_target_"], f"{key}._target_")
    args = [None] * given + list(node.get("_args_", ()))
    kwargs = {name: value for name, value in node.items() if name not in DIRECTIVES}
    is_partial = bool(node.get("_partial_"))
    check_arguments(target=target, path=node["_target_"], key=key, args=args, kwargs=kwargs, is_partial=is_partial)


def offered(node: Mapping[str, Any], key: str, **values: Any) -> dict[str, Any]:
    """Return those of the values whose names are parameters of the node's target, which may or may not take them."""
    path: Any = node.get("_target_")
    target = locate(path, f"{key}._target_")
    return {name: value for name, value in values.items() if takes(target, name)}


def build_instance(expected: type[T], node: Mapping[str, Any], key: str, *args: Any) -> T:
    """Build a config node as `build` does and return the object.

    Raises ConfigError if the object is not an instance of `expected`.
    """
    built = build(node, key, *args)
    if not isinstance(built, expected):
        wanted = f"{expected.__module__}.{expected.__qualname__}"
        raise ConfigError(f"{key}._target_ gives a {type(built).__name__}; it must give an instance of {wanted}")
    return built


def locate_targets(node: Mapping[str, Any], key: str) -> None:
    """Import every class and function that a node names at any depth. Raises ConfigError if one does not exist."""
    for nested_key, value in values_by_key(node, key):
        if nested_key.endswith("._target_") and isinstance(value, str):
            locate(value, nested_key)


def locate(path: str, key: str) -> Callable[..., Any]:
    """Import and return the class or function of a dotted path such as `torch.optim.SGD`.

    `key` is the config key whose value is the path, for error messages. Raises ConfigError if a part of the path does not
    exist (the message names the part), or if the object at the end of the path cannot be called.
    """
    refuse_malformed_path(path, key)
    parts = path.split(".")
    if parts[0] not in NEVER_IN_THE_CURRENT_FOLDER and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # so that the console script, too, finds modules in the current folder
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
        raise ConfigError(f"{key}: {path!r} does not exist; there is no module {parts[0]!r}")
    found: Any = module
    for position, name in enumerate(parts[depth:], depth):
        if not hasattr(found, name):
            parent = ".".join(parts[:position])
            raise ConfigError(f"{key}: {path!r} does not exist; {parent} has no {name}{_suggestion(path, name, found)}")
        found = getattr(found, name)
    if not callable(found):
        raise ConfigError(f"{key}: {path} is a {type(found).__name__}; it must be a class or function")
    return found


def refuse_malformed_path(path: Any, key: str) -> None:
    """Raise ConfigError if the value of a key `_target_` is not a text of names with dots between them."""
    if not isinstance(path, str):
        raise ConfigError(f"{key} is {path!r}; give the dotted path of a class or function")
    if "." not in path or not all(path.split(".")):
        raise ConfigError(f"{key}: {path!r} is malformed; give the dotted path of a class or function, MODULE.NAME")


def _suggestion(path: str, name: str, parent: Any) -> str:
    """Return the end of an error message, such as `; did you mean SGD?`, or "" if no existing name is similar.

    `path` is a dotted path that does not exist: `parent`, the object that its first parts lead to, has no attribute `name`.
    If the path begins with `runner.` and exactly one file of this project defines a class or function with the path's last
    name, the full path of that definition is suggested. Otherwise attributes and submodules of `parent` whose names are
    similar to `name` are suggested.
    """
    last, package = path.rpartition(".")[2], Path(__file__).parent.parent
    if path.startswith("runner."):
        defined = re.compile(rf"^(class|def) {re.escape(last)}\b", re.M)
        files = [file for file in package.rglob("*.py") if defined.search(file.read_text(encoding="utf-8"))]
        if len(files) == 1:
            return f"; did you mean {'.'.join(('runner', *files[0].relative_to(package).with_suffix('').parts, last))}?"
    modules = [module.name for module in iter_modules(getattr(parent, "__path__", []))]
    return did_you_mean(name, [*modules, *dir(parent)])


def build_nested(value: Any, key: str, convert: Callable[[Any], Any] = _unchanged) -> Any:
    """Return a copy of the value in which every dict with a `_target_` is replaced by the object that it describes.

    Dicts and lists are searched at every depth. `key` is where the value is in the config, for error messages. `convert`:
    see `build_converted`.
    """
    if isinstance(value, Mapping):
        if "_target_" in value:
            return build_converted(value, key, convert)
        return {name: build_nested(item, f"{key}.{name}", convert) for name, item in value.items()}
    if isinstance(value, list):
        return [build_nested(item, f"{key}[{index}]", convert) for index, item in enumerate(value)]
    return value
