"""Mistakes with optimizers, schedulers, schedules and methods end in one short message without a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from runner.config.schema import CONF
from runner.errors import ConfigError, SkippedError
from runner.proof.verdict import run_verdict
from tests.conftest import read_table
from tests.in_memory import run_experiment

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
QUICK = ("model=mlp", "batches=2")
LBFGS = ("optimizer=lbfgs", "groups=one", "optimizer.max_iter=4")
MUON_NEEDS_NEWER_TORCH = f"Muon needs torch 2.9 or newer; this is torch {torch.__version__}"
STEP_LR = "torch.optim.lr_scheduler.StepLR"


class NoClosure(torch.optim.Optimizer):
    """SGD whose `step` accepts no closure."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-group["lr"])


class RequiresLr(NoClosure):
    """Like NoClosure, but it cannot be built without a learning rate."""

    def __init__(self, params, lr):
        super().__init__(params, lr)


class RequiresClosure(NoClosure):
    """SGD whose `step` requires a closure."""

    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        super().step()
        return loss


class Matrices(nn.Module):
    """Two matrices, and a vector, which Muon does not accept."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 16), nn.Linear(16, 10, bias=False)

    def forward(self, x):
        return self.head(self.body(x).tanh())


def optimizer_here(name: str) -> tuple[str, str]:
    """Return the overrides that use an optimizer of this file."""
    return "optimizer=custom", f"optimizer._target_={__name__}.{name}"


def with_matrices(*overrides: str) -> tuple[str, ...]:
    """Return the overrides that use the model `Matrices`, and these."""
    model = f"model.build._target_={__name__}.Matrices"
    return "model=custom", model, "model.head=head", "model.input=[64]", "model.classes=10", *overrides


# Overrides and the error that `run_experiment` raises for them

REFUSED = {
    ("optimizer=lbfgs",): r"^optimizer: LBFGS takes one group, not 2 \(frozen, \.\.\.\); give groups=one$",
    ("optimizer=lbfgs", "groups=parameter"): r"^optimizer: LBFGS takes one group, not 9 ",
    (*LBFGS, "optimizer.lrr=1"): r"^optimizer\.lrr: runner\.training\.optimizers\.LBFGS takes no lrr; did you mean lr\?$",
    ("optimizer=sparse_adam", "optimizer.lrr=1"): r"SparseAdam takes no lrr; did you mean lr\?$",
    optimizer_here("RequiresLr"): r"RequiresLr: missing a required argument: 'lr'; its signature is \(params, lr\)$",
    ("scheduler=custom", f"scheduler._target_={STEP_LR}"): r"^scheduler: .* missing a required argument: 'step_size'",
    ("scheduler=custom",): r"^scheduler\._target_ is missing; give scheduler\._target_=\.\.\.$",
    ("scheduler=custom", "scheduler._target_=torch.optim.SGD"): r"^scheduler: torch\.optim\.SGD refused its arguments: ",
    ("scheduler=custom", "scheduler._target_=torch.optim.lr_scheduler.StepLRR"): r"StepLRR.* did you mean StepLR",
    ("schedule=after",): r"^schedule\.step is missing; give schedule\.step=\.\.\.$",
    ("schedule=after", "schedule.step=0"): r"^schedule\.step is 0; give the number of the first step",
    ("schedule=after", "schedule.step=-1"): r"^schedule\.step is -1; give the number of the first step",
    ("schedule=after", "schedule.step=2.5"): r"^schedule\.step is 2\.5; give the number of the first step",
    ("schedule=after", "schedule.step=abc"): r"^schedule\.step is 'abc'; give the number of the first step",
    ("schedule=after", "schedule.step=9"): r"^schedule\.step is 9 and batches is 3: nothing would ever be frozen$",
    ("schedule=custom",): r"^schedule\._target_ is missing",
    ("schedule.step=2",): r"^schedule\.step: runner\.freezing\.schedule\.constant takes no step$",
    ("autocast=maybe",): r"^autocast: Value 'maybe' is not a valid bool",
    ("method=zero_lr", "method.guard=abc"): r"^method\.guard is 'abc'; .* expects a number or true/false, such as False$",
    ("method=exclude", "method.guard=true"): r"^method\.guard: runner\.methods\.exclude\.Exclude takes no guard$",
    ("method=zero_lr", "method.gaurd=true"): r"^method\.gaurd: .*ZeroLr takes no gaurd; did you mean guard\?$",
    ("method=requires_grad", "method.claen=true"): r"^method\.claen: .* takes no claen; did you mean clean\?$",
    ("optimizer.weight_decay=-1",): r"^optimizer: torch\.optim\.SGD refused its arguments: Invalid weight_decay value: -1$",
    ("optimizer.lr=null",): r"^optimizer: torch\.optim\.SGD refused its arguments: ",
    ("optimizer=adam", "optimizer.betas=0.9"): r"^optimizer: torch\.optim\.Adam refused its arguments: ",
    ("optimizer=adam", "optimizer.betas=[0.9, 2]"): r"refused its arguments: Invalid beta parameter at index 1: 2$",
    ("optimizer=rmsprop", "optimizer.fused=true"): r"^optimizer\.fused: torch\.optim\.RMSprop takes no fused$",
}  # fmt: skip

NEEDS_SECOND_GROUP = "LBFGS takes one group, and this method needs a second for what is frozen"
LR_IS_ZERO = "the line search of LBFGS divides by the learning rate, which is 0 here"
SKIPPED = {
    (*LBFGS, "method=zero_lr"): NEEDS_SECOND_GROUP,
    (*LBFGS, "method=exclude", "schedule=after", "schedule.step=2"): NEEDS_SECOND_GROUP,
    (*LBFGS, "method=zero_lr", "freeze=all"): LR_IS_ZERO,
    (*LBFGS, "method=zero_lr", "freeze=all", "schedule=after", "schedule.step=2"): LR_IS_ZERO,
    (*LBFGS, "optimizer.lr=0"): LR_IS_ZERO,
    ("optimizer=sparse_adam",): "SparseAdam steps sparse gradients alone, such as those of Embedding(sparse=True)",
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.items(), ids=map(" ".join, REFUSED))
def test_a_config_error_is_one_line_that_names_the_key(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run_experiment(*overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("overrides", "reason"), SKIPPED.items(), ids=map(" ".join, SKIPPED))
def test_a_run_that_the_optimizer_cannot_do_is_skipped_with_a_reason(overrides, reason):
    with pytest.raises(SkippedError) as caught:
        run_experiment(*overrides)
    assert str(caught.value) == reason


def test_muon_with_a_vector_is_skipped_and_the_reason_tells_how_to_give_it_only_matrices():
    with pytest.raises(SkippedError) as caught:
        run_experiment("optimizer=muon")
    problem = "Muon steps only matrices; the group frozen has a tensor of shape 10: "
    remedy = "freeze all others and use method=exclude, or name the matrices: groups=module groups.names=[...]"
    assert str(caught.value) in (problem + remedy, MUON_NEEDS_NEWER_TORCH)


def test_muon_is_skipped_in_an_older_torch_and_the_reason_names_the_version_needed(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(SkippedError) as caught:
        run_experiment("optimizer=muon")
    assert str(caught.value) == MUON_NEEDS_NEWER_TORCH


@pytest.mark.parametrize(
    "overrides",
    [("method=exclude", "freeze.patterns=[body.bias]"), ("groups=module", "groups.names=[body.weight, head]")],
    ids=["exclude", "module"],
)
def test_muon_works_if_it_gets_only_matrices_as_its_message_recommends(overrides):
    if not hasattr(torch.optim, "Muon"):
        return
    result = run_experiment(*with_matrices("optimizer=muon", *overrides))
    assert run_verdict(result.rows) == "held"
    assert [row["name"] for row in result.rows if row["verdict"] == "trained"]


# What works


@pytest.mark.parametrize("name", ["NoClosure", "RequiresClosure"])
def test_custom_optimizers_whose_step_accepts_no_closure_or_requires_one_train_like_sgd(name):
    result, sgd = run_experiment(*optimizer_here(name)), run_experiment("optimizer.momentum=0")
    assert result.losses == sgd.losses
    assert result.record["trained_digest"] == sgd.record["trained_digest"]
    assert run_verdict(result.rows) == "held"


def lbfgs_steps_without_parameters() -> bool:
    """Return whether the LBFGS of this torch can step without parameters."""
    try:
        torch.optim.LBFGS([{"params": []}]).step(lambda: torch.zeros(()))
    except IndexError:
        return False
    return True


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_without_error_if_everything_is_frozen(method, optimizer):
    overrides = LBFGS if optimizer == "lbfgs" else (f"optimizer={optimizer}",)
    try:
        result = run_experiment(f"method={method}", "freeze=all", *overrides, "scheduler=cosine", "clip=1.0")
    except SkippedError:
        assert optimizer == "lbfgs"
        assert method == "zero_lr" or (method in ("exclude", "to_buffer") and not lbfgs_steps_without_parameters())
        return
    assert len(result.steps) == 3
    assert run_verdict(result.rows) == ("leaked" if method == "none" else "held")


@pytest.mark.parametrize("method", ["exclude", "to_buffer", "zero_lr"])
def test_methods_that_empty_groups_run_if_everything_is_frozen_and_each_parameter_is_a_group(method):
    assert len(run_experiment(f"method={method}", "freeze=all", "groups=parameter").steps) == 3


# Through the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("optimizer=lbfgs",), "give groups=one"),
        (("method=zero_lr", "++method.gaurd=true"), "did you mean guard"),
        (("optimizer=muon",), "skipped: Muon "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_command_line_prints_one_line_and_exits_with_code_2(cli, arguments, message):
    code, out, err = cli(*QUICK, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("scheduler=custom", "scheduler._target_=builtins.id"),
        ("scheduler=custom", f"scheduler._target_={STEP_LR}", "++scheduler.step_size=0"),
        ("optimizer=adam", "++optimizer.betas=[0.9]"),
    ],
    ids=" ".join,
)
def test_an_error_during_the_run_prints_its_reason_in_the_last_line_and_no_traceback(cli, arguments):
    code, out, err = cli(*QUICK, *arguments)
    assert code in (1, 2)
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("freeze-runner: failed: ")


def test_a_sweep_has_a_row_for_each_optimizer_and_method_also_for_skipped_runs(cli):
    grid = "optimizer=lbfgs,muon,sparse_adam", "method=requires_grad,zero_lr"
    code, _, err = cli("-m", *QUICK, "hydra.sweep.dir=sweep", "groups=one", *grid)
    assert (code, err) == (0, "")
    rows = read_table(Path("sweep/comparison.csv"))
    outcomes = {(row["optimizer"], row["method"]): (row["status"], row["reason"].split(" ")[0]) for row in rows}
    assert outcomes == {
        ("lbfgs", "requires_grad"): ("finished", ""),
        ("lbfgs", "zero_lr"): ("skipped", "LBFGS"),
        ("muon", "requires_grad"): ("skipped", "Muon"),
        ("muon", "zero_lr"): ("skipped", "Muon"),
        ("sparse_adam", "requires_grad"): ("skipped", "SparseAdam"),
        ("sparse_adam", "zero_lr"): ("skipped", "SparseAdam"),
    }


@pytest.mark.parametrize("method", ["requires_grad", "to_buffer"])
def test_a_note_tells_that_nothing_trains_if_everything_is_frozen(cli, method):
    assert cli(*QUICK, "hydra.run.dir=here", "freeze=all", f"method={method}")[0] == 0
    assert "every parameter is declared frozen: nothing trains" in json.loads(Path("here/run.json").read_text())["notes"]


SCHEDULES = """
from dataclasses import replace
from runner.freezing.schedule import Phase


