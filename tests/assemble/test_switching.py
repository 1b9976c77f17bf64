"""From one phase to the next: freezing, thawing and freezing again agrees with a handwritten loop, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from runner.assemble.objects import build_optimizer
from runner.assemble.setup import assembled
from runner.config.schema import CONF
from runner.errors import SkippedError
from runner.experiment import Outcome, TrainingState, audit_options, training_steps
from runner.freezing.schedule import Phase
from runner.freezing.selection import Selection, nothing_of
from runner.methods.exclude import Exclude
from runner.proof.audit import audit
from runner.proof.changes import measure_change
from tests.freezing.test_schedule import (
    DECAY,
    METHODS,
    OPTIMIZERS,
    batches,
    build_model,
    is_frozen,
    logits_with_prefix_under_no_grad,
    restore_values,
    same_bits,
    set_gradients_to_none,
    set_gradients_to_zero,
    values,
)
from tests.in_memory import config_with, run_experiment

THAW, FREEZE, STEPS = 3, 6, 8  # the backbone is frozen in the steps 1 and 2, trains in 3 to 5, is frozen in 6 to 8
ITEMS = f"schedule.phases=[{{at: {THAW}, thaw: ['**']}}, {{at: {FREEZE}, freeze: ['**']}}]"
FREEZE_THAW_FREEZE = ("freeze=backbone", "schedule=explicit", ITEMS, f"batches={STEPS}", "cost=off")
Parameters = list[nn.Parameter]


def in_full(*values: Any) -> Any:
    """Return values of a parametrized test that only the long tests use."""
    return pytest.param(*values, marks=pytest.mark.long)


# A handwritten loop


def do_nothing(*_: Any) -> None:
    """Do nothing: the default of the callbacks of Manual."""


@dataclass
class Manual:
    """How a handwritten loop freezes the backbone, and thaws it.

    Attributes:
        freeze, thaw: called with (frozen parameters, optimizer) when a phase begins.
        before_step, after_step: called around each optimizer step of a frozen phase, the second one with copies.
        prefix_without_graph: whether the frozen layers run under `torch.no_grad()`.
    """

    freeze: Callable[[Parameters, torch.optim.Optimizer], None] = do_nothing
    thaw: Callable[[Parameters, torch.optim.Optimizer], None] = do_nothing
    before_step: Callable[[Parameters, torch.optim.Optimizer], None] = do_nothing
    after_step: Callable[[Parameters, list[Tensor]], None] = do_nothing
    prefix_without_graph: bool = False


def flags_off(frozen: Parameters, optimizer: torch.optim.Optimizer) -> None:
    for parameter in frozen:
        parameter.requires_grad_(False)


def flags_on(frozen: Parameters, optimizer: torch.optim.Optimizer) -> None:
    for parameter in frozen:
        parameter.requires_grad_(True)


def drop(frozen: Parameters, optimizer: torch.optim.Optimizer) -> None:
    for parameter in frozen:
        parameter.grad = None
        optimizer.state.pop(parameter, None)


def flags_off_and_drop(frozen: Parameters, optimizer: torch.optim.Optimizer) -> None:
    flags_off(frozen, optimizer)
    drop(frozen, optimizer)


def take_out(frozen: Parameters, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["params"] = []


def put_in(frozen: Parameters, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["params"] = frozen


def lr_off(frozen: Parameters, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["lr"] = 0.0


def lr_and_decay_off(frozen: Parameters, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0].update(lr=0.0, weight_decay=0.0)


def lr_and_decay_on(frozen: Parameters, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0].update({key: optimizer.param_groups[1][key] for key in ("lr", "weight_decay")})


MANUAL = {
    "cached_prefix": Manual(flags_off, flags_on),
    "detach": Manual(prefix_without_graph=True),
    "exclude": Manual(take_out, put_in),
    "grad_none": Manual(before_step=set_gradients_to_none),
    "none": Manual(),
    "requires_grad": Manual(flags_off, flags_on),
    "requires_grad-clean": Manual(flags_off_and_drop, flags_on),
    "restore": Manual(after_step=restore_values),
    "to_buffer": Manual(take_out, put_in),
    "zero_grad": Manual(before_step=set_gradients_to_zero),
    "zero_lr": Manual(lr_off, lr_and_decay_on),
    "zero_lr-guard": Manual(lr_and_decay_off, lr_and_decay_on),
}


@dataclass
class ManualRun:
    """The result of a handwritten loop: `at` has the model's tensors before its steps 1, THAW and FREEZE, and at the end."""

    model: nn.Module
    losses: list[float] = field(default_factory=list)
    at: list[dict[str, Tensor]] = field(default_factory=list)


