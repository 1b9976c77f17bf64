"""The Markdown of the report: the answer of the page, the ranking of the terminal, causes and failures, in a few KB."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from runner.report.__main__ import main
from runner.report.answer.answer import answer
from runner.report.compare.run_set import RunSet
from runner.report.markdown import MAX_LINES, report_markdown
from runner.report.terminal import ranking
from runner.runs.read import read_run, run_folders
from tests.conftest import ROOT
from tests.run_folders import HELD_ROWS, LEAKED_ROWS, change_row, remove_rows, write_run, write_sweep

SWEEP = Path("sweep")
COST = {"flops_forward": 10**9, "flops_backward": 1.3e9, "flops_share": 0.34, "saved_bytes": 64_980}
FAILED = {"status": "failed", "verdict": None, "rows": (), "losses": ()}
PARSER = MarkdownIt("commonmark", {"html": True}).enable("table")


def run_set(folder: Path = SWEEP) -> RunSet:
    return RunSet.of([read_run(each) for each in run_folders(folder)], "sweep", folder)


def tables(markdown: str) -> list[list[list[str]]]:
    """Return the cells of each table as a parser of GitHub's Markdown reads them, row by row."""
    found: list[list[list[str]]] = []
    in_table = False
    for token in PARSER.parse(markdown):
        if token.type in ("table_open", "table_close"):
            in_table = token.type == "table_open"
            found += [[]] if in_table else []
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and in_table:
            children = token.children or []
            found[-1][-1].append("".join(child.content for child in children if child.type != "html_inline"))
    return found


def test_a_sweep_begins_with_the_answer_and_its_table_has_the_rows_of_the_terminal():
    for seed in ("seed=0", "seed=1"):
        write_run(SWEEP, "requires_grad", seed, cost=COST | {"flops_share": 0.3})
        write_run(SWEEP, "zero_lr", seed, "freeze=@head", cost=COST)
        write_run(SWEEP, "zero_grad", seed, cost=COST, rows=LEAKED_ROWS if seed == "seed=1" else HELD_ROWS)
    found = run_set()
    text = report_markdown(found)
    assert text.splitlines()[0] == f"## {answer(found).headline}"
    assert text.splitlines()[2] == answer(found).sentence
    (heading, *rows), causes = tables(text)
    _, expected = ranking(found.ranked, found.has_accuracies)
    filled = [i for i in range(len(expected[0])) if any(str(row[i]) for row in expected)]
    assert [[cell.lstrip("✓✗ ") for cell in row] for row in rows] == [[str(row[i]) for i in filled] for row in expected]
    assert heading == ["method", "freeze", "verdict", "runs", "last loss", "cost", "FLOPs", "saved"]
    assert [row[2] for row in rows if row[0] == "zero_grad"] == ["✗ leaked 1/2"]
    assert causes[1][:3] == ["gradient", "1 tensor leaked in 1 run", "body.weight (25%)"]
    assert causes[1][4] == "method=requires_grad"
    assert "- Leaked: zero_grad: in 1 of 2 runs, cause: gradient" in text.splitlines()
    assert len(text) < 3000


def test_a_leak_of_the_baseline_is_by_design_and_no_cause():
    write_sweep(SWEEP)
    text = report_markdown(run_set())
    assert len(tables(text)) == 1
    assert "- Baseline: method=none does nothing about what is declared frozen" in text
    assert "\n\n1 of 7 runs is not done: 1 failed.\n\n" in text
    assert "- Not finished: failed: KeyError: 'x' `(detach__" in text


def test_of_a_run_that_leaked_the_tensors_are_named_and_its_overrides_given():
    rows = [change_row(f"layer{n}.weight", "leaked", n / 10, "weight_decay|optimizer_state") for n in range(1, 6)]
    write_run(SWEEP, "zero_grad", "freeze=@head|x", rows=[*rows, change_row("head.weight", "trained", 0.5)], cost=COST)
    text = report_markdown(run_set())
    _, causes = tables(text)
    assert text.startswith(
        "## Leaked\n\n5 of 5 frozen tensors changed. A step costs 34% of the FLOPs of training everything.\n"
    )
    assert causes[1][:2] == ["weight_decay with optimizer_state", "5 tensors leaked in 1 run"]
    assert causes[1][2] == "layer5.weight (50%), layer4.weight (40%) and 3 more"
    assert text.endswith("sweep, 1 run: 1 finished, <code>method=zero&#95;grad freeze=&#64;head&#124;x</code>")


