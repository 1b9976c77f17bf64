"""Find what patterns match in a model: which parameters are declared frozen, and which modules stay in eval mode."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn

from runner.errors import ConfigError, did_you_mean, listed
from runner.freezing.patterns import Pattern, parse, parse_all, refuse_patterns_in_both
from runner.tensors import TensorEntry, tensor_entries

Matcher = Callable[[str], bool]


@dataclass(frozen=True)
class Selection:
    """What is declared frozen in one model: the result of `select`.

    `tensor in selection` is True if the tensor is one of the frozen parameters (the same object, not an equal one).

    Attributes:
        parameters: {name: frozen parameter}.
        buffers: {name: buffer} for each buffer of the modules in `modules`; eval mode keeps these buffers unchanged.
        modules: {name: module that stays in eval mode}; empty with `freeze.buffers=live`.
        names: the names that are declared frozen: those that a pattern matches. A tied parameter may have others as well, at
            which another tensor may be put. Empty: all names of the parameters and buffers.
        head: the patterns that `@head` stands for, as given to `select`.
        notes: messages for the user.
    """

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    head: str | Sequence[str] | None = None
    notes: tuple[str, ...] = ()

    def __contains__(self, tensor: object) -> bool:
        return id(tensor) in self._parameter_ids

    @cached_property
    def _parameter_ids(self) -> frozenset[int]:
        """The `id()` of each frozen parameter."""
        return frozenset(id(tensor) for tensor in self.parameters.values())


def select(
    model: nn.Module,
    patterns: Sequence[str],
    keep: Sequence[str] = (),
    buffers: str = "live",
    head: str | Sequence[str] | None = None,
) -> Selection:
    """Return the parameters, buffers and modules of a model that the patterns match, as a Selection.

    `keep`: patterns of exceptions. A parameter or module is left out if a `keep` pattern matches any of its names.
    `buffers`: with "frozen", the matched modules and their buffers are selected too; with "live", only parameters are.
    `head`: the patterns that `@head` stands for; None or "auto" finds the classifier.

    Raises ConfigError (a ValueError) if a pattern is empty or malformed, matches nothing, or is in both `patterns` and
    `keep`. Raises it too if `keep` leaves out everything that a pattern matches, or if a `keep` pattern leaves out nothing.
    """
    if buffers not in ("live", "frozen"):
        raise ConfigError(f"buffers is {buffers!r}; give live or frozen")
    freeze_patterns, keep_patterns = parse_all(patterns, "freeze.patterns"), parse_all(keep, "freeze.keep")
    refuse_patterns_in_both(patterns, keep)
    resolver = PatternResolver(model, head)
    with_modules = buffers == "frozen"
    names_of_pattern = {p.text: resolver.resolve(p, "freeze.patterns", with_modules) for p in freeze_patterns}
    names_of_keep = {p.text: resolver.resolve(p, "freeze.keep", with_modules) for p in keep_patterns}
    matched, kept = set[str]().union(*names_of_pattern.values()), set[str]().union(*names_of_keep.values())
    _refuse_patterns_without_effect(names_of_pattern, names_of_keep, matched, kept)
    frozen = matched - kept
    modules = {name: module for name, module in resolver.modules.items() if f"{name}/" in frozen}
    module_ids = {id(module) for module in modules.values()}
    parameters = [entry for entry in resolver.parameters if entry.name in frozen]
    frozen_buffers = [
        entry
        for entry in resolver.entries.values()
        if entry.kind == "buffer" and id(resolver.modules[entry.owner]) in module_ids
    ]
    return Selection(
        parameters={entry.name: entry.tensor for entry in parameters},
        buffers={entry.name: entry.tensor for entry in frozen_buffers},
        modules=modules,
        names=resolver.matched_names(parameters, freeze_patterns).union(*(entry.names for entry in frozen_buffers)),
        head=head,
        notes=tuple(resolver.tie_notes(freeze_patterns, keep_patterns, matched & kept)),
    )


def _refuse_patterns_without_effect(
    names_of_pattern: Mapping[str, set[str]], names_of_keep: Mapping[str, set[str]], matched: set[str], kept: set[str]
) -> None:
    """Raise ConfigError if removing a pattern from `freeze.patterns` or `freeze.keep` would change nothing.

    A pattern of `freeze.keep` is refused if it matches no name in `matched`. A pattern of `freeze.patterns` is refused if
    all names that it matches are in `kept`. `names_of_pattern`: {pattern of `freeze.patterns`: names that it matches}.
    `names_of_keep`: the same for `freeze.keep`. `matched`: all names that `freeze.patterns` matches. `kept`: all names that
    `freeze.keep` matches.
    """
    for text, names in names_of_keep.items():
        if not names & matched:
            raise ConfigError(f"freeze.keep: {text!r} exempts nothing that freeze.patterns matches; remove it")
    for text, names in names_of_pattern.items():
        if not names - kept:
            raise ConfigError(f"freeze.patterns: {text!r} freezes nothing: freeze.keep exempts all of it; remove it")


class PatternResolver:
    """Finds the parameters and modules of one model that a pattern matches.

    `head`: the pattern or patterns that `@head` stands for. With None or "auto", `@head` is the classifier that `find_head`
    finds.
    """

    def __init__(self, model: nn.Module, head: str | Sequence[str] | None = None) -> None:
        self.model = model
        self.entries = tensor_entries(model)
        self.parameters = [entry for entry in self.entries.values() if entry.kind == "parameter"]
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self._head = head

    @cached_property
    def head_names(self) -> tuple[str, ...]:
        """The patterns that `@head` stands for, as a tuple; with "auto", the name of the classifier that was found."""
        if self._head is None or self._head == "auto":
            return (find_head(self.model),)
        return (self._head,) if isinstance(self._head, str) else tuple(self._head)

    def resolve(self, pattern: Pattern, key: str, with_modules: bool = False) -> set[str]:
        """Return the names of the parameters that a pattern matches.

        A tied parameter has several names. If the pattern matches any of them, the first name of the parameter is returned.
        `with_modules` adds the names of the matched modules, each followed by a `/`. `key` is the config key that has the
        pattern, for messages. Raises ConfigError if nothing matches; the message suggests similar names in the model.
        """
        matches = self._matcher(pattern)
        found = {entry.name for entry in self.parameters if any(map(matches, entry.names))}
        if with_modules:
            # A module that has two names matches if one of them does.
            module_ids = {id(module) for name, module in self.modules.items() if any(map(matches, _with_parents(name)))}
            found |= {f"{name}/" for name, module in self.modules.items() if id(module) in module_ids}
        if not found:
            matched_modules = [name for name in self.modules if matches(name)]
            raise ConfigError(self._no_match_message(pattern, key, matched_modules))
        return found

    def matched_names(self, entries: Iterable[TensorEntry], patterns: Iterable[Pattern]) -> frozenset[str]:
        """Return those names of the entries that a pattern matches; a tied parameter may have others as well."""
        matchers = [self._matcher(pattern) for pattern in patterns]
        return frozenset(name for entry in entries for name in entry.names if any(matches(name) for matches in matchers))

    def tie_notes(self, patterns: Iterable[Pattern], keep: Iterable[Pattern], kept: set[str]) -> Iterable[str]:
        """Yield a note for each tied parameter that is not frozen because `keep` matches another of its names.

        A tied parameter is one tensor in several modules, so it has several names. If `patterns` matches one name and `keep`
        matches another one, it is not frozen. `kept`: the names of the parameters that both `patterns` and `keep` match.
        """
        freezes, exempts = [self._matcher(p) for p in patterns], [self._matcher(p) for p in keep]
        for entry in self.parameters:
            if entry.name in kept and entry.aliases:
                exempt = [name for name in entry.names if any(matches(name) for matches in exempts)]
                frozen = [name for name in entry.names if any(matches(name) for matches in freezes) and name not in exempt]
                if frozen:
                    yield f"{frozen[0]} is not frozen: it is tied to {exempt[0]}, which freeze.keep exempts"

    def _matcher(self, pattern: Pattern) -> Matcher:
        """Return a function that takes a dotted name and returns True if the pattern matches it."""
        if pattern.kind == "head":
            matchers = [self._matcher(parse(text, "model.head")) for text in self.head_names]
            return lambda name: any(matches(name) for matches in matchers)
        if pattern.kind == "type":
            class_name = pattern.text.removeprefix("type:")
            found = {name for name, module in self.modules.items() if _is_instance(module, class_name)}
            return lambda name: any(parent in found for parent in _with_parents(name))
        return lambda name: pattern.matches(name) or pattern.matches(self._without_wrappers(name))

    def _without_wrappers(self, name: str) -> str:
        """Return a name without the parts that wrappers add: `module.` by DataParallel, `_orig_mod.` by torch.compile."""
        parts = name.split(".")
        return ".".join(part for count, part in enumerate(parts, 1) if ".".join(parts[:count]) not in self._wrapped_names)

    @cached_property
    def _wrapped_names(self) -> set[str]:
        """The names of the modules that a wrapper such as DataParallel contains, for example `body._orig_mod`.

        A wrapper is a module without parameters of its own that has exactly one child, named `module` or `_orig_mod`. The
        child's name alone proves nothing, because users may call a child `module`, too.
        """
        children_of = {name: list(module._modules) for name, module in self.modules.items() if not module._parameters}
        return {
            f"{name}.{children[0]}".lstrip(".")
            for name, children in children_of.items()
            if children in (["module"], ["_orig_mod"])
        }

    def _no_match_message(self, pattern: Pattern, key: str, matched_modules: list[str]) -> str:
        """Return the error message for a pattern that matches no parameter.

        `key` is the config key that has the pattern. `matched_modules` are the names of the modules that the pattern
        matches; these modules have no parameters.
        """
        problem = f"{key}: {pattern.text!r} matches no parameter"
        if pattern.kind == "type":
            classes = {type(module).__name__ for module in self.modules.values()}
            if matched_modules:
                return f"{problem}: those modules have none; freeze.buffers=frozen would keep them in eval mode"
            hint = did_you_mean(pattern.text[5:], classes) or "; it has " + listed(sorted(classes), most=8)
            return f"{problem}: the model has no such module{hint}"
        if pattern.kind == "head":
            head = ",".join(self.head_names)
            return f"{problem}: the classifier, model.head={head}, is not in the model{self._suggest(head)}"
        if pattern.kind == "regex":
            return f"{problem}; a regular expression must match a parameter's whole name, such as {self._example_name()}"
        if any(self._matcher(pattern)(name) for name, entry in self.entries.items() if entry.kind == "buffer"):
            return f"{problem}, only buffers; freeze.buffers=frozen freezes the buffers of modules that a pattern matches"
        if matched_modules:
            return f"{problem}: {matched_modules[0]} has none; give a module that has some"
        if pattern.text in ("head", "backbone"):
            return f"{problem} or module of the model; write @head for its classifier, or freeze={pattern.text}"
        hint = self._suggest(pattern.text) or "; it has " + listed(sorted(filter(None, self.modules)), most=8)
        return f"{problem} or module of the model{hint}"

    def _suggest(self, text: str) -> str:
        """Return `; did you mean A or B?` with names in the model that are similar to `text`, or "" if none is similar."""
        return did_you_mean(text, [*filter(None, self.modules), *(name for e in self.parameters for name in e.names)])

    def _example_name(self) -> str:
        """Return the name of the model's first parameter, as an example for a message."""
        return self.parameters[0].name if self.parameters else "(the model has no parameters)"


