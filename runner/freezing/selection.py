"""Select what is declared frozen in a model by patterns: parameters, buffers, and modules that stay in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

from torch import Tensor, nn

from runner.errors import ConfigError, short_repr
from runner.freezing.parts import PARTS
from runner.freezing.parts.evidence import Evidence
from runner.freezing.patterns import Pattern, needs_trial, parse_all, parse_both
from runner.freezing.resolver import PatternResolver, forced_tie_note, owner_of
from runner.freezing.trial.run import try_model
from runner.freezing.words import FOR_PYTHON, Words
from runner.tensors import tensor_entries


@dataclass(frozen=True)
class Selection:
    """What is declared frozen in one model: the result of `select`.

    `tensor in selection` is True if the tensor is one of the frozen parameters or buffers (the same object, not an equal
    one).

    Attributes:
        parameters: {name: frozen parameter}.
        buffers: {name: frozen buffer}: the buffers of the modules in `modules`, which eval mode keeps unchanged, and the
            buffers that a pattern names, which nothing keeps unchanged.
        modules: {name: module that stays in eval mode}; empty if `buffers` is "live".
        names: the names that are declared frozen: those that a pattern matches. A tied parameter may have others as well, at
            which another tensor may be put. Empty: all names of the parameters and buffers.
        evidence: what the named parts of the model, such as `@head`, were found by.
        notes: messages for the user.
        nothing_frozen: why nothing is frozen, although the flags of the model were to say what is; "" if that is not so.
    """

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    names: frozenset[str] = frozenset()
    evidence: Evidence = field(default_factory=Evidence)
    notes: tuple[str, ...] = ()
    nothing_frozen: str = ""

    def __contains__(self, tensor: object) -> bool:
        return id(tensor) in self._tensor_ids

    @cached_property
    def _tensor_ids(self) -> frozenset[int]:
        """The `id()` of each frozen parameter and buffer."""
        return frozenset(id(tensor) for tensor in (*self.parameters.values(), *self.buffers.values()))


def select(
    model: nn.Module,
    patterns: Sequence[str],
    keep: Sequence[str] = (),
    buffers: str = "live",
    head: str | Sequence[str] | None = None,
    *,
    batch: Any = None,
    task: Callable[[nn.Module, Any], Any] | None = None,
    words: Words = FOR_PYTHON,
) -> Selection:
    """Return the parameters, buffers and modules of a model that the patterns match, as a Selection.

    `keep`: patterns of exceptions. A parameter, buffer or module is left out if a `keep` pattern matches any of its names.
    `buffers`: with "frozen", the matched modules and their buffers are selected too; with "live", only parameters are, and
    those buffers that a pattern names: `bn.running_mean`, or a module that has buffers but no parameters. `head`: the
    patterns that `@head` stands for; None or "auto" finds the head: with a `batch` by `task(model, batch) -> loss` (None: by
    all that the model returns for it), which is run once and leaves no trace; without one it is a guess, which a note says.
    `words`: what messages call these arguments.

    Raises ConfigError (a ValueError) if an argument has a wrong type, or if a pattern is empty or malformed, matches
    nothing, is in both `patterns` and `keep`, or has no effect: all that it matches is kept, or it keeps nothing.
    """
    _check_model_and_head(model, head, words)
    _check_buffers(buffers)
    head, parsed = None if head == "auto" else head, parse_both(patterns, keep, words)
    trial = try_model(model, batch, task) if batch is not None and needs_trial(chain(*parsed), head) else None
    evidence = Evidence(head, trial=trial, trainable=trainable_names(model))
    return select_by_evidence(model, *parsed, with_modules=buffers == "frozen", evidence=evidence, words=words)


def select_by_evidence(
    model: nn.Module,
    patterns: Sequence[Pattern],
    keep: Sequence[Pattern],
    *,
    with_modules: bool,
    evidence: Evidence,
    words: Words,
) -> Selection:
    """Return what the patterns match, as `select` does.

    `with_modules` selects the matched modules and their buffers too. `evidence`: what the named parts of the model are found
    by. Raises ConfigError as `select` does.
    """
    resolver = PatternResolver(model, evidence, words)
    names_of_pattern = {p.text: resolver.declared(p, words.patterns, with_modules) for p in patterns}
    names_of_keep = {p.text: resolver.exempted(p, words.keep, with_modules) for p in keep}
    matched, kept = set[str]().union(*names_of_pattern.values()), set[str]().union(*names_of_keep.values())
    _refuse_patterns_without_effect(names_of_pattern, names_of_keep, kept, words)
    modules = {name: module for name, module in resolver.modules.items() if f"{name}." in matched - kept}
    frozen = [entry for entry in resolver.entries.values() if entry.name in matched - kept]
    held = [e for e in frozen if e.kind == "buffer" and not modules.keys().isdisjoint(map(owner_of, e.names))]
    names = resolver.matched_names(frozen, patterns).union(*(entry.names for entry in held))
    absent = [(text, PARTS[text].absent) for text, matched_names in names_of_pattern.items() if not matched_names]
    ties = (*resolver.tie_notes(patterns, keep, matched & kept), *forced_tie_note(frozen, names))
    return Selection(
        parameters={entry.name: entry.tensor for entry in frozen if entry.kind == "parameter"},
        buffers={entry.name: entry.tensor for entry in frozen if entry.kind == "buffer"},
        modules=modules,
        names=names,
        evidence=evidence,
        notes=(*resolver.head_notes([*patterns, *keep]), *(f"{text} freezes nothing: {why}" for text, why in absent), *ties),
        nothing_frozen="" if frozen or not absent else absent[0][1],
    )


def nothing_of(selection: Selection) -> Selection:
    """Return a Selection of nothing, found by the same evidence as another one."""
    return replace(selection, parameters={}, buffers={}, modules={}, names=frozenset(), notes=())


def without(selection: Selection, other: Selection) -> Selection:
    """Return what is in `selection` and not in `other`, another Selection of the same model."""
    return replace(
        selection,
        parameters={name: each for name, each in selection.parameters.items() if each not in other},
        buffers={name: each for name, each in selection.buffers.items() if each not in other},
        modules={name: each for name, each in selection.modules.items() if name not in other.modules},
        names=selection.names - other.names,
        notes=(),
    )


def trainable_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that have `requires_grad` now, tied names included."""
    return frozenset(name for name, each in model.named_parameters(remove_duplicate=False) if each.requires_grad)


