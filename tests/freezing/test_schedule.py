"""Schedules: freezing in mid-run agrees bit by bit with a handwritten loop that keeps one optimizer and its state."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, StepLR

from runner import FreezingMethod
from runner.config.schema import CONF, Config
from runner.contract import CHANGE_COLUMNS
from runner.errors import ConfigError, SkippedError
from runner.experiment import Outcome, experiment
from runner.freezing.schedule import Phase, after, constant, phase_records, reached_phases
from runner.freezing.selection import Selection, select
from runner.proof.changes import measure_change
from runner.proof.verdict import run_verdict
from runner.runs.folder import csv_text
from runner.training.data.synthetic import Synthetic
from runner.training.models import MLP
from runner.training.schedulers import inverse_square_root
from tests.conftest import read_table
from tests.in_memory import config_with, run_experiment

STEP, BATCHES = 3, 6
MID_RUN = ("schedule=after", f"schedule.step={STEP}", f"batches={BATCHES}", "freeze=backbone")
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
SCHEDULERS = sorted(path.stem for path in (CONF / "scheduler").glob("*.yaml") if path.stem != "custom")
DECAY = 0.01
WITH_DECAY = f"optimizer.weight_decay={DECAY}"
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=DECAY),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.001, weight_decay=DECAY),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.001, weight_decay=DECAY),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, weight_decay=DECAY),
}
BUILD_SCHEDULER: dict[str, Callable[..., Any]] = {
    "lambda": lambda optimizer: LambdaLR(optimizer, inverse_square_root),
    "one_cycle": lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=BATCHES, cycle_momentum=False),
    "step": lambda optimizer: StepLR(optimizer, step_size=3, gamma=0.1),
}


# A handwritten loop


def do_nothing(*_: Any) -> None:
    """Do nothing: the default of the callbacks of ManualFreeze."""


@dataclass
class ManualFreeze:
    """How a handwritten loop freezes the backbone.

    Attributes:
        freeze: called once, when freezing begins.
        before_step, after_step: called around each optimizer step from then on.
        prefix_without_graph: whether the frozen prefix runs under `torch.no_grad()` from then on.
    """

    freeze: Callable[[list[nn.Parameter], torch.optim.Optimizer], Any] = do_nothing
    before_step: Callable[[list[nn.Parameter], torch.optim.Optimizer], None] = do_nothing
    after_step: Callable[[list[nn.Parameter], list[Tensor]], None] = do_nothing
    prefix_without_graph: bool = False


def set_requires_grad_false(frozen, optimizer):
    for parameter in frozen:
        parameter.requires_grad = False


def set_requires_grad_false_and_clear_state(frozen, optimizer):
    set_requires_grad_false(frozen, optimizer)
    for parameter in frozen:
        parameter.grad = None
        del optimizer.state[parameter]


def set_lr_to_zero(frozen, optimizer):
    optimizer.param_groups[0]["lr"] = 0.0


def set_lr_and_weight_decay_to_zero(frozen, optimizer):
    optimizer.param_groups[0].update(lr=0.0, weight_decay=0.0)


def remove_from_group(frozen, optimizer):
    optimizer.param_groups[0]["params"] = []


def set_gradients_to_none(frozen, optimizer):
    for parameter in frozen:
        parameter.grad = None


def set_gradients_to_zero(frozen, optimizer):
    for parameter in frozen:
        parameter.grad.zero_()


@torch.no_grad()
def restore_values(frozen, at_freeze):
    """Set the frozen parameters to the values that they had when freezing began."""
    for parameter, value in zip(frozen, at_freeze, strict=True):
        parameter.copy_(value)


MANUAL_FREEZES = {
    "cached_prefix": ManualFreeze(freeze=set_requires_grad_false),
    "detach": ManualFreeze(prefix_without_graph=True),
    "exclude": ManualFreeze(freeze=remove_from_group),
    "grad_none": ManualFreeze(before_step=set_gradients_to_none),
    "none": ManualFreeze(),
    "requires_grad": ManualFreeze(freeze=set_requires_grad_false),
    "requires_grad-clean": ManualFreeze(freeze=set_requires_grad_false_and_clear_state),
    "restore": ManualFreeze(after_step=restore_values),
    "to_buffer": ManualFreeze(freeze=remove_from_group),
    "zero_grad": ManualFreeze(before_step=set_gradients_to_zero),
    "zero_lr": ManualFreeze(freeze=set_lr_to_zero),
    "zero_lr-guard": ManualFreeze(before_step=set_lr_and_weight_decay_to_zero),
}


@dataclass
class ManualRun:
    """The result of a handwritten loop.

    Attributes:
        start: the model's tensors before training.
        at_freeze: the model's tensors just before the first frozen step.
    """

    model: nn.Module
    losses: list[float]
    lrs: list[list[float]]  # for each step, the learning rate of each group
    start: dict[str, Tensor]
    at_freeze: dict[str, Tensor]


def is_frozen(name: str) -> bool:
    """Return whether the parameter or buffer of this name is in the backbone: in everything but the head."""
    return not name.startswith("head.")


def values(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of each parameter and buffer by name."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def build_model() -> MLP:
    """Build the model with the seed of the runner."""
    torch.manual_seed(0)
    return MLP([64])


def batches(count: int = BATCHES) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches that the runner generates with its seed."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield torch.randn(4, 64, generator=generator), torch.randint(10, (4,), generator=generator)


def logits_with_prefix_under_no_grad(model: MLP, x: Tensor) -> Tensor:
    """Return the model's output, with a graph only for the head."""
    with torch.no_grad():
        x = model.norm(model.body(x).relu())
        x = model.back(model.there(x).relu()).relu()
    return model.head(x)


