"""A plan compared with what the run then does; the warnings when a run starts; and that rehearsing changes nothing."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from runner.assemble.setup import assembled
from runner.experiment import experiment
from runner.foresight.effects import Effect, effect_of_batch, effect_of_flags
from runner.foresight.plan import foresee_run
from runner.foresight.stand_in import StandInModel
from runner.freezing.groups import split_by_frozen
from runner.methods.base import TRAPS, FreezingMethod
from runner.proof.verdict import run_verdict
from runner.tensors import tensor_entries
from runner.testing.claims import OVERRIDES_OF_TRAPS
from tests.foresight.loops import CLASSES, FEATURES, Named, OddlyNamed
from tests.in_memory import config_with, run_experiment
from tests.test_conformance import METHODS


def verdicts_and_causes(rows) -> dict[str, tuple[str, str]]:
    """Verdict and cause of every frozen tensor and every buffer."""
    return {row["name"]: (row["verdict"], row["cause"]) for row in rows if row["frozen"] or row["kind"] == "buffer"}


class OddNames(nn.Module):
    """A model whose modules have names that are no identifiers."""

    NAMES = ("a/b", "é 1", "0", "class", "x->y")

    def __init__(self):
        super().__init__()
        for name in self.NAMES:
            self.add_module(name, nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        for name in self.NAMES:
            x = torch.tanh(self.get_submodule(name)(x))
        return self.head(x)


def foreseen(*overrides: str):
    with assembled(config_with(*overrides)) as setup:
        return foresee_run(setup)


def notes_of(*overrides: str) -> tuple[list[str], list[str]]:
    """The urgent notes of a run, and the other ones."""
    urgent_notes: list[str] = []
    other_notes: list[str] = []

    def on_note(text, *, urgent=False):
        (urgent_notes if urgent else other_notes).append(text)

    experiment(config_with(*overrides), on_note=on_note, warn_of_leaks=True)
    return urgent_notes, other_notes


def warnings(*overrides: str) -> list[str]:
    return notes_of(*overrides)[0]


QUICK_METHODS = ("none", "requires_grad", "zero_lr", "zero_grad", "restore")


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in QUICK_METHODS else [pytest.mark.long]) for name in METHODS]
)
def test_a_plan_predicts_every_leak_of_the_traps_and_no_other(method, trap):
    if trap == "lbfgs_mid_run" and method in ("zero_lr", "exclude", "to_buffer"):
        return  # they need a second group, and LBFGS takes one
    given = (f"method={method}", "freeze=backbone", *OVERRIDES_OF_TRAPS[trap])
    assert verdicts_and_causes(foreseen(*given).rows) == verdicts_and_causes(run_experiment(*given).rows)


@pytest.mark.parametrize("freeze", ["backbone", "head", "bias", "batchnorm", "all", "none"])
@pytest.mark.parametrize("buffers", ["live", "frozen"])
def test_a_plan_predicts_every_verdict(freeze, buffers):
    given = ("method=requires_grad", f"freeze={freeze}", f"freeze.buffers={buffers}", "batches=4")
    rows = {row["name"]: row["verdict"] for row in foreseen(*given).rows}
    assert rows == {row["name"]: row["verdict"] for row in run_experiment(*given).rows}


def test_a_plan_predicts_that_a_parameter_in_no_group_stays_idle():
    rows = foreseen("freeze=none", "groups=module", "groups.names=[head]").rows
    idle = {row["name"] for row in rows if (row["verdict"], row["cause"]) == ("idle", "not_in_optimizer")}
    assert idle == {row["name"] for row in rows if row["kind"] == "parameter"} - {"head.weight", "head.bias"}


class Renormed(nn.Module):
    """An embedding whose forward pass rescales its weight, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 8, max_norm=0.5)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.embed((x[:, :3] > 0).long()).mean(1))


RENORMED = ("model.build={_target_: tests.foresight.test_rehearsal.Renormed}", "freeze.patterns=[embed]", "freeze.keep=[]")


def test_a_plan_predicts_writes_in_the_forward_pass():
    assert verdicts_and_causes(foreseen(*RENORMED).rows) == {"embed.weight": ("leaked", "forward_write")}
    assert verdicts_and_causes(run_experiment(*RENORMED, "batches=4").rows) == {"embed.weight": ("leaked", "forward_write")}