def _refuse_patterns_without_effect(
    names_of_pattern: Mapping[str, set[str]], names_of_keep: Mapping[str, set[str]], kept: set[str], words: Words
) -> None:
    """Raise ConfigError if removing one of the patterns or exceptions would change nothing.

    An exception is refused if it matches no name that a pattern matches. A pattern is refused if all names that it matches
    are in `kept`; a part that the model may lack matches none.
    `names_of_pattern`: {pattern: names that it matches}. `names_of_keep`: the same for the exceptions.
    `kept`: all names that the exceptions match. `words`: what messages call the two lists.
    """
    matched = set[str]().union(*names_of_pattern.values())
    for text, names in names_of_keep.items():
        if not names & matched:
            raise ConfigError(f"{words.keep}: {text!r} exempts nothing that {words.patterns} matches; remove it")
    for text, names in names_of_pattern.items():
        if names and not names - kept:
            raise ConfigError(f"{words.patterns}: {text!r} freezes nothing: {words.keep} exempts all of it; remove it")


def select_by_flags(model: nn.Module, buffers: str = "live") -> Selection:
    """Return a Selection of the parameters that have `requires_grad=False` now, under all their names.

    `buffers`: with "frozen", the modules that are frozen as a whole and their buffers are selected too. Raises ConfigError
    (a ValueError) if it is neither "live" nor "frozen".
    """
    _check_buffers(buffers)
    return select_by_ids(model, {id(each) for each in model.parameters() if not each.requires_grad}, buffers)


def select_by_ids(model: nn.Module, frozen_ids: Collection[int], buffers: str) -> Selection:
    """Return a Selection of the parameters with these ids, under all their names; `buffers`: see `select_by_flags`."""
    entries = tensor_entries(model).values()
    modules = modules_frozen_as_a_whole(model, frozen_ids) if buffers == "frozen" else {}
    return Selection(
        parameters={e.name: e.tensor for e in entries if e.kind == "parameter" and id(e.tensor) in frozen_ids},
        buffers={e.name: e.tensor for e in entries if e.kind == "buffer" and e.owner in modules},
        modules=modules,
    )


def modules_frozen_as_a_whole(model: nn.Module, frozen_ids: Collection[int]) -> dict[str, nn.Module]:
    """Return {name: module} for the modules in which all parameters are frozen, and there are some, and all modules in them.

    `frozen_ids`: the ids of the frozen parameters.
    """
    frozen: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        parameters = list(module.parameters())
        if parameters and all(id(parameter) in frozen_ids for parameter in parameters):
            frozen.update(module.named_modules(prefix=name))
    return frozen


def _check_model_and_head(model: object, head: object, words: Words) -> None:
    """Raise ConfigError if `model` is no model, or if `head` is neither None, a pattern, nor a list of patterns."""
    if isinstance(model, type):
        raise ConfigError(f"model is the class {model.__name__}; give a model, {model.__name__}(...)")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is {short_repr(model)}; give a torch.nn.Module")
    if head is not None:
        parse_all([head] if isinstance(head, str) else head, words.head)


def _check_buffers(buffers: object) -> None:
    """Raise ConfigError if the value is neither "live" nor "frozen"."""
    if buffers not in ("live", "frozen"):
        raise ConfigError(f"buffers is {buffers!r}; give live or frozen")
