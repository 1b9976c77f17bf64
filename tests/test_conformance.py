"""Whatever is in conf/method: builds, undoes itself, holds or leaks as it should; the trainable part moves."""

from __future__ import annotations

from contextlib import ExitStack, suppress

import pytest
import torch

from runner.config.build import build
from runner.config.schema import CONF
from runner.errors import SkippedError
from runner.freezing.groups import by_role
from runner.freezing.selection import select
from runner.methods.base import TRAPS, FreezingMethod
from runner.proof.verdict import run_verdict
from runner.training.models import MLP
from tests.measure import measure

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
MID_RUN = ("schedule=after", "schedule.step=3", "batches=6")
PROVOKED = {
    "any_step": (),
    "weight_decay": ("optimizer.weight_decay=0.1",),
    "optimizer_rule": ("optimizer=asgd",),
    "optimizer_ignores_lr": ("optimizer=rprop",),
    "scheduler": ("scheduler=one_cycle", "batches=5"),
    "mid_run": MID_RUN,
    "zeros_mid_run": (*MID_RUN, "zero_grad_to_none=false"),
    "lbfgs_mid_run": (*MID_RUN, "optimizer=lbfgs", "groups=one"),
    "scheduler_mid_run": (*MID_RUN, "scheduler=lambda", "optimizer.momentum=0"),
}
VARIANTS = {"requires_grad": {"clean": True}, "zero_lr": {"guard": True}}


def build_method(name: str) -> FreezingMethod:
    from omegaconf import OmegaConf

    node = OmegaConf.create({"model": {"input": [8]}, "method": OmegaConf.load(CONF / "method" / f"{name}.yaml")})
    return build(OmegaConf.to_container(node, resolve=True)["method"], "method")


def became(*overrides: str) -> str:
    try:
        return run_verdict(measure(*overrides).rows)
    except SkippedError:
        return "skipped"


def said(name: str, method: FreezingMethod, trap: str) -> str:
    if trap == "lbfgs_mid_run" and type(method).groups is not FreezingMethod.groups:
        return "skipped"  # it needs a second group, and LBFGS takes one
    return "leaked" if trap in method.leaks_under else "held"


def state(model):
    return (
        [(name, id(p), p.requires_grad, not p._backward_hooks) for name, p in model.named_parameters()],
        [(name, id(b)) for name, b in model.named_buffers()],
        {name: (id(m), m.training, sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in
         model.named_modules()},
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_method_claims_what_it_does_and_confesses_what_it_does_not(method):
    assert len(type(build_method(method)).__doc__.split()) > 5


def test_every_trap_is_provoked_here():
    assert set(PROVOKED) == set(TRAPS)


@pytest.mark.parametrize("trap", PROVOKED)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_leaks_under_just_the_traps_that_it_confesses(method, trap):
    assert became(f"method={method}", "freeze=backbone", *PROVOKED[trap]) == said(method, build_method(method), trap)


@pytest.mark.parametrize("trap", PROVOKED)
@pytest.mark.parametrize("method", VARIANTS)
def test_a_variant_of_a_method_leaks_under_fewer_traps_just_as_it_says(method, trap):
    options = [f"method.{key}={str(value).lower()}" for key, value in VARIANTS[method].items()]
    chosen = type(build_method(method))(**VARIANTS[method])
    assert chosen.leaks_under < build_method(method).leaks_under
    assert became(f"method={method}", *options, "freeze=head", *PROVOKED[trap]) == said(method, chosen, trap)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("freeze", ["backbone", "bias", "batchnorm", "all"])
@pytest.mark.parametrize("buffers", ["live", "frozen"])
def test_a_method_holds_what_is_frozen_and_trains_the_rest(method, freeze, buffers):
    try:
        result = measure(f"method={method}", f"freeze={freeze}", f"freeze.buffers={buffers}")
    except SkippedError:
        assert freeze not in ("backbone", "all")  # every method serves a frozen prefix
        return
    parameters = [row for row in result.rows if row["kind"] == "parameter"]
    stays = {"leaked"} if "any_step" in build_method(method).leaks_under else {"held", "returned"}
    became = {row["verdict"] for row in parameters if row["frozen"]}
    assert became
    assert became <= stays
    assert {row["verdict"] for row in parameters if not row["frozen"]} == ({"trained"} if freeze != "all" else set())
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


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop"])
@pytest.mark.parametrize("freeze", ["head", "backbone", "bias", "batchnorm"])
def test_methods_that_hold_train_the_rest_bit_by_bit_alike(optimizer, freeze):
    more = (f"freeze={freeze}", f"optimizer={optimizer}", "optimizer.weight_decay=0", "batches=4")
    results = []
    for method in METHODS:
        with suppress(SkippedError):
            results.append(measure(f"method={method}", *more))
    held = [result.record["trained_digest"] for result in results if run_verdict(result.rows) == "held"]
    assert len(set(held)) == 1
    assert len(held) == len(results) - 1 >= len(METHODS) - (1 if freeze == "backbone" else 2)


@pytest.mark.parametrize("groups", ["one", "parameter"])
def test_how_groups_are_cut_changes_no_bit(groups):
    one, other = (measure("method=zero_lr", "freeze=bias", f"groups={cut}") for cut in ("role", groups))
    assert one.record["trained_digest"] == other.record["trained_digest"]
