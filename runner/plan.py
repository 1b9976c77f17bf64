"""Look first: what a run would do, without a step and without a folder."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from runner.config import Config
from runner.errors import ConfigError, SkippedError
from runner.experiment import assembled
from runner.summary import terminal
from runner.tensors import entries


def show_plan(config: Config, console: Console | None = None) -> None:
    """Print every parameter with its shape, group, learning rate, `requires_grad` and whether it is declared frozen."""
    console = console or terminal()
    try:
        with assembled(config) as line:
            group_of = {id(p): group for group in line.optimizer.param_groups for p in group["params"]}
            table = Table("parameter", "shape", "group", "lr", "requires_grad", "frozen", box=None, pad_edge=False)
            for name, entry in entries(line.model).items():
                if entry.kind == "parameter":
                    group = group_of.get(id(entry.tensor))
                    table.add_row(
                        " = ".join([name, *entry.aliases]),
                        "x".join(map(str, entry.tensor.shape)),
                        group["name"] if group else "(none)",
                        str(float(group["lr"])) if group else "",
                        str(entry.tensor.requires_grad),
                        "frozen" if entry.tensor in line.selection else "",
                    )
            console.print(table)
            total = sum(1 for entry in entries(line.model).values() if entry.kind == "parameter")
            console.print(
                f"{len(line.selection.parameters)} of {total} parameters would be frozen, "
                f"{len(line.selection.modules)} modules held in inference mode; nothing was trained or written."
            )
            for note in line.selection.notes:
                console.print(f"note: {note}")
    except SkippedError as skipped:
        raise ConfigError(f"skipped: {skipped}") from skipped
