"""Which methods train the trainable part to the same bits as `requires_grad`, and the reason why others do not."""

from __future__ import annotations

import csv
from html import unescape

import pytest

from runner.report.compare.equivalence import compare_trained_parts
from tests.in_memory import run_experiment

QUICK = ("model=mlp", "batches=3", "data.batch_size=4", "freeze=backbone")


def record(method: str = "requires_grad.RequiresGrad", digest: str | None = "a", **more):
    """The keys of a run's record that the comparison reads; `more` overrides them."""
    defaults = {"verdict": "held", "counts": {}, "device": "cpu", "threads": 1, "versions": {"torch": "2"}, "couplings": []}
    node = {"_target_": f"runner.methods.{method}", **more.pop("options", {})}
    return {"trained_digest": digest, "method": node, "setting": "1", "buffers": "live", **defaults, **more}


ZERO_LR = "zero_lr.ZeroLr"


def sweep_trained_parts(cli, tmp_path, *arguments: str) -> dict[str, tuple[str, str]]:
    """Run a sweep; returns (trained_part, trained_part_why) by method. Checks that the page has them, too."""
    code, _, _ = cli("-m", *QUICK, "hydra.sweep.dir=here", *arguments)
    assert code == 0
    with (tmp_path / "here" / "comparison.csv").open() as file:
        found = {row["method"]: (row["trained_part"], row["trained_part_why"]) for row in csv.DictReader(file)}
    page = unescape((tmp_path / "here" / "report.html").read_text())
    assert all(": ".join(filter(None, cells)) in page for cells in found.values())
    return found


@pytest.mark.long
def test_without_clipping_every_method_that_holds_trains_the_same_bits_as_requires_grad(cli, tmp_path):
    found = sweep_trained_parts(cli, tmp_path, "method=glob(*)")
    assert found.pop("none") == ("differs", "the frozen part leaked")
    assert set(found.values()) == {("identical", "")}
    assert len(found) == 9


@pytest.mark.long
def test_with_clipping_methods_that_keep_frozen_gradients_train_other_bits(cli, tmp_path):
    found = sweep_trained_parts(
        cli, tmp_path, "method=requires_grad,zero_lr,exclude,restore,grad_none,detach,to_buffer", "clip=0.5"
    )
    why = "clipping: the frozen part's gradients enter the norm"
    assert {name for name, result in found.items() if result == ("differs", why)} == {"zero_lr", "exclude", "restore"}
    assert {result for name, result in found.items() if name not in ("zero_lr", "exclude", "restore")} == {("identical", "")}


@pytest.mark.long
def test_an_optimizer_that_looks_across_tensors_trains_other_bits_where_it_has_frozen_gradients(cli, tmp_path):
    found = sweep_trained_parts(cli, tmp_path, "method=requires_grad,restore", "optimizer=lbfgs", "groups=one")
    assert found["restore"] == (
        "differs",
        "the optimizer's step looks across tensors, the frozen part's gradients among them",
    )


@pytest.mark.parametrize(
    ("baseline", "other", "expected"),
    [
        (record(), record(ZERO_LR), ("identical", "")),
        (record(setting="2"), record(ZERO_LR), ("", "")),
        (record(options={"clean": True}), record(ZERO_LR), ("", "")),
        (record("exclude.Exclude"), record(ZERO_LR), ("", "")),
        (record(digest=None), record(ZERO_LR), ("", "")),
        (record() | {"status": "interrupted"}, record(ZERO_LR, digest="b"), ("", "")),
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
        (record(), {"overrides": [], "trained_digest": "b"}, ("", "")),  # a record of an older version
    ],
)
def test_a_run_is_compared_with_the_requires_grad_run_of_the_same_setting(baseline, other, expected):
    assert compare_trained_parts({"one": baseline, "two": other})["two"] == expected


@pytest.mark.parametrize("clip", ["null", "0.5"])
@pytest.mark.parametrize("method", ["requires_grad", "zero_lr", "exclude", "zero_grad"])
def test_a_run_records_how_frozen_gradients_influenced_the_trainable_part(method, clip):
    coupled = clip != "null" and method in ("zero_lr", "exclude")
    assert run_experiment(f"method={method}", "freeze=backbone", f"clip={clip}").record["couplings"] == (
        ["clip"] if coupled else []
    )


@pytest.mark.long
def test_a_sweep_over_a_recipe_with_zero_lr_has_no_baseline_to_compare_with(cli, tmp_path):
    recipe = ("experiment=zero_lr_fc", "model.input=[3,64,64]", "batches=1", "seed=0,1", "hydra.sweep.dir=here")
    assert cli("-m", *recipe)[0] == 0
    with (tmp_path / "here" / "comparison.csv").open() as file:
        assert {row["trained_part"] for row in csv.DictReader(file)} == {""}