def train_manually(
    manual, optimizer="sgd", set_to_none=True, scheduler=None, step=STEP, in_eval_mode=(), bfloat16=False
) -> ManualRun:
    """Train in a handwritten loop with one optimizer, and freeze the backbone at `step`; return its result.

    `manual`: a ManualFreeze. `in_eval_mode`: names of modules in eval mode from `step` on. `bfloat16`: use autocast.
    """
    model = build_model()
    frozen = [parameter for name, parameter in model.named_parameters() if is_frozen(name)]
    trainable = [parameter for name, parameter in model.named_parameters() if not is_frozen(name)]
    optimizer_ = OPTIMIZERS[optimizer]([{"params": frozen}, {"params": trainable}])
    scheduler_ = BUILD_SCHEDULER[scheduler](optimizer_) if scheduler else None
    result = ManualRun(model, [], [], values(model), {})
    model.train()
    for number, (x, y) in enumerate(batches(), 1):
        freezing = number >= step
        if number == step:
            result.at_freeze, copies = values(model), [parameter.detach().clone() for parameter in frozen]
            manual.freeze(frozen, optimizer_)
            for name in in_eval_mode:
                model.get_submodule(name).eval()
        optimizer_.zero_grad(set_to_none=set_to_none)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = logits_with_prefix_under_no_grad(model, x) if freezing and manual.prefix_without_graph else model(x)
            loss = nn.functional.cross_entropy(logits, y)
        loss.backward()
        if freezing:
            manual.before_step(frozen, optimizer_)
        optimizer_.step()
        if freezing:
            manual.after_step(frozen, copies)
        result.losses.append(loss.item())
        result.lrs.append([group["lr"] for group in optimizer_.param_groups])
        if scheduler_:
            scheduler_.step()
    return result


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors without NaN have the same bits."""
    return torch.equal(one, other) and torch.equal(one.signbit(), other.signbit())


def assert_agree(result: Outcome, manual: ManualRun) -> None:
    """Assert that losses, learning rates and all bits are equal, and that each row has the change of the handwritten loop.

    The change of a frozen tensor counts from the beginning of freezing, that of others from the beginning of the run.
    """
    assert result.losses == manual.losses
    assert [list(step.lrs.values()) for step in result.steps] == manual.lrs
    tensors, expected = result.model.state_dict(), manual.model.state_dict()
    assert list(tensors) == list(expected)
    assert [name for name in expected if not same_bits(tensors[name], expected[name])] == []
    for row in result.rows:
        if row["kind"] == "parameter":
            name = row["name"]
            assert row["frozen"] is is_frozen(name)
            before = (manual.at_freeze if is_frozen(name) else manual.start)[name]
            change = measure_change(before, expected[name])
            assert {key: row[key] for key in vars(change)} == vars(change)
            unchanged, changed = ({"held", "returned"}, {"leaked"}) if is_frozen(name) else ({"idle"}, {"trained"})
            assert row["verdict"] in (changed if change.moved else unchanged)


def verdicts_by_name(result: Outcome) -> dict[str, tuple[str, str]]:
    """Return the verdict and cause of each tensor, by name."""
    return {row["name"]: (row["verdict"], row["cause"]) for row in result.rows}


config_of = cache(config_with)  # cached, because composing a config takes longer than a small run


@cache
def run(method: str, *more: str, on_step=lambda step: None) -> Outcome:
    """Return the outcome of a run that freezes the backbone at STEP; outcomes are cached.

    `method`: `NAME` or `NAME-OPTION`, which sets `method.OPTION=true`. `more`: further overrides. The config is put together
    from one cached config per config group.
    """
    name, _, option = method.partition("-")
    overrides = (f"method={name}", *([f"method.{option}=true"] if option else ()), *more)
    overrides_of = {key.name: () for key in fields(Config)}
    for override in overrides:
        overrides_of[re.split(r"[.=]", override)[0]] += (override,)
    config_values = {key: getattr(config_of(*MID_RUN, *group), key) for key, group in overrides_of.items()}
    return experiment(Config(**config_values), on_step)


def rows_without_groups(result: Outcome) -> list[dict[str, Any]]:
    """Return the rows of a run without the columns that depend on the division into groups."""
    return [{key: value for key, value in row.items() if key not in ("group", "lr")} for row in result.rows]


def frozen_results(result: Outcome) -> set[tuple[str, str]]:
    """Return the verdicts and causes of all tensors that are declared frozen."""
    return {(row["verdict"], row["cause"]) for row in result.rows if row["frozen"]}


HELD, LEAKED_BY_STATE = {("held", "")}, {("leaked", "optimizer_state")}


def test_there_is_a_manual_freeze_for_every_method():
    assert {method.partition("-")[0] for method in MANUAL_FREEZES} == set(METHODS)


@pytest.mark.parametrize(
    ("optimizer", "set_to_none"),
    [*((name, False) for name in OPTIMIZERS), ("sgd", True), ("adam", True)],
    ids=lambda value: {True: "none", False: "zeros"}.get(value, value),
)
@pytest.mark.parametrize("method", MANUAL_FREEZES)
def test_freezing_in_mid_run_agrees_with_a_handwritten_loop_bit_by_bit(method, optimizer, set_to_none):
    more = f"optimizer={optimizer}", WITH_DECAY, f"zero_grad_to_none={str(set_to_none).lower()}"
    assert_agree(run(method, *more), train_manually(MANUAL_FREEZES[method], optimizer, set_to_none))


@pytest.mark.parametrize("scheduler", ["lambda", "one_cycle"])
@pytest.mark.parametrize("method", MANUAL_FREEZES)
def test_with_a_scheduler_freezing_agrees_with_a_handwritten_loop_also_in_learning_rates(method, scheduler):
    more = f"scheduler={scheduler}", WITH_DECAY
    assert_agree(run(method, *more), train_manually(MANUAL_FREEZES[method], scheduler=scheduler))


@pytest.mark.parametrize("method", MANUAL_FREEZES)
def test_freezing_can_begin_at_the_last_step(method):
    result = run(method, f"schedule.step={BATCHES}", WITH_DECAY)
    assert_agree(result, train_manually(MANUAL_FREEZES[method], step=BATCHES))
    assert result.record["looks"] == [1, 2, 4, BATCHES]
    assert "unknown" not in {cause for _, cause in frozen_results(result)}


# Phases


def select_in_model(*patterns: str) -> Selection:
    """Return what the patterns select in the model of `build_model`."""
    return select(build_model(), patterns)


def test_constant_returns_one_phase_from_the_first_step_on():
    selection = select_in_model("head")
    assert constant(selection) == after(selection, 1) == [Phase(1, selection)]


def test_after_returns_a_phase_without_and_a_phase_with_frozen_parameters():
    selection = select_in_model("head")
    first, second = after(selection, 5)
    assert (first.first, first.selection.parameters, first.selection.modules) == (1, {}, {})
    assert second == Phase(5, selection)


@pytest.mark.parametrize("step", [0, -1, 2.5, "abc", True, None])
def test_a_step_that_is_not_a_positive_integer_raises_a_config_error(step):
    with pytest.raises(ConfigError, match=rf"^schedule\.step is {step!r}; give the number of the first step at which"):
        after(select_in_model("head"), step)


@pytest.mark.parametrize(("steps", "counts"), [(7, [3, 4]), (4, [3, 1]), (3, [3]), (1, [1])])
def test_reached_phases_yields_the_number_of_steps_of_each_phase_in_the_run(steps, counts):
    assert [count for _, count in reached_phases(after(select_in_model("head"), 4), steps)] == counts


@pytest.mark.parametrize("method", MANUAL_FREEZES)
def test_freezing_at_step_1_equals_the_constant_schedule(method):
    always, first = (run(method, *more) for more in (["schedule=constant"], ["schedule.step=1"]))
    assert csv_text(CHANGE_COLUMNS, always.rows) == csv_text(CHANGE_COLUMNS, first.rows)
    assert always.losses == first.losses


def test_a_step_after_the_end_of_the_run_is_an_error_in_one_line_and_creates_no_folder(cli):
    code, _, err = cli("model=mlp", "batches=3", "schedule=after", "schedule.step=4")
    assert (code, err.count("\n"), Path("outputs").exists()) == (2, 1, False)
    assert "schedule.step is 4 and batches is 3: nothing would ever be frozen" in err


def short_data():
    """Return the first two batches of the synthetic data."""
    return Synthetic(4, input=[64], classes=10).read(0, 0, 2)


def interrupt(step):
    """Interrupt the run, after its first step."""
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("ending", "steps"),
    [({}, 2), ({"on_step": interrupt}, 1)],
    ids=["data", "interrupt"],
)
@pytest.mark.parametrize("method", ["detach", "exclude", "requires_grad", "zero_lr"])
def test_a_run_that_ends_before_the_freeze_equals_a_run_without_freezing(method, ending, steps):
    data = f"data={{_target_: {__name__}.short_data}}"
    result = run(method, *([] if ending else [data]), **ending)
    unfrozen = run_experiment("freeze=none", f"batches={steps}")
    assert result.interrupted is bool(ending)
    assert result.losses == unfrozen.losses
    tensors, expected = result.model.state_dict(), unfrozen.model.state_dict()
    assert all(same_bits(tensors[name], expected[name]) for name in expected)
    assert run_verdict(result.rows) == "held"


def freeze_more_and_more(selection: Selection) -> list[Phase]:
    """Return the phases of a custom schedule: freeze `body` from the second step on, the whole selection from STEP on."""
    empty = replace(selection, parameters={}, notes=())
    body = {name: parameter for name, parameter in selection.parameters.items() if name.startswith("body")}
    return [Phase(1, empty), Phase(2, replace(empty, parameters=body)), Phase(STEP, selection)]


def set_more_and_more_gradients_to_none() -> ManualFreeze:
    """Return a ManualFreeze: gradients of `body` are None from the second step on, those of the backbone from STEP on."""
    steps = count(2)

    def before_step(frozen, optimizer):
        set_gradients_to_none(frozen if next(steps) >= STEP else frozen[:2], optimizer)

    return ManualFreeze(before_step=before_step)


@pytest.mark.parametrize("groups", ["role", "one"])
@pytest.mark.parametrize("method", ["exclude", "grad_none", "requires_grad", "restore", "to_buffer", "zero_lr"])
def test_a_custom_schedule_can_freeze_more_and_more(method, groups):
    result = run(method, f"schedule={{_target_: {__name__}.freeze_more_and_more}}", f"groups={groups}", WITH_DECAY)
    manual = train_manually(set_more_and_more_gradients_to_none(), step=2)
    assert result.losses == manual.losses
    tensors, expected = result.model.state_dict(), manual.model.state_dict()
    assert all(same_bits(tensors[name], expected[name]) for name in expected)
    assert all(torch.equal(manual.at_freeze[name], tensors[name]) for name in ("body.weight", "body.bias"))
    assert frozen_results(result) <= HELD | {("returned", "")}


# One optimizer

BUILT_OPTIMIZERS: list[RecordingAdamW] = []


class RecordingAdamW(torch.optim.AdamW):
    """Records, at each step, the ids of its groups and state tensors, and the number of parameters in each group."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        BUILT_OPTIMIZERS.append(self)
        self.group_ids: list[list[int]] = []
        self.group_sizes: list[list[int]] = []
        self.state_ids: list[dict[int, list[int]]] = []
        self.register_step_post_hook(RecordingAdamW.record)

    def record(self, *_: Any) -> None:
        """Record the groups and the state; a hook after each step."""
        self.group_ids.append([id(group) for group in self.param_groups])
        self.group_sizes.append([len(group["params"]) for group in self.param_groups])
        state = {id(parameter): list(map(id, values.values())) for parameter, values in self.state.items()}
        self.state_ids.append(state)