def find_head(model: nn.Module, classes: int | None = None) -> str:
    """Return the name of the module that is taken for the model's classifier.

    Candidates are the submodules that have parameters of their own and an attribute `out_features` or `out_channels`, as
    linear and convolutional modules have. The result is the last candidate with exactly `classes` outputs, in the order of
    `named_modules()`. If there is none, it is the last candidate. Raises ConfigError if there are no candidates.
    """
    output_sizes = {
        name: getattr(module, "out_features", getattr(module, "out_channels", None))
        for name, module in model.named_modules()
        if name and any(True for _ in module.parameters(recurse=False))
    }
    output_sizes = {name: size for name, size in output_sizes.items() if size is not None}
    if not output_sizes:
        raise ConfigError(
            "model.head=auto finds no classifier: no named module with parameters of its own has out_features or "
            "out_channels; name it with model.head=NAME"
        )
    with_that_size = [name for name, size in output_sizes.items() if size == classes]
    return with_that_size[-1] if with_that_size else [*output_sizes][-1]


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


def _with_parents(name: str) -> list[str]:
    """Return a dotted name and the names of all modules around it: "a.b" gives ["", "a", "a.b"]; "" is the model itself."""
    parts = name.split(".") if name else []
    return [".".join(parts[:count]) for count in range(len(parts) + 1)]


def select_by_flags(model: nn.Module) -> Selection:
    """Return a Selection of the parameters that have `requires_grad=False` now, under all their names."""
    return Selection(
        {e.name: e.tensor for e in tensor_entries(model).values() if e.kind == "parameter" and not e.tensor.requires_grad}
    )
