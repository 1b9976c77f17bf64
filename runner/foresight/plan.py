"""Print what a run would freeze and what would go wrong, without training or writing files (option `plan=true`)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runner.assemble.setup import Setup, assembled, begin_phase
from runner.config.schema import Config, Device
from runner.display.units import in_mib
from runner.errors import ConfigError, SkippedError
from runner.foresight.costs import HEADINGS, plan_costs
from runner.foresight.effects import effect_of_batch
from runner.foresight.hazards import buffer_warnings, idle_warnings, leak_warnings
from runner.foresight.rehearsal import Rehearsal
from runner.foresight.warnings import method_and_optimizer_names, rehearse_phases
from runner.freezing.groups import group_lr, groups_by_tensor
from runner.methods.base import FreezingMethod
from runner.seeding import pick_device
from runner.tensors import tensor_entries, tensor_resolver

MODEL_COPIES = 3  # that foreseeing hazards holds at once: the model, its values as built, and their gradients


def foresee(setup: Setup) -> Rehearsal:
    """Predict which tensors the training would change, and return the predictions.

    A phase is a span of steps with the same frozen layers. The model processes the first batch once in each phase; then all
    steps are simulated on a small stand-in for the model. Changes that only later batches cause are not predicted, such as
    gradients that become 0 or updates that are rounded away. Afterwards `setup` cannot be used to train: its model's buffers
    may have changed, and its last phase has begun. Raises what the training would raise.
    """
    effects = []
    for number in range(len(setup.phases)):
        if number:
            begin_phase(setup, number)
        setup.model.train()
        effects.append(effect_of_batch(setup.model, setup.parameters, setup.task, setup.feed.first))
    return rehearse_phases(setup, effects)


def show_plan(config: Config, console: Console) -> None:
    """Print a table of all parameters, what a step would cost in each phase, and warnings about what would go wrong.

    The parameters and the costs need no weights: they are those of a model that is built on the meta device. If its builder
    or its forward pass needs values, they are those of the model itself. The warnings need the model: they name frozen
    tensors that would change, and trainable parameters that would not. Raises ConfigError if the freezing method does not
    work with this model or optimizer.
    """
    notes: dict[str, None] = {}  # used as an ordered set

    def note(text: str, *, urgent: bool = False) -> None:
        if text not in notes:
            notes[text] = None
            console.print(f"note: {escape(text)}")

    try:
        try:
            on_cpu = replace(config, device=Device.cpu)
            with assembled(on_cpu, note, have_values=False) as setup:
                lines = [*_parameter_lines(setup), *_cost_lines(setup)]
                size = sum(entry.tensor.nbytes for entry in setup.before.entries.values())
        except Exception:  # values are needed, or the config is wrong, which the model itself then shows
            with assembled(config, note) as setup:
                lines, size = list(_parameter_lines(setup)), 0
                try:
                    lines += _cost_lines(setup)
                except Exception as error:  # if the config is wrong, hazards cannot be foreseen either
                    lines.append(f"costs are not known: {type(error).__name__}: {escape(str(error))}")
        for line in lines:
            console.print(line)
        if MODEL_COPIES * size > memory_for(config):
            console.print(f"hazards are not foreseen: that needs the weights, which take {in_mib(size)} MiB, several times")
            return
        with assembled(config, note) as setup:
            for line in hazard_lines(setup):
                console.print(line)
    except SkippedError as skipped:
        raise ConfigError(f"skipped: {skipped}") from skipped


def hazard_lines(setup: Setup) -> Iterator[str]:
    """Yield a line with rich markup for each hazard that is foreseen, or one that says that there is none."""
    try:
        rehearsal = foresee(setup)
    except SkippedError as skipped:  # the optimizer refused the stand-in's parameters
        yield f"hazards cannot be foreseen: {escape(str(skipped))}"
        return
    owners = {name: entry.owner for name, entry in setup.before.entries.items()}
    hazards = [
        *leak_warnings(rehearsal, *method_and_optimizer_names(setup)),
        *buffer_warnings(rehearsal, list(setup.selection.parameters), owners),
        *idle_warnings(rehearsal),
    ]
    for hazard in hazards:
        yield f"[yellow]hazard:[/] {escape(hazard)}"
    if not hazards:
        yield "no hazard is foreseen: with this batch, everything frozen holds and the rest trains"


def _parameter_lines(setup: Setup) -> Iterator[Table | str]:
    """Yield what a plan prints about the parameters: a table and a line of text."""
    yield _parameter_table(setup)
    yield (
        f"{len(setup.selection.parameters)} of {len(setup.parameters)} parameters would be frozen, "
        f"{len(setup.selection.modules)} modules held in eval mode; nothing was trained or written."
    )


def _cost_lines(setup: Setup) -> Iterator[Table | str]:
    """Yield what a plan prints about the costs of each phase: a table and lines of text."""
    if (costs := plan_costs(setup, setup.feed.first)) is None:
        return
    table = Table(*HEADINGS, box=None, pad_edge=False)
    for cells in costs.rows():
        table.add_row(*cells)
    yield table
    yield from costs.sentences()
    if setup.config.epochs > 1 and type(setup.method).feed is not FreezingMethod.feed:
        yield "where the method skips layers in later epochs, a step costs less than that"


def memory_for(config: Config) -> float:
    """Return the bytes of this machine's memory; infinity if they are not known or the model is on another device."""
    if not hasattr(os, "sysconf") or pick_device(config.device.value).type != "cpu":
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _parameter_table(setup: Setup) -> Table:
    """Return a table of all parameters: shape, group, learning rate, `requires_grad`, and whether frozen."""
    group_of, resolve = groups_by_tensor([setup.optimizer]), tensor_resolver(tensor_entries(setup.model))
    table = Table("parameter", "shape", "group", "lr", "requires_grad", "frozen", box=None, pad_edge=False)
    first = setup.phases[-1].first
    for entry in (entry for entry in setup.before.entries.values() if entry.kind == "parameter"):
        name, group = group_of.get(id(entry.tensor), ("(none)", None))
        tensor = resolve(entry)
        table.add_row(
            " = ".join([entry.name, *entry.aliases]),
            "x".join(map(str, entry.tensor.shape)),
            name,
            str(group_lr(group)) if group else "",
            str(tensor is not None and tensor.requires_grad),
            "" if entry.tensor not in setup.selection else "frozen" if first == 1 else f"from step {first} on",
        )
    return table
