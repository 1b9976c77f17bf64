"""The summary of a run in the terminal: its headline tells the truth, it fits any width, and the rest comes with verbose."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from runner.runs import console as run_console
from runner.runs.console import after_training, evaluation_lines, listed_steps, print_summary, progress_bar
from tests.run_folders import HELD_ROWS, LEAKED_ROWS, change_row, write_run

RED, GREEN, YELLOW, BOLD, END = "\x1b[1;31m", "\x1b[1;32m", "\x1b[1;33m", "\x1b[1m", "\x1b[0m"
IDLE_ROWS = (HELD_ROWS[0], change_row("head.weight", "idle", cause="no_gradient"))
INTERRUPTED = {"status": "interrupted", "reason": "interrupted after step 2 of 9"}
COST = {
    **{"flops_forward": 10**9, "flops_backward": 1.295e9, "flops_share": 0.341},
    **{"saved_bytes": 64_980, "saved_bytes_share": 0.0004, "gradient_bytes": 512, "gradient_bytes_share": 1.0},
    **{"peak_memory_bytes": 2**30, "peak_memory_by": "a count", "why_small": "the frozen part computes little"},
}
EVALUATION = {"before": {"accuracy": 0.1, "loss": 2.3}, "after": {"accuracy": 0.9125, "loss": 0.42}}


@dataclass
class EndedRun:
    folder: Path
    record: dict
    rows: tuple


def summary(rows=HELD_ROWS, width=200, verbose=False, colours=False, printed_notes=(), **record) -> list[str]:
    """Return the lines that are printed for a run with these rows; `record` overrides values of `run.json`."""
    shutil.rmtree("sweep", ignore_errors=True)
    folder = write_run(Path("sweep"), rows=rows, **record)
    out = io.StringIO()
    system = {"force_terminal": True, "color_system": "standard"} if colours else {}
    console = Console(file=out, width=width, highlight=False, legacy_windows=False, **system)
    run = EndedRun(folder, json.loads((folder / "run.json").read_text()), rows)
    print_summary(run, "method=zero_lr freeze=backbone", console, printed_notes=printed_notes, verbose=verbose)
    return out.getvalue().splitlines()


def first_line(rows=HELD_ROWS, **record) -> str:
    """Return the headline of a run with its colours."""
    return summary(rows, colours=True, **record)[1]


def test_held_is_green_if_the_run_finished_and_trained():
    assert first_line() == f"{GREEN}HELD{END}  1 of 1 frozen tensor kept every bit"


RISEN = {"losses": (2.0, 2.5)}


@pytest.mark.parametrize(
    ("rows", "record", "line"),
    [
        (
            IDLE_ROWS,
            {},
            f"{RED}HELD, BUT NOTHING TRAINED{END}  1 of 1 frozen tensor kept every bit; no trainable parameter changed: "
            "head.weight (no_gradient)",
        ),
        (
            HELD_ROWS,
            {"loss_not_finite_at": 2},
            f"{RED}HELD, BUT LOSS NOT FINITE{END}  1 of 1 frozen tensor kept every bit; the loss became NaN or infinite at "
            "step 2",
        ),
        (HELD_ROWS, {"looks": [], "losses": ()}, f"{RED}NO STEP{END}  no training step was made"),
        (
            HELD_ROWS,
            INTERRUPTED,
            f"{YELLOW}HELD, BUT INTERRUPTED{END}  1 of 1 frozen tensor kept every bit; interrupted after step 2 of 9",
        ),
        (
            HELD_ROWS,
            RISEN,
            f"{YELLOW}HELD, BUT LOSS ROSE{END}  1 of 1 frozen tensor kept every bit; the loss rose, 2 -> 2.5",
        ),
        (
            (*HELD_ROWS, IDLE_ROWS[1] | {"name": "other.weight"}),
            {},
            f"{YELLOW}HELD, BUT 1 PARAMETER IDLE{END}  1 of 1 frozen tensor kept every bit; 1 of 2 trainable parameters did "
            "not change",
        ),
        (LEAKED_ROWS, {}, f"{RED}LEAKED{END}  1 of 1 frozen tensor changed"),
        (
            LEAKED_ROWS,
            {**RISEN, **INTERRUPTED},
            f"{RED}LEAKED, LOSS ROSE AND INTERRUPTED{END}  1 of 1 frozen tensor changed; the loss rose, 2 -> 2.5; "
            "interrupted after step 2 of 9",
        ),
        (HELD_ROWS[1:], {}, f"{BOLD}NOTHING FROZEN{END}  no parameter was declared frozen"),
        (HELD_ROWS[1:], {"nothing_frozen": "no flag is off"}, f"{YELLOW}NOTHING FROZEN{END}  no flag is off"),
        (
            HELD_ROWS[:1],
            {},
            f"{GREEN}HELD{END}  1 of 1 frozen tensor kept every bit; every parameter is frozen, so nothing trained",
        ),
        (
            (change_row("body.weight", "returned"), *HELD_ROWS[1:]),
            {},
            f"{GREEN}HELD{END}  1 frozen tensor; 1 of them moved and returned",
        ),
    ],
)
def test_all_that_must_be_known_stands_in_the_headline_in_the_colour_of_the_worst(rows, record, line):
    assert first_line(rows, **record) == line


def test_losses_that_differ_in_a_late_digit_are_told_apart():
    assert first_line(losses=(2.3025851, 2.3025852)).endswith("the loss rose, 2.3025851 -> 2.3025852")


def test_the_lines_that_matter_follow_the_headline():
    lines = summary(evaluation=EVALUATION, cost=COST)
    assert lines == [
        "method=zero_lr freeze=backbone",
        "HELD  1 of 1 frozen tensor kept every bit",
        "trained  1 parameter, most of all head.weight, by 50%; 1 buffer changed (normal; `freeze.buffers=frozen` stops it)",
        "loss     2 -> 1.5; held-out: accuracy 0.1 -> 0.9125, loss 2.3 -> 0.42",
        "a step   2.295 GFLOP (34% of training everything), 63.46 KiB saved for backward (<0.1%), 512 B of gradients (100%)",
        *lines[-1:],
    ]
    assert re.fullmatch(r"page     sweep/zero_lr__backbone__s0__\w{8}/report.html", lines[-1])


def test_the_worst_leaks_are_named_with_their_causes():
    rows = [change_row(f"body.{name}", "leaked", number / 10, "gradient") for number, name in enumerate("abcde", 1)]
    rows.append(change_row("body.zero", "leaked", 0.1, "weight_decay", initial_l2=0.0, change_rel=None, change_l2=3.0))
    lines = summary((*rows, *HELD_ROWS[1:]))
    assert lines[2] == (
        "leaked   body.zero from 0 to a norm of 3 (weight_decay), body.e by 50% (gradient), body.d by 40% (gradient) "
        "and 3 more"
    )


def test_what_became_nan_is_not_given_as_a_number():
    nan = float("nan")
    lines = summary((HELD_ROWS[0], change_row("head.weight", "trained", nan)), loss_not_finite_at=1, loss_last=None)
    assert lines[2] == "trained  1 parameter, most of all head.weight, to what is not finite"
    assert lines[3] == "loss     2 -> not finite"
    assert "nan" not in "".join(lines).lower().replace("nan or infinite", "")


def test_notes_that_change_how_the_headline_is_read_are_shown_and_the_others_counted():
    notes = ["the cause is unknown for x", "cost: something", "model.head=auto found fc", "printed before"]
    lines = summary(notes=notes, printed_notes=["printed before"])
    assert lines[-3] == "note: the cause is unknown for x"
    assert lines[-2].startswith("page ")
    assert lines[-1] == "2 more notes: verbose=true, or the page"
    assert summary(notes=notes[1:2])[-1] == "1 note: verbose=true, or the page"


def test_verbose_adds_a_table_of_verdicts_when_bits_were_compared_all_costs_and_all_notes():
    lines = summary(LEAKED_ROWS, verbose=True, cost=COST, notes=["cost: something"])
    assert lines[6:-1] == [
        "verdict  count  most changed  change  relative  cause",
        "leaked       1  body.weight     0.25       25%  gradient",
        "trained      1  head.weight      0.5       50%",
        "drifted      1  norm.mean        0.1       10%",
        "bits compared after steps 1, 2",
        "peak memory: 1 GiB (a count)",
        "little is saved: the frozen part computes little",
        "note: cost: something",
    ]


LONG_NAMES = tuple(row | {"name": f"{'encoder.block.' * 25}{row['name']}"} for row in (*LEAKED_ROWS, IDLE_ROWS[1]))
CASES = {
    "held": {},
    "leaked": {"rows": LEAKED_ROWS},
    "not finite": {"loss_not_finite_at": 2, "loss_last": None},
    "rose": RISEN,
    "interrupted": INTERRUPTED,
    "long names": {"rows": LONG_NAMES},
}


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("case", CASES)
def test_no_line_of_a_summary_is_wider_than_the_terminal_but_the_path_and_no_number_is_cut(case, width, verbose):
    record = {"cost": COST, "evaluation": EVALUATION, "notes": ["in frozen modules 20 BatchNorm2d normalise by the batch"]}
    lines = summary(width=width, verbose=verbose, **{**record, **CASES[case]})
    assert max(len(line) for line in lines if not line.startswith("page ")) <= width
    text = " ".join(" ".join(lines).split())
    for number in ("2.295 GFLOP", "63.46 KiB", "0.9125", *(["1 GiB"] if verbose else [])):
        assert number in text


def test_a_summary_at_60_columns():
    lines = summary(LEAKED_ROWS, width=60, evaluation=EVALUATION, cost=COST, notes=["cost: x"], **RISEN)
    assert lines[:-2] == [
        "method=zero_lr freeze=backbone",
        "LEAKED, LOSS ROSE  1 of 1 frozen tensor changed; the loss",
        "  rose, 2 -> 2.5",
        "leaked   body.weight by 25% (gradient)",
        "trained  1 parameter, most of all head.weight, by 50%; 1",
        "         buffer changed (normal; `freeze.buffers=frozen`",
        "         stops it)",
        "loss     2 -> 2.5; held-out: accuracy 0.1 -> 0.9125, loss",
        "         2.3 -> 0.42",
        "a step   2.295 GFLOP (34% of training everything), 63.46 KiB",
        "         saved for backward (<0.1%), 512 B of gradients",
        "         (100%)",
    ]
    assert lines[-1] == "1 note: verbose=true, or the page"


def test_the_bar_of_a_run_says_what_takes_long_before_and_after_the_steps(monkeypatch):
    monkeypatch.setattr(run_console.sys, "stdout", SimpleNamespace(isatty=lambda: True))
    out = io.StringIO()
    console = Console(file=out, width=60, force_terminal=True)
    with progress_bar(console, after_training(False, "count")) as on_step:
        on_step(SimpleNamespace(number=1, planned=2))
        on_step(SimpleNamespace(number=2, planned=2))
    text = out.getvalue()
    assert text.index("building") < text.index("counting costs")
    assert [after_training(True, "count"), after_training("epoch", "off"), after_training(False, "off")] == [
        *("evaluating, counting costs", "evaluating", "comparing")
    ]


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
    printed = [line.partition("held-out: ")[2] for line in summary(evaluation=evaluation) if "held-out: " in line]
    assert printed == lines[:1]
    verbose = [line for line in summary(evaluation=evaluation, verbose=True) if line.startswith("held-out: ")]
    assert verbose == [f"held-out: {line}" for line in lines[1:]]


def phase(first: int, last: int, *blocks: tuple[str, bool, float | None]) -> dict:
    """A phase of `run.json` with these blocks, (name, frozen, change)."""
    records = [{"name": name, "frozen": frozen, "factor": 1.0, "change_rel": change} for name, frozen, change in blocks]
    frozen = sum(frozen for _, frozen, _ in blocks)
    counts = {"first_step": first, "last_step": last, "frozen": frozen, "trained": len(blocks) - frozen}
    return counts | ({"blocks": records} if blocks else {})


GRADUAL = [
    phase(1, 5, ("conv1..bn1", True, 0.0), ("fc", False, 0.3)),
    phase(6, 9, ("conv1..bn1", True, 0.1), ("fc", False, 0.2)),
    phase(10, 12, ("conv1..bn1", False, 0.1), ("fc", False, None)),
]


def phase_text(**record) -> list[str]:
    """Return the lines about phases of a run's summary."""
    lines = summary(**record)
    start = next((number for number, line in enumerate(lines) if line.startswith("phases")), len(lines) - 1)
    return lines[start:-1]