def test_leaks_whose_rows_are_missing_are_counted_as_such():
    remove_rows(write_run(SWEEP, "zero_grad", rows=LEAKED_ROWS), "body")
    text = report_markdown(run_set())
    assert text.startswith("## Leaked")
    assert "Not shown, because their rows are missing in changes.csv" in text


def test_no_reason_breaks_the_text_out_of_its_line():
    reason = "ValueError: a\n\n# heading\n| a | b |\n|---|---|\n<script>alert(1)</script> @someone"
    write_run(SWEEP, "zero_lr", reason=reason, **FAILED)
    write_run(SWEEP, "exclude", rows=LEAKED_ROWS)
    tokens = PARSER.parse(report_markdown(run_set()))
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h2"]
    assert not [token for token in tokens if token.type in ("html_block", "fence", "code_block")]
    inline = [child for token in tokens for child in token.children or []]
    assert {child.content for child in inline if child.type == "html_inline"} <= {"<code>", "</code>"}
    assert not any("@someone" in child.content for child in inline if child.type == "text")


def test_of_many_lines_the_first_are_shown_and_the_others_counted():
    for number in range(9):
        write_run(SWEEP, f"method_{number}", rows=LEAKED_ROWS)
    lines = [line for line in report_markdown(run_set()).splitlines() if line.startswith("- Leaked: ")]
    assert len(lines) == MAX_LINES + 1
    assert lines[-1] == "- Leaked: and 4 more; the page has all"


@pytest.mark.parametrize("character", ["x", "|", "`", "*", "数", "a b "])
def test_it_is_shorter_than_what_a_comment_may_be_whatever_names_and_reasons_are(character):
    long = character * 300
    rows = [change_row(f"{long}{n}", "leaked", 0.1, f"cause {n} {long}") for n in range(20)]
    for number in range(45):
        write_run(SWEEP, f"m{number}", f"freeze.patterns=[{long}{number}]", f"tag={long}", name=f"r{number}", rows=rows)
        write_run(SWEEP, f"f{number}", f"freeze.patterns=[{long}]", name=f"f{number}", reason=f"{number} {long}", **FAILED)
    text = report_markdown(run_set())
    assert len(text) < 65_536
    assert all(len({len(row) for row in table}) == 1 for table in tables(text))


def test_the_command_prints_markdown_alone_and_writes_a_page_only_where_o_says(capfd):
    write_sweep(SWEEP)
    before = set(Path().rglob("*"))
    assert main([str(SWEEP), "--markdown"]) == 0
    out, err = capfd.readouterr()
    assert (out, err) == (report_markdown(run_set()) + "\n", "")
    assert set(Path().rglob("*")) == before
    assert main([str(SWEEP), "--markdown", "-o", "page.html"]) == 0
    assert capfd.readouterr().out == out
    assert set(Path().rglob("*")) - before == {Path("page.html")}


def test_a_page_of_someone_else_beside_the_runs_does_not_matter_to_markdown_but_one_at_o_does(capfd):
    write_run(SWEEP)
    Path("sweep/report.html").write_text("mine")
    assert main([str(SWEEP), "--markdown"]) == 0
    capfd.readouterr()
    assert main([str(SWEEP), "--markdown", "-o", "sweep/report.html"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("freeze-runner: sweep/report.html was not written by freeze-runner")


def test_without_a_run_nothing_is_printed_and_the_exit_code_is_2(capfd):
    Path("empty").mkdir()
    assert main(["empty", "--markdown"]) == 2
    assert capfd.readouterr().out == ""


def test_it_is_utf_8_where_stdout_is_ascii_and_imports_neither_torch_nor_hydra():
    write_run(SWEEP, "zero_lr", rows=LEAKED_ROWS)
    code = (
        "import sys; from runner.report.__main__ import main; assert main(['sweep', '--markdown']) == 0; "
        "sys.exit(bool({'torch', 'hydra', 'omegaconf', 'matplotlib'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "✗ leaked" in done.stdout.decode()
