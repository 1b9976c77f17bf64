"""The phases of runs: which settings had which, over the steps that they reached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.report.compare.run_set import RunSet
from runner.report.page.phases import phases_section
from runner.report.page.render import render_page
from runner.runs.read import read_run, run_folders
from tests.run_folders import write_run

SWEEP = Path("sweep")
TWO = [
    {"first_step": 1, "last_step": 1, "frozen": 0, "trained": 9},
    {"first_step": 2, "last_step": 4, "frozen": 3, "trained": 6},
]


def run_set() -> RunSet:
    """The runs in the sweep's folder."""
    return RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", SWEEP)


def test_settings_with_the_same_phases_are_a_row_with_a_strip_over_the_steps():
    for method in ("zero_lr", "none"):
        for seed in (0, 1):
            write_run(SWEEP, method, f"seed={seed}", phases=TWO)
    write_run(SWEEP, "detach", "seed=0", phases=TWO[1:])
    section = phases_section(run_set())
    ((name, spans),) = section.data["rows"]
    assert name == "none and zero_lr"
    assert [span.text for span in spans] == [
        "step 1: nothing frozen, 9 parameters trained",
        "steps 2 to 4: 3 tensors frozen, 6 parameters trained",
    ]
    assert [(span.width, span.height) for span in spans] == [(25, 0), (75, 33)]
    assert "steps 2 to 4: 3 tensors frozen" in render_page(run_set())


@pytest.mark.parametrize("phases", [[], TWO[:1]])
def test_without_a_run_of_several_phases_there_is_no_section(phases):
    write_run(SWEEP, phases=phases)
    write_run(SWEEP, "none")
    assert phases_section(run_set()) is None


@pytest.mark.parametrize(
    "wrong",
    [
        3,
        [3, None, "a"],
        [{"first_step": 1}],
        [{**TWO[0], "frozen": -1}, {**TWO[1], "last_step": "4"}],
        [{**TWO[0], "trained": 10**400}],
        [{**TWO[0], "frozen": True}, {**TWO[0], "frozen": 0.5}],
    ],
)
def test_phases_of_a_wrong_form_are_left_out(wrong):
    write_run(SWEEP, phases=wrong)
    assert read_run(run_folders(SWEEP)[0]).record["phases"] == []
    assert phases_section(run_set()) is None


def test_a_run_records_the_phases_that_it_reached(cli):
    config = ("model=mlp", "schedule=after", "schedule.step=3", "freeze=head")
    assert cli(*config, "batches=4", "hydra.run.dir=run")[0] == 0
    assert json.loads(Path("run/run.json").read_text())["phases"] == [
        {"first_step": 1, "last_step": 2, "frozen": 0, "trained": 9},
        {"first_step": 3, "last_step": 4, "frozen": 2, "trained": 7},
    ]
    assert cli("model=mlp", "freeze=head", "freeze.buffers=frozen", "batches=1", "hydra.run.dir=one")[0] == 0
    assert json.loads(Path("one/run.json").read_text())["phases"] == [
        {"first_step": 1, "last_step": 1, "frozen": 2, "trained": 7}
    ]
