"""Print what a run would freeze and what would go wrong, without training or writing files (option `plan=true`)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from runner.assemble.setup import Setup, assembled
from runner.assemble.switching import begin_phase
from runner.config.schema import Config, Device
from runner.contract import Note
from runner.display.console import hanging
from runner.display.table import table_lines
from runner.display.units import bytes_text
from runner.errors import ConfigError, SkippedError
from runner.foresight.costs import COLUMNS, plan_costs
from runner.foresight.effects import Effect, effect_of_batch
from runner.foresight.hazards import buffer_hazards, idle_hazards, leak_hazards
from runner.foresight.parameters import parameter_table, planned_parameters
from runner.foresight.rehearsal import Rehearsal
from runner.foresight.warnings import MOST_PHASES, method_and_optimizer_names, rehearse_phases
from runner.methods.base import FreezingMethod
from runner.seeding import pick_device

MODEL_COPIES = 3  # that foreseeing hazards holds at once: the model, its values as built, and their gradients


def foresee_run(setup: Setup) -> Rehearsal:
    """Predict which tensors the training would change, and return the predictions.

    A phase is a span of steps with the same frozen layers. The model processes the first batch once in each phase; then all
    steps are simulated on a small stand-in for the model. Only the first MOST_PHASES phases are predicted. Changes that only
    later batches cause are not predicted, such as gradients that become 0 or updates that are rounded away. Afterwards
    `setup` cannot be used to train: its model's buffers may have changed, and a later phase has begun. Raises what the
    training would raise.
    """
    effects, of_set = [], dict[frozenset[str], Effect]()
    for number, phase in enumerate(setup.phases[:MOST_PHASES]):
        if number:
            begin_phase(setup, number)
        setup.model.train()
        frozen = frozenset(phase.selection.parameters)
        if frozen not in of_set:
            of_set[frozen] = effect_of_batch(setup.model, setup.parameters, setup.task, setup.feed.first)
        effects.append(of_set[frozen])
    return rehearse_phases(setup, effects)


def show_plan(config: Config, console: Console) -> None:
    """Print what would go wrong, then how many parameters would be frozen, these by module, and what a step would cost.

    The parameters and the costs need no weights: they are those of a model that is built on the meta device. If its builder
    or its forward pass needs values, they are those of the model itself. The hazards need the model: they name frozen
    tensors that would change, and trainable parameters that would not. Raises ConfigError if the freezing method does not
    work with this model or optimizer.
    """
    notes: dict[str, None] = {}  # used as an ordered set

    def note(text: str, *, urgent: bool = False) -> None:
        notes[text] = None

    try:
        lines, size = what_is_planned(config, note, console)
        if MODEL_COPIES * size > memory_for(config):
            needed = f"that needs the weights, which take {bytes_text(size)}, several times"
            hazards = [Text(f"hazards are not foreseen: {needed}")]
        else:
            with assembled(config, note) as setup:
                hazards = list(hazard_texts(setup))
    except SkippedError as skipped:
        raise ConfigError(f"skipped: {skipped}") from skipped
    noted = [Text.assemble(("note:", "yellow"), f" {text}") for text in notes]
    for line in (*_all_hanging(hazards, console), *lines, *_all_hanging(noted, console)):
        console.print(line)


def what_is_planned(config: Config, note: Note, console: Console) -> tuple[list[Text], int]:
    """Return (lines about the parameters and the costs of a run, bytes of its weights, or 0 if they had to be made)."""
    try:
        on_cpu = replace(config, device=Device.cpu)
        with assembled(on_cpu, note, have_values=False) as setup:
            lines = [*parameter_lines(setup, console), *cost_lines(setup, console)]
            return lines, sum(entry.tensor.nbytes for entry in setup.before.entries.values())
    except Exception:  # values are needed, or the config is wrong, which the model itself then shows
        with assembled(config, note) as setup:
            lines = parameter_lines(setup, console)
            try:
                lines += cost_lines(setup, console)
            except Exception as error:  # if the config is wrong, hazards cannot be foreseen either
                lines += hanging(Text(f"costs are not known: {type(error).__name__}: {error}"), console)
            return lines, 0


def hazard_texts(setup: Setup) -> Iterator[Text]:
    """Yield a text for each hazard that is foreseen, or one that says that there is none."""
    try:
        rehearsal = foresee_run(setup)
    except SkippedError as skipped:  # the optimizer refused the stand-in's parameters
        yield Text(f"hazards cannot be foreseen: {skipped}")
        return
    owners = {name: entry.owner for name, entry in setup.before.entries.items()}
    hazards = [
        *leak_hazards(rehearsal, *method_and_optimizer_names(setup)),
        *buffer_hazards(rehearsal, setup.selection.parameters, owners),
        *idle_hazards(rehearsal),
    ]
    for hazard in hazards:
        yield Text.assemble(("hazard:", "yellow"), f" {hazard.sentence}")
    if len(setup.phases) > MOST_PHASES:
        yield Text(f"hazards are those of the first {MOST_PHASES} of {len(setup.phases)} phases")
    if not hazards:
        yield Text("no hazard is foreseen: with this batch, everything frozen holds and the rest trains")


def parameter_lines(setup: Setup, console: Console) -> list[Text]:
    """Return what a plan says about the parameters: how many would be frozen, and a table of them by module."""
    modules = len(setup.selection.modules)
    when = " in some phase" if len(setup.phases) > 1 else ""
    be = "may" if setup.plan.observe else "would"
    frozen = {name for phase in setup.phases for name in phase.selection.parameters}
    number = len(setup.selection.parameters if setup.plan.observe else frozen)
    summary = (
        f"{number} of {len(setup.parameters)} parameters {be} be frozen{when}, "
        f"{modules} module{'' if modules == 1 else 's'} held in eval mode; nothing was trained or written."
    )
    return [*hanging(Text(summary, style="bold"), console), *parameter_table(planned_parameters(setup), console.width)]


def cost_lines(setup: Setup, console: Console) -> list[Text]:
    """Return what a plan says about the costs of a step in each phase: a table and sentences; nothing with `cost=off`."""
    if (costs := plan_costs(setup, setup.feed.first)) is None:
        return []
    sentences = list(costs.sentences())
    if setup.config.epochs > 1 and type(setup.method).feed is not FreezingMethod.feed:
        sentences.append("where the method skips layers in later epochs, a step costs less than that")
    table = table_lines(COLUMNS, list(costs.rows()), console.width)
    return [*table, *_all_hanging([Text(sentence) for sentence in sentences], console)]


def _all_hanging(texts: Iterable[Text], console: Console) -> list[Text]:
    """Return texts as lines that fit the console."""
    return [line for text in texts for line in hanging(text, console)]


def memory_for(config: Config) -> float:
    """Return the bytes of this machine's memory; infinity if they are not known or the model is on another device."""
    if not hasattr(os, "sysconf") or pick_device(config.device.value).type != "cpu":
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
