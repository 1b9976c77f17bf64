"""Divides parameters into the optimizer's parameter groups, and sets learning rates by pattern.

A group is a dict as torch.optim takes it: `params`, any options, and always a `name`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan
from typing import Any

from torch import nn
from torch.optim import Optimizer

from runner.errors import ConfigError
from runner.freezing.patterns import parse
from runner.freezing.selection import PatternResolver, Selection

Group = dict[str, Any]


def by_role(model: nn.Module, selection: Selection) -> list[Group]:
    """Return two groups, `frozen` and `trainable`."""
    parameters = list(model.parameters())
    return [
        {"name": "frozen", "params": [p for p in parameters if p in selection]},
        {"name": "trainable", "params": [p for p in parameters if p not in selection]},
    ]


def all_in_one(model: nn.Module, selection: Selection) -> list[Group]:
    """Return one group, `all`."""
    return [{"name": "all", "params": list(model.parameters())}]


def by_parameter(model: nn.Module, selection: Selection) -> list[Group]:
    """Return a group for each parameter, with the parameter's name; tied parameters are one parameter.

    For a model without parameters, returns one empty group, `all`.
    """
    groups = [{"name": name, "params": [parameter]} for name, parameter in model.named_parameters()]
    return groups or all_in_one(model, selection)


def by_module(model: nn.Module, selection: Selection, names: Sequence[str] = ()) -> list[Group]:
    """Return a group for each pattern in `names`; a parameter is in the group of the first pattern that matches it.

    Parameters that no pattern matches are in no group. Raises ConfigError if `names` is empty.
    """
    if not names:
        raise ConfigError("groups=module needs the modules' names, e.g. 'groups.names=[conv1,fc]'")
    matches = _match_parameters(model, selection, names, "groups.names")
    return [{"name": name, "params": parameters} for name, parameters in matches]


def split_by_lr(
    groups: list[Group], model: nn.Module, selection: Selection, lrs: Sequence[tuple[str, float]]
) -> list[Group]:
    """Return the groups with learning rates set by (pattern, rate) pairs; the first pattern that matches counts.

    A group whose parameters have different rates is split: into `NAME/PATTERN` for each pattern, and `NAME` for parameters
    that no pattern matches. Raises ConfigError for a pattern all of whose parameters are in no group.
    """
    lr_of, pattern_of = {}, {}
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    matches = _match_parameters(model, selection, [pattern for pattern, _ in lrs], "groups.lr")
    for (pattern, parameters), (_, lr) in zip(matches, lrs, strict=True):
        if parameters and not any(id(parameter) in grouped for parameter in parameters):
            raise ConfigError(f"groups.lr: {pattern!r} matches no grouped parameter; drop it or extend groups.names")
        for parameter in parameters:
            lr_of[id(parameter)], pattern_of[id(parameter)] = lr, pattern
    result: list[Group] = []
    for group in groups:
        parts = _split(group, lambda p: pattern_of.get(id(p)))
        for pattern, part in parts.items():
            if pattern is not None:
                part["lr"] = lr_of[id(part["params"][0])]
                if len(parts) > 1:
                    part["name"] = f"{group['name']}/{pattern}"
        result += parts.values()
    return result


def split_by_frozen(groups: list[Group], selection: Selection, **options: Any) -> list[Group]:
    """Return the groups, with every partly frozen group split into `NAME` and `NAME/frozen`.

    `options`, such as `lr=0.0`, are set in the groups of frozen parameters.
    """
    result = []
    for group in groups:
        parts = _split(group, lambda p: p in selection)
        for frozen, part in sorted(parts.items()):
            if frozen:
                part.update(options)
                if len(parts) > 1:
                    part["name"] = f"{group['name']}/frozen"
            result.append(part)
    return result


def split_for_later(groups: Sequence[Group], later: Sequence[Group]) -> list[Group]:
    """Return the groups, split and named so that the groups of a later phase need no further split.

    They are split in advance because a scheduler reads the number of groups only once. Parameters of a group that are in no
    group of `later` become `NAME/frozen`.
    """
    name_of = {id(parameter): group["name"] for group in later for parameter in group["params"]}
    result = []
    for group in groups:
        parts = _split(group, lambda p: name_of.get(id(p)))
        name_if_absent = f"{group['name']}/frozen" if len(parts) > 1 else group["name"]
        result += [{**part, "name": name or name_if_absent} for name, part in parts.items()]
    return result


def groups_for_all_phases(first: list[Group], later: Sequence[Sequence[Group]]) -> list[Group]:
    """Return the groups to build the optimizer with: those of the first phase, and all that a later phase needs.

    No group can be added during a run. The first phase's groups are split as the last phase needs them. A group that only
    another later phase has is added empty, with the options of the group that has its first parameter now.
    """
    if not later:
        return first
    groups = split_for_later(first, later[-1])
    group_of = {id(parameter): group for group in groups for parameter in group["params"]}
    names = {group["name"] for group in groups}
    for group in (group for phase in later for group in phase if group["params"]):
        if group["name"] not in names:
            names.add(group["name"])
            groups.append({**group_of[id(group["params"][0])], "name": group["name"], "params": []})
    return groups


def regroup(optimizer: Optimizer, old_groups: Sequence[Group], new_groups: Sequence[Group]) -> None:
    """Move parameters between the optimizer's own groups, by name, from the groups of one phase to those of the next.

    Sets only the options that differ between `old_groups` and `new_groups`, so that what a scheduler has set stays. The
    state of a parameter is not changed, even if it is stale.
    """
    old_by_name, new_by_name = ({group["name"]: group for group in groups} for groups in (old_groups, new_groups))
    names = {group["name"] for group in optimizer.param_groups}
    missing = [name for name, group in new_by_name.items() if group["params"] and name not in names]
    assert not missing, f"the optimizer has no group {missing[0]}, which has parameters in the new phase"
    for group in optimizer.param_groups:
        old = old_by_name.get(group["name"], {})
        new = new_by_name.get(group["name"], {**old, "params": []})
        group.update({key: value for key, value in new.items() if key != "params" and value != old.get(key)})
        if [id(p) for p in group["params"]] != [id(p) for p in new["params"]]:
            group["params"] = list(new["params"])


def drop_empty_groups(groups: list[Group]) -> list[Group]:
    """Return the groups that have parameters, or all groups if none has."""
    return [group for group in groups if group["params"]] or groups


def _split(group: Group, key: Callable[[nn.Parameter], Any]) -> dict[Any, Group]:
    """Return a copy of the group for each value of `key(parameter)`; an empty group is returned whole, under None."""
    parts: dict[Any, Group] = {}
    for parameter in group["params"]:
        parts.setdefault(key(parameter), {**group, "params": []})["params"].append(parameter)
    return parts or {None: group}


def _match_parameters(
    model: nn.Module, selection: Selection, patterns: Sequence[str], key: str
) -> list[tuple[str, list[nn.Parameter]]]:
    """Return each pattern with the parameters that it is the first to match. `key`: the config key, for error messages."""
    resolver = PatternResolver(model, selection.head)
    parameters, matched_before, matches = dict(model.named_parameters()), set[str](), []
    for pattern in patterns:
        names = resolver.resolve(parse(pattern, key), key) - matched_before
        matches.append((pattern, [parameter for name, parameter in parameters.items() if name in names]))
        matched_before |= names
    return matches


def groups_by_tensor(optimizers: Sequence[Optimizer]) -> dict[int, tuple[str, Group]]:
    """Return the group name and the group of each tensor in the optimizers, by the tensor's id.

    A group without a name is named by its position: `1`, or `0.1` (optimizer, group) if there are several optimizers.
    """
    found = {}
    for number, optimizer in enumerate(optimizers):
        for position, group in enumerate(optimizer.param_groups):
            default_name = f"{number}.{position}" if len(optimizers) > 1 else str(position)
            for parameter in group["params"]:
                found[id(parameter)] = (str(group.get("name", default_name)), group)
    return found


def group_lr(group: Group) -> float:
    """Return the learning rate of a group, or NaN if the group has none."""
    return float(group.get("lr", nan))
