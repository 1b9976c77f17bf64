"""Which methods trained the rest as `requires_grad` does, told from run folders, and why others did not."""

from __future__ import annotations

import csv

import pytest

from runner.report.equivalence import trained_parts
from tests.measure import measure

QUICK = ("model=mlp", "batches=3", "data.batch_size=4", "freeze=backbone")


def record(method: str = "requires_grad.RequiresGrad", digest: str | None = "a", **more):
    same = {"verdict": "held", "device": "cpu", "threads": 1, "versions": {"torch": "2"}, "couplings": []}
    node = {"_target_": f"runner.methods.{method}", **more.pop("options", {})}
    return {"trained_digest": digest, "method": node, "setting": "1", "buffers": "live", **same, **more}


ZERO_LR = "zero_lr.ZeroLr"


def told(**records):
    return trained_parts(records)


def compared(door, tmp_path, *arguments: str) -> dict[str, tuple[str, str]]:
    """What `comparison.csv` says of each method, as the table on the terminal does."""
    code, out, _ = door("-m", *QUICK, "hydra.sweep.dir=here", *arguments)
    assert code == 0
    with (tmp_path / "here" / "comparison.csv").open() as file:
        found = {row["method"]: (row["trained_part"], row["trained_part_why"]) for row in csv.DictReader(file)}
    assert all(": ".join(filter(None, end)) in out for end in found.values())
    return found


def test_without_clipping_every_method_that_holds_trains_the_rest_as_requires_grad_does(door, tmp_path):
    found = compared(door, tmp_path, "method=glob(*)")
    assert found.pop("none") == ("differs", "the frozen part leaked")
    assert set(found.values()) == {("identical", "")}
    assert len(found) == 9


def test_clipping_couples_the_rest_to_the_gradients_of_what_is_frozen(door, tmp_path):
    found = compared(door, tmp_path, "method=requires_grad,zero_lr,exclude,restore,grad_none,detach,to_buffer", "clip=0.5")
    why = "clipping: the frozen part's gradients enter the norm"
    assert {name for name, end in found.items() if end == ("differs", why)} == {"zero_lr", "exclude", "restore"}
    assert {end for name, end in found.items() if name not in ("zero_lr", "exclude", "restore")} == {("identical", "")}


def test_an_optimizer_that_looks_across_tensors_couples_them_too(door, tmp_path):
    found = compared(door, tmp_path, "method=requires_grad,restore,exclude", "optimizer=lbfgs", "groups=one")
    assert found["restore"] == (
        "differs",
        "the optimizer's step looks across tensors, the frozen part's gradients among them",
    )
    assert found["exclude"] == ("identical", "")


@pytest.mark.parametrize(
    ("baseline", "other", "expected"),
    [
        (record(), record(ZERO_LR), ("identical", "")),
        (record(setting="2"), record(ZERO_LR), ("", "")),
        (record(options={"clean": True}), record(ZERO_LR), ("", "")),
        (record("exclude.Exclude"), record(ZERO_LR), ("", "")),
        (record(digest=None), record(ZERO_LR), ("", "")),
        (record(), record(ZERO_LR, digest=None), ("", "")),
        (record(), record(ZERO_LR, digest="b"), ("differs", "unknown")),
        (record(), record(ZERO_LR, digest="b", verdict="leaked"), ("differs", "the frozen part leaked")),
        (
            record(verdict="leaked"),
            record(ZERO_LR, digest="b"),
            ("differs", "the frozen part leaked under requires_grad"),
        ),
        (record(), record(ZERO_LR, digest="b", threads=2), ("differs", "run with other threads")),
        (
            record(),
            record(ZERO_LR, buffers="frozen", digest="b"),
            ("differs", "BatchNorm and dropout in eval mode (freeze.buffers) in one of the two"),
        ),
        (record(), {"overrides": [], "trained_digest": "b"}, ("", "")),  # of an older version
    ],
)
def test_the_rest_is_held_against_the_run_that_differs_in_the_method_alone(baseline, other, expected):
    assert told(one=baseline, two=other)["two"] == expected


@pytest.mark.parametrize("clip", ["null", "0.5"])
@pytest.mark.parametrize("method", ["requires_grad", "zero_lr", "exclude", "zero_grad"])
def test_a_run_says_through_what_the_frozen_gradients_reached_the_rest(method, clip):
    enters = clip != "null" and method in ("zero_lr", "exclude")
    assert measure(f"method={method}", "freeze=backbone", f"clip={clip}").figures["couplings"] == (
        ["clip"] if enters else []
    )


def test_a_recipe_is_taken_for_the_method_that_it_chooses(door, tmp_path):
    recipe = ("experiment=zero_lr_fc", "model.input=[3,64,64]", "batches=1", "seed=0,1", "hydra.sweep.dir=here")
    assert door("-m", *recipe)[0] == 0
    with (tmp_path / "here" / "comparison.csv").open() as file:
        assert {row["trained_part"] for row in csv.DictReader(file)} == {""}