@cache
def run_recorded(*arguments: str) -> tuple[RecordingAdamW, Outcome]:
    """Return the optimizer of a run and its outcome; the rehearsal builds other optimizers, on smaller tensors."""
    BUILT_OPTIMIZERS.clear()
    result = run(*arguments, f"optimizer={{_target_: {__name__}.RecordingAdamW, lr: 0.001}}")
    return max(BUILT_OPTIMIZERS, key=lambda optimizer: sum(parameter.numel() for parameter in optimizer.state)), result


@pytest.mark.parametrize("method", MANUAL_FREEZES)
def test_the_optimizer_keeps_its_groups_and_its_state_when_freezing_begins(method):
    optimizer, result = run_recorded(method)
    assert len(optimizer.group_ids) == BATCHES
    assert len({tuple(ids) for ids in optimizer.group_ids}) == 1
    assert [len(sizes) for sizes in optimizer.group_sizes] == [2] * BATCHES
    first, last = optimizer.state_ids[0], optimizer.state_ids[-1]
    head = {id(parameter) for name, parameter in result.model.named_parameters() if not is_frozen(name)}
    assert len(first) == 9
    assert last == ({key: ids for key, ids in first.items() if key in head} if method.endswith("clean") else first)


@pytest.mark.parametrize(("method", "sizes"), [("exclude", [0, 2]), ("to_buffer", [0, 2]), ("zero_lr", [7, 2])])
def test_parameters_leave_their_group_only_if_the_method_removes_them(method, sizes):
    optimizer, _ = run_recorded(method)
    assert optimizer.group_sizes == [[7, 2]] * (STEP - 1) + [sizes] * (BATCHES - STEP + 1)


