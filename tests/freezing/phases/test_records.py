"""What `run.json` says about the blocks of a phase: how far each moved, and nothing where that is no finite number."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from runner.freezing.phases.phase import Phase
from runner.freezing.phases.records import phase_records
from runner.freezing.selection import Selection

NAN, INF = math.nan, math.inf


def change_of(*rows: tuple[float | None, float | None], missing: int = 0) -> float | None:
    """The change of a block with a parameter for each row, (initial norm, norm of the change), and `missing` without one."""
    names = [f"p{number}" for number in range(len(rows) + missing)]
    written = [
        {"name": name, "initial_l2": norm, "change_l2": change} for name, (norm, change) in zip(names, rows, strict=False)
    ]
    nothing = Selection(parameters={}, buffers={}, modules={})
    (record,) = phase_records([Phase(1, nothing)], 4, [], blocks={"block": names}, rows=[written])
    (block,) = record["blocks"]
    assert (block["name"], block["factor"]) == ("block", 1.0)
    return block["change_rel"]


def test_the_change_of_a_block_is_the_norm_over_all_its_parameters_relative_to_theirs():
    assert change_of((3.0, 0.3), (4.0, 0.4)) == 0.5 / 5.0
    assert change_of((3.0, 0.0), (0.0, 0.0)) == 0.0


@pytest.mark.parametrize(
    "rows", [(), ((0.0, 0.0),), ((None, 0.1),), ((1.0, None),), ((1.0, NAN),), ((NAN, 0.0),), ((1.0, INF),), ((INF, 1.0),)]
)
def test_a_change_that_is_no_finite_number_is_not_known(rows):
    assert change_of(*rows) is None
    assert change_of((1.0, 0.1), *rows, missing=1) is None


def test_a_run_that_diverged_before_it_froze_a_block_writes_its_record(cli):
    options = ("model=mlp", "freeze=all", "schedule=gradual", "schedule.reverse=true", "batches=12", "optimizer.lr=1e30")
    assert cli(*options, "cost=off", "hydra.run.dir=run")[0] == 0
    phases = json.loads(Path("run/run.json").read_text())["phases"]
    assert [[block["change_rel"] for block in phase["blocks"]] for phase in phases][-1] == [None] * len(phases[-1]["blocks"])