def begins_late(selection):
    return [Phase(3, selection)]


def unfreezes(selection):
    return [Phase(1, selection), Phase(2, replace(selection, parameters={}))]


def returns_none(selection):
    return None
"""


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("begins_late", "must begin at 1"),
        ("unfreezes", "unfreezes what an earlier phase froze"),
        ("returns_none", "must return a list"),
    ],
)
def test_an_invalid_custom_schedule_is_refused_in_one_line(cli, schedule, message):
    Path("mine.py").write_text(SCHEDULES)
    code, _, err = cli("model=mlp", "batches=4", "schedule=custom", f"schedule._target_=mine.{schedule}")
    assert (code, message in err, err.count("\n")) == (2, True, 1)


@pytest.mark.parametrize("empty", ["method=glob(qq*)", "seed=range(0,0)"])
def test_a_sweep_without_runs_exits_with_code_2(cli, empty):
    code, _, err = cli("-m", "model=mlp", empty)
    assert (code, err) == (2, "freeze-runner: the sweep has no run: a glob or a range in it is empty\n")


@pytest.mark.parametrize("override", ["optimizer=null", "model.input=[[8]]", "threads=100000"])
def test_values_that_once_caused_a_traceback_are_refused_in_one_line(cli, override):
    code, _, err = cli("model=mlp", override)
    assert (code, err.count("\n")) == (2, 1)


def test_the_error_for_an_option_of_another_method_names_that_method(cli):
    _, _, err = cli("model=mlp", "method.guard=true")
    assert err == "freeze-runner: method.guard: no such key of the chosen method; method=zero_lr has it\n"


def test_a_custom_method_does_not_get_the_options_of_the_method_that_it_replaces(cli):
    Path("mine.py").write_text("from runner import FreezingMethod\nclass Custom(FreezingMethod):\n    pass\n")
    assert cli("model=mlp", "batches=2", "method._target_=mine.Custom")[0] == 0


def test_sparse_adam_trains_a_model_that_has_only_sparse_embeddings(cli):
    Path("mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Embedding(4, 3, sparse=True), nn.Embedding(4, 3, sparse=True)\n"
        "    def forward(self, x):\n"
        "        tokens = (x[:, :2] > 0).long()\n"
        "        return self.a(tokens).mean(1) + self.b(tokens).mean(1)\n"
    )
    model = ("model=custom", "model.build._target_=mine.Net", "model.input=[4]", "model.classes=3", "batches=3")
    code, out, _ = cli(*model, "optimizer=sparse_adam", "freeze.patterns=[a]")
    assert (code, "HELD" in out) == (0, True)
    assert cli(*model, "optimizer=sparse_adam", "freeze.patterns=[a]", "plan=true")[0] == 0
