"""Divide parameters into the optimizer's parameter groups, and set learning rates by pattern.

A group is a dict as torch.optim takes it: `params`, any options such as `lr`, and here always a `name`. A pattern matches
the names of parameters, such as `layer1.*.bias`. In some runs the layers are frozen only after some steps; a phase is a span
of steps in which the same layers are frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from math import nan
from typing import Any

from torch import nn
from torch.optim import Optimizer

from runner.errors import ConfigError
from runner.freezing.patterns import parse
from runner.freezing.resolver import PatternResolver
from runner.freezing.selection import Selection
from runner.freezing.words import FOR_CONFIG

Group = dict[str, Any]


def by_role(model: nn.Module, selection: Selection) -> list[Group]:
    """Return two parameter groups: `frozen` with the parameters in the selection, and `trainable` with the others."""
    parameters = list(model.parameters())
    return [
        {"name": "frozen", "params": [p for p in parameters if p in selection]},
        {"name": "trainable", "params": [p for p in parameters if p not in selection]},
    ]


def all_in_one(model: nn.Module, selection: Selection) -> list[Group]:
    """Return a list with one parameter group, `all`, which has every parameter of the model."""
    return [{"name": "all", "params": list(model.parameters())}]


def by_parameter(model: nn.Module, selection: Selection) -> list[Group]:
    """Return one parameter group for each parameter, named like the parameter.

    A parameter that the model uses under several names gets one group. A model without parameters gets one empty group,
    `all`.
    """
    groups = [{"name": name, "params": [parameter]} for name, parameter in model.named_parameters()]
    return groups or all_in_one(model, selection)


def by_module(model: nn.Module, selection: Selection, names: Sequence[str] = ()) -> list[Group]:
    """Return one parameter group for each pattern in `names`, with the parameters that the pattern matches.

    If several patterns match a parameter, it is in the group of the first of these patterns. A parameter that no pattern
    matches is in no group. `selection` is only used to look up what a part such as `@head` stands for. Raises ConfigError if
    `names` is empty.
    """
    if not names:
        raise ConfigError("groups=module needs the modules' names, e.g. 'groups.names=[conv1,fc]'")
    matches = _match_parameters(model, selection, names, "groups.names")
    return [{"name": name, "params": parameters} for name, parameters in matches]


def split_by_lr(
    groups: list[Group], model: nn.Module, selection: Selection, lrs: Sequence[tuple[str, float]]
) -> list[Group]:
    """Return the parameter groups with learning rates set by `lrs`, a list of (pattern, learning rate).

    If several patterns match a parameter, the first one sets its rate. If the parameters of a group `NAME` fall under
    different patterns, the group is split: `NAME/PATTERN` has the parameters of one pattern, and `NAME` those that no
    pattern matches. `selection` is only used to look up what a part such as `@head` stands for. Raises ConfigError if a
    pattern matches parameters but none of them is in a group.
    """
    lr_of, pattern_of = {}, {}
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    matches = _match_parameters(model, selection, [pattern for pattern, _ in lrs], "groups.lr")
    for (pattern, parameters), (_, lr) in zip(matches, lrs, strict=True):
        if parameters and not any(id(parameter) in grouped for parameter in parameters):
            raise ConfigError(
                f"groups.lr: {pattern!r} matches no parameter that is in a parameter group; "
                f"remove it, or add {pattern!r} to groups.names"
            )
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
    """Return the parameter groups, with each partly frozen group `NAME` split into `NAME` and `NAME/frozen`.

    `options`, such as `lr=0.0`, are set in the groups of frozen parameters. A group that is entirely frozen keeps its name.
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
    """Split parameter groups so that all parameters of a part are in the same group of `later`; return the parts.

    `later`: the groups of a later phase (span of steps with the same groups). Each part has the name of that later group and
    the options of the group in `groups` from which it comes. Parameters of a group `NAME` that are in no group of `later`
    form a part `NAME/frozen`; if no parameter of the group is in `later`, the group stays whole and keeps the name `NAME`.
    The split is made in advance because a scheduler reads the number of groups only once.
    """
    name_of = {id(parameter): group["name"] for group in later for parameter in group["params"]}
    result = []
    for group in groups:
        parts = _split(group, lambda p: name_of.get(id(p)))
        name_if_absent = f"{group['name']}/frozen" if len(parts) > 1 else group["name"]
        result += [{**part, "name": name or name_if_absent} for name, part in parts.items()]
    return result


