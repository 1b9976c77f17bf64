"""Which names of a model a pattern matches, also where wrappers stand around its modules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cached_property

from torch import nn

from runner.freezing.patterns import Pattern, with_parents
from runner.tensors import names_and_tensors

Matcher = Callable[[str], bool]
# What wrappers call the module that they contain and pass on to: DataParallel, torch.compile, FSDP, checkpoints, peft.
WRAPPED = (
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    *("base_model", "model", "base_layer"),
)


class Matching:
    """The names of the modules, parameters and buffers of one model, and which of them a pattern by name or type matches.

    A wrapper around a module adds a part to all names in it: `module.`, `_orig_mod.`, `base_model.model.`. A pattern matches
    with these parts and without them. A pattern without wildcards that is a name of the model means this name alone.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self._spellings: dict[str, tuple[str, ...]] = {}

    def matcher(self, pattern: Pattern) -> Matcher:
        """Return a function that takes a dotted name and returns True if the pattern matches it or a module above it.

        `pattern` is no part such as `@head`.
        """
        if pattern.kind == "type":
            class_name = pattern.text.removeprefix("type:")
            return below({name for name, module in self.modules.items() if _is_instance(module, class_name)})
        if self.is_exact(pattern):
            return below({pattern.text})
        if pattern.kind == "regex" and any(map(pattern.matches, self._names)):  # it was written for names as they are
            return pattern.matches
        return lambda name: any(map(pattern.matches, self.spellings(name)))

    def is_exact(self, pattern: Pattern) -> bool:
        """Return whether a pattern is, without wildcards, the whole name of a module, parameter or buffer of the model."""
        return pattern.kind == "name" and pattern.text in self._names

    def without_wrappers(self, name: str) -> str:
        """Return a name without the parts that wrappers add."""
        return self.spellings(name)[-1]

    def spellings(self, name: str) -> tuple[str, ...]:
        """Return all ways to write a name, with and without each part of a wrapper: first the name, last the shortest."""
        if name not in self._spellings:
            parent, _, last = name.rpartition(".")
            longer = [f"{each}.{last}".lstrip(".") for each in self.spellings(parent)] if name else [""]
            shorter = self.spellings(parent) if name in self._wrapped_names else ()
            self._spellings[name] = tuple(dict.fromkeys([*longer, *shorter]))
        return self._spellings[name]

    @cached_property
    def _names(self) -> set[str]:
        """All names of modules, parameters and buffers of the model, tied ones included."""
        return {*self.modules, *names_and_tensors(self.model)[0]}

    @cached_property
    def _wrapped_names(self) -> set[str]:
        """The names of the modules that a wrapper contains, for example `body._orig_mod`."""
        return {
            f"{name}.{child}".lstrip(".")
            for name, module in self.modules.items()
            if (child := _wrapped_child(module._modules, module)) is not None
        }


def _wrapped_child(children: Mapping[str, nn.Module | None], module: nn.Module) -> str | None:
    """Return the name of the child that a module wraps; None if it is no wrapper.

    A wrapper has no parameters of its own, and one child, with a name that wrappers give; if its class looks up missing
    attributes elsewhere (in the child), with any name. The name alone proves nothing, because users may call a child
    `module`, too. A layer with adapters has other children beside `base_layer`, and so has a model with trained prompts
    beside `base_model`, if its class looks up attributes there.
    """
    if any(True for _ in module.parameters(recurse=False)):
        return None
    passes_on = hasattr(type(module), "__getattr__") and type(module).__getattr__ is not nn.Module.__getattr__
    if len(children) == 1 and (passes_on or {*children} <= {*WRAPPED}):
        return next(iter(children))
    if passes_on and "base_model" in children:
        return "base_model"
    return "base_layer" if "base_layer" in children else None


def below(names: set[str]) -> Matcher:
    """Return a function that takes a dotted name and returns True if it or a module above it is in `names`."""
    return lambda name: not names.isdisjoint(with_parents(name))


def _is_instance(module: nn.Module, class_name: str) -> bool:
    """Return True if a module is an instance of the named class.

    `class_name` is a bare name (`Linear`) or a dotted path. The path may be the public one (`torch.nn.Linear`) or the one in
    the module that defines the class (`torch.nn.modules.linear.Linear`).
    """
    if any(class_name in (cls.__name__, f"{cls.__module__}.{cls.__qualname__}") for cls in type(module).__mro__):
        return True
    module_path, _, name = class_name.rpartition(".")
    found = getattr(sys.modules.get(module_path), name, None)
    return isinstance(found, type) and isinstance(module, found)
