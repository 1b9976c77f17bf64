"""The names in one model: which of its modules, parameters and buffers a pattern matches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import cached_property

from torch import Tensor, nn

from runner.errors import ConfigError
from runner.freezing.parts import PARTS
from runner.freezing.parts.evidence import Evidence
from runner.freezing.patterns import HEAD, Pattern, parse_all
from runner.freezing.words import FOR_PYTHON, Words
from runner.tensors import TensorEntry, tensor_entries

Matcher = Callable[[str], bool]


class ModelNames:
    """The names of the modules, parameters and buffers of one model, and functions that say which ones a pattern matches.

    Args:
        model: the model; it is not changed.
        evidence: what the named parts of the model, such as `@head`, are found by.
        words: what messages call the arguments.
    """

    def __init__(self, model: nn.Module, evidence: Evidence | None = None, words: Words = FOR_PYTHON) -> None:
        self.model = model
        self.words = words
        self.entries = tensor_entries(model)
        self.parameters = [entry for entry in self.entries.values() if entry.kind == "parameter"]
        self.buffers = [entry for entry in self.entries.values() if entry.kind == "buffer"]
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.evidence = evidence or Evidence()
        self._parts: dict[str, tuple[Pattern, ...]] = {}

    def patterns_of(self, part: Pattern) -> tuple[Pattern, ...]:
        """Return the patterns that a named part, such as `@head`, stands for; none if the model has no such part.

        Raises ConfigError if the part is `@head` and it is not known, or if one of its patterns is malformed.
        """
        if part.text not in self._parts:
            patterns = parse_all(PARTS[part.text].find(self.model, self.evidence, self.words), self.words.head)
            if any(pattern.kind == "part" for pattern in patterns):
                raise ConfigError(f"{self.words.head}: {HEAD} stands for these patterns; give the name of the classifier")
            self._parts[part.text] = patterns
        return self._parts[part.text]

    def matcher(self, pattern: Pattern) -> Matcher:
        """Return a function that takes a dotted name and returns True if the pattern matches it or a module above it."""
        if pattern.kind == "part":
            matchers = [self.matcher(each) for each in self.patterns_of(pattern)]
            return lambda name: any(matches(name) for matches in matchers)
        if pattern.kind == "type":
            class_name = pattern.text.removeprefix("type:")
            found = {name for name, module in self.modules.items() if _is_instance(module, class_name)}
            return lambda name: any(parent in found for parent in with_parents(name))
        return lambda name: pattern.matches(name) or pattern.matches(self.without_wrappers(name))

    def whole_name_matcher(self, pattern: Pattern) -> Matcher:
        """Return a function that takes a dotted name and returns True if the pattern is this whole name itself.

        A regular expression counts as the name if it matches it.
        """
        return lambda name: pattern.is_name_of(name) or pattern.is_name_of(self.without_wrappers(name))

    def matched_names(self, entries: Iterable[TensorEntry], patterns: Iterable[Pattern]) -> frozenset[str]:
        """Return those names of the entries that a pattern matches; a tied tensor may have others as well."""
        matchers = [self.matcher(pattern) for pattern in patterns]
        return frozenset(name for entry in entries for name in entry.names if any(matches(name) for matches in matchers))

    def without_wrappers(self, name: str) -> str:
        """Return a name without the parts that wrappers add: `module.` by DataParallel, `_orig_mod.` by torch.compile."""
        parts = name.split(".")
        return ".".join(part for count, part in enumerate(parts, 1) if ".".join(parts[:count]) not in self._wrapped_names)

    @cached_property
    def _wrapped_names(self) -> set[str]:
        """The names of the modules that a wrapper such as DataParallel contains, for example `body._orig_mod`.

        A wrapper is a module without parameters of its own that has exactly one child, named `module` or `_orig_mod`. The
        child's name alone proves nothing, because users may call a child `module`, too.
        """
        children_of = {name: list(module._modules.keys()) for name, module in self.modules.items() if not module._parameters}
        return {
            f"{name}.{children[0]}".lstrip(".")
            for name, children in children_of.items()
            if children in (["module"], ["_orig_mod"])
        }

    def computed(self) -> dict[str, list[str]]:
        """Return {name: names of parameters} for tensors that modules compute from parameters with similar names.

        With `torch.nn.utils.parametrizations.weight_norm` a layer has no parameter `weight`: it is computed from the
        parameters `parametrizations.weight.original0` and `original1`. Older functions of torch name them `weight_g` and
        `weight_v`, or `weight_orig`. A name is taken for a computed one if the module has a tensor or a property of this
        name, which is not registered, and parameters that are named after it in one of these ways. Nothing is computed here.
        """
        registered = {name for entry in self.entries.values() for name in entry.names}
        found = {}
        for owner, module in self.modules.items():
            prefix = f"{owner}." if owner else ""
            inside = [name for name, _ in module.named_parameters(remove_duplicate=False)]
            for attribute in _unregistered_tensors(module) if inside else ():
                names = [prefix + name for name in inside if _is_named_after(name, attribute)]
                if names and prefix + attribute not in registered:
                    found[prefix + attribute] = names
        return found


def with_parents(name: str) -> list[str]:
    """Return a dotted name and the names of all modules around it: "a.b" gives ["", "a", "a.b"]; "" is the model itself."""
    parts = name.split(".") if name else []
    return [".".join(parts[:count]) for count in range(len(parts) + 1)]


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


def _unregistered_tensors(module: nn.Module) -> set[str]:
    """Return the names of the attributes of a module that are tensors or, by its class, properties."""
    properties = {name for cls in type(module).__mro__ for name, value in vars(cls).items() if isinstance(value, property)}
    return properties | {name for name, value in vars(module).items() if isinstance(value, Tensor)}


def _is_named_after(name: str, attribute: str) -> bool:
    """Return True if a parameter is named after an attribute, as `weight_g` and `parametrizations.weight.0` after `weight`.

    `name` is the parameter's name as seen from the module that has the attribute.
    """
    is_of_same_module = "." not in name
    return name.startswith(f"{attribute}_" if is_of_same_module else f"parametrizations.{attribute}.")
