"""A sweep's progress: a line for each run that ended, with the numbers of runs done, failed and left."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from runner.sweep.progress import Tally, show_progress

LOSSES = {"loss_first": 2.0, "loss_last": 1.0}


@dataclass
class FakeRun:
    folder: Path
    record: dict[str, Any] | None = None
    seen: list = field(default_factory=list)


def record(status="finished", verdict="held", reason=""):
    counts = {"trained": 1}
    return {"status": status, "verdict": verdict, "reason": reason, "counts": counts, "looks": [1], **LOSSES}


def printed_lines(runs, records):
    """Return the lines that are printed for these runs; the run without a record has not ended."""
    for run, record_at_end in zip(runs, records, strict=True):  # before the first poll, so that the order is fixed
        run.folder.mkdir()
        (run.folder / "run.json").touch()
        run.record = record_at_end
    out = io.StringIO()
    with show_progress(runs, Console(file=out, width=400, highlight=False)):
        pass
    return out.getvalue().splitlines()


def test_each_ended_run_is_a_line_with_its_outcome_reason_and_the_counts():
    runs = [FakeRun(Path(name)) for name in ("a", "b", "c", "d")]
    ends = [record(), record("failed", None, "KeyError: [x]"), record(verdict="leaked"), record() | {"loss_last": None}]
    lines = printed_lines(runs, ends)
    outcomes = ["a  held", "b  failed: KeyError: [x]", "c  leaked", "d  loss not finite"]
    assert [line.split("  (")[0] for line in lines] == outcomes
    (long,) = printed_lines([FakeRun(Path("e"))], [record("failed", None, "x" * 900)])
    assert long.count("x") < 210
    assert lines[0].endswith("(1 done, 0 failed, 3 left)")  # after one run nobody knows how long the others take
    assert re.search(r"\(1 done, 1 failed, 2 left, \d:\d\d:\d\d to go\)$", lines[1])
    assert lines[-1].endswith("(3 done, 1 failed, 0 left)")


def test_a_skipped_run_tells_nothing_about_the_time_to_go():
    tally = Tally(4)
    for ended in (record("skipped", None, "no"), record("skipped", None, "no"), record()):
        tally.add(ended)
    assert str(tally) == "3 done, 0 failed, 1 left"


def test_a_run_that_did_not_end_is_not_printed():
    lines = printed_lines([FakeRun(Path("a")), FakeRun(Path("b"))], [record(), None])
    assert [line.split()[0] for line in lines] == ["a"]


def test_on_a_terminal_there_are_lines_and_a_bar():
    out = io.StringIO()
    run = FakeRun(Path("a"), record("failed", None, "why"))
    Path("a").mkdir()
    Path("a/run.json").touch()
    with show_progress([run], Console(file=out, width=100, force_terminal=True)):
        pass
    assert "failed" in out.getvalue()
    assert ": why" in out.getvalue()
    assert "0 done, 1 failed, 0 left" in out.getvalue()
