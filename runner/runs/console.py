"""What the terminal shows of a run: a progress bar, and a summary when the run has ended.

A parameter that was declared frozen is `held` if every bit of it stayed equal, `leaked` if it changed, and `returned` if it
changed and then had its first bits again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from runner.contract import COSTS, DEFECTS, Cost, Record, Row
from runner.display.units import in_digits, in_gflop, in_mib, in_percent
from runner.errors import listed
from runner.proof.verdict import defects_of, outcome_of
from runner.runs.text import changed_buffers, counted

COLOURS: dict[str, str] = {
    "held": "green",
    "leaked": "bold red",
    **dict.fromkeys(DEFECTS, "bold red"),
    "failed": "red",
    "idle": "yellow",
    "returned": "yellow",
    "skipped": "yellow",
}

MAX_STEPS = 40  # of a list of steps
BYTE_COSTS = {
    "saved_bytes": "saved for backward",
    "gradient_bytes": "of gradients",
    "optimizer_state_bytes": "of optimizer state",
}


class EndedRun(Protocol):
    """The attributes of a `Result` (the return value of `runner.run`) that `print_summary` needs.

    `folder`: the run's folder. `record`: the content of `run.json`. `rows`: the rows of `changes.csv`.
    """

    folder: Path
    record: Record
    rows: list[Row]


def create_console() -> Console:
    """Return a rich Console that writes to stdout.

    If stdout is not a terminal, the console is 400 columns wide, so that no table cell is cut.
    """
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 400)


@contextmanager
def progress_bar(batches: int, console: Console) -> Iterator[Any]:
    """Show a progress bar for `batches` training steps inside the block; show none if stdout is not a terminal.

    Yields a function to call after each step. The function takes one argument, which it ignores.
    """
    if not sys.stdout.isatty():
        yield lambda step: None
        return
    columns = TextColumn("step"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("train", total=batches)
        yield lambda step: bar.advance(task)


def print_summary(result: EndedRun, title: str, console: Console, printed_notes: Sequence[str] = ()) -> None:
    """Print the results of a run that trained: whether frozen tensors changed, losses, costs, notes and the folder.

    The results contain a table with one line for each verdict, such as `leaked`: the number of tensors with that verdict,
    and the one of them that changed most.

    `title`: the first line that is printed. `printed_notes`: notes to leave out, because they were printed during the run.
    """
    record, rows = result.record, result.rows
    console.print(f"[bold]{escape(title)}[/]")
    if record["status"] != "finished":
        console.print(f"[yellow]{record['status'].upper()}[/]  {escape(record['reason'])}")
    for line in defect_lines(record, rows):
        console.print(line)
    made_steps = bool(record["looks"]) or record["loss_first"] is not None  # steps of some optimizers cannot be seen
    if made_steps:
        console.print(verdict_line(record, rows))
    table = Table("verdict", "count", "most changed", "change", "relative", "cause", box=None, pad_edge=False)
    for verdict, count in record["counts"].items():
        if count:
            colour = "" if verdict == "held" != outcome_of(record) else COLOURS.get(verdict, "")
            table.add_row(*_verdict_cells(verdict, [row for row in rows if row["verdict"] == verdict], colour))
    console.print(table)
    if made_steps:
        first, last = ("not finite" if x is None else f"{x:.4g}" for x in (record["loss_first"], record["loss_last"]))
        looks = listed_steps(record["looks"]) if record["looks"] else "the last step alone"
        console.print(f"loss {first} -> {last}, bits compared after {looks}")
    for line in evaluation_lines(record["evaluation"]):
        console.print(escape(f"held-out: {line}"))
    for line in cost_lines(record["cost"]):
        console.print(escape(line))
    for note in (note for note in record["notes"] if note not in printed_notes):
        console.print(f"[yellow]note:[/] {escape(note)}")
    console.print(f"files: {escape(display_path(result.folder))}")


def listed_steps(steps: Sequence[int]) -> str:
    """Return the step numbers as text: `step 1` or `steps 1, 2, 4`; of more than MAX_STEPS, only how many there are more."""
    more = f" and {len(steps) - MAX_STEPS:,} more" if len(steps) > MAX_STEPS else ""
    return f"step{'' if len(steps) == 1 else 's'} {', '.join(map(str, steps[:MAX_STEPS]))}{more}"


def defect_lines(record: Record, rows: list[Row]) -> Iterator[str]:
    """Yield a line, with rich markup, for each defect of a run (see `defects_of`), such as NOTHING TRAINED.

    `rows`: the rows of `changes.csv`.
    """
    for word, text in defects_of(record).items():
        idle = [row for row in rows if row["verdict"] == "idle"] if word == "nothing trained" else []
        causes = ", ".join(sorted({row["cause"] or "unknown" for row in idle}))
        names = f": {listed([row['name'] for row in idle], most=4)} ({causes})" if idle else ""
        yield f"[{COLOURS[word]}]{word.upper()}[/]  {text}{escape(names)}"


def verdict_line(record: Record, rows: list[Row]) -> str:
    """Return one line, with rich markup, that says whether the frozen tensors changed.

    `rows`: the rows of `changes.csv`, one for each parameter and buffer. The line begins with LEAKED if the bits of at least
    one frozen tensor differ at the end of the run, with HELD if those of none do, and with NOTHING FROZEN if no tensor was
    declared frozen. HELD is green only if the run finished and has no defect. After it, the frozen tensors that differed
    only in between are counted. The line ends with the numbers of trainable parameters that did not change and of buffers
    that changed and were not frozen, if there are any.
    """
    frozen = [row for row in rows if row["frozen"]]
    drifted = [row["module_type"] for row in rows if row["verdict"] == "drifted"]
    buffers = f"; {changed_buffers(len(drifted), drifted)}" if drifted else ""
    idle, trainable = record["counts"]["idle"], sum(row["kind"] == "parameter" and not row["frozen"] for row in rows)
    if idle and "nothing trained" not in defects_of(record):
        buffers = f"; [yellow]{idle} of {counted(trainable, 'trainable parameter')} did not change[/]{buffers}"
    if not frozen:
        return f"[bold]NOTHING FROZEN[/]  no parameter was declared frozen{buffers}"
    leaks = [row for row in frozen if row["verdict"] == "leaked"]
    if leaks:
        worst = max(leaks, key=_change_key)
        return (
            f"[bold red]LEAKED[/]  {len(leaks)} of {len(frozen)} frozen tensors changed, most of all "
            f"{escape(worst['name'])}{buffers}"
        )
    held = "[bold green]HELD[/]" if outcome_of(record) == "held" else "[bold]HELD[/]"
    returned = sum(row["verdict"] == "returned" for row in frozen)
    if returned:
        return f"{held}  {counted(len(frozen), 'frozen tensor')}; {returned} of them moved and returned{buffers}"
    return f"{held}  {len(frozen)} of {counted(len(frozen), 'frozen tensor')} kept every bit{buffers}"


def cost_lines(cost: Cost) -> Iterator[str]:
    """Yield lines of text about what a training step costs: FLOPs, bytes, seconds and peak memory.

    `cost`: the entry `cost` of `run.json`. If it is empty, nothing was measured and nothing is yielded. Percentages are
    relative to a training in which nothing is frozen. If freezing saves little, the last line says why.
    """
    if not cost:
        return
    cost = {**dict.fromkeys(COSTS), **cost}  # records of older versions have fewer keys
    parts = []
    if None not in (flops := [cost["flops_forward"], cost["flops_backward"]]):
        parts.append(f"{in_gflop(sum(flops))} GFLOP{_percentage(cost['flops_share'])}")
    for key, what in BYTE_COSTS.items():
        if cost[key] is not None:
            parts.append(f"{in_mib(cost[key])} MiB {what}{_percentage(cost[f'{key}_share'])}")
    has_shares = any(cost[key] is not None for key in ("flops_share", *(f"{key}_share" for key in BYTE_COSTS)))
    yield f"a step: {', '.join(parts)}{' (percentages: compared with training everything)' if has_shares else ''}"
    if cost["seconds_step"] is not None:
        seconds = ", ".join(f"{word} {cost[f'seconds_{word}']:.3g} s" for word in ("forward", "backward", "step"))
        yield f"a step, median: {seconds}"
    if cost["peak_memory_bytes"] is not None:
        yield f"peak memory: {in_mib(cost['peak_memory_bytes'])} MiB ({cost['peak_memory_by']})"
    if cost["why_small"]:
        yield f"little is saved: {cost['why_small']}"


def evaluation_lines(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was measured on held-out data before and after the training, such as `accuracy 0.1 -> 0.9, loss 2 -> 0.4`.

    `evaluation`: the entry of `run.json`. With values after each pass, a second line has those of the first line's quantity.
    """
    before, after = (evaluation.get(key, {}) for key in ("before", "after"))
    keys = sorted(dict.fromkeys([*before, *after]), key=lambda key: (key != "accuracy", key != "loss"))
    if not keys:
        return

    def text(values: Mapping[str, Any], key: str) -> str:
        return in_digits(values[key]) or "not finite"

    parts = [f"{key} {' -> '.join(text(values, key) for values in (before, after) if key in values)}" for key in keys]
    yield ", ".join(parts) + ("" if after else " before the training")
    passes = [text(values, keys[0]) for values in evaluation.get("passes", ()) if keys[0] in values]
    if len(passes) > 1:
        yield f"{keys[0]} after each pass: {', '.join(passes[:MAX_STEPS])}{' ...' if len(passes) > MAX_STEPS else ''}"


