"""What did not finish: the reason, the line of the user's code, the log, and apart from failures what was skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.report.compare.run_set import RunSet
from runner.report.page.failures import failures_section
from runner.report.page.render import render_page
from runner.runs.read import read_run, run_folders
from tests.report.page.parsing import parsed, section_of, text_of
from tests.run_folders import write_run

SWEEP = Path("sweep")
FAILED = {"status": "failed", "rows": (), "losses": (), "verdict": None}


def section(page_folder: Path = SWEEP):
    """The section about the runs in the sweep's folder, on a page in `page_folder`."""
    return failures_section(RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", page_folder))


def rows(name: str, page_folder: Path = SWEEP) -> list[dict]:
    """The rows of a table as {heading: cell}."""
    (table,) = (table for table in section(page_folder).data["tables"] if table.key == name)
    headings = [column.name for column in table.columns]
    return [dict(zip(headings, row, strict=True)) for row in table.rows]


def test_a_failure_has_its_reason_the_users_line_and_links_to_its_folder_and_its_log():
    folder = write_run(SWEEP, "detach", reason="mine.py, line 12: KeyError: 'x: y'", **FAILED)
    write_run(SWEEP, "zero_lr")
    (row,) = rows("failures")
    assert row["in your code"].text == "mine.py, line 12"
    assert row["reason"].text == "KeyError: 'x: y'"
    assert (row["status"].text, row["status"].kind) == ("failed", "failed")
    assert (row["run"].text, row["run"].link) == (folder.name, f"{folder.name}/")
    assert row["log"].link == f"{folder.name}/runner.log"
    assert (SWEEP / row["log"].link).is_file()
    assert section().heading == "What did not finish"


def test_the_links_hold_from_any_folder_and_for_any_name():
    folder = write_run(SWEEP, "detach", name="a b#c?é%", reason="why", **FAILED)
    (row,) = rows("failures", Path("elsewhere"))
    assert row["log"].link == "../sweep/a%20b%23c%3F%C3%A9%25/runner.log"
    (folder / "runner.log").unlink()
    (row,) = rows("failures", Path("elsewhere"))
    assert (row["log"].text, row["log"].link) == ("", "")


@pytest.mark.parametrize("reason", ["", "OutOfMemoryError: line 3", "the data ended: see line 3"])
def test_a_reason_without_a_place_in_the_users_code_has_no_such_column(reason):
    write_run(SWEEP, "detach", reason=reason, **FAILED)
    (row,) = rows("failures")
    assert "in your code" not in row
    assert row["reason"].text == reason


def test_a_skipped_run_is_no_failure():
    write_run(SWEEP, "detach", reason="it has no prefix", **{**FAILED, "status": "skipped"})
    assert [row["why"].text for row in rows("skipped")] == ["it has no prefix"]
    assert section().heading == "What was skipped"
    assert [table.key for table in section().data["tables"]] == ["skipped"]
    assert "which is no failure" in section().data["tables"][0].caption


def test_a_run_in_progress_and_an_interrupted_one_are_not_done_in_their_own_words():
    folder = write_run(SWEEP, "detach", reason="", **FAILED)
    (folder / "run.json").unlink()
    (folder / ".running").touch()
    write_run(SWEEP, "zero_lr", status="interrupted", reason="Ctrl-C")
    assert {row["status"].text for row in rows("failures")} == {"running", "interrupted"}


def test_where_all_runs_finished_there_is_no_section():
    write_run(SWEEP)
    assert section() is None


def test_of_many_failures_the_first_thousand_are_shown_and_their_number_is_said():
    runs = [read_run(write_run(SWEEP, "detach", f"seed={number}", reason="why", **FAILED)) for number in range(3)]
    many = [run.__class__(f"{run.label}{copy}", run.folder, run.record) for copy in range(400) for run in runs]
    table = failures_section(RunSet.of(many, "sweep", SWEEP)).data["tables"][0]
    assert len(table.rows) == 1000
    assert table.caption == "1,200 runs did not finish; the first 1,000 of 1,200"


def test_hostile_texts_stay_text():
    hostile = "<script>alert(1)</script>"
    write_run(SWEEP, "detach", reason=f"{hostile}.py, line 3: {hostile}", **FAILED)
    page = render_page(RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", SWEEP))
    assert hostile not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.py, line 3" in page


def test_reasons_that_several_runs_share_stand_before_the_table_the_most_frequent_first():
    for number, reason in enumerate(
        ["why", "mine.py, line 3: KeyError", "mine.py, line 3: KeyError", "alone", "why", "why"]
    ):
        write_run(SWEEP, "detach", f"seed={number}", reason=reason, **FAILED)
    assert section().data["reasons"] == ["3 runs: why", "2 runs: mine.py, line 3: KeyError"]
    for number in range(24):
        write_run(SWEEP, "detach", f"seed={number + 6}", reason=f"reason {number // 2}", **FAILED)
    assert len(section().data["reasons"]) == 11
    assert section().data["reasons"][-1] == "and 4 more"


def test_a_long_reason_shows_its_start_and_the_rest_unfolds():
    reason = "ValueError: " + "many words " * 80 + "at the end"
    for seed in (0, 1):
        write_run(SWEEP, "detach", f"seed={seed}", reason=reason, **FAILED)
    write_run(SWEEP, "restore", reason=reason, **{**FAILED, "status": "skipped"})
    found = section_of(RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", SWEEP), "failures")
    folded = found.findall(".//details")
    assert len(folded) == 4  # of the reason that both share, of each of them, and of the one that was skipped
    for each in folded:
        start = text_of(each.find("summary"))
        assert len(start) < 260
        assert start.endswith((" many …", " words …"))
        assert text_of(each).replace(" … … ", " ").endswith(reason)
        assert each.get("open") is None


def test_a_short_reason_is_not_folded():
    write_run(SWEEP, "detach", reason="KeyError: 'x'", **FAILED)
    page = RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", SWEEP)
    assert parsed(render_page(page)).findall(".//details[@class='folded']") == []


def test_the_page_of_one_run_that_failed_folds_its_reason():
    write_run(SWEEP, "detach", reason="ValueError: " + "many words " * 85, **FAILED)
    page = RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", SWEEP)
    lead = parsed(render_page(page)).find(".//div[@class='lead']")
    assert len(text_of(lead.find("details/summary"))) < 820
