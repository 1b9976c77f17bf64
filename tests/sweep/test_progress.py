"""A sweep's progress is told from files: a line a run in a pipe, with what is done, failed and left."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from runner.sweep.progress import progress_of


@dataclass
class Cell:
    folder: Path
    record: dict[str, Any] | None = None
    seen: list = field(default_factory=list)


def record(status="finished", verdict="held", reason=""):
    return {"status": status, "verdict": verdict, "reason": reason}


def told(cells, ends):
    for cell, ended in zip(cells, ends, strict=True):  # before the first look, which then meets them in order
        cell.folder.mkdir()
        (cell.folder / "run.json").touch()
        cell.record = ended
    out = io.StringIO()
    with progress_of(cells, Console(file=out, width=400, highlight=False)):
        pass
    return out.getvalue().splitlines()


def test_each_run_is_a_line_with_its_reason_and_the_last_says_that_none_is_left():
    cells = [Cell(Path(name)) for name in ("a", "b", "c")]
    lines = told(cells, [record(), record("failed", None, "KeyError: [x]"), record(verdict="leaked")])
    assert [line.split("  (")[0] for line in lines] == ["a  held", "b  failed: KeyError: [x]", "c  leaked"]
    assert re.search(r"\(1 done, 0 failed, 2 left, \d:\d\d:\d\d to go\)$", lines[0])
    assert lines[-1].endswith("(2 done, 1 failed, 0 left)")


def test_a_run_that_did_not_end_is_not_told():
    lines = told([Cell(Path("a")), Cell(Path("b"))], [record(), None])
    assert [line.split()[0] for line in lines] == ["a"]


def test_on_a_terminal_the_lines_stand_above_a_bar():
    out = io.StringIO()
    cell = Cell(Path("a"), record("failed", None, "why"))
    Path("a").mkdir()
    Path("a/run.json").touch()
    with progress_of([cell], Console(file=out, width=100, force_terminal=True)):
        pass
    assert "failed" in out.getvalue()
    assert ": why" in out.getvalue()
    assert "0 done, 1 failed, 0 left" in out.getvalue()
