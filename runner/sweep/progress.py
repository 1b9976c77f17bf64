"""A sweep's progress, told from the runs' folders, so that it is the same whichever processes run them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from runner.contract import RECORD, Record
from runner.runs.console import COLOURS

EVERY = 0.5  # seconds


class Watched(Protocol):
    """A cell of a sweep, as far as progress is concerned."""

    @property
    def folder(self) -> Path: ...
    @property
    def record(self) -> Record | None: ...


@contextmanager
def progress_of(cells: Sequence[Watched], console: Console) -> Iterator[None]:
    """Print a line for each of these runs as it ends, with its reason where it failed; on a terminal a bar stands below."""
    columns = TextColumn("runs"), BarColumn(), TextColumn("{task.fields[said]}")
    over = threading.Event()
    bar = Progress(*columns, console=console, transient=True)
    with bar if console.is_terminal else nullcontext():
        task = bar.add_task("", total=len(cells), said="")
        tally = Tally(len(cells))

        def watch() -> None:
            left = list(cells)
            while left:
                last = over.is_set()  # what ended before is still told
                for cell in list(left):
                    if (cell.folder / RECORD).exists() and (record := cell.record):
                        left.remove(cell)
                        said = tally.count(record)
                        bar.console.print(line(cell.folder.name, record, tally, console.is_terminal))
                        bar.update(task, advance=1, said=said)
                if last:
                    return
                over.wait(EVERY)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


class Tally:
    """How many runs have ended and failed, and how long the rest will take at this pace."""

    def __init__(self, total: int) -> None:
        self.total, self.ended, self.done, self.failed, self.begun = total, 0, 0, 0, monotonic()

    def count(self, record: Record) -> str:
        """Count one more; returns the state of the sweep in words."""
        self.ended += 1
        self.done += record["status"] in ("finished", "skipped")
        self.failed += record["status"] == "failed"
        return str(self)

    def __str__(self) -> str:
        left = self.total - self.ended
        words = [f"{self.done} done", f"{self.failed} failed", f"{left} left"]
        if left:
            seconds = (monotonic() - self.begun) / self.ended * left
            words.append(f"{timedelta(seconds=round(seconds))} to go")
        return ", ".join(words)


def line(name: str, record: Record, tally: Tally, on_terminal: bool) -> str:
    """One run that ended, in one line; in a pipe, which has no bar, the state of the sweep stands behind it."""
    word = record["verdict"] if record["status"] == "finished" else record["status"]
    reason = f": {escape(record['reason'])}" if record["reason"] else ""
    state = "" if on_terminal else f"  ({tally})"
    return f"{escape(name)}  [{COLOURS.get(word or '', 'default')}]{word}[/]{reason}{state}"
