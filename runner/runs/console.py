"""What a person reads on the terminal when a run has ended."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from runner.contract import COSTS, Cost, Record, Row
from runner.errors import listed
from runner.runs.text import in_gflop, in_mib, in_percent

COLOURS = {
    "held": "green",
    "leaked": "bold red",
    "failed": "red",
    "idle": "yellow",
    "returned": "yellow",
    "skipped": "yellow",
}

BYTES = {
    "saved_bytes": "saved for backward",
    "gradient_bytes": "of gradients",
    "optimizer_state_bytes": "of optimizer state",
}


class Ended(Protocol):
    """A result, as far as a summary reads it."""

    folder: Path
    record: Record
    rows: list[Row]


def terminal() -> Console:
    """Where a run speaks to a person; a pipe has no width, so that no cell is cut there."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 400)


@contextmanager
def progress(batches: int, console: Console) -> Iterator[Any]:
    """A progress bar on a terminal, nothing in a pipe; yields what to call after each step."""
    if not sys.stdout.isatty():
        yield lambda step: None
        return
    columns = TextColumn("step"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("train", total=batches)
        yield lambda step: bar.advance(task)


def show(result: Ended, title: str, console: Console, shown_before: Sequence[str] = ()) -> None:
    """A run that trained: what was asked, held or leaked, the largest mover of each verdict, where the files are.

    `shown_before` are the notes that were shown when they arose.
    """
    record, rows = result.record, result.rows
    console.print(f"[bold]{escape(title)}[/]")
    if record["status"] != "finished":
        console.print(f"[yellow]{record['status'].upper()}[/]  {escape(record['reason'])}")
    if record["looks"]:
        console.print(answer(record, rows))
    table = Table("verdict", "count", "largest mover", "change", "of its start", "cause", box=None, pad_edge=False)
    for verdict, count in record["counts"].items():
        if count:
            table.add_row(*_mover(verdict, [row for row in rows if row["verdict"] == verdict]))
    console.print(table)
    if record["looks"]:
        first, last = ("not finite" if x is None else f"{x:.4g}" for x in (record["loss_first"], record["loss_last"]))
        console.print(f"loss {first} -> {last}, bits compared after {steps_of(record['looks'])}")
    for line in cost_lines(record["cost"]):
        console.print(escape(line))
    for note in (note for note in record["notes"] if note not in shown_before):
        console.print(f"[yellow]note:[/] {escape(note)}")
    console.print(f"files: {escape(shown(result.folder))}")


def steps_of(looks: Sequence[int]) -> str:
    """`step 1`, `steps 1, 2, 4`."""
    return f"step{'' if len(looks) == 1 else 's'} {', '.join(map(str, looks))}"


def answer(record: Record, rows: list[Row]) -> str:
    """Held or leaked, in one line."""
    frozen = [row for row in rows if row["frozen"]]
    drifted = record["counts"]["drifted"]
    beside = f"; {drifted} live buffers drifted, as PyTorch's do" if drifted else ""
    if not frozen:
        return f"[bold]NOTHING FROZEN[/]  no parameter was declared frozen{beside}"
    leaks = [row for row in frozen if row["verdict"] == "leaked"]
    if leaks:
        worst = max(leaks, key=_distance)
        return (
            f"[bold red]LEAKED[/]  {len(leaks)} of {len(frozen)} frozen tensors changed, most of all "
            f"{escape(worst['name'])}{beside}"
        )
    returned = sum(row["verdict"] == "returned" for row in frozen)
    if returned:
        return f"[bold green]HELD[/]  {len(frozen)} frozen tensors; {returned} of them moved and returned{beside}"
    return f"[bold green]HELD[/]  {len(frozen)} of {len(frozen)} frozen tensors kept every bit{beside}"


def cost_lines(cost: Cost) -> Iterator[str]:
    """What a step cost beside training everything, and why freezing saves little where it does; nothing where unmetered."""
    if not cost:
        return
    cost = {**dict.fromkeys(COSTS), **cost}  # an older record has fewer
    parts = []
    if None not in (flops := [cost["flops_forward"], cost["flops_backward"]]):
        parts.append(f"{in_gflop(sum(flops))} GFLOP{_share(cost['flops_share'])}")
    for key, what in BYTES.items():
        if cost[key] is not None:
            parts.append(f"{in_mib(cost[key])} MiB {what}{_share(cost[f'{key}_share'])}")
    known = any(cost[key] is not None for key in ("flops_share", *(f"{key}_share" for key in BYTES)))
    yield f"a step: {', '.join(parts)}{'; in brackets of what training everything would take' if known else ''}"
    if cost["seconds_step"] is not None:
        seconds = ", ".join(f"{word} {cost[f'seconds_{word}']:.3g} s" for word in ("forward", "backward", "step"))
        yield f"a step, median: {seconds}"
    if cost["peak_memory_bytes"] is not None:
        yield f"peak memory: {in_mib(cost['peak_memory_bytes'])} MiB ({cost['peak_memory_by']})"
    if cost["why_small"]:
        yield f"little is saved: {cost['why_small']}"


def _share(value: float | None) -> str:
    return "" if value is None else f" ({in_percent(value)})"


def shown(path: Path) -> str:
    """A path as a person reads it: relative where it lies below the current folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _mover(verdict: str, rows: list[Row]) -> list[str]:
    most = max(rows, key=_distance)
    colour = COLOURS.get(verdict)
    causes = ", ".join(sorted({row["cause"] for row in rows if row["cause"]}))
    label = f"[{colour}]{verdict}[/]" if colour else verdict
    if not most["moved"]:
        names = listed([row["name"] for row in rows], most=4)
        return [label, str(len(rows)), escape(names) if verdict == "idle" else "", "", "", causes]
    share = "" if most["change_rel"] is None else f"{most['change_rel']:.2%}"
    return [label, str(len(rows)), escape(most["name"]), f"{most['change_l2']:.4g}", share, causes]


def _distance(row: Row) -> tuple[bool, bool, float]:
    change = row["change_rel"] if row["change_rel"] is not None else row["change_l2"]
    counts = row["dtype"].startswith(("int", "uint", "bool"))  # BatchNorm's number of batches tells nobody anything
    return row["moved"], not counts, float("inf") if change != change else change