def groups_for_all_phases(first: list[Group], later: Sequence[Sequence[Group]]) -> list[Group]:
    """Return the groups to build the optimizer with, for a run whose groups change at certain steps.

    `first`: the groups at step 1. `later`: for each later phase (span of steps with the same groups), its groups. Groups
    cannot be added during a run. The groups of `first` are therefore split in advance, so that each part lies within one
    group of the last phase. If a later group's name is still missing then, a group with this name and without parameters is
    added. Its options are copied from the group that has the later group's first parameter at step 1.
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


def set_apart(groups: Sequence[Group], declared: Sequence[Group]) -> list[Group]:
    """Return groups in which each that has other options than the declared group of its name is called `NAME/frozen`.

    `declared`: the groups as the config declares them. Where parameters are frozen and thawed again, a rate that was set in
    a group in place could not be set back: a scheduler may have changed it meanwhile. With a group for each, they are moved.
    """
    options = {group["name"]: _options(group) for group in declared}
    are_as_declared = [options.get(group["name"], _options(group)) == _options(group) for group in groups]
    names = [f"{group['name']}{'' if same else '/frozen'}" for group, same in zip(groups, are_as_declared, strict=True)]
    return [{**group, "name": name} for group, name in zip(groups, names, strict=True)]


def union_of_groups(first: Sequence[Group], later: Sequence[Sequence[Group]]) -> list[Group]:
    """Return each group that has parameters in a phase, with those of the first phase; none if it has some only later.

    `first`: the groups of the first phase. `later`: those of other phases. If no group ever has any, all are returned.
    """
    phases = [first, *later]
    used = {group["name"]: group for phase in reversed(phases) for group in phase if group["params"]}
    order = dict.fromkeys(group["name"] for phase in phases for group in phase)
    groups = [used[name] for name in order if name in used] or list(first)
    return in_all_groups(first, groups)


def in_all_groups(groups: Sequence[Group], all_groups: Sequence[Group]) -> list[Group]:
    """Return `groups` in the order of `all_groups`, with the groups of the latter that it lacks, without parameters."""
    by_name, names = {group["name"]: group for group in groups}, {group["name"] for group in all_groups}
    missing = [group["name"] for group in groups if group["params"] and group["name"] not in names]
    assert not missing, f"the optimizer has no group {missing[0]}, which has parameters in the new phase"
    return [by_name.get(group["name"], {**group, "params": []}) for group in all_groups]


def split_by_block(groups: Sequence[Group], block_of: Mapping[int, str]) -> list[Group]:
    """Return the parameter groups, with each that has parameters of several blocks split into `NAME/BLOCK` for each block.

    `block_of`: {id(parameter): name of its block}. Those of a split group that are in no block form a part `NAME`.
    """
    result: list[Group] = []
    for group in groups:
        parts = _split(group, lambda p: block_of.get(id(p)))
        result += [
            part if len(parts) == 1 or block is None else {**part, "name": f"{group['name']}/{block}"}
            for block, part in parts.items()
        ]
    return result


def regroup(
    optimizer: Optimizer, old_groups: Sequence[Group], new_groups: Sequence[Group], reset: Collection[str] = ()
) -> None:
    """Move parameters between the optimizer's groups when a new phase (span of steps with the same groups) begins.

    `old_groups`: the groups of the phase that ends. `new_groups`: those of the phase that begins. Groups are matched by
    name. An option of a group is set only if its old and new values differ; so a learning rate that a scheduler has set
    stays. `reset`: the names of groups whose options are set whenever they get their first parameters. The optimizer keeps
    its state (such as momentum) for every parameter, even for those that it no longer updates.
    """
    old_by_name, new_by_name = ({group["name"]: group for group in groups} for groups in (old_groups, new_groups))
    names = {group["name"] for group in optimizer.param_groups}
    missing = [name for name, group in new_by_name.items() if group["params"] and name not in names]
    assert not missing, f"the optimizer has no group {missing[0]}, which has parameters in the new phase"
    for group in optimizer.param_groups:
        old = old_by_name.get(group["name"], {})
        new = new_by_name.get(group["name"], {**old, "params": []})
        old = {} if group["name"] in reset and not group["params"] else old
        group.update({key: value for key, value in new.items() if key != "params" and value != old.get(key)})
        if [id(p) for p in group["params"]] != [id(p) for p in new["params"]]:
            group["params"] = list(new["params"])


def drop_empty_groups(groups: list[Group]) -> list[Group]:
    """Return the groups that have parameters; if no group has any, return all groups."""
    return [group for group in groups if group["params"]] or groups


def _options(group: Group) -> Group:
    """Return the options of a group, such as its learning rate, without its name and its parameters."""
    return {key: value for key, value in group.items() if key not in ("name", "params")}


def _split(group: Group, key: Callable[[nn.Parameter], Any]) -> dict[Any, Group]:
    """Split a parameter group by the value of `key(parameter)`.

    Returns {value: group}: a group with the same options for each value, with the parameters that have it. If the given
    group has no parameters, {None: the given group} is returned.
    """
    parts: dict[Any, Group] = {}
    for parameter in group["params"]:
        parts.setdefault(key(parameter), {**group, "params": []})["params"].append(parameter)
    return parts or {None: group}


def _match_parameters(
    model: nn.Module, selection: Selection, patterns: Sequence[str], key: str
) -> list[tuple[str, list[nn.Parameter]]]:
    """Return one pair (pattern, list of parameters) for each pattern.

    The list has the parameters that the pattern matches, without those that an earlier pattern matches. `selection` is only
    used to look up what a part such as `@head` stands for. `key` is the config key of the patterns, for error messages.
    """
    resolver = PatternResolver(model, selection.evidence, FOR_CONFIG)
    parameters, matched_before, matches = dict(model.named_parameters()), set[str](), []
    for pattern in patterns:
        names = resolver.resolve(parse(pattern, key), key) - matched_before
        matches.append((pattern, [parameter for name, parameter in parameters.items() if name in names]))
        matched_before |= names
    return matches


def groups_by_tensor(optimizers: Sequence[Optimizer]) -> dict[int, tuple[str, Group]]:
    """Return {id(parameter): (group name, group)} for all parameters in the optimizers.

    The name of a group without a name is its index in its optimizer, such as `1`. If there are several optimizers, the index
    of the optimizer comes first: `0.1`.
    """
    found = {}
    for number, optimizer in enumerate(optimizers):
        for position, group in enumerate(optimizer.param_groups):
            default_name = f"{number}.{position}" if len(optimizers) > 1 else str(position)
            for parameter in group["params"]:
                found[id(parameter)] = (str(group.get("name", default_name)), group)
    return found


def group_lr(group: Group) -> float:
    """Return the learning rate of a parameter group, or NaN if the group has none, or None in its place."""
    lr = group.get("lr")
    return nan if lr is None else float(lr)
