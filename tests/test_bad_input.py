"""What a user gets wrong about optimizers, schedulers, schedules and methods ends in one short message, and no traceback."""

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
from tests.measure import measure

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
QUICK = ("model=mlp", "batches=2")
LBFGS = ("optimizer=lbfgs", "groups=one", "optimizer.max_iter=4")
OLDER = f"Muon needs torch 2.9 or newer; this is torch {torch.__version__}"
STEP_LR = "torch.optim.lr_scheduler.StepLR"

pytestmark = pytest.mark.usefixtures("one_thread")


class Plain(torch.optim.Optimizer):
    """A user's own, whose step takes no closure."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-group["lr"])


class Needs(Plain):
    """A user's own that cannot be built without a rate."""

    def __init__(self, params, lr):
        super().__init__(params, lr)


class Demands(Plain):
    """A user's own whose step demands a closure."""

    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        super().step()
        return loss


class Matrices(nn.Module):
    """Two matrices, and a vector that Muon cannot step."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 16), nn.Linear(16, 10, bias=False)

    def forward(self, x):
        return self.head(self.body(x).tanh())


def own(name: str) -> tuple[str, str]:
    return "optimizer=custom", f"optimizer._target_={__name__}.{name}"


def matrices(*more: str) -> tuple[str, ...]:
    model = f"model.build._target_={__name__}.Matrices"
    return "model=custom", model, "model.head=head", "model.input=[64]", "model.classes=10", *more


# What is refused, as `measure` raises it

REFUSED = {
    ("optimizer=lbfgs",): r"^optimizer: LBFGS takes one group, not 2 \(frozen, \.\.\.\); give groups=one$",
    ("optimizer=lbfgs", "groups=parameter"): r"^optimizer: LBFGS takes one group, not 9 ",
    (*LBFGS, "optimizer.lrr=1"): r"^optimizer\.lrr: runner\.training\.optimizers\.LBFGS takes no lrr; did you mean lr\?$",
    ("optimizer=sparse_adam", "optimizer.lrr=1"): r"SparseAdam takes no lrr; did you mean lr\?$",
    own("Needs"): r"Needs: missing a required argument: 'lr'; its signature is \(params, lr\)$",
    ("scheduler=custom", f"scheduler._target_={STEP_LR}"): r"^scheduler: .* missing a required argument: 'step_size'",
    ("scheduler=custom",): r"^scheduler\._target_ is missing; give scheduler\._target_=\.\.\.$",
    ("scheduler=custom", "scheduler._target_=torch.optim.SGD"): r"^scheduler: torch\.optim\.SGD refused its arguments: ",
    ("scheduler=custom", "scheduler._target_=torch.optim.lr_scheduler.StepLRR"): r"StepLRR.* did you mean StepLR",
    ("schedule=after",): r"^schedule\.step is missing; give schedule\.step=\.\.\.$",
    ("schedule=after", "schedule.step=0"): r"^schedule\.step is 0; give the first step",
    ("schedule=after", "schedule.step=-1"): r"^schedule\.step is -1; give the first step",
    ("schedule=after", "schedule.step=2.5"): r"^schedule\.step is 2\.5; give the first step",
    ("schedule=after", "schedule.step=abc"): r"^schedule\.step is 'abc'; give the first step",
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

SECOND_GROUP = "LBFGS takes one group, and this method needs a second for what is frozen"
FROM_ZERO = "the line search of LBFGS divides by the learning rate, which is 0 here"
SKIPPED = {
    (*LBFGS, "method=zero_lr"): SECOND_GROUP,
    (*LBFGS, "method=exclude", "schedule=after", "schedule.step=2"): SECOND_GROUP,
    (*LBFGS, "method=zero_lr", "freeze=all"): FROM_ZERO,
    (*LBFGS, "method=zero_lr", "freeze=all", "schedule=after", "schedule.step=2"): FROM_ZERO,
    (*LBFGS, "optimizer.lr=0"): FROM_ZERO,
    ("optimizer=sparse_adam",): "SparseAdam steps sparse gradients alone, such as those of Embedding(sparse=True)",
}


@pytest.mark.parametrize(("overrides", "said"), REFUSED.items(), ids=map(" ".join, REFUSED))
def test_a_mistake_is_one_short_message_that_names_the_key(overrides, said):
    with pytest.raises(ConfigError, match=said) as caught:
        measure(*overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("overrides", "reason"), SKIPPED.items(), ids=map(" ".join, SKIPPED))
def test_what_an_optimizer_cannot_serve_is_skipped_with_its_reason(overrides, reason):
    with pytest.raises(SkippedError) as caught:
        measure(*overrides)
    assert str(caught.value) == reason


def test_muon_skips_what_is_no_matrix_and_says_how_to_hand_it_matrices_alone():
    with pytest.raises(SkippedError) as caught:
        measure("optimizer=muon")
    holds = "Muon steps only matrices; the group frozen has a tensor of shape 10: "
    hands = "freeze all others and use method=exclude, or name the matrices: groups=module groups.names=[...]"
    assert str(caught.value) in (holds + hands, OLDER)


def test_muon_in_a_torch_older_than_it_is_skipped_and_says_which_torch_it_needs(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(SkippedError) as caught:
        measure("optimizer=muon")
    assert str(caught.value) == OLDER


@pytest.mark.parametrize(
    "more",
    [("method=exclude", "freeze.patterns=[body.bias]"), ("groups=module", "groups.names=[body.weight, head]")],
    ids=["exclude", "module"],
)
def test_muon_serves_where_it_is_handed_matrices_alone_as_its_message_says(more):
    if not hasattr(torch.optim, "Muon"):
        return
    result = measure(*matrices("optimizer=muon", *more))
    assert run_verdict(result.rows) == "held"
    assert [row["name"] for row in result.rows if row["verdict"] == "trained"]


# What serves


@pytest.mark.parametrize("name", ["Plain", "Demands"])
def test_an_optimizer_of_ones_own_steps_alike_whether_its_step_takes_no_closure_or_demands_one(name):
    result, sgd = measure(*own(name)), measure("optimizer.momentum=0")
    assert result.losses == sgd.losses
    assert result.record["trained_digest"] == sgd.record["trained_digest"]
    assert run_verdict(result.rows) == "held"


def steps_without_parameters() -> bool:
    """Whether torch's LBFGS does."""
    try:
        torch.optim.LBFGS([{"params": []}]).step(lambda: torch.zeros(()))
    except IndexError:
        return False
    return True


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("method", METHODS)
def test_where_everything_is_frozen_nothing_crashes_and_every_method_holds(method, optimizer):
    chosen = LBFGS if optimizer == "lbfgs" else (f"optimizer={optimizer}",)
    try:
        result = measure(f"method={method}", "freeze=all", *chosen, "scheduler=cosine", "clip=1.0")
    except SkippedError:
        assert optimizer == "lbfgs"
        assert method == "zero_lr" or (method in ("exclude", "to_buffer") and not steps_without_parameters())
        return
    assert len(result.steps) == 3
    assert run_verdict(result.rows) == ("leaked" if method == "none" else "held")


