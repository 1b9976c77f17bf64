"""Look first: what a run would do and what would go wrong, without training and without a folder."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runner.config import Config
from runner.errors import ConfigError, SkippedError
from runner.experiment import Line, assembled, freeze_now
from runner.foresight import labels, rehearsed
from runner.groups import placed, rate
from runner.hazards import drifts, idles, leaks
from runner.passes import drawn
from runner.preflight import Rehearsal, pulls_of_a_batch
from runner.summary import terminal
from runner.tasks import task_of
from runner.tensors import entries, now


def foresee(line: Line, config: Config) -> Rehearsal:
    """What will become of every tensor, by one batch through each phase of the line and a rehearsal of its steps.

    The line is used up: its model has seen a batch, and is frozen as in its last phase. Cannot foresee what depends on
    more than one batch: rows of an `Embedding(max_norm=...)` that a later one looks up, gradients that die or are rounded
    away. Raises what the run would raise.
    """
    task, first = task_of(config, line.device), next(drawn(config, line.device), None)
    if first is not None:
        for phase in line.phases:
            if phase is not line.phases[0]:
                freeze_now(line, phase)
            line.model.train()
            stage = line.stages[-1]
            stage.pulls, stage.written = pulls_of_a_batch(line.model, line.parameters, task, first.batch)
    return rehearsed(line, config)


def show_plan(config: Config, console: Console | None = None) -> None:
    """Print every parameter with its shape, group, learning rate and whether it is declared frozen, then the hazards."""
    console = console or terminal()
    try:
        with assembled(config) as line:
            console.print(_parameters(line))
            modules = len(line.selection.modules)
            console.print(
                f"{len(line.selection.parameters)} of {len(line.parameters)} parameters would be frozen, "
                f"{modules} modules held in inference mode; nothing was trained or written."
            )
            for note in line.selection.notes:
                console.print(f"note: {escape(note)}")
            try:
                foreseen = foresee(line, config)
            except SkippedError as skipped:  # by an optimizer that does not step dummies, as it may not step the real ones
                console.print(f"hazards cannot be foreseen: {escape(str(skipped))}")
                return
            owners = {name: entry.owner for name, entry in line.before.entries.items()}
            hazards = [
                *leaks(foreseen, *labels(line)),
                *drifts(foreseen, list(line.selection.parameters), owners),
                *idles(foreseen),
            ]
            for hazard in hazards:
                console.print(f"[yellow]hazard:[/] {escape(hazard)}")
            if not hazards:
                console.print("no hazard is foreseen: by this batch, what is frozen would hold and the rest would train")
    except SkippedError as skipped:
        raise ConfigError(f"skipped: {skipped}") from skipped


def _parameters(line: Line) -> Table:
    group_of, resolve = placed([line.optimizer]), now(entries(line.model))
    table = Table("parameter", "shape", "group", "lr", "requires_grad", "frozen", box=None, pad_edge=False)
    first = line.phases[-1].first
    for entry in (entry for entry in line.before.entries.values() if entry.kind == "parameter"):
        name, group = group_of.get(id(entry.tensor), ("(none)", None))
        tensor = resolve(entry)
        table.add_row(
            " = ".join([entry.name, *entry.aliases]),
            "x".join(map(str, entry.tensor.shape)),
            name,
            str(rate(group)) if group else "",
            str(tensor is not None and tensor.requires_grad),
            "" if entry.tensor not in line.selection else "frozen" if first == 1 else f"from step {first} on",
        )
    return table