@pytest.mark.long
def test_the_highest_learning_rate_of_a_long_schedule_is_found_though_not_every_step_is_rehearsed():
    given = ("method=zero_lr", "freeze=backbone", "scheduler=one_cycle", "batches=3000")
    rehearsal = foreseen(*given)
    assert verdicts_and_causes(rehearsal.rows)["body.weight"] == ("leaked", "scheduler")
    (warning,) = warnings(*given)
    trained = run_experiment(*given, "cost=off")
    peak = max(trained.steps, key=lambda step: step.lrs["frozen"])
    assert f"becomes {peak.lrs['frozen']:.3g} at step {peak.number}:" in warning
    assert peak.lrs["frozen"] == pytest.approx(0.1)
    assert {number: lrs["frozen"] for number, lrs in rehearsal.lrs.items()} == {
        step.number: step.lrs["frozen"] for step in trained.steps
    }


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            ("method=zero_lr", "scheduler=one_cycle", "batches=20"),
            "zero_lr with OneCycleLR: the learning rate of the group frozen becomes 0.1 at step 6: "
            "body.weight and 6 more would leak",
        ),
        (("method=zero_lr", "optimizer=rprop"), "Rprop updates at lr 0: body.weight and 6 more would leak"),
        (
            ("method=zero_grad", "optimizer=adamw", "optimizer.weight_decay=0.1"),
            "AdamW applies weight decay at gradient 0: body.weight and 5 more would leak",
        ),
        (
            ("method=zero_grad", "optimizer=asgd"),
            "ASGD updates at gradient 0, without weight decay or state: body.weight and 5 more would leak",
        ),
        (
            (*OVERRIDES_OF_TRAPS["zeros_mid_run"], "method=requires_grad", "optimizer=adam"),
            "Adam still updates from its state: body.weight and 6 more would leak",
        ),
    ],
)
def test_a_run_warns_at_its_start_of_leaks_that_can_be_foreseen_without_a_batch(given, sentence):
    assert warnings("freeze=backbone", *given) == [sentence]


@pytest.mark.parametrize("method", [method for method in METHODS if method != "none"])
def test_a_run_in_which_nothing_leaks_starts_without_a_warning(method):
    assert warnings("freeze=backbone", f"method={method}") == []


def test_leaks_that_need_a_batch_are_predicted_only_by_the_plan():
    assert warnings("freeze=backbone", "method=none") == []
    assert set(verdicts_and_causes(foreseen("freeze=backbone", "method=none").rows).values()) >= {("leaked", "gradient")}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_rehearsal_changes_no_bit_of_the_run(trap):
    given = ("method=zero_grad", "freeze=backbone", *OVERRIDES_OF_TRAPS[trap])
    watched, plain = experiment(config_with(*given), warn_of_leaks=True), experiment(config_with(*given))
    assert (watched.rows, watched.losses) == (plain.rows, plain.losses)


def test_a_plan_draws_no_random_numbers():
    config = config_with("freeze=backbone", "method=zero_lr", "scheduler=one_cycle")
    with assembled(config) as setup:
        before = torch.get_rng_state(), random.getstate()
        foresee_run(setup)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == random.getstate()


def test_an_optimizer_that_cannot_be_rehearsed_gives_a_note_and_the_run_goes_on():
    given = ("freeze=backbone", "optimizer={_target_: tests.foresight.test_rehearsal.OnlyOnce, lr: 0.1}")
    OnlyOnce.built = 0
    urgent, notes = notes_of(*given)
    assert (urgent, notes[0]) == ([], "what would leak could not be foreseen: RuntimeError: built twice")


class OnlyOnce(torch.optim.SGD):
    """Refuses to be built a second time."""

    built = 0

    def __init__(self, params, lr):
        type(self).built += 1
        if self.built > 1:
            raise RuntimeError("built twice")
        super().__init__(params, lr)


def test_effects_distinguish_dropped_gradients_from_untouched_ones():
    model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in ("present", "zero", "dropped", "untouched")})
    model["zero"].weight.register_hook(torch.zeros_like)
    model["dropped"].weight.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    model["untouched"].weight.requires_grad_(False)

    def task(model, batch):
        return sum(model[name](batch).sum() for name in model)

    parameters = [model[name].weight for name in model]
    expected = {id(model[name].weight): name for name in model}
    assert effect_of_flags(parameters) == Effect(expected)
    assert effect_of_batch(model, parameters, task, torch.ones(1, 2)) == Effect(expected)
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.int64, torch.bool])
def test_a_stand_in_has_tensors_of_every_dtype_and_number_of_dimensions_and_writes_to_them(dtype):
    model = nn.Module()
    for name, shape in {"scalar": (), "vector": (5,), "empty": (0, 3), "kernel": (4, 1, 3, 3)}.items():
        model.register_buffer(name, torch.ones(shape, dtype=dtype))
    stand_in = StandInModel(tensor_entries(model))
    before = {name: tensor.clone() for name, tensor in stand_in.by_name.items()}
    stand_in(1, Effect(written=frozenset(stand_in.by_name)))
    for name, tensor in stand_in.by_name.items():
        assert tensor.dim() == getattr(model, name).dim()
        assert not tensor.numel() or not torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    "run", [("method=requires_grad",), ("method=zero_lr", "scheduler=one_cycle"), ("method=zero_grad", "optimizer=asgd")]
)
def test_names_of_any_characters_change_nothing_in_what_is_foreseen(run):
    found = {}
    for model in (Named, OddlyNamed):
        target = f"model.build._target_={model.__module__}.{model.__qualname__}"
        given = ("model=custom", target, f"model.input=[{FEATURES}]", f"model.classes={CLASSES}", "freeze=backbone", *run)
        rows = foreseen(*given, f'model.head="{model.names[-1]}"', "freeze.buffers=frozen").rows
        renamed = dict(zip(model.names, Named.names, strict=True))
        parts = [row["name"].partition(".") for row in rows]
        names = ["".join((renamed[first], *rest)) for first, *rest in parts]
        assert {row["name"] for row in rows} == set(tensor_entries(model()))
        found[model] = [(name, row["verdict"], row["cause"]) for name, row in zip(names, rows, strict=True)]
    assert found[Named] == found[OddlyNamed]


