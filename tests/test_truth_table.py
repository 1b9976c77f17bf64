"""The committed truth table: its shape, its counts, and a seeded sample of it run again."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
import torch

from runner.report.truth_page import TRUTH_COLUMNS, read_truth_table, truth_table_markdown
from runner.truth_table import VARIANTS, Case, all_cases, choices, main, run_case
from tests.conftest import ROOT
from tests.test_conformance import build_method

pytestmark = pytest.mark.usefixtures("one_thread")
DOCS = ROOT / "docs"
TABLE = read_truth_table(DOCS)
CELLS = list(all_cases())
AGAIN = random.Random(0).sample(CELLS, 24)


def row_of(cell: Case) -> dict:
    """The row of the committed table that says what became of a cell."""
    decay = "" if cell.weight_decay is None else str(cell.weight_decay)
    found = TABLE[
        (TABLE.method == cell.method)
        & (TABLE.optimizer == cell.optimizer)
        & (TABLE.weight_decay == decay)
        & (TABLE.frozen_from == str(cell.frozen_from))
        & (TABLE.gradients == cell.gradients)
        & TABLE.schedulers.map(lambda told: cell.scheduler in told.split("|"))
    ]
    assert len(found) == 1
    return found.iloc[0].to_dict()


def test_the_grid_is_every_method_optimizer_scheduler_and_setting():
    assert {cell.method for cell in CELLS} == {*choices("method"), *VARIANTS}
    assert {cell.optimizer for cell in CELLS} == set(choices("optimizer"))
    assert {cell.scheduler for cell in CELLS} == set(choices("scheduler"))
    assert len(CELLS) == len(set(CELLS)) == 23328


def test_the_table_has_every_cell_once():
    assert list(TABLE.columns) == list(TRUTH_COLUMNS)
    assert TABLE.runs.sum() == len(CELLS)
    assert (TABLE.schedulers.str.count(r"\|") + 1 == TABLE.runs).all()
    for cell in AGAIN:
        row_of(cell)


@pytest.mark.parametrize("cell", AGAIN, ids=lambda cell: "-".join(map(str, vars(cell).values())))
def test_a_sample_of_the_table_comes_out_the_same_again(cell):
    end, row, baseline = run_case(cell), row_of(cell), run_case(replace(cell, method="requires_grad"))
    if cell.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        assert end.outcome == "skipped"
        return
    if row["trained_part"]:
        assert row["trained_part"] == ("identical" if end.digest == baseline.digest else "differs")
    assert (end.outcome, end.causes, end.foreseen, end.reason) == tuple(
        row[key] for key in ("outcome", "causes", "foreseen", "reason")
    )


def test_the_table_counts_as_many_of_each_outcome_as_the_page_was_written_from():
    assert dict(TABLE.groupby("outcome").runs.sum()) == {"held": 15268, "leaked": 5108, "returned": 1872, "skipped": 1080}
    assert set(TABLE[TABLE.outcome == "skipped"].optimizer) == {"lbfgs", "sparse_adam"}


def test_a_plan_foresaw_every_verdict_and_cause_of_the_table_and_no_cause_is_unknown():
    ran = TABLE[TABLE.outcome != "skipped"]
    assert set(ran.foreseen) == {"yes"}
    assert not ran.causes.str.contains("unknown").any()


def traps_of(row: dict) -> set[str]:
    """The traps that a leak may fall under, by its settings and its cause."""
    causes = set(re.split(r"; |\|", row["causes"]))
    traps = causes & {"weight_decay", "optimizer_rule", "optimizer_ignores_lr", "scheduler"}
    traps |= {"any_step"} if "gradient" in causes else set()
    if row["frozen_from"] != "1":
        traps |= {"lbfgs_mid_run"} if row["optimizer"] == "lbfgs" else {"mid_run"}
        traps |= {"zeros_mid_run"} if row["gradients"] == "zeros" else set()
        traps |= {"scheduler_mid_run"} if "scheduler" in causes else set()
    return traps


@pytest.mark.parametrize("method", choices("method"))
def test_a_method_leaks_in_the_table_only_under_the_traps_that_it_confesses(method):
    confessed = build_method(method).leaks_under
    for row in TABLE[(TABLE.method == method) & (TABLE.outcome == "leaked")].to_dict("records"):
        assert traps_of(row) & confessed, row


def test_the_page_is_what_the_table_says_and_names_the_version_of_torch():
    text = (DOCS / "truth_table.md").read_text()
    (version,) = re.findall(r"runs with torch (\S+):", text)
    assert text == truth_table_markdown(TABLE, version)


def test_the_command_says_what_it_takes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "-o FOLDER" in capsys.readouterr().out
