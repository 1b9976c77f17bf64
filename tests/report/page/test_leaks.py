"""The section about what leaked and what stayed idle."""

from __future__ import annotations

from runner.report.advice import ADVICE, BY_DESIGN, IDLE_ADVICE
from runner.report.compare.costs import UNFROZEN_TARGET
from runner.report.page.leaks import MAX_MODULE_ROWS, leaks_section
from tests.report.page.parsing import section_of, text_of
from tests.report.page.reports import SWEEP, read_sweep
from tests.run_folders import HELD_ROWS, LEAKED_ROWS, change_row, remove_rows, write_run, write_sweep

NONE = {"method": {"_target_": UNFROZEN_TARGET}}


def cases():
    return section_of(read_sweep(), "leaks").findall("div")


def rows_of(case) -> list[list[str]]:
    return [[text_of(cell) for cell in row] for row in case.findall(".//tbody/tr")]


def leak(name: str, cause: str, change: float = 0.25, **columns):
    return change_row(name, "leaked", change, cause, **columns)


def test_a_cause_has_what_it_means_what_to_do_and_the_tensors_with_settings_runs_and_the_largest_change():
    for seed in (0, 1):
        rows = [leak("body.weight", "scheduler", 0.25 * (seed + 1)), leak("body.bias", "scheduler", 0.1), *HELD_ROWS[1:]]
        write_run(SWEEP, "zero_lr", f"seed={seed}", rows=rows)
    write_run(SWEEP, "requires_grad", "seed=0")
    (case,) = cases()
    assert text_of(case.find("h3")) == "scheduler 2 tensors leaked in 2 runs"
    texts = [text_of(line) for line in case.findall("p")]
    assert texts == [ADVICE["scheduler"].meaning, f"{ADVICE['scheduler'].fix} method=zero_lr method.guard=true"]
    assert rows_of(case) == [["body.weight", "zero_lr", "2", "50%"], ["body.bias", "zero_lr", "2", "10%"]]


def test_leaks_under_none_are_the_baseline_and_come_after_those_that_are_a_surprise():
    write_run(SWEEP, "none", rows=[leak(f"body.{n}", "gradient") for n in range(3)], **NONE)
    write_run(SWEEP, "zero_grad", rows=[leak("body.0", "weight_decay")])
    surprise, baseline = cases()
    assert text_of(surprise.find("h3")).startswith("weight_decay")
    assert text_of(baseline.find("h3")) == "none, the baseline 3 tensors moved in 1 run"
    assert BY_DESIGN.meaning in text_of(baseline)
    assert surprise.find("details").get("open") == ""
    assert baseline.find("details").get("open") is None


def test_what_only_the_baseline_moved_is_not_called_a_leak():
    idle = change_row("head.weight", "idle", cause="no_gradient")
    write_run(SWEEP, "none", rows=[leak("body.0", "gradient")], **NONE)
    assert leaks_section(read_sweep()).heading == "What moved under the baseline"
    write_run(SWEEP, "zero_lr", rows=[idle])
    assert leaks_section(read_sweep()).heading == "What moved under the baseline, and what stayed idle"
    write_run(SWEEP, "zero_grad", rows=[leak("body.0", "gradient")])
    assert leaks_section(read_sweep()).heading == "What leaked, and what stayed idle"


def test_settings_that_need_another_override_each_get_theirs():
    rows = [leak("body.weight", "optimizer_state")]
    write_run(SWEEP, "requires_grad", rows=rows, method={"_target_": "runner.methods.requires_grad.X", "clean": True})
    write_run(SWEEP, "zero_grad", rows=rows)
    (case,) = cases()
    text = text_of(case.findall("p")[1])
    assert "method=exclude for requires_grad" in text
    assert "method=requires_grad method.clean=true for zero_grad" in text


def test_many_tensors_are_grouped_by_module():
    names = [f"layer{layer}.{n}.weight" for layer in range(3) for n in range(10)]
    write_run(SWEEP, "zero_lr", rows=[leak(name, "gradient", 0.1 + n / 100) for n, name in enumerate(names)])
    (case,) = cases()
    assert [text_of(heading) for heading in case.find(".//thead/tr")] == ["module", "settings", "largest relative change"]
    assert rows_of(case)[0] == ["layer2: 10 tensors", "zero_lr", "39%"]
    assert len(rows_of(case)) == 3


def test_tens_of_thousands_of_leaks_make_a_short_table_that_says_how_many_there_are():
    rows = [leak(f"block{n % 90}.layer{n}.weight", "gradient") for n in range(20_000)]
    write_run(SWEEP, "zero_lr", rows=rows)
    (case,) = cases()
    assert text_of(case.find("h3")) == "gradient 20,000 tensors leaked in 1 run"
    assert len(rows_of(case)) <= MAX_MODULE_ROWS


def test_a_buffer_and_a_parameter_that_a_forward_pass_wrote_get_different_advice():
    rows = [leak("norm.mean", "forward_write", kind="buffer"), leak("table.weight", "forward_write")]
    write_run(SWEEP, "zero_lr", rows=rows)
    codes = [[code.text for code in case.iter("code")] for case in cases()]
    assert sorted(codes) == [[], ["freeze.buffers=frozen"]]


def test_what_stayed_idle_stands_after_what_leaked_and_has_no_change():
    idle = change_row("head.weight", "idle", cause="no_gradient")
    write_run(SWEEP, "zero_lr", rows=[leak("body.weight", "gradient"), idle])
    _leaked, stayed = cases()
    assert text_of(section_of(read_sweep(), "leaks").find("h2")).startswith("What leaked, and what stayed idle")
    assert text_of(stayed.find("h3")) == "no_gradient 1 tensor idle in 1 run"
    assert IDLE_ADVICE["no_gradient"].meaning in text_of(stayed)
    assert rows_of(stayed) == [["head.weight", "zero_lr", "1"]]


def test_a_change_that_is_not_known_is_said_and_sorted_last():
    unknown = leak("a.weight", "unknown", change_l2="", change_rel="")
    write_run(SWEEP, "zero_lr", rows=[unknown, leak("b.weight", "unknown", 0.2), leak("c.weight", "", change_rel="nan")])
    (case,) = cases()
    assert [(row[0], row[-1]) for row in rows_of(case)] == [("c.weight", "NaN"), ("b.weight", "20%"), ("a.weight", "?")]


def test_without_leaks_there_is_no_section():
    write_run(SWEEP, "zero_lr")
    assert leaks_section(read_sweep()) is None
    write_sweep(SWEEP)
    assert leaks_section(read_sweep()) is not None
    assert LEAKED_ROWS[0]["name"] in text_of(section_of(read_sweep(), "leaks"))


def test_a_leak_whose_row_is_missing_is_counted_in_the_section():
    folder = write_run(SWEEP, rows=[*LEAKED_ROWS, change_row("other.weight", "held")], name="damaged")
    write_run(SWEEP, "exclude")
    remove_rows(folder, "body", "other")
    section = leaks_section(read_sweep())
    assert section is not None
    assert (section.heading, section.data["cases"]) == ("What leaked", [])
    assert section.data["not_shown"] == (
        "Not shown, because their rows are missing in changes.csv: tensors of damaged (1 leaked)."
    )
    assert section.data["not_shown"] in text_of(section_of(read_sweep(), "leaks"))
