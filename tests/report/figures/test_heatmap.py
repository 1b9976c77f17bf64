"""The data of the heatmap as a picture: marks, and columns named by what differs."""

from __future__ import annotations

from runner.report.compare.costs import UNFROZEN_TARGET
from runner.report.figures.draw import GREY, MARK_STYLES
from runner.report.figures.heatmap import MARKS, build_heatmap
from tests.report.page.reports import SWEEP, read_sweep
from tests.run_folders import LEAKED_ROWS, change_row, write_run


def test_under_the_baseline_nothing_is_marked_as_leaked():
    write_run(SWEEP, "none", rows=LEAKED_ROWS, method={"_target_": UNFROZEN_TARGET})
    write_run(SWEEP, "zero_grad", rows=LEAKED_ROWS)
    heatmap = build_heatmap(read_sweep().runs)
    assert dict(zip(heatmap.columns, heatmap.marks[0], strict=True)) == {"none": "", "zero_grad": "leaked"}
    assert "Under method=none" in heatmap.caption


def test_each_mark_has_a_style_and_what_moved_from_0_is_not_as_quiet_as_what_did_not():
    assert MARK_STYLES.keys() == MARKS.keys()
    colours = {mark: {style.get("markerfacecolor"), style.get("markeredgecolor")} for mark, style in MARK_STYLES.items()}
    assert GREY in colours["zero"]
    assert GREY not in colours["started at 0"]


def test_a_tensor_that_moved_from_0_is_marked_and_not_white():
    for method in ("a", "b"):
        write_run(SWEEP, method, rows=[change_row("a.bias", "trained", 0.1, change_rel="")])
    assert build_heatmap(read_sweep().runs).marks == [["started at 0", "started at 0"]]
