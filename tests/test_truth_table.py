"""The committed truth table: it is complete, its counts are as expected, and a random sample of its cases is run again."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
import torch

from runner.report.truth_page import TRUTH_COLUMNS, read_truth_table, truth_table_markdown
from runner.truth_table import NOT_TWICE, SCHEDULES, TWICE, VARIANTS, Case, all_cases, choices, main, run_case
from tests.conftest import ROOT
from tests.test_conformance import build_method

DOCS = ROOT / "docs"
TABLE = read_truth_table(DOCS)
CASES = list(all_cases())
SAMPLE = random.Random(0).sample(CASES, 24)


def row_of(case: Case) -> dict:
    """Return the row of the committed table that contains a case."""
    decay = "" if case.weight_decay is None else str(case.weight_decay)
    rows = TABLE[
        (TABLE.method == case.method)
        & (TABLE.optimizer == case.optimizer)
        & (TABLE.weight_decay == decay)
        & (TABLE.frozen_from == case.frozen_from)
        & (TABLE.gradients == case.gradients)
        & TABLE.schedulers.map(lambda schedulers: case.scheduler in schedulers.split("|"))
    ]
    assert len(rows) == 1
    return rows.iloc[0].to_dict()


def test_the_cases_cover_every_method_optimizer_and_scheduler():
    assert {case.method for case in CASES} == {*choices("method"), *VARIANTS}
    assert {case.optimizer for case in CASES} == set(choices("optimizer"))
    assert {case.scheduler for case in CASES} == set(choices("scheduler"))
    assert len(CASES) == len(set(CASES)) == 30456


def test_the_table_contains_every_case_once():
    assert list(TABLE.columns) == list(TRUTH_COLUMNS)
    assert TABLE.runs.sum() == len(CASES)
    assert (TABLE.schedulers.str.count(r"\|") + 1 == TABLE.runs).all()
    for case in SAMPLE:
        row_of(case)


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: "-".join(map(str, vars(case).values())))
def test_a_case_that_is_run_again_has_the_result_of_the_table(case):
    result, row, baseline = run_case(case), row_of(case), run_case(replace(case, method="requires_grad"))
    if case.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        assert result.outcome == "skipped"
        return
    if row["trained_part"]:
        assert row["trained_part"] == ("identical" if result.digest == baseline.digest else "differs")
    assert (result.outcome, result.causes, result.foreseen, result.reason) == tuple(
        row[key] for key in ("outcome", "causes", "foreseen", "reason")
    )


def test_the_table_has_the_expected_number_of_runs_for_each_outcome():
    assert dict(TABLE.groupby("outcome").runs.sum()) == {"held": 19360, "leaked": 7066, "returned": 2422, "skipped": 1608}
    assert set(TABLE[TABLE.outcome == "skipped"].optimizer) == {"lbfgs", "sparse_adam"}


def outcomes() -> dict[tuple[str, ...], dict[str, str]]:
    """Return {all settings but when it is frozen: {first frozen steps: outcome}} of the whole table."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in TABLE.to_dict("records"):
        for scheduler in row["schedulers"].split("|"):
            setting = (row["method"], row["optimizer"], row["weight_decay"], row["gradients"], scheduler)
            found.setdefault(setting, {})[row["frozen_from"]] = row["outcome"]
    return found


def test_what_is_frozen_again_holds_wherever_it_holds_if_it_is_frozen_once():
    compared = [by for by in outcomes().values() if by.get(TWICE, "skipped") != "skipped"]
    assert len(compared) == 6600
    for by in compared:
        assert by[TWICE] != "leaked" or "leaked" in (by["1"], by["3"])


def test_every_scheduler_that_raises_a_rate_from_0_has_runs_that_freeze_again():
    assert set(TABLE.frozen_from) == set(SCHEDULES)
    rows = TABLE[(TABLE.method == "zero_lr") & TABLE.causes.str.contains("scheduler")]
    raise_rates = set("|".join(rows.schedulers).split("|"))
    assert len(raise_rates) == 7
    assert raise_rates.isdisjoint(NOT_TWICE)


def test_only_methods_that_update_the_state_of_what_is_frozen_train_otherwise_after_a_thaw():
    differs = TABLE[(TABLE.frozen_from == TWICE) & (TABLE.trained_part == "differs")]
    assert {name.split()[0] for name in differs.method} == {"none", "restore", "zero_grad", "zero_lr"}


def test_a_plan_predicted_every_verdict_and_cause_of_the_table_and_no_cause_is_unknown():
    ran = TABLE[TABLE.outcome != "skipped"]
    assert set(ran.foreseen) == {"yes"}
    assert not ran.causes.str.contains("unknown").any()


def traps_of(row: dict) -> set[str]:
    """Return the traps that can explain the leak of a row, by its settings and causes."""
    causes = set(re.split(r"; |\|", row["causes"]))
    traps = causes & {"weight_decay", "optimizer_rule", "optimizer_ignores_lr", "scheduler"}
    traps |= {"any_step"} if "gradient" in causes else set()
    if row["frozen_from"] != "1":
        traps |= {"lbfgs_mid_run"} if row["optimizer"] == "lbfgs" else {"mid_run"}
        traps |= {"zeros_mid_run"} if row["gradients"] == "zeros" else set()
        traps |= {"scheduler_mid_run"} if "scheduler" in causes else set()
    return traps


@pytest.mark.parametrize("method", choices("method"))
def test_every_leak_in_the_table_is_explained_by_a_trap_in_leaks_under(method):
    leaks_under = build_method(method).leaks_under
    for row in TABLE[(TABLE.method == method) & (TABLE.outcome == "leaked")].to_dict("records"):
        assert traps_of(row) & leaks_under, row


def test_the_page_is_generated_from_the_table():
    text = (DOCS / "truth_table.md").read_text()
    (version,) = re.findall(r"runs with torch (\S+):", text)
    assert text == truth_table_markdown(TABLE, version)


def test_the_help_of_the_command_shows_its_options(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "-o FOLDER" in capsys.readouterr().out
