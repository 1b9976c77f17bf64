"""Look first: what a run would do, without a step and without a folder."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from runner.config import Config
from runner.errors import ConfigError, SkippedError
from runner.experiment import assembled
from runner.groups import placed, rate
from runner.summary import terminal
from runner.tensors import entries, now


def show_plan(config: Config, console: Console | None = None) -> None:
    """Print every parameter with its shape, group, learning rate, `requires_grad` and whether it is declared frozen."""
    console = console or terminal()
    try:
        with assembled(config) as line:
            group_of, resolve = placed([line.optimizer]), now(entries(line.model))
            parameters = [entry for entry in line.before.entries.values() if entry.kind == "parameter"]
            table = Table("parameter", "shape", "group", "lr", "requires_grad", "frozen", box=None, pad_edge=False)
            for entry in parameters:
                name, group = group_of.get(id(entry.tensor), ("(none)", None))
                tensor = resolve(entry)
                table.add_row(
                    " = ".join([entry.name, *entry.aliases]),
                    "x".join(map(str, entry.tensor.shape)),
                    name,
                    str(rate(group)) if group else "",
                    str(tensor is not None and tensor.requires_grad),
                    "frozen" if entry.tensor in line.selection else "",
                )
            console.print(table)
            console.print(
                f"{len(line.selection.parameters)} of {len(parameters)} parameters would be frozen, "
                f"{len(line.selection.modules)} modules held in inference mode; nothing was trained or written."
            )
            for note in line.selection.notes:
                console.print(f"note: {note}")
    except SkippedError as skipped:
        raise ConfigError(f"skipped: {skipped}") from skipped