@pytest.mark.parametrize("method", ["exclude", "to_buffer", "zero_lr"])
def test_where_everything_is_frozen_and_a_parameter_is_a_group_nothing_crashes_either(method):
    assert len(measure(f"method={method}", "freeze=all", "groups=parameter").steps) == 3


# At the door


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("optimizer=lbfgs",), "give groups=one"),
        (("method=zero_lr", "++method.gaurd=true"), "did you mean guard"),
        (("optimizer=muon",), "skipped: Muon "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_door_says_it_in_one_line_with_code_2(door, arguments, said):
    code, out, err = door(*QUICK, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
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
def test_what_only_running_finds_fails_without_a_traceback_and_its_last_line_says_why(door, arguments):
    code, out, err = door(*QUICK, *arguments)
    assert code in (1, 2)
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("freeze-runner: failed: ")


def test_a_sweep_has_a_row_for_each_optimizer_and_method_and_skips_those_that_cannot_serve(door):
    grid = "optimizer=lbfgs,muon,sparse_adam", "method=requires_grad,zero_lr"
    code, _, err = door("-m", *QUICK, "hydra.sweep.dir=sweep", "groups=one", *grid)
    assert (code, err) == (0, "")
    rows = read_table(Path("sweep/comparison.csv"))
    said = {(row["optimizer"], row["method"]): (row["status"], row["reason"].split(" ")[0]) for row in rows}
    assert said == {
        ("lbfgs", "requires_grad"): ("finished", ""),
        ("lbfgs", "zero_lr"): ("skipped", "LBFGS"),
        ("muon", "requires_grad"): ("skipped", "Muon"),
        ("muon", "zero_lr"): ("skipped", "Muon"),
        ("sparse_adam", "requires_grad"): ("skipped", "SparseAdam"),
        ("sparse_adam", "zero_lr"): ("skipped", "SparseAdam"),
    }


@pytest.mark.parametrize("method", ["requires_grad", "to_buffer"])
def test_where_everything_is_frozen_a_note_says_that_nothing_trains(door, method):
    assert door(*QUICK, "hydra.run.dir=here", "freeze=all", f"method={method}")[0] == 0
    assert "every parameter is declared frozen: nothing trains" in json.loads(Path("here/run.json").read_text())["notes"]


SCHEDULES = """
from dataclasses import replace
from runner.freezing.schedule import Phase


def late(selection):
    return [Phase(3, selection)]


def thaws(selection):
    return [Phase(1, selection), Phase(2, replace(selection, parameters={}))]


def nothing(selection):
    return None
"""


@pytest.mark.parametrize(
    ("schedule", "said"),
    [("late", "must begin at 1"), ("thaws", "unfreezes what an earlier phase froze"), ("nothing", "must return a list")],
)
def test_a_schedule_of_ones_own_that_cannot_be_is_refused_in_one_line(door, schedule, said):
    Path("mine.py").write_text(SCHEDULES)
    code, _, err = door("model=mlp", "batches=4", "schedule=custom", f"schedule._target_=mine.{schedule}")
    assert (code, said in err, err.count("\n")) == (2, True, 1)


@pytest.mark.parametrize("empty", ["method=glob(qq*)", "seed=range(0,0)"])
def test_a_sweep_without_a_run_is_code_2(door, empty):
    code, _, err = door("-m", "model=mlp", empty)
    assert (code, err) == (2, "freeze-runner: the sweep has no run: a glob or a range in it is empty\n")


@pytest.mark.parametrize("given", ["optimizer=null", "model.input=[[8]]", "threads=100000"])
def test_what_once_ended_in_a_traceback_is_one_line(door, given):
    code, _, err = door("model=mlp", given)
    assert (code, err.count("\n")) == (2, 1)


def test_an_option_of_another_method_is_told_whose_it_is(door):
    _, _, err = door("model=mlp", "method.guard=true")
    assert err == "freeze-runner: method.guard: no such key of this method; it is one of zero_lr\n"


def test_a_method_of_ones_own_does_not_get_the_options_of_the_one_it_replaces(door):
    Path("mine.py").write_text("from runner import FreezingMethod\nclass Own(FreezingMethod):\n    pass\n")
    assert door("model=mlp", "batches=2", "method._target_=mine.Own")[0] == 0


def test_sparse_embeddings_alone_are_stepped_by_sparse_adam(door):
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
    code, out, _ = door(*model, "optimizer=sparse_adam", "freeze.patterns=[a]")
    assert (code, "HELD" in out) == (0, True)
    assert door(*model, "optimizer=sparse_adam", "freeze.patterns=[a]", "plan=true")[0] == 0