@pytest.mark.parametrize("groups", ["groups=one", "groups=parameter", "module"])
@pytest.mark.parametrize("method", ["exclude", "none", "requires_grad", "restore", "zero_lr"])
def test_the_division_into_groups_does_not_change_a_bit_of_the_result(method, groups):
    more = (groups,) if groups != "module" else ("groups=module", "groups.names=[norm, body, '**']")
    by_role, other = run(method), run(method, *more)
    assert other.losses == by_role.losses
    assert other.record["trained_digest"] == by_role.record["trained_digest"]
    assert rows_without_groups(other) == rows_without_groups(by_role)
    assert len({tuple(step.lrs) for step in other.steps}) == 1


@pytest.mark.parametrize("groups", ["one", "parameter"])
def test_the_division_into_groups_does_not_change_a_bit_of_the_result_of_to_buffer(groups):
    by_role, other = run("to_buffer"), run("to_buffer", f"groups={groups}")
    assert (other.losses, other.record["trained_digest"]) == (by_role.losses, by_role.record["trained_digest"])


@pytest.mark.parametrize(
    ("method", "groups", "names", "in_group"),
    [
        ("requires_grad", "role", ["frozen", "trainable"], "frozen"),
        ("zero_lr", "role", ["frozen", "trainable"], "frozen"),
        ("exclude", "role", ["frozen", "trainable"], ""),
        ("requires_grad", "one", ["all"], "all"),
        ("zero_lr", "one", ["all/frozen", "all"], "all/frozen"),
        ("exclude", "one", ["all/frozen", "all"], ""),
        ("to_buffer", "one", ["all/frozen", "all"], ""),
    ],
)
def test_a_group_that_a_later_phase_needs_exists_from_the_start_under_the_same_name(method, groups, names, in_group):
    result = run(method, f"groups={groups}")
    assert {tuple(step.lrs) for step in result.steps} == {tuple(names)}
    assert {row["group"] for row in result.rows if row["frozen"]} == {in_group}