def test_of_a_run_of_several_phases_each_block_has_a_line_with_a_character_a_phase():
    assert phase_text(phases=GRADUAL) == [
        "phases   3 in 12 steps, a character each: . frozen; ! frozen, but moved; # trained",
        "         conv1..bn1  .!#",
        "         fc          ###",
    ]
    assert phase_text(phases=[GRADUAL[0], GRADUAL[2]])[0] == "phases   2 in 12 steps, a character each: . frozen; # trained"


def test_a_phase_whose_blocks_are_not_known_is_blank():
    assert phase_text(phases=[GRADUAL[0], phase(6, 9), GRADUAL[2]])[1:] == [
        "         conv1..bn1  . #",
        "         fc          # #",
    ]


MANY_BLOCKS = [phase(step, step, *((f"layer{number}", number > step, 0.0) for number in range(11))) for step in (1, 2)]
MANY_PHASES = [phase(step, step, ("body", step % 2 == 0, 0.1), ("fc", False, 0.1)) for step in range(1, 76)]


@pytest.mark.parametrize(
    ("phases", "width", "line"),
    [
        ([phase(1, 4), phase(5, 9)], 80, "2 in 9 steps, with 0 to 0 tensors frozen"),
        (MANY_BLOCKS, 80, "2 in 2 steps, with 8 to 9 tensors frozen"),
        (MANY_PHASES, 200, "75 in 75 steps, with 0 to 1 tensor frozen"),
        (MANY_PHASES[:60], 70, "60 in 60 steps, with 0 to 1 tensor frozen"),
    ],
)
def test_blocks_that_would_take_much_room_are_left_out(phases, width, line):
    assert phase_text(phases=phases, width=width) == [f"phases   {line}"]


@pytest.mark.parametrize("phases", [[], GRADUAL[:1]])
def test_of_a_run_of_one_phase_nothing_is_said_about_phases(phases):
    assert phase_text(phases=phases) == []
