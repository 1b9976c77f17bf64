"""Show a sweep's progress. It is read from the runs' folders, so that it works in the same way with every launcher."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from runner.contract import RECORD, Record
from runner.display.console import hanging
from runner.proof.verdict import outcome_of
from runner.runs.console import COLOURS
from runner.runs.text import MAX_CELL, shortened

POLL_SECONDS = 0.5


class RecordedRun(Protocol):
    """The attributes of a SweepRun (one run of a sweep) that `show_progress` needs.

    `folder`: the run's folder. `record`: the content of its `run.json`; None if the run has not ended.
    """

    @property
    def folder(self) -> Path: ...
    @property
    def record(self) -> Record | None: ...


@contextmanager
def show_progress(runs: Sequence[RecordedRun], console: Console) -> Iterator[None]:
    """Inside the block, print one line for each run when it ends; on a terminal also show a progress bar.

    `runs`: the runs of the sweep. Every run that has ended by the end of the block gets its line.
    """
    bar_column = BarColumn(bar_width=min(40, max(8, console.width - 50)))
    columns = TextColumn("runs"), bar_column, TextColumn("{task.fields[state]}")
    block_ended = threading.Event()
    bar = Progress(*columns, console=console, transient=True)
    with bar if console.is_terminal else nullcontext():
        task = bar.add_task("", total=len(runs), state="")
        tally = Tally(len(runs))

        def watch() -> None:
            waiting = list(runs)
            while waiting:
                is_last_poll = block_ended.is_set()
                for run in list(waiting):
                    if (run.folder / RECORD).exists() and (record := run.record):
                        waiting.remove(run)
                        tally.add(record)
                        for line in hanging(run_line(run.folder.name, record, tally, console.is_terminal), console):
                            bar.console.print(line)
                        bar.update(task, advance=1, state=str(tally))
                if is_last_poll:
                    return
                block_ended.wait(POLL_SECONDS)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            block_ended.set()
            watcher.join()


class Tally:
    """Counts the runs of a sweep: how many are done (finished or skipped), failed, and not ended yet.

    `total`: the number of all runs. `str(tally)` is a text with these counts and an estimate of the remaining time. It is
    made from runs that ran, not from skipped ones, and once two of them have ended: the first alone says more about imports.
    """

    def __init__(self, total: int) -> None:
        self.total, self.ended, self.done, self.failed, self.ran = total, 0, 0, 0, 0
        self.start = monotonic()

    def add(self, record: Record) -> None:
        """Count a run that has ended; `record` is the content of its `run.json`."""
        self.ended += 1
        self.done += record["status"] in ("finished", "skipped")
        self.failed += record["status"] == "failed"
        self.ran += record["status"] != "skipped"

    def __str__(self) -> str:
        left = self.total - self.ended
        words = [f"{self.done} done", f"{self.failed} failed", f"{left} left"]
        if left and self.ran > 1:
            seconds = (monotonic() - self.start) / self.ran * left
            words.append(f"{timedelta(seconds=round(seconds))} to go")
        return ", ".join(words)


def run_line(name: str, record: Record, tally: Tally, on_terminal: bool) -> Text:
    """Return the line to print for a run that has ended: the run's name, how it ended, and the reason.

    `record`: the content of its `run.json`. `tally`: the counts for the whole sweep. They are part of the line unless
    `on_terminal`, because on a terminal the progress bar shows them.
    """
    outcome = outcome_of(record)
    reason = f": {shortened(record['reason'], MAX_CELL)}" if record["reason"] else ""
    state = "" if on_terminal else f"  ({tally})"
    return Text.assemble(f"{name}  ", (outcome, COLOURS.get(outcome, "")), f"{reason}{state}")