def train_manually(manual: Manual, optimizer: str, *, set_to_none: bool, drops_state: bool = False) -> ManualRun:
    """Train with one optimizer in a handwritten loop: the backbone is frozen, thawed, and frozen again."""
    model = build_model()
    frozen = [parameter for name, parameter in model.named_parameters() if is_frozen(name)]
    trainable = [parameter for name, parameter in model.named_parameters() if not is_frozen(name)]
    optimizer_ = OPTIMIZERS[optimizer]([{"params": frozen}, {"params": trainable}])
    result, copies = ManualRun(model), []
    model.train()
    for number, (x, y) in enumerate(batches(STEPS), 1):
        is_freezing = not THAW <= number < FREEZE
        if number in (1, THAW, FREEZE):
            result.at.append(values(model))
            (manual.freeze if is_freezing else manual.thaw)(frozen, optimizer_)
            copies = [parameter.detach().clone() for parameter in frozen]
            if is_freezing and drops_state:
                drop(frozen, optimizer_)
        optimizer_.zero_grad(set_to_none=set_to_none)
        by_hand = is_freezing and manual.prefix_without_graph
        loss = nn.functional.cross_entropy(logits_with_prefix_under_no_grad(model, x) if by_hand else model(x), y)
        loss.backward()
        if is_freezing:
            manual.before_step(frozen, optimizer_)
        optimizer_.step()
        if is_freezing:
            manual.after_step(frozen, copies)
        result.losses.append(loss.item())
    result.at.append(values(model))
    return result


@cache
def run(method: str, *more: str) -> Outcome:
    """Return the outcome of a run that freezes, thaws and freezes; `NAME-OPTION` sets `method.OPTION=true`."""
    name, _, option = method.partition("-")
    return run_experiment(*FREEZE_THAW_FREEZE, f"method={name}", *([f"method.{option}=true"] if option else ()), *more)


def assert_agree(result: Outcome, manual: ManualRun) -> None:
    """Assert that losses and all bits are equal, and that the rows of each phase have the change of the handwritten loop."""
    assert result.losses == manual.losses
    tensors = result.model.state_dict()
    assert list(tensors) == list(manual.at[-1])
    assert [name for name, value in manual.at[-1].items() if not same_bits(tensors[name], value)] == []
    assert [(phase.first_step, phase.last_step) for phase in result.phases] == [
        (1, THAW - 1),
        (THAW, FREEZE - 1),
        (FREEZE, STEPS),
    ]
    for number, phase in enumerate(result.phases):
        for name, row in ((row["name"], row) for row in phase.rows if row["name"] in dict(manual.model.named_parameters())):
            assert row["frozen"] is (is_frozen(name) and number != 1)
            change = measure_change(manual.at[number][name], manual.at[number + 1][name])
            assert {key: row[key] for key in vars(change)} == vars(change)
            unchanged, changed = ({"held", "returned"}, {"leaked"}) if row["frozen"] else ({"idle"}, {"trained"})
            assert row["verdict"] in (changed if change.moved else unchanged)


def words(result: Outcome, number: int) -> set[str]:
    """Return the verdicts, and causes, of the parameters of the backbone in a phase."""
    rows = (row for row in result.phases[number].rows if is_frozen(row["name"]) and "running" not in row["name"])
    return {f"{row['verdict']} {row['cause']}".strip() for row in rows if "num_batches" not in row["name"]}


def test_there_is_a_handwritten_loop_for_every_method():
    assert {method.partition("-")[0] for method in MANUAL} == set(METHODS)


@pytest.mark.parametrize(
    ("optimizer", "set_to_none"),
    [
        ("sgd", False),
        ("adamw", False),
        in_full("sgd", True),
        in_full("adam", True),
        in_full("adam", False),
        in_full("adamw", True),
    ],
)
@pytest.mark.parametrize("method", MANUAL)
def test_freezing_thawing_and_freezing_agrees_with_a_handwritten_loop_bit_by_bit(method, optimizer, set_to_none):
    more = f"optimizer={optimizer}", f"optimizer.weight_decay={DECAY}", f"zero_grad_to_none={str(set_to_none).lower()}"
    assert_agree(run(method, *more), train_manually(MANUAL[method], optimizer, set_to_none=set_to_none))


