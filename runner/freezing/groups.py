"""How parameters are cut into the optimizer's groups, and learning rates by pattern.

A group is torch's own: a dict with `params` and options, and always a `name`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan
from typing import Any

from torch import nn
from torch.optim import Optimizer

from runner.errors import ConfigError
from runner.freezing.patterns import parse
from runner.freezing.selection import Scope, Selection

Group = dict[str, Any]


def by_role(model: nn.Module, selection: Selection) -> list[Group]:
    """Two groups, `frozen` and `trainable`."""
    parameters = list(model.parameters())
    return [
        {"name": "frozen", "params": [p for p in parameters if p in selection]},
        {"name": "trainable", "params": [p for p in parameters if p not in selection]},
    ]


def all_in_one(model: nn.Module, selection: Selection) -> list[Group]:
    """One group, `all`."""
    return [{"name": "all", "params": list(model.parameters())}]


def by_parameter(model: nn.Module, selection: Selection) -> list[Group]:
    """One group a parameter, with its name; a tied parameter is one. Without parameters it is one empty group, `all`."""
    return [{"name": n, "params": [parameter]} for n, parameter in model.named_parameters()] or all_in_one(model, selection)


def by_module(model: nn.Module, selection: Selection, names: Sequence[str] = ()) -> list[Group]:
    """One group a pattern in `names`, first match wins; a parameter that none matches is in no group."""
    if not names:
        raise ConfigError("groups=module needs the modules' names, e.g. 'groups.names=[conv1,fc]'")
    return [{"name": name, "params": params} for name, params in _claims(model, selection, names, "groups.names")]


def with_lrs(groups: list[Group], model: nn.Module, selection: Selection, lrs: Sequence[tuple[str, float]]) -> list[Group]:
    """The groups with learning rates by pattern, first match wins.

    A group whose parameters take different rates becomes `NAME/PATTERN` for each pattern, and `NAME` for the rest.
    """
    rate_of, label_of = {}, {}
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    claims = _claims(model, selection, [pattern for pattern, _ in lrs], "groups.lr")
    for (pattern, params), (_, lr) in zip(claims, lrs, strict=True):
        if params and not any(id(parameter) in grouped for parameter in params):
            raise ConfigError(f"groups.lr: {pattern!r} sets the rate of nothing, for what it matches is in no group")
        for parameter in params:
            rate_of[id(parameter)], label_of[id(parameter)] = lr, pattern
    cut: list[Group] = []
    for group in groups:
        parts = _partition(group, lambda p: label_of.get(id(p)))
        for label, part in parts.items():
            if label is not None:
                part["lr"] = rate_of[id(part["params"][0])]
                if len(parts) > 1:
                    part["name"] = f"{group['name']}/{label}"
        cut += parts.values()
    return cut


def by_frozen(groups: list[Group], selection: Selection, **options: Any) -> list[Group]:
    """The groups with each half-frozen one split into `NAME` and `NAME/frozen`; the frozen ones take `options`."""
    cut = []
    for group in groups:
        parts = _partition(group, lambda p: p in selection)
        for frozen, part in sorted(parts.items()):
            if frozen:
                part.update(options)
                if len(parts) > 1:
                    part["name"] = f"{group['name']}/frozen"
            cut.append(part)
    return cut


def refined(groups: Sequence[Group], later: Sequence[Group]) -> list[Group]:
    """The groups, cut so that `later` takes none of them apart, and named as there: a scheduler counts groups only once.

    What `later` leaves out of a group becomes `NAME/frozen`.
    """
    name_of = {id(parameter): group["name"] for group in later for parameter in group["params"]}
    cut = []
    for group in groups:
        parts = _partition(group, lambda p: name_of.get(id(p)))
        left_out = f"{group['name']}/frozen" if len(parts) > 1 else group["name"]
        cut += [{**part, "name": name or left_out} for name, part in parts.items()]
    return cut


def prepared_for(later: Sequence[Sequence[Group]], groups: list[Group]) -> list[Group]:
    """The groups to build the optimizer with, where phases with `later` groups follow: it can be given none in mid-run.

    They are cut as the last phase needs them; a group that only a phase between has is there from the start, empty, with the
    options of the group that holds its parameters now.
    """
    if not later:
        return groups
    groups = refined(groups, later[-1])
    group_of = {id(parameter): group for group in groups for parameter in group["params"]}
    names = {group["name"] for group in groups}
    for group in (group for phase in later for group in phase if group["params"]):
        if group["name"] not in names:
            names.add(group["name"])
            groups.append({**group_of[id(group["params"][0])], "name": group["name"], "params": []})
    return groups


def regroup(optimizer: Optimizer, was: Sequence[Group], groups: Sequence[Group]) -> None:
    """Give a running optimizer's groups the parameters of `groups`, by name, and the options that differ from `was`.

    State stays with its parameter, stale state included, and so does whatever a scheduler has set meanwhile.
    """
    were, then = ({group["name"]: group for group in cut} for cut in (was, groups))
    live_names = {live["name"] for live in optimizer.param_groups}
    lost = [name for name, group in then.items() if group["params"] and name not in live_names]
    assert not lost, f"the optimizer has no group {lost[0]} for parameters that it is to step"
    for live in optimizer.param_groups:
        before = were.get(live["name"], {})
        after = then.get(live["name"], {**before, "params": []})
        live.update({key: value for key, value in after.items() if key != "params" and value != before.get(key)})
        if [id(p) for p in live["params"]] != [id(p) for p in after["params"]]:
            live["params"] = list(after["params"])


def without_empty(groups: list[Group]) -> list[Group]:
    """The groups that hold parameters, or all of them where none does."""
    return [group for group in groups if group["params"]] or groups


def _partition(group: Group, label: Callable[[nn.Parameter], Any]) -> dict[Any, Group]:
    parts: dict[Any, Group] = {}
    for parameter in group["params"]:
        parts.setdefault(label(parameter), {**group, "params": []})["params"].append(parameter)
    return parts or {None: group}


def _claims(
    model: nn.Module, selection: Selection, patterns: Sequence[str], key: str
) -> list[tuple[str, list[nn.Parameter]]]:
    scope = Scope(model, selection.head)
    parameters, taken, claims = dict(model.named_parameters()), set[str](), []
    for text in patterns:
        left = scope.reach(parse(text, key), key) - taken
        claims.append((text, [parameter for name, parameter in parameters.items() if name in left]))
        taken |= left
    return claims


def placed(optimizers: Sequence[Optimizer]) -> dict[int, tuple[str, Group]]:
    """Of each tensor in an optimizer, by identity: its group, and the group's name, or its position where it has none."""
    found = {}
    for number, optimizer in enumerate(optimizers):
        for position, group in enumerate(optimizer.param_groups):
            place = f"{number}.{position}" if len(optimizers) > 1 else str(position)
            for parameter in group["params"]:
                found[id(parameter)] = (str(group.get("name", place)), group)
    return found


def rate(group: Group) -> float:
    """The learning rate of a group; NaN where its optimizer knows none."""
    return float(group.get("lr", nan))
