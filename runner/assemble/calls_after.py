"""Build the object of the node `model.build`, and call what `model.then` lists, with what weights did not supply."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from inspect import isfunction
from typing import Any

from torch import Tensor, nn

from runner.assemble.following_new import names_of_new, new_entries
from runner.config.build import build_converted, build_nested, call
from runner.errors import ConfigError, did_you_mean, short_repr
from runner.tensors import TensorEntry, tensor_entries
from runner.training.pretrained.loaded import Loaded

EXAMPLES = "a method's name, {NAME: {ARGUMENT: VALUE}}, or a node with a _target_ that takes the model"


def build_loaded(node: Mapping[str, Any], key: str) -> Loaded:
    """Return the model that a config node describes, with what weights did not supply in it and the notes about them.

    A model within the node, which another target wraps, may have weights too: its new tensors are followed into the result.
    Raises ConfigError if the node does not describe a module.
    """
    inner: list[Loaded] = []
    new: list[TensorEntry] = []
    known: dict[int, Tensor] = {}  # the tensors are kept, so that no later one has the same id

    def module_of(built: Any) -> Any:
        if not isinstance(built, Loaded):
            return built
        inner.append(built)
        new.extend(new_entries(built))
        known.update((id(entry.tensor), entry.tensor) for entry in tensor_entries(built.model).values())
        return built.model

    model = build_converted(node, key, module_of)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{key}._target_ gives a {type(model).__name__}; it must give an instance of torch.nn.Module")
    notes = tuple(note for loaded in inner for note in loaded.notes)
    has_weights = any(loaded.new is not None for loaded in inner)
    return Loaded(model, names_of_new(model, new, known) if has_weights else None, notes)


def called_after(model: nn.Module, then: Sequence[Any]) -> nn.Module:
    """Return the model after the calls that `then` lists, in order.

    An item is the name of a method of the model, `{name: {argument: value}}`, or a node with a `_target_`, which is called
    with the model as its first argument. What such a target returns is the model from then on, unless it is None; what a
    method returns is not used. Raises ConfigError if an item is none of these, or is refused.
    """
    for index, item in enumerate(then):
        key = f"model.then[{index}]"
        if not isinstance(item, Mapping) or "_target_" not in item:
            _call_method(model, item, key)
            continue
        try:
            result = build_converted(item, key, _module_of, model)
        except ConfigError as error:
            raise ConfigError(f"{error}{_near_modules(str(error), model)}") from error
        if result is not None and not isinstance(result, nn.Module):
            raise ConfigError(f"{key}: {item['_target_']} gives a {type(result).__name__}; it must give a module or None")
        model = result if isinstance(result, nn.Module) else model
    return model


def _module_of(built: Any) -> Any:
    """Return the model of a Loaded; anything else is returned unchanged."""
    return built.model if isinstance(built, Loaded) else built


def _near_modules(message: str, model: nn.Module) -> str:
    """Return the end of an error message: modules with nearly the name that the message quotes; "" if there are none."""
    modules = {part for name, _ in model.named_modules() for part in name.split(".")} - {""}
    quoted = [name for name in re.findall(r"'([^']+)'", message) if name not in modules]
    return next(filter(None, (did_you_mean(name, sorted(modules)) for name in quoted)), "")


def _call_method(model: nn.Module, item: Any, key: str) -> None:
    """Call the method of the model that an item of `model.then` names."""
    item = {item: {}} if isinstance(item, str) else item
    if not isinstance(item, Mapping) or len(item) != 1:
        raise ConfigError(f"{key} is {short_repr(item)}; give {EXAMPLES}")
    ((name, arguments),) = item.items()
    if not isinstance(arguments, Mapping):
        raise ConfigError(f"{key}.{name} is {short_repr(arguments)}; give its arguments by name, {{ARGUMENT: VALUE}}")
    method = getattr(model, str(name), None)  # of the model itself: a wrapper may pass on what it does not have
    if isinstance(method, nn.Module) or not callable(method):
        near = did_you_mean(str(name), _methods(model))
        raise ConfigError(f"{key}: {type(model).__name__} has no method {name}{near}")
    arguments = build_nested(dict(arguments), key, _module_of)
    call(method, f"{type(model).__name__}.{name}", key, kwargs=arguments)


def _methods(model: nn.Module) -> list[str]:
    """Return the public methods that a model has, those of a model that it wraps and passes on included."""
    kinds = dict.fromkeys(map(type, model.modules()))
    names = dict.fromkeys(name for kind in kinds for name in dir(kind) if isfunction(getattr(kind, name, None)))
    return [name for name in names if not name.startswith("_") and hasattr(model, name)]
