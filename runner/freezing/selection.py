"""Patterns -> Selection: which parameters are declared frozen, and which modules are held in eval mode."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn

from runner.errors import ConfigError, did_you_mean, listed
from runner.freezing.patterns import Pattern, parse, parse_all, refuse_entries_in_both
from runner.tensors import entries

Matcher = Callable[[str], bool]


@dataclass(frozen=True)
class Selection:
    """What is declared frozen in one model.

    `parameters`, `buffers` and `modules` map names to the tensors and modules themselves; `tensor in selection` tells a
    frozen parameter by identity. `modules` are those held in eval mode, and `buffers` what they own. `head` is what
    `@head` stands for, as given; `notes` are sentences that the user should read.
    """

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    head: str | Sequence[str] | None = None
    notes: tuple[str, ...] = ()

    def __contains__(self, tensor: object) -> bool:
        return id(tensor) in self._identities

    @cached_property
    def _identities(self) -> frozenset[int]:
        return frozenset(id(tensor) for tensor in self.parameters.values())


def select(
    model: nn.Module,
    patterns: Sequence[str],
    keep: Sequence[str] = (),
    buffers: str = "live",
    head: str | Sequence[str] | None = None,
) -> Selection:
    """Resolve patterns against a model.

    `keep` wins over `patterns`, by identity of the tensor. `buffers="frozen"` also holds the matched modules in
    eval mode. `head` are the patterns behind `@head`; None or "auto" finds the classifier. Raises ConfigError, a
    ValueError, with the nearest names for a pattern that matches nothing, a `keep` entry that exempts nothing, a pattern
    whose every match is kept, the same entry in both, and an empty or malformed entry.
    """
    if buffers not in ("live", "frozen"):
        raise ConfigError(f"buffers is {buffers!r}; give live or frozen")
    wanted, kept = parse_all(patterns, "freeze.patterns"), parse_all(keep, "freeze.keep")
    refuse_entries_in_both(patterns, keep)
    scope = Scope(model, head)
    with_modules = buffers == "frozen"
    reached = {pattern.text: scope.reach(pattern, "freeze.patterns", with_modules) for pattern in wanted}
    exempt = {pattern.text: scope.reach(pattern, "freeze.keep", with_modules) for pattern in kept}
    matched, spared = set[str]().union(*reached.values()), set[str]().union(*exempt.values())
    _refuse_entries_without_effect(reached, exempt, matched, spared)
    frozen = matched - spared
    modules = {name: module for name, module in scope.modules.items() if f"{name}/" in frozen}
    held = {id(module) for module in modules.values()}
    return Selection(
        parameters={entry.name: entry.tensor for entry in scope.parameters if entry.name in frozen},
        buffers={
            entry.name: entry.tensor
            for entry in scope.entries.values()
            if entry.kind == "buffer" and id(scope.modules[entry.owner]) in held
        },
        modules=modules,
        head=head,
        notes=tuple(scope.ties_kept(wanted, kept, matched & spared)),
    )


def _refuse_entries_without_effect(
    reached: Mapping[str, set[str]], exempt: Mapping[str, set[str]], matched: set[str], spared: set[str]
) -> None:
    for text, names in exempt.items():
        if not names & matched:
            raise ConfigError(f"freeze.keep: {text!r} exempts nothing, for no entry of freeze.patterns reaches it; drop it")
    for text, names in reached.items():
        if not names - spared:
            raise ConfigError(f"freeze.patterns: {text!r} freezes nothing, for freeze.keep exempts all of it; drop it")


class Scope:
    """One model's names, against which patterns are resolved."""

    def __init__(self, model: nn.Module, head: str | Sequence[str] | None = None) -> None:
        self.model = model
        self.entries = entries(model)
        self.parameters = [entry for entry in self.entries.values() if entry.kind == "parameter"]
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self._head = head

    @cached_property
    def head_names(self) -> tuple[str, ...]:
        """The patterns behind `@head`."""
        if self._head is None or self._head == "auto":
            return (find_head(self.model),)
        return (self._head,) if isinstance(self._head, str) else tuple(self._head)

    def reach(self, pattern: Pattern, key: str, with_modules: bool = False) -> set[str]:
        """The names of all parameters that a pattern matches, and with `with_modules` those of modules, each with a `/`.

        Raises ConfigError with the nearest names where that is nothing.
        """
        matches = self._matcher(pattern)
        found = {entry.name for entry in self.parameters if any(map(matches, entry.names))}
        touched = [name for name in self.modules if matches(name)]
        if with_modules:
            # One module under two names is held, or exempt, as a whole.
            held = {id(module) for name, module in self.modules.items() if any(map(matches, _and_above(name)))}
            found |= {f"{name}/" for name, module in self.modules.items() if id(module) in held}
        if not found:
            raise ConfigError(self._nothing(pattern, key, touched))
        return found

    def ties_kept(self, wanted: Iterable[Pattern], kept: Iterable[Pattern], spared: set[str]) -> Iterable[str]:
        """A sentence for each tied tensor that a pattern names and `keep` exempts under another of its names."""
        wants, keeps = [self._matcher(p) for p in wanted], [self._matcher(p) for p in kept]
        for entry in self.parameters:
            if entry.name in spared and entry.aliases:
                asked = [name for name in entry.names if any(m(name) for m in wants) and not any(m(name) for m in keeps)]
                through = [name for name in entry.names if any(m(name) for m in keeps)]
                if asked:
                    yield f"{asked[0]} is not frozen: it is one tensor with {through[0]}, which freeze.keep exempts"

    def _matcher(self, pattern: Pattern) -> Matcher:
        if pattern.kind == "head":
            parts = [self._matcher(parse(text, "model.head")) for text in self.head_names]
            return lambda name: any(part(name) for part in parts)
        if pattern.kind == "type":
            wanted = pattern.text[5:]
            roots = {name for name, module in self.modules.items() if _is_a(module, wanted)}
            return lambda name: any(above in roots for above in _and_above(name))
        return lambda name: pattern.matches(name) or pattern.matches(self._unwrapped(name))

    def _unwrapped(self, name: str) -> str:
        """The name without the parts that wrappers add (`module.` by DataParallel, `_orig_mod.` by torch.compile)."""
        parts = name.split(".")
        return ".".join(part for count, part in enumerate(parts, 1) if ".".join(parts[:count]) not in self._wrapped)

    @cached_property
    def _wrapped(self) -> set[str]:
        # A wrapper is told by having nothing of its own but this one child; a user's module may be called `module`, too.
        only = {name: list(module._modules) for name, module in self.modules.items() if not module._parameters}
        return {
            f"{name}.{children[0]}".lstrip(".") for name, children in only.items() if children in (["module"], ["_orig_mod"])
        }

    def _nothing(self, pattern: Pattern, key: str, touched: list[str]) -> str:
        what = f"{key}: {pattern.text!r} matches no parameter"
        if pattern.kind == "type":
            kinds = {type(module).__name__ for module in self.modules.values()}
            if touched:
                return f"{what}: those modules have none; freeze.buffers=frozen would hold them in eval mode"
            near = did_you_mean(pattern.text[5:], kinds) or "; it has " + listed(sorted(kinds), most=8)
            return f"{what}: the model has no such module{near}"
        if pattern.kind == "head":
            head = ",".join(self.head_names)
            return f"{what}: the classifier, model.head={head}, is not in the model{self._near(head)}"
        if pattern.kind == "regex":
            return f"{what}; a regular expression must match a parameter's whole name, such as {self._first()}"
        if any(self._matcher(pattern)(name) for name, entry in self.entries.items() if entry.kind == "buffer"):
            return f"{what}, only buffers; freeze.buffers=frozen holds the buffers of the modules that a pattern matches"
        if touched:
            return f"{what}: {touched[0]} has none; name a module or parameter that has"
        if pattern.text in ("head", "backbone"):
            return f"{what} or module of the model; @head is its classifier, and freeze={pattern.text} needs no name"
        near = self._near(pattern.text) or "; it has " + listed(sorted(filter(None, self.modules)), most=8)
        return f"{what} or module of the model{near}"

    def _near(self, text: str) -> str:
        return did_you_mean(text, [*filter(None, self.modules), *(name for e in self.parameters for name in e.names)])

    def _first(self) -> str:
        return self.parameters[0].name if self.parameters else "(the model has no parameters)"


