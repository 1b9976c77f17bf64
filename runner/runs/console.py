"""What the terminal shows of a run: a progress bar, and a summary when the run has ended."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from runner.contract import COSTS, DEFECTS, PAGE, BlockRecord, Cost, PhaseRecord, Record, Row
from runner.display.console import hanging, labelled, print_unbroken
from runner.display.table import Column, number, table_lines
from runner.display.units import bytes_text, change_text, digits_text, flops_text, percent_text, seconds_text
from runner.errors import listed
from runner.proof.verdict import outcome_of
from runner.runs.headline import STYLES, change_key, distinct_texts, headline, moved_lines
from runner.runs.text import counted

if TYPE_CHECKING:
    from runner.training.loop import Step

COLOURS: dict[str, str] = {
    "held": "green",
    "leaked": "bold red",
    **dict.fromkeys(DEFECTS, "bold red"),
    "failed": "red",
    "idle": "yellow",
    "returned": "yellow",
    "running": "yellow",
    "skipped": "yellow",
}

LABEL_WIDTH = 9  # of the labels in front of the lines of a summary, such as `trained`
MAX_STEPS = 40  # of a list of steps
MAX_BLOCKS, MAX_STRIP = 10, 80  # blocks that have a line each, and the length of such a line
BLOCK_SIGNS = {".": "frozen", "!": "frozen, but moved", "#": "trained"}
# How notes begin that do not change how the headline is read: about what was measured, and how the model was loaded.
QUIET_NOTES = ("cost:", "evaluate:", "metrics:", "model.", "the loss became", "every parameter is declared frozen")
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


@contextmanager
def progress_bar(console: Console, at_the_end: str) -> Iterator[Callable[[Step], None]]:
    """Show a progress bar for the training steps of a run inside the block; show none if stdout is not a terminal.

    Yields a function to call with each step when it is finished. `at_the_end`: what takes time after the last step, which is
    then shown, such as `counting costs`.
    """
    if not sys.stdout.isatty():
        yield lambda step: None
        return
    bar = BarColumn(bar_width=min(40, max(8, console.width - 48)))
    columns = TextColumn("{task.description}"), bar, MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("building", total=None)

        def on_step(step: Step) -> None:
            what = "training" if step.number < step.planned else at_the_end
            progress.update(task, description=what, completed=step.number, total=step.planned)

        yield on_step


def after_training(evaluate: Any, cost: str) -> str:
    """Return what takes time after the last step of a run, in words; the arguments are the values of these config keys."""
    words = ["evaluating"] * bool(evaluate) + ["counting costs"] * (cost != "off")
    return ", ".join(words) or "comparing"


def print_summary(
    result: EndedRun, title: str, console: Console, *, printed_notes: Sequence[str] = (), verbose: bool = False
) -> None:
    """Print the results of a run that trained: a headline, what moved, losses, costs, and where the page is.

    `title`: the first line that is printed. `printed_notes`: notes to leave out, because they were printed during the run.
    `verbose`: also print a table of the verdicts, all costs, and the notes that do not change how the headline is read.
    """
    record, rows = result.record, result.rows
    first = headline(record, rows)
    lines = hanging(Text(title, style="dim"), console)
    lines += hanging(Text.assemble((first.label, STYLES[first.colour]), f"  {first.text}"), console)
    phases = phase_lines(record["phases"], console.width - LABEL_WIDTH)
    for label, text in (*moved_lines(record, rows), *loss_lines(record), *cost_summary(record["cost"]), *phases):
        lines += labelled(label, text, console, LABEL_WIDTH)
    if verbose:
        lines += [*verdict_table(record, rows, console.width), *detail_lines(record, console)]
    notes = [note for note in record["notes"] if note not in printed_notes]
    shown = [note for note in notes if verbose or not note.startswith(QUIET_NOTES)]
    for note in shown:
        lines += hanging(Text.assemble(("note:", "yellow"), f" {note}"), console)
    for line in lines:
        console.print(line)
    print_unbroken(console, f"{'page'.ljust(LABEL_WIDTH)}{display_path(result.folder / PAGE)}")
    if others := len(notes) - len(shown):
        console.print(f"{counted(others, 'more note' if shown else 'note')}: verbose=true, or the page", style="dim")


def loss_lines(record: Record) -> Iterator[tuple[str, str]]:
    """Yield (label, text) for the losses of a run's first and last step, with what was measured on held-out data."""
    held_out = [f"held-out: {line}" for line in list(evaluation_lines(record["evaluation"]))[:1]]
    if record["looks"] or record["loss_first"] is not None:  # steps of some optimizers cannot be seen
        yield "loss", "; ".join([" -> ".join(distinct_texts(record["loss_first"], record["loss_last"])), *held_out])
    elif held_out:
        yield "loss", held_out[0]


