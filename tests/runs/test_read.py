"""A record that is missing, damaged or huge is read as one with every key, with texts and lists of a bounded size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.contract import Record
from runner.runs.hydra_files import read_config
from runner.runs.read import checked_record, read_run
from runner.runs.tables import MAX_NAME
from runner.runs.text import MAX_CELL, MAX_TEXT, printable
from tests.run_folders import change_row, write_run


def test_a_missing_or_incomplete_record_is_read_with_every_key():
    assert set(checked_record(None, [])) == set(Record.__annotations__)
    assert set(checked_record({"status": "finished"}, [])) == set(Record.__annotations__)


def replaced(**values: Any) -> Callable[[dict[str, Any]], str]:
    """Return a function that returns the JSON text of a record in which these values are replaced."""
    return lambda record: json.dumps({**record, **values})


def nested(levels: int) -> Any:
    """Return a dict that is nested in dicts."""
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


UNREADABLE = {
    "torn": lambda record: json.dumps(record)[:200],
    "empty": lambda record: "",
    "zeros": lambda record: "\0" * 100,
    "a list": lambda record: "[1]",
    "nested brackets": lambda record: "[" * 200_000,
    "a number of 5000 digits": lambda record: json.dumps(record).replace("2.0", "9" * 5000),
    "too large": replaced(reason="x" * 10_000_000),
}
LONG = "x" * 1_000_000
HUGE = {
    "reason": replaced(reason=LONG),
    "status": replaced(status=LONG),
    "verdict": replaced(verdict=LONG),
    "override": replaced(overrides=[f"seed={LONG}"]),
    "notes": replaced(notes=["n" * 10] * 100_000),
    "method": replaced(method={"_target_": LONG}),
    "method, nested": replaced(method=nested(900)),
    "versions": replaced(versions={LONG: LONG}),
    "costs": replaced(cost={f"cost{number}": number for number in range(100_000)}),
    "evaluation": replaced(evaluation={"after": {LONG: 1, **{f"m{number}": 1 for number in range(100_000)}}}),
    "passes": replaced(evaluation={"passes": [{"loss": 1.0}] * 100_000}),
    "text of costs": replaced(cost={"why_small": LONG}),
    "numbers": replaced(
        seed=10**4000, threads=10**400, loss_first=10**4000, looks=[10**4000], counts={"held": 10**4000, "leaked": -5}
    ),
}


@pytest.mark.parametrize("damage", UNREADABLE.values(), ids=UNREADABLE)
def test_a_damaged_record_is_said_to_be_unreadable(damage):
    folder = write_run(Path("sweep"))
    (folder / "run.json").write_text(damage(json.loads((folder / "run.json").read_text())))
    run = read_run(folder)
    assert run.record["status"] == "failed"
    assert run.problems == ["run.json cannot be read: it is incomplete, too large, or not the record of a run"]


@pytest.mark.parametrize("damage", HUGE.values(), ids=HUGE)
def test_huge_values_of_a_record_are_cut(damage):
    folder = write_run(Path("sweep"))
    (folder / "run.json").write_text(damage(json.loads((folder / "run.json").read_text())))
    run = read_run(folder)
    assert len(repr(run.record)) < 50_000
    assert all(count >= 0 for count in run.record["counts"].values())


def test_huge_texts_of_a_table_and_of_the_config_are_cut():
    folder = write_run(Path("sweep"), rows=[change_row("x" * 100_000, "held")])
    (folder / ".hydra" / "config.yaml").write_text(f"seed: {LONG}\n")
    assert [len(row.name) for row in read_run(folder).tensors] == [MAX_NAME]
    assert [len(text) for text in read_config(folder).values()] == [MAX_TEXT]


COUNTS = {"first_step": 1, "last_step": 2, "frozen": 1, "trained": 2}
BLOCK = {"name": "layer1", "frozen": False, "factor": 0.5, "change_rel": 0.25}


@pytest.mark.parametrize(
    "wrong",
    [
        *(None, 3, "layer1", {}, [], [3], [BLOCK, None], [BLOCK, BLOCK], [BLOCK] * 50_000),
        *([{key: BLOCK[key] for key in BLOCK if key != missing}] for missing in ("name", "frozen", "factor")),
        *([{**BLOCK, "frozen": value}] for value in (None, 1, "True")),
        *([{**BLOCK, "factor": value}] for value in (None, -1, "1", True, float("nan"), 10**400)),
        *([{**BLOCK, "name": value}] for value in (None, 7, ["layer1"])),
    ],
)
def test_a_phase_whose_blocks_are_of_a_wrong_form_is_read_without_them(wrong):
    record = checked_record({"status": "finished", "phases": [{**COUNTS, "blocks": wrong}, COUNTS]}, [])
    assert record["phases"] == [COUNTS, COUNTS]


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        (BLOCK, BLOCK),
        ({**BLOCK, "later": 3, "factor": 2}, {**BLOCK, "factor": 2.0}),
        *(
            ({**BLOCK, "change_rel": value}, {**BLOCK, "change_rel": None})
            for value in (None, "x", True, -0.1, float("nan"), float("inf"), 10**400)
        ),
        ({key: BLOCK[key] for key in ("name", "frozen", "factor")}, {**BLOCK, "change_rel": None}),
        ({**BLOCK, "name": "a\x1bb" * 1000}, {**BLOCK, "name": printable("a\x1bb" * 1000, MAX_CELL)}),
    ],
)
def test_of_a_block_only_what_can_be_shown_is_read(raw, read):
    record = checked_record({"status": "finished", "phases": [{**COUNTS, "blocks": [raw]}]}, [])
    assert record["phases"] == [{**COUNTS, "blocks": [read]}]


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        ({"after": {"loss": 0.5, "accuracy": None}}, {"after": {"loss": 0.5, "accuracy": None}}),
        ({"before": [1], "after": 3, "passes": {"a": 1}, "later": {"loss": 1}}, {}),
        ({"after": {"loss": "0.5", "accuracy": True, "f1_score": [1]}}, {"after": {}}),
        ({"after": {"loss": float("nan"), "f1": 10**400}}, {"after": {"loss": None, "f1": None}}),
        ({"passes": [{"loss": 1}, 2, {"loss": "x"}]}, {"passes": [{"loss": 1}, {}]}),
        ([], {}),
        (None, {}),
    ],
)
def test_of_an_evaluation_only_numbers_are_read(raw, read):
    assert checked_record({"status": "finished", "evaluation": raw}, [])["evaluation"] == read
