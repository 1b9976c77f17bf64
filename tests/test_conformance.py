"""Whatever is in conf/method: builds, undoes itself, holds or leaks as it should; the trainable part moves."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from runner import run
from runner.build import build
from runner.config import CONF
from runner.groups import by_role
from runner.methods.base import FreezingMethod
from runner.models import MLP
from runner.selection import select

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
BASELINE = "none"


def build_method(name: str) -> FreezingMethod:
    from omegaconf import OmegaConf

    return build(OmegaConf.to_container(OmegaConf.load(CONF / "method" / f"{name}.yaml")), "method")


def state(model):
    return (
        {name: (id(p), p.requires_grad) for name, p in model.named_parameters()},
        {name: (id(m), m.training, sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in
         model.named_modules()},
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_method_claims_what_it_does_and_confesses_what_it_does_not(method):
    assert len(type(build_method(method)).__doc__.split()) > 5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("freeze", ["head", "backbone", "bias", "batchnorm", "all"])
@pytest.mark.parametrize("buffers", ["live", "frozen"])
def test_a_method_holds_what_is_frozen_and_trains_the_rest(method, freeze, buffers):
    result = run(f"method={method}", f"freeze={freeze}", f"freeze.buffers={buffers}", "model=mlp", "batches=3")
    parameters = [row for row in result.rows if row["kind"] == "parameter"]
    stays = "leaked" if method == BASELINE else "held"
    assert {row["verdict"] for row in parameters if row["frozen"]} == {stays}
    assert {row["verdict"] for row in parameters if not row["frozen"]} <= {"trained"}
    frozen_buffers = [row for row in result.rows if row["kind"] == "buffer" and row["frozen"]]
    assert {row["verdict"] for row in frozen_buffers} <= {"held"}
    assert bool(frozen_buffers) == (buffers == "frozen" and freeze in ("backbone", "batchnorm", "all"))


@pytest.mark.parametrize("method", METHODS)
def test_leaving_undoes_all_that_a_method_did(method):
    model = MLP([8])
    before = state(model)
    chosen = build_method(method)
    selection = select(model, ["body", "norm"])
    with ExitStack() as undo:
        assert chosen.skip(model, selection) is None
        trained = chosen.prepare(model, selection, undo)
        optimizer = torch.optim.SGD(chosen.groups(by_role(trained, selection), selection), lr=0.1)
        chosen.attach(optimizer, selection, undo)
    assert state(model) == before


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("freeze", ["head", "backbone", "bias", "batchnorm"])
def test_methods_that_hold_train_the_rest_bit_by_bit_alike(optimizer, freeze):
    digests = {
        method: run(f"method={method}", f"freeze={freeze}", f"optimizer={optimizer}", "model=mlp", "batches=4")
        .record["trained_digest"]
        for method in METHODS
        if method != BASELINE
    }  # fmt: skip
    assert len(set(digests.values())) == 1


@pytest.mark.parametrize("groups", ["role", "one", "parameter"])
def test_how_groups_are_cut_changes_no_bit(groups):
    alone = run("method=zero_lr", "freeze=bias", "model=mlp", "batches=3", "groups=role")
    result = run("method=zero_lr", "freeze=bias", "model=mlp", "batches=3", f"groups={groups}")
    assert result.record["trained_digest"] == alone.record["trained_digest"]
