"""What is left of each sweep of a report, and the command that goes on with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.report.__main__ import main
from runner.report.compare.discover import find_runs
from runner.report.compare.run_set import RunSet, read_planned
from runner.runs.read import read_run
from tests.run_folders import write_run

ONE, TWO = Path("one") / "sweep", Path("two") / "sweep"
FAILED = {"status": "failed", "reason": "x", "verdict": None, "rows": ()}


def run_set(*tops: str) -> RunSet:
    """Return the runs below the folders, as `python -m runner.report` reads them."""
    found = find_runs([Path(top) for top in tops])
    runs = [read_run(folder, label) for label, folder in found.folders.items()]
    return RunSet.of(runs, "report", Path(), planned=[plan for sweep in found.sweeps for plan in read_planned(sweep)])


@pytest.fixture(autouse=True)
def sweeps() -> None:
    """Write two sweeps with runs of the same names: of each `a` finished, and of the second one `b` failed."""
    for folder, planned in ((ONE, ["a", "b"]), (TWO, ["a", "b", "c"])):
        write_run(folder, name="a")
        (folder / "sweep.json").write_text(json.dumps({"command": f"go on {folder}", "runs": planned}))
    write_run(TWO, name="b", **FAILED)


def test_each_sweep_that_has_something_left_has_its_own_command_with_how_many_runs():
    found = run_set("one", "two", "one/../one")
    assert (found.left, found.total) == ({"failed": 1, "not begun": 2}, 5)
    assert found.to_go_on == [(1, 2, "go on one/sweep"), (2, 3, "go on two/sweep")]


def test_what_is_skipped_or_not_in_the_plan_of_the_sweep_is_not_counted_for_its_command():
    write_run(ONE, name="b", **FAILED | {"status": "skipped"})
    write_run(ONE, name="of an earlier grid", **FAILED)
    found = run_set("one", "two")
    assert (found.left, found.total) == ({"failed": 2, "not begun": 1}, 6)
    assert found.to_go_on == [(2, 3, "go on two/sweep")]
    assert run_set("one").to_go_on == []


def test_the_command_and_the_page_tell_how_to_go_on_with_each_sweep(capsys):
    assert main(["one", "two", "-o", "page.html"]) == 0
    expected = "1 of 2 is not done; go on with:\ngo on one/sweep\n2 of 3 are not done; go on with:\ngo on two/sweep\n"
    assert capsys.readouterr().out.endswith(expected)
    page = Path("page.html").read_text()
    assert 'Go on with 1 of 2: <code class="paste">go on one/sweep</code>' in page
    assert 'Go on with 2 of 3: <code class="paste">go on two/sweep</code>' in page


def test_a_plan_that_cannot_be_read_is_none():
    for content in ("", "[]", '{"runs": 3, "command": ""}', '{"runs": []}', "[" * 100_000):
        (ONE / "sweep.json").write_text(content)
        assert read_planned(ONE) == []