def _percentage(share: float | None) -> str:
    """Return a share as text in parentheses: 0.25 gives ` (25%)`; "" for None."""
    return "" if share is None else f" ({in_percent(share)})"


def display_path(path: Path) -> str:
    """Return a path as text, relative to the current folder if the path is below that folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _verdict_cells(verdict: str, rows: list[Row], colour: str) -> list[str]:
    """Return the cells of one line of the summary's table, which is about all tensors with the same verdict.

    `verdict`: this verdict, such as `leaked`. `rows`: the rows of these tensors in `changes.csv`. The cells are: the
    verdict, the number of tensors, the name of the tensor that changed most, its change (L2 norm), the same change relative
    to the initial norm, and the causes of all the tensors.

    If no tensor differs at the end, the cells of the name and of both changes are empty. For the verdict `idle` (trainable,
    but unchanged) the cell of the name then lists the names of the tensors.
    """
    most_changed = max(rows, key=_change_key)
    causes = ", ".join(sorted({row["cause"] for row in rows if row["cause"]}))
    label = f"[{colour}]{verdict}[/]" if colour else verdict
    if not most_changed["moved"]:
        names = listed([row["name"] for row in rows], most=4)
        return [label, str(len(rows)), escape(names) if verdict == "idle" else "", "", "", causes]
    absolute, relative = most_changed["change_l2"], most_changed["change_rel"]
    changes = ["" if absolute is None else f"{absolute:.4g}", "" if relative is None else f"{relative:.2%}"]
    return [label, str(len(rows)), escape(most_changed["name"]), *changes, causes]


def _change_key(row: Row) -> tuple[bool, bool, float]:
    """Return a sort key for a row of `changes.csv` that puts the tensor that changed most last.

    Unchanged tensors come first, then integer tensors, then floating-point tensors. Tensors of the same kind are sorted by
    their relative change, or by the L2 norm of the change if there is no relative change. NaN and a missing norm count as
    infinite.
    """
    change = row["change_rel"] if row["change_rel"] is not None else row["change_l2"]
    is_integer = row["dtype"].startswith(("int", "uint", "bool"))  # such as num_batches_tracked, which says little
    return row["moved"], not is_integer, float("inf") if change is None or change != change else change
