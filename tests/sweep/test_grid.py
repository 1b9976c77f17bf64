"""The runs of a sweep are counted before a list of them is made; too many are refused."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from runner.sweep.grid import count_values


def parse(text: str):
    """Return an override of the command line as Hydra parses it."""
    (override,) = OverridesParser.create().parse_overrides([text])
    return override


@pytest.mark.parametrize("plan", [(), pytest.param(("plan=true",), marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("grid", "count"),
    [
        (["seed=range(0,100000000)"], "100,000,000"),
        (["seed=shuffle(range(100000000,0,-1))"], "100,000,000"),
        (["++optimizer.lr=range(0.0,1.0,1e-8)"], "100,000,000"),
        (["seed=range(0,200)", "batches=range(1,201)"], "40,000"),
        (["seed=range(0,4000)", "batches=1,2,3"], "12,000"),
        (["seed=range(0,4000)", "optimizer=glob(*)"], None),
        ([f"{key}=range(0,1000000000)" for key in ("seed", "batches", "clip")], "more than 10**15"),
    ],
)
def test_more_runs_than_the_limit_are_refused_before_anything_is_composed(grid, count, plan, cli):
    code, out, err = cli("-m", "model=mlp", *grid, *plan, "hydra.sweep.dir=sweep")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"the sweep has {count or ''}" in err
    assert "runs, and sweep.max_runs is 10,000; sweep over fewer values or raise it" in err
    assert not Path("sweep").exists()


@pytest.mark.long
def test_the_limit_is_a_key_of_the_config_and_does_not_change_a_run(cli):
    arguments = ("-m", "model=mlp", "batches=1", "cost=off", "seed=range(0,3)", "hydra.sweep.dir=sweep")
    assert cli(*arguments, "sweep.max_runs=2")[0] == 2
    assert cli(*arguments, "sweep.max_runs=3")[0] == 0
    assert "3 of 3 runs are finished already" in cli(*arguments, "sweep.max_runs=4")[1]


@pytest.mark.parametrize("bad", ["0", "2.5", "null"])
def test_a_limit_that_is_no_count_is_refused(bad, cli):
    for more in ((), ("-m",)):
        code, _, err = cli(*more, "model=mlp", f"sweep.max_runs={bad}", "hydra.sweep.dir=sweep", "hydra.run.dir=run")
        assert (code, len(err.splitlines())) == (2, 1)
        assert "sweep.max_runs" in err


@pytest.mark.parametrize("bad", ["range(0,inf)", "range(0,nan)", "range(0,10,0)", "range(0.0,1.0,0.0)"])
def test_a_range_without_an_end_is_refused(bad, cli):
    code, _, err = cli("-m", "model=mlp", f"clip={bad}", "hydra.sweep.dir=sweep")
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"clip={bad}: a range needs" in err


@pytest.mark.parametrize(("start", "stop", "step"), list(product([0, 1.5, 7], [0, 4, 10.0], [1, 3, -2, 0.7])))
def test_a_range_is_counted_as_it_is_listed(start, stop, step):
    override = parse(f"x=range({start},{stop},{step})")
    assert count_values(override) == len(list(override.sweep_iterator()))


def test_values_that_a_later_override_of_the_same_key_replaces_are_not_listed(cli):
    code, out, _ = cli("-m", "model=mlp", "seed=range(1,100000000)", "seed=1", "plan=true")  # a list of them takes minutes
    assert (code, out.splitlines()[0]) == (0, "1 run: 0 finished, 1 to run")
    assert out.splitlines()[2].split()[:4] == ["to", "run", "mlp", "1"]
