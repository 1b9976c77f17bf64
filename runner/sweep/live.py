"""Write the page and the tables of a sweep while it runs, in a thread, so that a browser shows what is done so far."""

from __future__ import annotations

import sys
from dataclasses import replace
from math import ceil
from pathlib import Path
from threading import Event, Thread
from time import monotonic

from runner.contract import PAGE, RECORD
from runner.display.console import create_console, print_unbroken
from runner.runs.console import display_path
from runner.runs.read import KILLED, Run
from runner.runs.text import error_line

SHARE_OF_TIME = 0.1  # the most of a sweep's time that writing takes: the threads of a process wait for each other


class LiveReport:
    """The page and the tables of a sweep, written again as its runs begin and end, from `start` until `stop`.

    Attributes:
        sweep: the sweep's folder.
        every: the least number of seconds from one writing to the next; None to write nothing.
        kept: {folder: run} of the runs that were read and have ended; they are not read again.
    """

    def __init__(self, sweep: Path, every: float | None) -> None:
        self.sweep, self.every, self.kept = sweep, every, dict[Path, Run]()
        self._stopped, self._seen, self._printed = Event(), list[tuple[Path, bool]](), set[str]()
        self._thread = Thread(target=self._watch, name="live report", daemon=True)

    def start(self) -> None:
        """Write the page, print its path, and go on in a thread; nothing is done if `every` is None."""
        if self.every is not None:
            print_unbroken(create_console(), f"page, while the sweep runs: {display_path(self.sweep / PAGE)}")
            self.write()
            self._thread.start()

    def stop(self) -> None:
        """Return when the thread, if there is one, has ended, so that nothing more is written."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def write(self) -> None:
        """Write the page and the tables; an error is printed, each once, and never ends the sweep.

        A run whose folder Hydra has made, but which has not begun yet, counts as not begun, not as killed.
        """
        from runner.report.files import read_sweep, write_page_and_tables

        self._seen = self._state()
        try:
            found = read_sweep(self.sweep, self.kept)
            run_set = replace(found, runs=[run for run in found.runs if run.record["reason"] != KILLED])
            problems = write_page_and_tables(run_set, max(1, ceil(self.every or 1)))
        except Exception as error:
            problems = [f"the page of the running sweep cannot be written: {type(error).__name__}: {error}"]
        for line in problems:
            if line not in self._printed:
                self._printed.add(line)
                print(error_line(line), file=sys.stderr)

    def _watch(self) -> None:
        """Write the page again after each pause in which a run began or ended."""
        pause = self.every
        while not self._stopped.wait(pause):
            if self._state() != self._seen:
                start = monotonic()
                self.write()
                pause = max(self.every or 0, (monotonic() - start) / SHARE_OF_TIME)

    def _state(self) -> list[tuple[Path, bool]]:
        """Return the folders in the sweep's folder, each with whether its run has ended; no file is read."""
        try:
            return sorted((folder, (folder / RECORD).exists()) for folder in self.sweep.iterdir() if folder.is_dir())
        except OSError:
            return []
