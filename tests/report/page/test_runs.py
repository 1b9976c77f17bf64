"""The table of the runs: what was not given, what rose, and the baseline, each in its own words."""

from __future__ import annotations

from runner.report.compare.costs import UNFROZEN_TARGET
from runner.report.page.runs import runs_table
from tests.report.page.reports import SWEEP, read_sweep
from tests.run_folders import LEAKED_ROWS, write_run


def rows() -> list[dict]:
    """The rows of the table as {heading: cell}."""
    table = runs_table(read_sweep())
    return [dict(zip([column.name for column in table.columns], row, strict=True)) for row in table.rows]


def test_a_leak_of_the_baseline_is_quiet_and_any_other_leak_is_not():
    write_run(SWEEP, "none", rows=LEAKED_ROWS, method={"_target_": UNFROZEN_TARGET})
    write_run(SWEEP, "zero_grad", rows=LEAKED_ROWS)
    cells = {row["method"].text: (row["outcome"].text, row["outcome"].kind) for row in rows()}
    assert cells == {"none": ("baseline", "quiet"), "zero_grad": ("leaked", "leaked")}


def test_a_defect_of_the_baseline_is_shown():
    write_run(SWEEP, "none", loss_last=None, loss_not_finite_at=2, method={"_target_": UNFROZEN_TARGET})
    write_run(SWEEP, "zero_lr")
    assert rows()[0]["outcome"].text == "loss not finite"


def test_a_value_that_was_not_given_is_the_default_in_words():
    write_run(SWEEP, "zero_lr", "freeze=fc")
    write_run(SWEEP, "zero_lr", "~scheduler", "optimizer.lr=0.1")
    write_run(SWEEP, "zero_lr", "optimizer.lr=")
    assert [[row[key].text for key in ("freeze", "~scheduler", "optimizer.lr")] for row in rows()] == [
        ["default", "removed", "0.1"],
        ["default", "default", "empty"],
        ["fc", "default", "default"],
    ]
    assert {row["freeze"].kind for row in rows() if row["freeze"].text == "default"} == {"quiet"}


def test_a_last_loss_above_the_first_is_marked_and_sorted_by_its_number():
    for method, loss in (("a", 3.0), ("b", 2.0), ("c", 1.0)):
        write_run(SWEEP, method, losses=(2.0, loss))
    assert [(row["last loss"].text, row["last loss"].sort) for row in rows()] == [("3 ↑ rose", 3), ("2", 2), ("1", 1)]
    assert "↑ rose: the training losses of the last quarter are above those of the first" in runs_table(read_sweep()).caption


def test_without_a_loss_that_rose_the_caption_has_no_word_of_it():
    write_run(SWEEP, "a")
    write_run(SWEEP, "b", losses=(2.0, 3.0), status="interrupted")
    assert "rose" not in runs_table(read_sweep()).caption