class StoresOptimizer(FreezingMethod):
    """Sets the frozen learning rate to 0 in the optimizer that it stored in `attach`, not in the one the hook gets."""

    def groups(self, groups, selection):
        return split_by_frozen(groups, selection, lr=0.0)

    def attach(self, optimizer, selection, undo):
        self.optimizer = optimizer
        undo.callback(optimizer.register_step_pre_hook(self.set_lr_to_zero).remove)

    def set_lr_to_zero(self, *_):
        self.optimizer.param_groups[0]["lr"] = 0.0


def test_a_method_that_stores_its_optimizer_still_has_the_real_one_after_a_rehearsal():
    given = (
        "method={_target_: tests.foresight.test_rehearsal.StoresOptimizer}",
        "freeze=backbone",
        "scheduler=one_cycle",
        "batches=5",
    )
    watched, plain = experiment(config_with(*given), warn_of_leaks=True), experiment(config_with(*given))
    assert run_verdict(watched.rows) == run_verdict(plain.rows) == "held"
    assert watched.record["trained_digest"] == plain.record["trained_digest"]


def test_effects_of_flags_call_hooks_only_on_copies():
    model = nn.Linear(2, 2)
    seen = []
    model.weight.register_hook(lambda gradient: gradient * torch.rand(()))
    model.weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter is model.weight))
    state = torch.get_rng_state()
    assert effect_of_flags([model.weight]) == Effect({id(model.weight): "present"})
    assert seen == [False]
    assert model.weight.grad is None
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("first", [1, pytest.param(200, marks=pytest.mark.long)])
def test_a_learning_rate_that_rises_late_and_falls_again_is_foreseen_with_its_cause(first):
    given = (
        *("method=zero_lr", "freeze=backbone", "batches=300", "schedule=after", f"schedule.step={first}"),
        *("scheduler._target_=tests.foresight.test_rehearsal.LateRise", "data.batch_size=2", "cost=off"),
    )
    assert verdicts_and_causes(foreseen(*given).rows)["body.weight"] == ("leaked", "scheduler")
    # No comparison finds the leak before the last step.
    assert verdicts_and_causes(run_experiment(*given).rows)["body.weight"] == ("leaked", "unknown")
    warning = warnings(*given)[-1]
    assert "becomes 0.5 at step 280:" in warning


class LateRise(torch.optim.lr_scheduler.LRScheduler):
    """A learning rate of 0.5 at step 280, and of 0 at all others."""

    def get_lr(self):
        return [0.5 if self.last_epoch == 279 else 0.0 for _ in self.optimizer.param_groups]


def test_a_rate_that_the_optimizer_uses_one_step_later_than_it_is_set_is_foreseen():
    given = (
        *("method=zero_lr", "freeze=backbone", "batches=60", "optimizer=asgd", "cost=off"),
        "scheduler._target_=tests.foresight.test_rehearsal.RiseAtStep40",
    )
    predicted, actual = verdicts_and_causes(foreseen(*given).rows), verdicts_and_causes(run_experiment(*given).rows)
    assert predicted["body.weight"] == actual["body.weight"] == ("leaked", "scheduler")


class RiseAtStep40(torch.optim.lr_scheduler.LRScheduler):
    """A learning rate of 0.5 from step 40 on, and of 0 before."""

    def get_lr(self):
        return [0.5 if self.last_epoch >= 39 else 0.0 for _ in self.optimizer.param_groups]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_foreseen_of_modules_whatever_their_names_is_what_happens(method):
    target = f"model.build._target_={OddNames.__module__}.OddNames"
    overrides = ["model=custom", target, "model.input=[4]", "model.classes=2", f"method={method}", "freeze=backbone"]
    overrides += ["optimizer=adamw", "cost=off"]
    result = run_experiment(*overrides)
    assert verdicts_and_causes(foreseen(*overrides).rows) == verdicts_and_causes(result.rows)
    assert {row["name"] for row in result.rows if row["frozen"]} == {
        f"{name}.{part}" for name in OddNames.NAMES for part in ("weight", "bias")
    }