@pytest.mark.parametrize(
    ("optimizer", "set_to_none"), [("sgd", False), in_full("adamw", False), in_full("sgd", True), in_full("adamw", True)]
)
@pytest.mark.parametrize("method", ["exclude", "none", "requires_grad", "restore", "zero_grad", "zero_lr"])
def test_with_state_drop_it_agrees_with_a_loop_that_deletes_state_and_gradients(method, optimizer, set_to_none):
    more = f"optimizer={optimizer}", f"optimizer.weight_decay={DECAY}", f"zero_grad_to_none={str(set_to_none).lower()}"
    manual = train_manually(MANUAL[method], optimizer, set_to_none=set_to_none, drops_state=True)
    assert_agree(run(method, *more, "schedule.state=drop"), manual)


@pytest.mark.parametrize("groups", ["one", in_full("parameter")])
@pytest.mark.parametrize("method", ["exclude", "requires_grad", "restore", "to_buffer", "zero_lr"])
def test_the_division_into_groups_changes_no_bit(method, groups):
    by_role, other = run(method), run(method, f"groups={groups}")
    assert other.losses == by_role.losses
    assert other.record["trained_digest"] == by_role.record["trained_digest"]
    assert len({tuple(step.lrs) for step in other.steps}) == 1


# Learning rates

SCHEDULERS = ["one_cycle", *map(in_full, ["step", "cosine", "exponential", "lambda", "cosine_restarts"])]
FACTORS = "schedule.phases=[{at: 3, thaw: ['**'], factors: {body: 0.5, head: 3}}, {at: 6, freeze: ['**']}]"


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("method", MANUAL)
def test_after_a_thaw_the_rate_is_the_scheduled_one(method, scheduler):
    result = run(method, f"scheduler={scheduler}", "optimizer.momentum=0")
    for step in result.steps[THAW - 1 : FREEZE - 1]:
        assert step.lrs["frozen"] == step.lrs["trainable"]
    assert [step.lrs["trainable"] for step in result.steps] == [
        step.lrs["trainable"] for step in run("requires_grad", f"scheduler={scheduler}", "optimizer.momentum=0").steps
    ]
    assert words(result, 1) == {"trained"}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("method", ["exclude", "requires_grad", "zero_lr"])
def test_a_factor_multiplies_the_scheduled_rate_exactly_and_does_not_change_it(method, scheduler):
    options = (f"scheduler={scheduler}", "groups=parameter", "optimizer.momentum=0")
    plain, result = run(method, *options), run(method, *options, FACTORS)
    for number, (one, other) in enumerate(zip(plain.steps, result.steps, strict=True), 1):
        of_body = {"body.weight": 0.5, "body.bias": 0.5} if THAW <= number < FREEZE else {}
        of = {**of_body, "head.weight": 3.0, "head.bias": 3.0} if number >= THAW else {}
        expected = {name: lr * of.get(name, 1.0) for name, lr in one.lrs.items()}
        assert {name: lr for name, lr in other.lrs.items() if number < FREEZE or not name.startswith("body")} == {
            name: lr for name, lr in expected.items() if number < FREEZE or not name.startswith("body")
        }
    lrs = {row["name"]: row["lr"] for row in result.phases[1].rows}
    assert lrs["head.bias"] == result.steps[FREEZE - 2].lrs["head.bias"] == 3 * plain.steps[FREEZE - 2].lrs["head.bias"]


def test_factors_hold_from_the_first_step_on():
    options = ("freeze=backbone", "batches=6", "cost=off", "schedule=gradual", "schedule.rate_decay=2")
    lrs = [{name: lr / 0.1 for name, lr in step.lrs.items()} for step in run_experiment(*options).steps]
    assert lrs == [{"trainable": 1.0, "frozen/there+back": 0.5, "frozen/body..norm": 0.25}] * 6
    annealed = run_experiment("freeze=backbone", "batches=6", "cost=off", "schedule=freeze_out", "schedule.scaled=false")
    rates = [step.lrs["frozen/body..norm"] for step in annealed.steps]
    assert rates[0] == 0.1
    assert all(after < before for before, after in pairwise(rates[:3]))


def test_a_factor_of_0_makes_a_parameter_idle_with_the_rate_as_its_cause():
    result = run("requires_grad", "schedule.phases=[{at: 3, thaw: ['**'], factors: {body: 0}}, {at: 6, freeze: ['**']}]")
    rows = {row["name"]: row for row in result.phases[1].rows}
    assert [(rows[name]["verdict"], rows[name]["cause"], rows[name]["lr"]) for name in ("body.weight", "norm.weight")] == [
        ("idle", "lr_zero", 0.0),
        ("trained", "", 0.1),
    ]


