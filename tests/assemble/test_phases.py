"""What a plan of phases needs of the optimizer of the run."""

from __future__ import annotations

import pytest

from runner import run

BASE = ("model=mlp", "freeze=backbone", "optimizer=lbfgs", "groups=one", "batches=6", "cost=off")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("schedule=gradual",), "LBFGS cannot train parameters that were frozen in mid-run"),
        (("schedule=gradual", "schedule.reverse=true"), "LBFGS takes one parameter group, and each block"),
    ],
)
def test_lbfgs_is_skipped_with_the_reason_where_phases_thaw_or_have_blocks(overrides, reason):
    result = run(*BASE, *overrides)
    assert result.status == "skipped"
    assert result.record["reason"].startswith(reason)


def test_lbfgs_runs_where_phases_only_freeze():
    assert run(*BASE, "schedule=after", "schedule.step=3", "method.clean=true").verdict == "held"
