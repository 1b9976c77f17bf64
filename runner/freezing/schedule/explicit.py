"""The schedule `explicit`: a list in the config says at which step which patterns are frozen, thawed, or given a factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from torch import nn

from runner.errors import ConfigError, did_you_mean, short_repr
from runner.freezing.covering import covering_name
from runner.freezing.patterns import parse
from runner.freezing.phases.phase import Phase, Plan, Run
from runner.freezing.phases.restriction import freezer, require_selected
from runner.freezing.phases.spans import check_number, drops, step_at
from runner.freezing.resolver import PatternResolver
from runner.freezing.selection import Selection
from runner.freezing.words import FOR_CONFIG

KEYS = ("at", "freeze", "thaw", "factors")
EXAMPLE = "{at: 100, thaw: [layer4], factors: {layer4: 0.1}}"


@dataclass(frozen=True)
class _State:
    """What is so from a step on: the names of the frozen parameters, and {name of a parameter: its factor}."""

    first: int
    frozen: frozenset[str]
    factors: Mapping[str, float]


def explicit(selection: Selection, run: Run, phases: Sequence[Mapping[str, Any]], *, state: str = "keep") -> Plan:
    """Return the plan that a list declares. At first all that is selected is frozen.

    An item has the key `at` (the number of a step, or how many passes or which share of the run have passed), and one or
    more of the keys `freeze` and `thaw` (lists of patterns of what is selected), and `factors` ({pattern: factor}, by which
    the scheduled learning rate of any parameter is multiplied from then on). What an item does not name goes on as it was,
    so that phases may overlap. Raises ConfigError for a malformed item, one that changes nothing, one after the last step,
    and one that freezes every parameter.
    """
    require_selected(selection)
    if not isinstance(phases, (list, tuple)) or not phases:
        raise ConfigError(f"schedule.phases is {short_repr(phases)}; give a list of items such as {EXAMPLE}")
    items = sorted(_numbered(phases, run), key=lambda each: each[0])
    states = [_State(1, frozenset(selection.parameters), {})]
    names = _Names(PatternResolver(run.model, selection.evidence, FOR_CONFIG), selection, run.model)
    for step, item, key in items:
        states.append(_after_item(states[-1], step, item, key=key, names=names))
    states = [list(same)[-1] for _, same in groupby(states, key=lambda each: each.first)]
    for before, after in pairwise(states):
        if (before.frozen, before.factors) == (after.frozen, after.factors):
            raise ConfigError(f"schedule.phases: the items together change nothing at step {after.first}; remove them")
    _refuse_all_frozen(states, run.model)
    blocks = _blocks_alike(states, run.model)
    frozen_only = freezer(selection, run.model)
    return Plan(
        [Phase(each.first, frozen_only(each.frozen), factors=_factors_of(blocks, each.factors)) for each in states],
        blocks,
        drops_state=drops(state),
    )


class _Names:
    """Resolves patterns to names of parameters."""

    def __init__(self, resolver: PatternResolver, selection: Selection, model: nn.Module) -> None:
        self.resolver, self.selected = resolver, selection.parameters.keys()
        self.parameters = [name for name, _ in model.named_parameters()]

    def of(self, pattern: Any, key: str) -> set[str]:
        """Return the names of the parameters that a pattern matches."""
        return self.resolver.resolve(parse(pattern, key), key) & set(self.parameters)

    def of_selected(self, patterns: Any, key: str) -> set[str]:
        """Return the names of the selected parameters that one of several patterns matches; each must match one."""
        found = set[str]()
        for pattern in [patterns] if isinstance(patterns, str) else _as_list(patterns, key):
            matched = self.of(pattern, key) & self.selected
            if not matched:
                raise ConfigError(
                    f"{key}: {pattern!r} matches nothing that freeze selects; remove it, or let freeze select it"
                )
            found |= matched
        return found


def _as_list(value: Any, key: str) -> Sequence[Any]:
    """Return a list of the config; raise ConfigError if it is none, or empty."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ConfigError(f"{key} is {short_repr(value)}; give a list of patterns")
    return value