# Every file of conf/optimizer

LISTED = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml") if path.stem != "custom")
SKIPPED = {
    "lbfgs": "LBFGS cannot train parameters that were frozen",
    "muon": "Muon ",
    "sparse_adam": "SparseAdam steps sparse",
}
SUPPORTED = [name for name in LISTED if name not in SKIPPED]
ZEROS = "zero_grad_to_none=false"


@pytest.mark.parametrize("optimizer", SKIPPED)
def test_with_an_optimizer_that_cannot_thaw_or_step_the_model_the_run_is_skipped(optimizer):
    with pytest.raises(SkippedError, match=f"^{SKIPPED[optimizer]}"):
        run("requires_grad", f"optimizer={optimizer}", "groups=one")


@pytest.mark.parametrize("optimizer", SUPPORTED)
@pytest.mark.parametrize("zeros", [False, True], ids=["none", "zeros"])
def test_a_second_freeze_holds_from_its_first_step_with_clean_or_state_drop(optimizer, zeros):
    options = (f"optimizer={optimizer}", *([ZEROS] if zeros else ()))
    for result in (run("requires_grad-clean", *options), run("requires_grad", *options, "schedule.state=drop")):
        assert [words(result, number) for number in range(3)] == [{"held"}, {"trained"}, {"held"}]
        assert result.record["verdict"] == "held"


def moves_by_hand(optimizer: str, *, set_to_none: bool) -> bool:
    """Return whether a loop without the runner moves what it freezes in mid-run by the flag alone."""
    model = build_model()
    frozen = [parameter for name, parameter in model.named_parameters() if is_frozen(name)]
    config = config_with(*FREEZE_THAW_FREEZE, f"optimizer={optimizer}")
    optimizer_ = build_optimizer(config, [{"params": list(model.parameters()), "name": "all"}])
    for number, (x, y) in enumerate(batches(6), 1):
        if number == 4:
            flags_off(frozen, optimizer_)
            before = [parameter.detach().clone() for parameter in frozen]
        optimizer_.zero_grad(set_to_none=set_to_none)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer_.step()
    return not all(same_bits(parameter, copy) for parameter, copy in zip(frozen, before, strict=True))


@pytest.mark.parametrize("optimizer", SUPPORTED)
@pytest.mark.parametrize("zeros", [False, True], ids=["none", "zeros"])
def test_without_them_what_leaks_in_plain_pytorch_is_found(optimizer, zeros):
    result = run("requires_grad", f"optimizer={optimizer}", *([ZEROS] if zeros else ()))
    leaks = moves_by_hand(optimizer, set_to_none=not zeros)
    assert words(result, 0) == {"held"}
    assert words(result, 1) == {"trained"}
    assert {word.split()[0] for word in words(result, 2)} == ({"leaked"} if leaks else {"held"})
    assert not any("unknown" in word for word in words(result, 2))
    assert result.record["verdict"] == ("leaked" if leaks else "held")
    assert not leaks or zeros


def test_weight_decay_alone_leaks_through_gradients_kept_as_zeros():
    options = ("optimizer.momentum=0", "optimizer.weight_decay=0.1", ZEROS)
    assert words(run("requires_grad", *options), 2) == {"leaked weight_decay"}
    assert words(run("requires_grad-clean", *options), 2) == {"held"}
    assert words(run("requires_grad", *options, "schedule.state=drop"), 2) == {"held"}


def test_state_is_dropped_when_a_parameter_freezes_and_not_again_in_the_next_phase():
    items = "schedule.phases=[{at: 1, thaw: ['**']}, {at: 3, freeze: [body]}, {at: 6, freeze: [norm]}]"
    overrides = (*FREEZE_THAW_FREEZE, items, "schedule.state=drop", "optimizer=adamw", "method=zero_lr")
    with assembled(config_with(*overrides)) as setup:
        with audit(setup.model, setup.phases[0].selection, setup.optimizer, **audit_options(setup)) as report:
            for _ in training_steps(setup, report, TrainingState()):
                pass
        made = {name: int(setup.optimizer.state[each]["step"]) for name, each in setup.parameters_by_name.items()}
    assert [made[name] for name in ("body.bias", "norm.bias", "head.bias")] == [STEPS - 2, STEPS - 5, STEPS]


def eval_mode_ends(selection: Selection) -> list[Phase]:
    """Return the phases of a custom schedule that freezes the same parameters throughout, and buffers for two steps."""
    return [Phase(1, selection), Phase(3, replace(selection, buffers={}, modules={}, names=frozenset(selection.parameters)))]