def test_with_groups_by_parameter_the_group_names_do_not_change():
    names = [name for name, _ in build_model().named_parameters()]
    for method in ("exclude", "to_buffer", "zero_lr"):
        assert [list(step.lrs) for step in run(method, "groups=parameter").steps] == [names] * BATCHES


def test_steps_csv_has_a_learning_rate_of_every_group_in_every_step(cli):
    more = "hydra.run.dir=here", "model=mlp", "method=zero_lr", "groups=one", "scheduler=step"
    assert cli(*MID_RUN, *more, WITH_DECAY)[0] == 0
    rows = read_table(Path("here/steps.csv"))
    assert list(rows[0]) == ["step", "loss", "seconds", "lr/all/frozen", "lr/all"]
    manual = train_manually(ManualFreeze(freeze=set_lr_to_zero), scheduler="step")
    assert [[float(row["lr/all/frozen"]), float(row["lr/all"])] for row in rows] == manual.lrs
    assert [lrs[0] == 0 for lrs in manual.lrs] == [False] * 2 + [True] * 4


# Traps

LBFGS = ("optimizer=lbfgs", "groups=one", "optimizer.max_iter=4")


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamax", "nadam", "radam"])
def test_optimizer_state_changes_frozen_parameters_if_gradients_are_zeros_but_not_if_they_are_none(optimizer):
    zeros, none = (run("requires_grad", f"optimizer={optimizer}", f"zero_grad_to_none={to}") for to in ("false", "true"))
    assert frozen_results(zeros) == LEAKED_BY_STATE
    assert frozen_results(none) == HELD