def _numbered(phases: Sequence[Any], run: Run) -> list[tuple[int, Mapping[str, Any], str]]:
    """Return (step, item, its config key) of each item. Raises ConfigError if it is malformed or after the last step."""
    found = []
    for number, item in enumerate(phases):
        key = f"schedule.phases[{number}]"
        if not isinstance(item, Mapping) or "at" not in item or len(item) < 2:
            raise ConfigError(f"{key} is {short_repr(item)}; give a step and what changes there, such as {EXAMPLE}")
        for name in item:
            if name not in KEYS:
                raise ConfigError(
                    f"{key}.{name}: no such key{did_you_mean(str(name), KEYS)}; the keys are {', '.join(KEYS)}"
                )
        if (step := step_at(item["at"], f"{key}.at", run)) > run.steps:
            raise ConfigError(f"{key}.at is {item['at']!r}: step {step}, after the last step {run.steps} of the run")
        found.append((step, item, key))
    return found


def _after_item(before: _State, step: int, item: Mapping[str, Any], *, key: str, names: _Names) -> _State:
    """Return what is so after an item of the list. Raises ConfigError if it changes nothing."""
    frozen, factors = before.frozen, dict(before.factors)
    if "thaw" in item:
        thawed = names.of_selected(item["thaw"], f"{key}.thaw")
        if frozen.isdisjoint(thawed):
            raise ConfigError(f"{key}.thaw: {item['thaw']} is not frozen at step {step}, so it cannot be thawed; remove it")
        frozen -= thawed
    if "freeze" in item:
        newly = names.of_selected(item["freeze"], f"{key}.freeze")
        if newly <= frozen:
            raise ConfigError(f"{key}.freeze: {item['freeze']} is frozen at step {step} already; remove it")
        frozen |= newly
    if "factors" in item:
        if not isinstance(item["factors"], Mapping) or not item["factors"]:
            raise ConfigError(f"{key}.factors is {short_repr(item['factors'])}; give {{pattern: factor}}")
        for pattern, factor in item["factors"].items():
            check_number(factor, f"{key}.factors.{pattern}", least=0)
            factors.update(dict.fromkeys(names.of(pattern, f"{key}.factors"), float(factor)))
    after = _State(step, frozen, factors)
    if (after.frozen, after.factors) == (before.frozen, before.factors):
        raise ConfigError(f"{key} changes nothing at step {step}; remove it")
    return after


def _refuse_all_frozen(states: Sequence[_State], model: nn.Module) -> None:
    """Raise ConfigError if every parameter is frozen from some step on."""
    parameters = {name for name, _ in model.named_parameters()}
    for state in states:
        if parameters <= state.frozen:
            why = "freeze selects them all: thaw some at step 1" if state.first == 1 else "leave some to train"
            raise ConfigError(f"schedule.phases: every parameter would be frozen from step {state.first} on; {why}")


def _blocks_alike(states: Sequence[_State], model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return blocks of parameters that are frozen at the same steps and have the same factors.

    Those that always train at the scheduled rate are in none.
    """
    alike: dict[tuple[tuple[bool, float], ...], list[str]] = {}
    names = [name for name, _ in model.named_parameters()]
    for name in names:
        signature = tuple((name in state.frozen, state.factors.get(name, 1.0)) for state in states)
        if set(signature) != {(False, 1.0)}:
            alike.setdefault(signature, []).append(name)
    return {covering_name(names, set(members)): tuple(members) for members in alike.values()}


def _factors_of(blocks: Mapping[str, Sequence[str]], factors: Mapping[str, float]) -> dict[str, float]:
    """Return {block: factor} for the blocks whose parameters have a factor."""
    return {block: factors[names[0]] for block, names in blocks.items() if names[0] in factors}
