"""The names in one model: which of its modules, parameters and buffers a pattern matches."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from runner.errors import ConfigError
from runner.freezing.matching import Matcher, Matching, below
from runner.freezing.parts import PARTS
from runner.freezing.parts.evidence import Evidence
from runner.freezing.patterns import HEAD, Pattern, parse_all
from runner.freezing.words import FOR_PYTHON, Words
from runner.tensors import TensorEntry, tensor_entries


class ModelNames(Matching):
    """The names of the modules, parameters and buffers of one model, and functions that say which ones a pattern matches.

    Args:
        model: the model; it is not changed.
        evidence: what the named parts of the model, such as `@head`, are found by.
        words: what messages call the arguments.
    """

    def __init__(self, model: nn.Module, evidence: Evidence | None = None, words: Words = FOR_PYTHON) -> None:
        super().__init__(model)
        self.words = words
        self.entries = tensor_entries(model)
        self.parameters = [entry for entry in self.entries.values() if entry.kind == "parameter"]
        self.buffers = [entry for entry in self.entries.values() if entry.kind == "buffer"]
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
        if pattern.kind != "part":
            return super().matcher(pattern)
        patterns = self.patterns_of(pattern)
        names = below({each.text for each in patterns if self.is_exact(each)})
        others = [super(ModelNames, self).matcher(each) for each in patterns if not self.is_exact(each)]
        return lambda name: names(name) or any(matches(name) for matches in others)

    def whole_name_matcher(self, pattern: Pattern) -> Matcher:
        """Return a function that takes a dotted name and returns True if the pattern is this whole name itself.

        A regular expression counts as the name if it matches it.
        """
        if self.is_exact(pattern):
            return lambda name: name == pattern.text
        return lambda name: any(map(pattern.is_name_of, self.spellings(name)))

    def matched_names(self, entries: Iterable[TensorEntry], patterns: Iterable[Pattern]) -> frozenset[str]:
        """Return those names of the entries that a pattern matches; a tied tensor may have others as well."""
        matchers = [self.matcher(pattern) for pattern in patterns]
        return frozenset(name for entry in entries for name in entry.names if any(matches(name) for matches in matchers))

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
