"""The summary of a run in the terminal: what does not look like a run that held is said first, in the colour of a leak."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from runner.runs.console import evaluation_lines, listed_steps, print_summary
from tests.run_folders import HELD_ROWS, LEAKED_ROWS, change_row, write_run

RED, GREEN, YELLOW, BOLD, END = "\x1b[1;31m", "\x1b[1;32m", "\x1b[33m", "\x1b[1m", "\x1b[0m"
IDLE_ROWS = (HELD_ROWS[0], change_row("head.weight", "idle", cause="no_gradient"))


@dataclass
class EndedRun:
    folder: Path
    record: dict
    rows: tuple


def summary_lines(rows=HELD_ROWS, **record) -> list[str]:
    """Return the lines that are printed in colour for a run with these rows; `record` overrides values of `run.json`."""
    folder = write_run(Path("sweep"), rows=rows, **record)
    out = io.StringIO()
    console = Console(
        file=out, width=200, force_terminal=True, color_system="standard", highlight=False, legacy_windows=False
    )
    print_summary(EndedRun(folder, json.loads((folder / "run.json").read_text()), rows), "the title", console)
    return out.getvalue().splitlines()


def test_held_is_green_if_the_run_finished_and_trained():
    lines = summary_lines()
    assert lines[1].startswith(f"{GREEN}HELD{END}  1 of 1 frozen tensor kept every bit")


@pytest.mark.parametrize(
    ("rows", "record", "first"),
    [
        (IDLE_ROWS, {}, f"{RED}NOTHING TRAINED{END}  no trainable parameter changed: head.weight (no_gradient)"),
        (HELD_ROWS, {"loss_not_finite_at": 2}, f"{RED}LOSS NOT FINITE{END}  NaN or infinite at step 2"),
        (HELD_ROWS, {"looks": [], "losses": ()}, f"{RED}NO STEP{END}  no training step was made"),
        (
            HELD_ROWS,
            {"status": "interrupted", "reason": "interrupted after step 2 of 9"},
            f"{YELLOW}INTERRUPTED{END}  interrupted after step 2 of 9",
        ),
    ],
)
def test_a_defect_or_an_early_end_is_said_before_what_held_and_nothing_is_green(rows, record, first):
    lines = summary_lines(rows, **record)
    assert lines[1] == first
    assert GREEN not in "".join(lines)
    assert "\x1b[32m" not in "".join(lines)
    if record.get("looks") != []:
        assert lines[2].startswith(f"{BOLD}HELD{END}  1 of 1 frozen tensor")


def test_a_leak_in_a_run_whose_loss_is_nan_is_said_too():
    lines = summary_lines(LEAKED_ROWS, loss_not_finite_at=1)
    assert [line.split("  ")[0] for line in lines[1:3]] == [f"{RED}LOSS NOT FINITE{END}", f"{RED}LEAKED{END}"]


def test_trainable_parameters_that_did_not_change_are_counted_in_the_headline():
    lines = summary_lines((*HELD_ROWS, IDLE_ROWS[1] | {"name": "other.weight"}))
    assert f"{YELLOW}1 of 2 trainable parameters did not change{END}" in lines[1]


def test_a_list_of_steps_has_an_end():
    assert listed_steps([1]) == "step 1"
    assert listed_steps([1, 2, 4]) == "steps 1, 2, 4"
    assert listed_steps(range(1, 1041)).endswith(", 40 and 1,000 more")


@pytest.mark.parametrize(
    ("evaluation", "lines"),
    [
        ({}, []),
        (
            {"before": {"loss": 2.31, "accuracy": 0.1}, "after": {"loss": 0.42, "accuracy": 0.9125}},
            ["accuracy 0.1 -> 0.9125, loss 2.31 -> 0.42"],
        ),
        (
            {"before": {"loss": 2.0, "f1_score": 0.5}, "after": {"loss": None, "f1_score": 0.25}},
            ["loss 2 -> not finite, f1_score 0.5 -> 0.25"],
        ),
        ({"before": {"loss": 2.0}}, ["loss 2 before the training"]),
        ({"after": {"loss": 2.0}}, ["loss 2"]),
        (
            {"before": {"loss": 2.0}, "after": {"loss": 1.0}, "passes": [{"loss": 1.5}, {}, {"loss": 1.0}]},
            ["loss 2 -> 1", "loss after each pass: 1.5, 1"],
        ),
    ],
)
def test_what_was_measured_on_held_out_data_stands_in_a_line_the_accuracy_first(evaluation, lines):
    assert list(evaluation_lines(evaluation)) == lines
    printed = [line for line in summary_lines(evaluation=evaluation) if line.startswith("held-out: ")]
    assert printed == [f"held-out: {line}" for line in lines]