def test_sgd_without_momentum_has_no_state_that_could_change_frozen_parameters():
    assert frozen_results(run("requires_grad", "optimizer.momentum=0", "zero_grad_to_none=false")) == HELD


@pytest.mark.parametrize("method", ["detach", "grad_none", "requires_grad"])
def test_lbfgs_changes_frozen_parameters_because_its_direction_spans_all_parameters(method):
    assert frozen_results(run(method, *LBFGS)) == LEAKED_BY_STATE


@pytest.mark.parametrize("freeze", ["head", "backbone"])
def test_clean_stops_lbfgs_wherever_it_stores_its_state(freeze):
    assert frozen_results(run("requires_grad-clean", *LBFGS, f"freeze={freeze}")) == HELD


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "asgd", "nadam"])
def test_requires_grad_with_clean_holds_where_it_leaks_without(optimizer):
    more = f"optimizer={optimizer}", "zero_grad_to_none=false"
    plain, clean = run("requires_grad", *more), run("requires_grad-clean", *more)
    assert {verdict for verdict, _ in frozen_results(plain)} == {"leaked"}
    assert frozen_results(clean) == HELD


@pytest.mark.parametrize(("scheduler", "lrs"), [("lambda", [0.0, 4**-0.5, 5**-0.5, 6**-0.5]), ("step", [0.0] * 4)])
def test_lambda_lr_resets_the_learning_rate_of_a_frozen_group_but_step_lr_does_not(scheduler, lrs):
    result = run("zero_lr", f"scheduler={scheduler}", "optimizer.momentum=0", "optimizer.lr=1.0")
    assert [step.lrs["frozen"] for step in result.steps[STEP - 1 :]] == lrs
    assert frozen_results(result) == ({("leaked", "scheduler")} if any(lrs) else HELD)


