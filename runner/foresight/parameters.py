"""The parameters of a run by module, as a plan shows them: a module in which all are treated alike is one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text
from torch import Tensor

from runner.assemble.setup import Setup
from runner.display.table import Column, number, table_lines
from runner.display.units import digits_text
from runner.errors import listed
from runner.freezing.groups import group_lr, groups_by_tensor
from runner.freezing.phases.phase import Phase, reached_phases
from runner.tensors import tensor_entries, tensor_resolver


@dataclass(frozen=True)
class Treatment:
    """How a run treats a parameter: its group, its learning rate, its flag, and since when it is frozen ("" if never)."""

    group: str
    lr: str
    requires_grad: bool
    frozen: str


@dataclass(frozen=True)
class PlannedParameter:
    """A parameter of a plan: its name, the other names of a tied one, its shape, its elements, and its treatment."""

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    numel: int
    treatment: Treatment


@dataclass(frozen=True)
class Branch:
    """Parameters that are treated alike: all those of a module, or a single one. `name`: that of the module or parameter."""

    name: str
    parameters: Sequence[PlannedParameter]


def planned_parameters(setup: Setup) -> list[PlannedParameter]:
    """Return the parameters of a run with how they are treated in its last phase."""
    group_of, resolve = groups_by_tensor([setup.optimizer]), tensor_resolver(tensor_entries(setup.model))
    planned = []
    for entry in (entry for entry in setup.before.entries.values() if entry.kind == "parameter"):
        group_name, group = group_of.get(id(entry.tensor), ("(none)", None))
        tensor = resolve(entry)
        treatment = Treatment(
            group=group_name,
            lr=digits_text(group_lr(group)) if group else "",
            requires_grad=tensor is not None and tensor.requires_grad,
            frozen=when_frozen(setup, entry.tensor),
        )
        shape, numel = tuple(entry.tensor.shape), entry.tensor.numel()
        planned.append(PlannedParameter(entry.name, tuple(entry.aliases), shape, numel=numel, treatment=treatment))
    return planned


def when_frozen(setup: Setup, tensor: Tensor) -> str:
    """Return when a tensor is frozen, as `frozen_text` does, or what is known of it before the run."""
    if setup.plan.observe and tensor in setup.selection:
        return "at first" if tensor in setup.phases[0].selection else "perhaps later"
    return frozen_text(setup.phases, setup.config.steps, tensor)


def frozen_text(phases: Sequence[Phase], steps: int, tensor: Tensor) -> str:
    """Return when a tensor is frozen: "" for never, `frozen` for always, `from step 5 on`, `steps 1-4, 9-12`."""
    spans: list[list[int]] = []
    for phase, count in reached_phases(phases, steps):
        if tensor in phase.selection:
            if not spans or spans[-1][1] + 1 < phase.first:
                spans.append([phase.first, 0])
            spans[-1][1] = phase.first + count - 1
    if not spans or spans == [[1, steps]]:
        return "frozen" if spans else ""
    if len(spans) == 1 and spans[0][1] == steps:
        return f"from step {spans[0][0]} on"
    texts = [f"{first}-{last}" if first < last else f"{first}" for first, last in spans]
    return f"steps {listed(texts, most=3)}"


def branches(parameters: Sequence[PlannedParameter], module: str = "") -> Iterator[Branch]:
    """Yield the fewest branches that have all parameters, in their order: modules, and their parts only where these differ.

    `module`: the name of the module that all of them are in; "" for the model.
    """
    if len({each.treatment for each in parameters}) == 1:
        yield Branch(module or "the whole model", parameters)
        return
    parts: dict[str, list[PlannedParameter]] = {}
    for each in parameters:
        inner = each.name.removeprefix(f"{module}.") if module else each.name
        parts.setdefault(".".join(filter(None, (module, inner.split(".")[0]))), []).append(each)
    for name, members in parts.items():
        yield from branches(members, name)


def parameter_table(parameters: Sequence[PlannedParameter], width: int) -> list[Text]:
    """Return a table with a line for each branch: its parameters and weights, group, learning rate, flag, and if frozen."""
    columns = [Column("parameters", least=16), number("count", 3), number("weights", 2), Column("shape", 5)]
    columns += [Column("group", 1, least=8), number("lr"), Column("requires_grad", 4), Column("frozen")]
    rows = []
    for branch in branches(parameters):
        members, treatment = branch.parameters, branch.parameters[0].treatment
        tied = sum(bool(each.aliases) for each in members)
        if len(members) == 1:
            label, shape = " = ".join([members[0].name, *members[0].aliases]), "x".join(map(str, members[0].shape))
        else:
            label, shape = f"{branch.name} ({tied} tied)" if tied else branch.name, ""
        sizes = [str(len(members)), f"{sum(each.numel for each in members):,}", shape]
        rows.append([label, *sizes, treatment.group, treatment.lr, str(treatment.requires_grad), treatment.frozen])
    return table_lines(columns, rows, width)