def find_head(model: nn.Module, classes: int | None = None) -> str:
    """The name of the model's classifier: the last module, by registration, with parameters of its own and an output size.

    Linear and convolutional modules have one (`out_features`, `out_channels`); where `classes` is given, those with just
    that many outputs come first. Raises ConfigError where none has a size.
    """
    sized = {
        name: getattr(module, "out_features", getattr(module, "out_channels", None))
        for name, module in model.named_modules()
        if name and any(True for _ in module.parameters(recurse=False))
    }
    sized = {name: size for name, size in sized.items() if size is not None}
    if not sized:
        raise ConfigError("model.head=auto finds no classifier (no named module has an output size); give model.head=NAME")
    fitting = [name for name, size in sized.items() if size == classes]
    return fitting[-1] if fitting else [*sized][-1]


def _is_a(module: nn.Module, wanted: str) -> bool:
    if any(wanted in (cls.__name__, f"{cls.__module__}.{cls.__qualname__}") for cls in type(module).__mro__):
        return True
    home, _, name = wanted.rpartition(".")
    found = getattr(sys.modules.get(home), name, None)
    return isinstance(found, type) and isinstance(module, found)


def _and_above(name: str) -> list[str]:
    parts = name.split(".") if name else []
    return [".".join(parts[:count]) for count in range(len(parts) + 1)]


def from_flags(model: nn.Module) -> Selection:
    """The selection that a model's own flags declare: whatever has `requires_grad` False now."""
    return Selection(
        {e.name: e.tensor for e in entries(model).values() if e.kind == "parameter" and not e.tensor.requires_grad}
    )