def test_if_freezing_begins_at_the_last_step_no_scheduler_has_reset_the_learning_rate_yet():
    assert frozen_results(run("zero_lr", "scheduler=lambda", f"schedule.step={BATCHES}")) == HELD


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_zero_lr_with_guard_holds_under_every_scheduler(scheduler):
    result = run("zero_lr-guard", f"scheduler={scheduler}", "optimizer.weight_decay=0.1")
    assert frozen_results(result) == HELD
    assert [step.lrs["frozen"] for step in result.steps[STEP - 1 :]] == [0.0] * (BATCHES - STEP + 1)


# Every file of conf/optimizer and conf/scheduler

SKIP_REASONS = {"muon": "Muon ", "sparse_adam": "SparseAdam steps sparse gradients alone"}
SUPPORTED = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml") if path.stem not in ("custom", *SKIP_REASONS))


@pytest.mark.parametrize("optimizer", SUPPORTED)
def test_requires_grad_in_mid_run_holds_under_every_optimizer_but_lbfgs(optimizer):
    result = run("requires_grad", f"optimizer={optimizer}", "groups=one")
    assert len(result.steps) == BATCHES
    assert frozen_results(result) == (LEAKED_BY_STATE if optimizer == "lbfgs" else HELD)


@pytest.mark.parametrize("optimizer", SKIP_REASONS)
def test_a_run_with_an_optimizer_that_does_not_support_the_model_is_skipped(optimizer):
    with pytest.raises(SkippedError, match=SKIP_REASONS[optimizer]):
        run("requires_grad", f"optimizer={optimizer}", "groups=one")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_requires_grad_in_mid_run_holds_under_every_scheduler_and_the_head_trains(scheduler):
    result = run("requires_grad", f"scheduler={scheduler}")
    assert len(result.steps) == BATCHES
    assert frozen_results(result) == HELD
    assert {row["verdict"] for row in result.rows if row["name"].startswith("head.")} == {"trained"}


# Buffers


@pytest.mark.parametrize("method", MANUAL_FREEZES)
def test_frozen_buffers_change_before_freezing_begins_but_not_afterwards(method):
    result = run(method, "freeze.buffers=frozen", WITH_DECAY)
    manual = train_manually(MANUAL_FREEZES[method], in_eval_mode=["norm"])
    assert_agree(result, manual)
    names = ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    tensors = result.model.state_dict()
    assert [name for name in names if torch.equal(manual.start[name], manual.at_freeze[name])] == []
    assert [name for name in names if not torch.equal(manual.at_freeze[name], tensors[name])] == []
    rows = [row for row in result.rows if row["kind"] == "buffer"]
    assert [(row["name"], row["frozen"], row["verdict"], row["change_l2"]) for row in rows] == [
        (name, True, "held", 0.0) for name in names
    ]
    assert tensors["norm.num_batches_tracked"].item() == STEP - 1


def test_live_buffers_change_before_and_after_freezing_begins():
    result = run("requires_grad")
    assert {row["verdict"] for row in result.rows if row["kind"] == "buffer"} == {"drifted"}
    assert result.model.state_dict()["norm.num_batches_tracked"].item() == BATCHES


# In bfloat16


@pytest.mark.parametrize("method", MANUAL_FREEZES)
def test_under_autocast_freezing_agrees_with_a_handwritten_loop_under_autocast(method):
    result = run(method, "autocast=true", WITH_DECAY)
    assert_agree(result, train_manually(MANUAL_FREEZES[method], bfloat16=True))
    assert {row["dtype"] for row in result.rows if row["kind"] == "parameter"} == {"float32"}