def test_buffers_alone_may_thaw():
    schedule = f"schedule={{_target_: {__name__}.eval_mode_ends}}"
    result = run_experiment("freeze=backbone", "freeze.buffers=frozen", schedule, "batches=4", "cost=off")
    found = [
        [(row["frozen"], row["verdict"]) for row in phase.rows if row["name"] == "norm.running_var"]
        for phase in result.phases
    ]
    assert found == [[(True, "held")], [(False, "drifted")]]
    assert {row["verdict"] for phase in result.phases for row in phase.rows if row["name"].startswith("body")} == {"held"}


# Groups


class RateByPhase(Exclude):
    """Does not give frozen parameters to the optimizer, and gives all others a rate that follows from what is frozen."""

    def groups(self, groups, selection):
        return [{**group, "lr": 0.05 if selection.parameters else 0.2} for group in super().groups(groups, selection)]


def test_a_rate_that_a_method_sets_is_that_of_the_phase():
    result = run_experiment(*FREEZE_THAW_FREEZE, f"method={{_target_: {__name__}.RateByPhase}}")
    found = [{row["name"]: row["lr"] for row in phase.rows if row["kind"] == "parameter"} for phase in result.phases]
    assert [lrs["head.bias"] for lrs in found] == [0.05, 0.2, 0.05]
    assert found[1]["body.bias"] == 0.2


class GroupsByFlags(Exclude):
    """A method whose groups have only parameters with requires_grad=True, which `prepare` sets."""

    def prepare(self, model, selection, undo):
        for parameter in selection.parameters.values():
            undo.callback(parameter.requires_grad_, True)
            parameter.requires_grad_(False)
        return model

    def groups(self, groups, selection):
        return [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]


@pytest.mark.parametrize("groups", ["role", "one", "parameter"])
def test_a_method_may_read_its_groups_from_the_flags_of_the_phase(groups):
    result = run_experiment(*FREEZE_THAW_FREEZE, f"method={{_target_: {__name__}.GroupsByFlags}}", f"groups={groups}")
    assert [words(result, number) for number in range(3)] == [{"held"}, {"trained"}, {"held"}]
    assert result.losses == run("exclude").losses


def thaw_halves(selection: Selection) -> list[Phase]:
    """Return the phases of a custom schedule without blocks: the first half of the selection trains, then the second."""
    names = list(selection.parameters)
    half = {name: selection.parameters[name] for name in names[: len(names) // 2]}
    rest = {name: each for name, each in selection.parameters.items() if name not in half}
    nothing = nothing_of(selection)
    return [
        Phase(1, Selection(rest, evidence=selection.evidence)),
        Phase(3, Selection(half, evidence=selection.evidence)),
        Phase(5, nothing),
        Phase(7, selection),
    ]


@pytest.mark.parametrize("groups", ["one", *map(in_full, ["role", "parameter"])])
@pytest.mark.parametrize("method", ["exclude", "none", "requires_grad", "restore", "to_buffer", "zero_lr"])
def test_a_custom_schedule_without_blocks_may_thaw_parts_of_a_group(method, groups):
    schedule = f"schedule={{_target_: {__name__}.thaw_halves}}"
    result = run_experiment(f"method={method}", "freeze=backbone", schedule, "batches=8", "cost=off", f"groups={groups}")
    word = {"none": "leaked", "restore": "returned"}.get(method, "held")
    for phase in result.phases:
        rows = [row for row in phase.rows if not row["name"].startswith("norm.r") and "num_batches" not in row["name"]]
        found = {row["verdict"] for row in rows if row["frozen"]}
        assert found <= {word, "held"} if method == "restore" else found <= {word}
        assert {row["verdict"] for row in rows if not row["frozen"]} == {"trained"}
    if method not in ("none",):
        plain = run_experiment("method=requires_grad", "freeze=backbone", schedule, "batches=8", "cost=off")
        assert method in ("restore", "zero_lr") or result.losses == plain.losses


def test_where_two_phases_freeze_the_same_parameters_the_second_begins_without_a_change():
    phases = "schedule.phases=[{at: 3, factors: {head: 1}}, {at: 5, thaw: [body]}]"
    result, plain = run("requires_grad", phases), run("requires_grad", "schedule.phases=[{at: 5, thaw: [body]}]")
    assert [(phase.first_step, phase.last_step) for phase in result.phases] == [(1, 2), (3, 4), (5, 8)]
    assert result.losses == plain.losses
    assert result.record["trained_digest"] == plain.record["trained_digest"]