def phase_lines(phases: Sequence[PhaseRecord], width: int) -> Iterator[tuple[str, str]]:
    """Yield (label, text) for the phases of a run that has several, and for each block, with a character for each phase.

    The blocks are left out where there are more than MAX_BLOCKS, or a text would be longer than `width` or MAX_STRIP.
    """
    if len(phases) < 2:
        return
    steps = counted(phases[-1]["last_step"], "step")
    blocks = [{block["name"]: block for block in phase.get("blocks", ())} for phase in phases]
    names = list(dict.fromkeys(name for each in blocks for name in each))
    longest = max(map(len, names), default=0)
    if not 0 < len(names) <= MAX_BLOCKS or longest + 2 + len(phases) > min(width, MAX_STRIP):
        least, most = (extreme(phase["frozen"] for phase in phases) for extreme in (min, max))
        yield "phases", f"{len(phases):,} in {steps}, with {least:,} to {counted(most, 'tensor')} frozen"
        return
    rows = {name: "".join(block_sign(each.get(name)) for each in blocks) for name in names}
    found = set("".join(rows.values()))
    meaning = "; ".join(f"{sign} {text}" for sign, text in BLOCK_SIGNS.items() if sign in found)
    yield "phases", f"{len(phases):,} in {steps}, a character each: {meaning}"
    yield from (("", f"{name.ljust(longest)}  {signs}") for name, signs in rows.items())


def block_sign(block: BlockRecord | None) -> str:
    """Return the key of BLOCK_SIGNS for a block in a phase; None if it is not recorded."""
    if block is None:
        return " "
    return "#" if not block["frozen"] else "!" if block["change_rel"] else "."


def cost_summary(cost: Cost) -> Iterator[tuple[str, str]]:
    """Yield (label, text) for what a training step costs, if that was measured."""
    for line in list(cost_lines(cost))[:1]:
        yield "a step", line.removeprefix("a step: ")


def detail_lines(record: Record, console: Console) -> Iterator[Text]:
    """Yield the lines that only `verbose=true` shows, after the table: when bits were compared, and all costs."""
    looks = listed_steps(record["looks"]) if record["looks"] else "the last step alone"
    passes = [f"held-out: {line}" for line in list(evaluation_lines(record["evaluation"]))[1:]]
    for text in (f"bits compared after {looks}", *passes, *list(cost_lines(record["cost"]))[1:]):
        yield from hanging(Text(text), console)


def listed_steps(steps: Sequence[int]) -> str:
    """Return the step numbers as text: `step 1` or `steps 1, 2, 4`; of more than MAX_STEPS, only how many there are more."""
    more = f" and {len(steps) - MAX_STEPS:,} more" if len(steps) > MAX_STEPS else ""
    return f"step{'' if len(steps) == 1 else 's'} {', '.join(map(str, steps[:MAX_STEPS]))}{more}"


def cost_lines(cost: Cost) -> Iterator[str]:
    """Yield lines of text about what a training step costs: FLOPs, bytes, seconds and peak memory.

    `cost`: the entry `cost` of `run.json`. If it is empty, nothing was measured and nothing is yielded. Percentages are
    relative to a training in which nothing is frozen. If freezing saves little, the last line says why.
    """
    if not cost:
        return
    cost = {**dict.fromkeys(COSTS), **cost}  # records of older versions have fewer keys
    flops = [cost["flops_forward"], cost["flops_backward"]]
    figures = [("" if None in flops else flops_text(sum(flops)), cost["flops_share"])]
    for key, what in BYTE_COSTS.items():
        figures.append(("" if cost[key] is None else f"{bytes_text(cost[key])} {what}", cost[f"{key}_share"]))
    texts, meaning = [], " of training everything"  # said once
    for text, share in figures:
        if text and percent_text(share):
            text, meaning = f"{text} ({percent_text(share)}{meaning})", ""
        texts.append(text)
    yield f"a step: {', '.join(filter(None, texts))}"
    if cost["seconds_step"] is not None:
        seconds = ", ".join(f"{word} {seconds_text(cost[f'seconds_{word}'])}" for word in ("forward", "backward", "step"))
        yield f"a step, median: {seconds}"
    if cost["peak_memory_bytes"] is not None:
        yield f"peak memory: {bytes_text(cost['peak_memory_bytes'])} ({cost['peak_memory_by']})"
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
        return digits_text(values[key]) or "not finite"

    parts = [f"{key} {' -> '.join(text(values, key) for values in (before, after) if key in values)}" for key in keys]
    yield ", ".join(parts) + ("" if after else " before the training")
    passes = [text(values, keys[0]) for values in evaluation.get("passes", ()) if keys[0] in values]
    if len(passes) > 1:
        yield f"{keys[0]} after each pass: {', '.join(passes[:MAX_STEPS])}{' ...' if len(passes) > MAX_STEPS else ''}"


def display_path(path: Path) -> str:
    """Return a path as text, relative to the current folder if the path is below that folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def verdict_table(record: Record, rows: Sequence[Row], width: int) -> list[Text]:
    """Return a table with a line for each verdict: the number of its tensors, the one that changed most, and the causes.

    For the verdict `idle` (trainable, but unchanged) the names of tensors stand in place of the one that changed most.
    """
    columns = [Column("verdict"), number("count"), Column("most changed", least=16), number("change", 2)]
    columns += [number("relative", 1), Column("cause", 1, least=12)]
    cells: list[list[str | Text]] = []
    for verdict in (verdict for verdict, count in record["counts"].items() if count):
        mine = [row for row in rows if row["verdict"] == verdict]
        most = max(mine, key=change_key)
        named = most["name"] if most["moved"] else listed([row["name"] for row in mine], 4) if verdict == "idle" else ""
        changes = [digits_text(most["change_l2"]), change_text(most["change_rel"])] if most["moved"] else ["", ""]
        causes = ", ".join(sorted({row["cause"] for row in mine if row["cause"]}))
        colour = "" if verdict == "held" != outcome_of(record) else COLOURS.get(verdict, "")
        cells.append([Text(verdict, style=colour), str(len(mine)), named, *changes, causes])
    return table_lines(columns, cells, width)