@pytest.mark.parametrize("freeze", ["backbone", "bias"])
def test_under_autocast_all_methods_that_hold_train_alike_and_not_as_in_float32(freeze):
    found = {}
    for method in METHODS:
        with suppress(SkippedError):
            found[method] = run_experiment(f"method={method}", f"freeze={freeze}", "autocast=true")
    assert {method for method, result in found.items() if run_verdict(result.rows) == "leaked"} == {"none"}
    results = {(result.record["trained_digest"], *result.losses) for method, result in found.items() if method != "none"}
    assert len(results) == 1
    assert run_experiment(f"freeze={freeze}").losses not in [result.losses for result in found.values()]
    assert {p.dtype for result in found.values() for p in result.model.parameters()} == {torch.float32}


# The foreach and fused implementations

VARIANTS = [(name, "foreach") for name in ("adam", "asgd", "rmsprop", "sgd")]
VARIANTS += [(name, "fused") for name in ("adamw", "sgd")]


@pytest.mark.parametrize(("optimizer", "variant"), VARIANTS)
def test_foreach_and_fused_have_the_verdicts_and_causes_of_the_plain_step(optimizer, variant):
    for method, set_to_none in (("requires_grad", "false"), ("zero_lr", "true")):
        more = f"optimizer={optimizer}", f"zero_grad_to_none={set_to_none}"
        plain, other = (run(method, *more, f"optimizer.{variant}={flag}") for flag in ("false", "true"))
        assert verdicts_by_name(other) == verdicts_by_name(plain)


class GroupsByFlags(FreezingMethod):
    """A method whose groups contain only parameters with requires_grad=True, which `prepare` sets."""

    def prepare(self, model, selection, undo):
        for parameter in selection.parameters.values():
            parameter.requires_grad_(False)
        return model

    def groups(self, groups, selection):
        return [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]


def test_groups_is_called_after_prepare_has_set_the_flags_of_the_phase():
    overrides = ("optimizer=adam", "zero_grad_to_none=false", "schedule=after", "schedule.step=3", "batches=6")
    rows = run_experiment(
        "method={_target_: tests.freezing.test_schedule.GroupsByFlags}", "freeze=backbone", *overrides
    ).rows
    assert {row["verdict"] for row in rows if row["frozen"]} == {"held"}
    assert {row["group"] for row in rows if row["frozen"]} == {""}


def freeze_one_by_one(selection: Selection, every: int) -> list[Phase]:
    """Return the phases of a custom schedule: freeze one more tensor every `every` steps."""
    names = list(selection.parameters)
    return [
        Phase(
            1 + number * every, replace(selection, parameters={name: selection.parameters[name] for name in names[:number]})
        )
        for number in range(len(names) + 1)
    ]


@pytest.mark.parametrize("groups", ["role", "one", "parameter"])
def test_parameters_frozen_in_different_phases_stay_in_a_group_with_learning_rate_0(groups):
    schedule = "schedule={_target_: tests.freezing.test_schedule.freeze_one_by_one, every: 2}"
    overrides = ("freeze=backbone", f"groups={groups}", "batches=16", schedule)
    outcome = run_experiment("method=zero_lr", *overrides)
    rows = {row["name"]: row for row in outcome.rows}
    assert {row["verdict"] for row in outcome.rows if row["frozen"]} == {"held"}
    assert all(row["group"] and row["lr"] == 0 for row in outcome.rows if row["frozen"])
    assert rows["head.weight"]["lr"] == 0.1
    with_scheduler = run_experiment("method=zero_lr", *overrides, "scheduler=lambda")
    leaked = [row["name"] for row in with_scheduler.rows if row["verdict"] == "leaked"]
    assert "body.weight" in leaked  # its group exists from the start, so a scheduler can raise its rate


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (0, []),
        (1, [(1, 1, 0, 4)]),
        (2, [(1, 2, 0, 4)]),
        (3, [(1, 2, 0, 4), (3, 3, 3, 2)]),
        (9, [(1, 2, 0, 4), (3, 9, 3, 2)]),
    ],
)
def test_the_record_of_phases_counts_the_steps_made_and_each_tensor_once(steps, expected):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    tied = Selection({"0.weight": model[0].weight, "again": model[0].weight, "0.bias": model[0].bias}, {"b": torch.ones(1)})
    records = phase_records(after(tied, 3), steps, list(model.parameters()))
    assert [tuple(record.values()) for record in records] == expected
