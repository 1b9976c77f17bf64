"""Freezing in mid-run is what a hand does to a plain PyTorch loop: to the bit, with one optimizer, its state kept."""

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
from runner.contract import COLUMNS
from runner.errors import ConfigError, SkippedError
from runner.experiment import Outcome, experiment
from runner.freezing.schedule import Phase, after, constant, spans
from runner.freezing.selection import Selection, select
from runner.proof.changes import measure_change
from runner.proof.verdict import run_verdict
from runner.runs.folder import csv_text
from runner.training.data import Synthetic
from runner.training.models import MLP
from runner.training.schedulers import inverse_square_root
from runner.training.tasks import Classification
from tests.conftest import read_table
from tests.measure import configured, measure

STEP, BATCHES = 3, 6
MID_RUN = ("schedule=after", f"schedule.step={STEP}", f"batches={BATCHES}", "freeze=backbone")
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
SCHEDULERS = sorted(path.stem for path in (CONF / "scheduler").glob("*.yaml") if path.stem != "custom")
DECAY = 0.01
DECAYED = f"optimizer.weight_decay={DECAY}"
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=DECAY),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.001, weight_decay=DECAY),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.001, weight_decay=DECAY),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, weight_decay=DECAY),
}
BY_SCHEDULER: dict[str, Callable[..., Any]] = {
    "lambda": lambda optimizer: LambdaLR(optimizer, inverse_square_root),
    "one_cycle": lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=BATCHES, cycle_momentum=False),
    "step": lambda optimizer: StepLR(optimizer, step_size=3, gamma=0.1),
}

pytestmark = pytest.mark.usefixtures("one_thread")


# A loop by hand


def nothing(*_: Any) -> None:
    """What most hands do at most places of the loop."""


@dataclass
class Hand:
    """What is done to a loop by hand: once, where the freeze begins, and from there on at each step."""

    freeze: Callable[[list[nn.Parameter], torch.optim.Optimizer], Any] = nothing
    before_step: Callable[[list[nn.Parameter], torch.optim.Optimizer], None] = nothing
    after_step: Callable[[list[nn.Parameter], list[Tensor]], None] = nothing
    prefix_without_graph: bool = False


def flags_off(frozen, optimizer):
    for parameter in frozen:
        parameter.requires_grad = False


def flags_off_and_memory_cleared(frozen, optimizer):
    flags_off(frozen, optimizer)
    for parameter in frozen:
        parameter.grad = None
        del optimizer.state[parameter]


def rate_of_zero(frozen, optimizer):
    optimizer.param_groups[0]["lr"] = 0.0


def rate_and_decay_of_zero(frozen, optimizer):
    optimizer.param_groups[0].update(lr=0.0, weight_decay=0.0)


def out_of_the_group(frozen, optimizer):
    optimizer.param_groups[0]["params"] = []


def gradients_dropped(frozen, optimizer):
    for parameter in frozen:
        parameter.grad = None


def gradients_zeroed(frozen, optimizer):
    for parameter in frozen:
        parameter.grad.zero_()


@torch.no_grad()
def put_back(frozen, at_freeze):
    for parameter, value in zip(frozen, at_freeze, strict=True):
        parameter.copy_(value)


HANDS = {
    "cached_prefix": Hand(freeze=flags_off),
    "detach": Hand(prefix_without_graph=True),
    "exclude": Hand(freeze=out_of_the_group),
    "grad_none": Hand(before_step=gradients_dropped),
    "none": Hand(),
    "requires_grad": Hand(freeze=flags_off),
    "requires_grad-clean": Hand(freeze=flags_off_and_memory_cleared),
    "restore": Hand(after_step=put_back),
    "to_buffer": Hand(freeze=out_of_the_group),
    "zero_grad": Hand(before_step=gradients_zeroed),
    "zero_lr": Hand(freeze=rate_of_zero),
    "zero_lr-guard": Hand(before_step=rate_and_decay_of_zero),
}


@dataclass
class Loop:
    """What a loop by hand ended with; `at_freeze` is the whole model just before the first frozen step."""

    model: nn.Module
    losses: list[float]
    rates: list[list[float]]
    start: dict[str, Tensor]
    at_freeze: dict[str, Tensor]


def is_frozen(name: str) -> bool:
    return not name.startswith("head.")


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def built() -> MLP:
    """The model as the runner seeds it."""
    torch.manual_seed(0)
    return MLP([64])


def batches(count: int = BATCHES) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield torch.randn(4, 64, generator=generator), torch.randint(10, (4,), generator=generator)


def logits_without_a_graph_below(model: MLP, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = model.norm(model.body(x).relu())
        x = model.back(model.there(x).relu()).relu()
    return model.head(x)


def by_hand(hand, optimizer="sgd", to_none=True, scheduler=None, step=STEP, in_inference=(), bfloat16=False) -> Loop:
    """Train with one optimizer, and at `step` do by hand what freezes the backbone."""
    model = built()
    frozen, rest = ([p for name, p in model.named_parameters() if is_frozen(name) is which] for which in (True, False))
    one = OPTIMIZERS[optimizer]([{"params": frozen}, {"params": rest}])
    rates_of = BY_SCHEDULER[scheduler](one) if scheduler else None
    done = Loop(model, [], [], values(model), {})
    model.train()
    for number, (x, y) in enumerate(batches(), 1):
        late = number >= step
        if number == step:
            done.at_freeze, copies = values(model), [parameter.detach().clone() for parameter in frozen]
            hand.freeze(frozen, one)
            for name in in_inference:
                model.get_submodule(name).eval()
        one.zero_grad(set_to_none=to_none)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = logits_without_a_graph_below(model, x) if late and hand.prefix_without_graph else model(x)
            loss = nn.functional.cross_entropy(logits, y)
        loss.backward()
        if late:
            hand.before_step(frozen, one)
        one.step()
        if late:
            hand.after_step(frozen, copies)
        done.losses.append(loss.item())
        done.rates.append([group["lr"] for group in one.param_groups])
        if rates_of:
            rates_of.step()
    return done


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) and torch.equal(one.signbit(), other.signbit())


def assert_agree(result: Outcome, loop: Loop) -> None:
    """The same losses and bits, buffers too; each row says what the loop's bits say, from the moment that it should."""
    assert result.losses == loop.losses
    assert [list(step.lrs.values()) for step in result.steps] == loop.rates
    ours, theirs = result.model.state_dict(), loop.model.state_dict()
    assert list(ours) == list(theirs)
    assert [name for name in theirs if not same_bits(ours[name], theirs[name])] == []
    for row in result.rows:
        if row["kind"] == "parameter":
            name = row["name"]
            assert row["frozen"] is is_frozen(name)
            since = (loop.at_freeze if is_frozen(name) else loop.start)[name]
            moved = measure_change(since, theirs[name])
            assert {key: row[key] for key in vars(moved)} == vars(moved)
            stays, goes = ({"held", "returned"}, {"leaked"}) if is_frozen(name) else ({"idle"}, {"trained"})
            assert row["verdict"] in (goes if moved.moved else stays)


def became(result: Outcome) -> dict[str, tuple[str, str]]:
    return {row["name"]: (row["verdict"], row["cause"]) for row in result.rows}


config_of = cache(configured)  # composing is most of what a small run costs, and these runs share most entries


@cache
def run(method: str, *more: str) -> Outcome:
    """`measure` of the backbone frozen at STEP, once; `method` may end in an option that is switched on."""
    name, _, option = method.partition("-")
    overrides = (f"method={name}", *([f"method.{option}=true"] if option else ()), *more)
    nouns = {entry.name: () for entry in fields(Config)}
    for override in overrides:
        nouns[re.split(r"[.=]", override)[0]] += (override,)
    return experiment(Config(**{key: getattr(config_of(*MID_RUN, *given), key) for key, given in nouns.items()}))


def without_groups(result: Outcome) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in ("group", "lr")} for row in result.rows]


def of_frozen(result: Outcome) -> set[tuple[str, str]]:
    """The verdicts and causes among what is declared frozen."""
    return {(row["verdict"], row["cause"]) for row in result.rows if row["frozen"]}


HELD, MOVED_ON = {("held", "")}, {("leaked", "optimizer_state")}


def test_every_method_is_done_by_hand_here():
    assert {method.partition("-")[0] for method in HANDS} == set(METHODS)


@pytest.mark.parametrize(
    ("optimizer", "to_none"),
    [*((name, False) for name in OPTIMIZERS), ("sgd", True), ("adam", True)],
    ids=lambda value: {True: "none", False: "zeros"}.get(value, value),
)
@pytest.mark.parametrize("method", HANDS)
def test_freezing_in_mid_run_is_a_loop_by_hand_bit_by_bit(method, optimizer, to_none):
    more = f"optimizer={optimizer}", DECAYED, f"zero_grad_to_none={str(to_none).lower()}"
    assert_agree(run(method, *more), by_hand(HANDS[method], optimizer, to_none))


@pytest.mark.parametrize("scheduler", ["lambda", "one_cycle"])
@pytest.mark.parametrize("method", HANDS)
def test_with_a_scheduler_it_is_the_loop_by_hand_too_rates_included(method, scheduler):
    more = f"scheduler={scheduler}", DECAYED
    assert_agree(run(method, *more), by_hand(HANDS[method], scheduler=scheduler))


@pytest.mark.parametrize("method", HANDS)
def test_freezing_at_the_last_step_counts_that_step(method):
    result = run(method, f"schedule.step={BATCHES}", DECAYED)
    assert_agree(result, by_hand(HANDS[method], step=BATCHES))
    assert result.figures["looks"] == [1, 2, 4, BATCHES]
    assert "unknown" not in {cause for _, cause in of_frozen(result)}


# When


def selection_of(*patterns: str) -> Selection:
    return select(built(), patterns)


def test_constant_is_one_phase_from_the_first_step_on():
    selection = selection_of("head")
    assert constant(selection) == after(selection, 1) == [Phase(1, selection)]


def test_after_is_a_phase_with_nothing_frozen_and_one_with_all_of_it():
    selection = selection_of("head")
    before, then = after(selection, 5)
    assert (before.first, before.selection.parameters, before.selection.modules) == (1, {}, {})
    assert then == Phase(5, selection)


@pytest.mark.parametrize("step", [0, -1, 2.5, "abc", True, None])
def test_a_first_step_that_is_no_whole_number_of_one_or_more_is_refused(step):
    with pytest.raises(ConfigError, match=rf"^schedule\.step is {step!r}; give the first step to train frozen"):
        after(selection_of("head"), step)


@pytest.mark.parametrize(("batches", "counts"), [(7, [3, 4]), (4, [3, 1]), (3, [3]), (1, [1])])
def test_the_spans_are_the_batches_of_the_phases_that_are_reached(batches, counts):
    assert [count for _, count in spans(after(selection_of("head"), 4), batches)] == counts


@pytest.mark.parametrize("method", HANDS)
def test_freezing_at_the_first_step_gives_the_bytes_of_freezing_from_the_start(method):
    always, first = (run(method, *more) for more in (["schedule=constant"], ["schedule.step=1"]))
    assert csv_text(COLUMNS, always.rows) == csv_text(COLUMNS, first.rows)
    assert always.losses == first.losses


def test_a_first_step_beyond_the_batches_is_refused_in_one_line_and_leaves_no_folder(door):
    code, _, err = door("model=mlp", "batches=3", "schedule=after", "schedule.step=4")
    assert (code, err.count("\n"), Path("outputs").exists()) == (2, 1, False)
    assert "schedule.step is 4 and batches is 3: nothing would ever be frozen" in err


class Ends(Synthetic):
    """Batches that are fewer than were asked for."""

    def batches(self, count, *args):
        return super().batches(2, *args)


class Interrupts(Classification):
    """Somebody presses Ctrl-C in the second step."""

    def __init__(self):
        self.calls = 0

    def __call__(self, model, batch):
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        return super().__call__(model, batch)


@pytest.mark.parametrize(
    ("ending", "steps"), [("data={_target_: %s.Ends}", 2), ("task={_target_: %s.Interrupts}", 1)], ids=["data", "interrupt"]
)
@pytest.mark.parametrize("method", ["detach", "exclude", "requires_grad", "zero_lr"])
def test_what_ends_before_the_freeze_was_trained_as_if_nothing_were_frozen(method, ending, steps):
    result = run(method, ending % __name__)
    free = measure("freeze=none", f"batches={steps}")
    assert result.interrupted is ending.startswith("task")
    assert result.losses == free.losses
    ours, theirs = result.model.state_dict(), free.model.state_dict()
    assert all(same_bits(ours[name], theirs[name]) for name in theirs)
    assert run_verdict(result.rows) == "held"


def growing(selection: Selection) -> list[Phase]:
    """A schedule of one's own: `body` from the second step on, all from STEP."""
    free = replace(selection, parameters={}, notes=())
    body = {name: parameter for name, parameter in selection.parameters.items() if name.startswith("body")}
    return [Phase(1, free), Phase(2, replace(free, parameters=body)), Phase(STEP, selection)]


def dropping_more_and_more() -> Hand:
    """Drops the gradients of `body` from the second step on, and those of all that is frozen from STEP on."""
    steps = count(2)

    def drop(frozen, optimizer):
        gradients_dropped(frozen if next(steps) >= STEP else frozen[:2], optimizer)

    return Hand(before_step=drop)


@pytest.mark.parametrize("cut", ["role", "one"])
@pytest.mark.parametrize("method", ["exclude", "grad_none", "requires_grad", "restore", "to_buffer", "zero_lr"])
def test_a_schedule_of_ones_own_may_freeze_more_and_more(method, cut):
    result = run(method, f"schedule={{_target_: {__name__}.growing}}", f"groups={cut}", DECAYED)
    loop = by_hand(dropping_more_and_more(), step=2)
    assert result.losses == loop.losses
    ours, theirs = result.model.state_dict(), loop.model.state_dict()
    assert all(same_bits(ours[name], theirs[name]) for name in theirs)
    assert all(torch.equal(loop.at_freeze[name], ours[name]) for name in ("body.weight", "body.bias"))
    assert of_frozen(result) <= HELD | {("returned", "")}


# One optimizer

BUILT: list[Remembering] = []


class Remembering(torch.optim.AdamW):
    """Remembers at each step which groups, parameters and state it has, by identity."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        BUILT.append(self)
        self.groups_at: list[list[int]] = []
        self.members_at: list[list[int]] = []
        self.state_at: list[dict[int, list[int]]] = []
        self.register_step_post_hook(Remembering.remember)

    def remember(self, *_: Any) -> None:
        self.groups_at.append([id(group) for group in self.param_groups])
        self.members_at.append([len(group["params"]) for group in self.param_groups])
        state = {id(parameter): list(map(id, values.values())) for parameter, values in self.state.items()}
        self.state_at.append(state)


@cache
def remembered(*arguments: str) -> tuple[Remembering, Outcome]:
    """The run's own optimizer: others are built on smaller tensors, to foresee what it would do."""
    BUILT.clear()
    result = run(*arguments, f"optimizer={{_target_: {__name__}.Remembering, lr: 0.001}}")
    return max(BUILT, key=lambda one: sum(parameter.numel() for parameter in one.state)), result


@pytest.mark.parametrize("method", HANDS)
def test_the_one_optimizer_keeps_its_groups_and_its_state_from_before_the_freeze_to_the_end(method):
    optimizer, result = remembered(method)
    assert len(optimizer.groups_at) == BATCHES
    assert len({tuple(groups) for groups in optimizer.groups_at}) == 1
    assert [len(members) for members in optimizer.members_at] == [2] * BATCHES
    first, last = optimizer.state_at[0], optimizer.state_at[-1]
    head = {id(parameter) for name, parameter in result.model.named_parameters() if not is_frozen(name)}
    assert len(first) == 9
    assert last == ({key: ids for key, ids in first.items() if key in head} if method.endswith("clean") else first)


@pytest.mark.parametrize(("method", "members"), [("exclude", [0, 2]), ("to_buffer", [0, 2]), ("zero_lr", [7, 2])])
def test_only_what_a_method_takes_out_leaves_its_group(method, members):
    optimizer, _ = remembered(method)
    assert optimizer.members_at == [[7, 2]] * (STEP - 1) + [members] * (BATCHES - STEP + 1)


@pytest.mark.parametrize("cut", ["groups=one", "groups=parameter", "module"])
@pytest.mark.parametrize("method", ["exclude", "none", "requires_grad", "restore", "zero_lr"])
def test_how_groups_are_cut_changes_no_bit_of_a_freeze_in_mid_run(method, cut):
    more = (cut,) if cut != "module" else ("groups=module", "groups.names=[norm, body, '**']")
    by_role, other = run(method), run(method, *more)
    assert other.losses == by_role.losses
    assert other.figures["trained_digest"] == by_role.figures["trained_digest"]
    assert without_groups(other) == without_groups(by_role)
    assert len({tuple(step.lrs) for step in other.steps}) == 1


@pytest.mark.parametrize("cut", ["one", "parameter"])
def test_how_groups_are_cut_changes_no_bit_of_what_becomes_buffers(cut):
    by_role, other = run("to_buffer"), run("to_buffer", f"groups={cut}")
    assert (other.losses, other.figures["trained_digest"]) == (by_role.losses, by_role.figures["trained_digest"])


@pytest.mark.parametrize(
    ("method", "cut", "names", "in_group"),
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
def test_a_method_that_will_need_a_second_group_has_it_from_the_start_under_one_name(method, cut, names, in_group):
    result = run(method, f"groups={cut}")
    assert {tuple(step.lrs) for step in result.steps} == {tuple(names)}
    assert {row["group"] for row in result.rows if row["frozen"]} == {in_group}


def test_a_group_a_parameter_keeps_its_parameters_name_whatever_the_method_takes_out():
    names = [name for name, _ in built().named_parameters()]
    for method in ("exclude", "to_buffer", "zero_lr"):
        assert [list(step.lrs) for step in run(method, "groups=parameter").steps] == [names] * BATCHES


def test_the_steps_file_has_a_column_of_rates_for_every_group_from_the_first_step_to_the_last(door):
    more = "hydra.run.dir=here", "model=mlp", "method=zero_lr", "groups=one", "scheduler=step"
    assert door(*MID_RUN, *more, DECAYED)[0] == 0
    rows = read_table(Path("here/steps.csv"))
    assert list(rows[0]) == ["step", "loss", "seconds", "lr/all/frozen", "lr/all"]
    loop = by_hand(Hand(freeze=rate_of_zero), scheduler="step")
    assert [[float(row["lr/all/frozen"]), float(row["lr/all"])] for row in rows] == loop.rates
    assert [rates[0] == 0 for rates in loop.rates] == [False] * 2 + [True] * 4


# Traps

LBFGS = ("optimizer=lbfgs", "groups=one", "optimizer.max_iter=4")


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamax", "nadam", "radam"])
def test_what_an_optimizer_had_gathered_moves_on_where_gradients_are_kept_as_zeros_and_not_where_they_are_none(optimizer):
    kept, dropped = (run("requires_grad", f"optimizer={optimizer}", f"zero_grad_to_none={to}") for to in ("false", "true"))
    assert of_frozen(kept) == MOVED_ON
    assert of_frozen(dropped) == HELD


def test_without_momentum_sgd_has_gathered_nothing_that_could_move_on():
    assert of_frozen(run("requires_grad", "optimizer.momentum=0", "zero_grad_to_none=false")) == HELD


@pytest.mark.parametrize("method", ["detach", "grad_none", "requires_grad"])
def test_lbfgs_moves_what_is_frozen_along_a_direction_that_spans_all_parameters(method):
    assert of_frozen(run(method, *LBFGS)) == MOVED_ON


@pytest.mark.parametrize(("freeze", "word"), [("head", MOVED_ON), ("backbone", HELD)])
def test_a_clean_freeze_stops_lbfgs_only_where_it_has_the_first_parameter_which_keeps_the_state_of_all(freeze, word):
    assert of_frozen(run("requires_grad-clean", *LBFGS, f"freeze={freeze}")) == word


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "asgd", "nadam"])
def test_a_clean_freeze_holds_where_the_plain_flag_leaks(optimizer):
    more = f"optimizer={optimizer}", "zero_grad_to_none=false"
    plain, clean = run("requires_grad", *more), run("requires_grad-clean", *more)
    assert {verdict for verdict, _ in of_frozen(plain)} == {"leaked"}
    assert of_frozen(clean) == HELD


@pytest.mark.parametrize(("scheduler", "rates"), [("lambda", [0.0, 4**-0.5, 5**-0.5, 6**-0.5]), ("step", [0.0] * 4)])
def test_lambda_puts_the_rate_of_a_frozen_group_back_and_step_does_not(scheduler, rates):
    result = run("zero_lr", f"scheduler={scheduler}", "optimizer.momentum=0", "optimizer.lr=1.0")
    assert [step.lrs["frozen"] for step in result.steps[STEP - 1 :]] == rates
    assert of_frozen(result) == ({("leaked", "scheduler")} if any(rates) else HELD)


def test_at_the_last_step_no_scheduler_has_put_the_rate_back_yet():
    assert of_frozen(run("zero_lr", "scheduler=lambda", f"schedule.step={BATCHES}")) == HELD


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_guarded_rate_of_zero_holds_under_every_scheduler(scheduler):
    result = run("zero_lr-guard", f"scheduler={scheduler}", "optimizer.weight_decay=0.1")
    assert of_frozen(result) == HELD
    assert [step.lrs["frozen"] for step in result.steps[STEP - 1 :]] == [0.0] * (BATCHES - STEP + 1)


# Every file of conf/optimizer and conf/scheduler

SKIPS = {"muon": "Muon ", "sparse_adam": "SparseAdam steps sparse gradients alone"}
SERVING = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml") if path.stem not in ("custom", *SKIPS))


@pytest.mark.parametrize("optimizer", SERVING)
def test_what_every_optimizer_steps_no_more_holds_but_for_lbfgs(optimizer):
    result = run("requires_grad", f"optimizer={optimizer}", "groups=one")
    assert len(result.steps) == BATCHES
    assert of_frozen(result) == (MOVED_ON if optimizer == "lbfgs" else HELD)


@pytest.mark.parametrize("optimizer", SKIPS)
def test_an_optimizer_that_cannot_serve_the_model_is_skipped_in_mid_run_too(optimizer):
    with pytest.raises(SkippedError, match=SKIPS[optimizer]):
        run("requires_grad", f"optimizer={optimizer}", "groups=one")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_under_every_scheduler_a_flag_in_mid_run_holds_and_the_rest_trains(scheduler):
    result = run("requires_grad", f"scheduler={scheduler}")
    assert len(result.steps) == BATCHES
    assert of_frozen(result) == HELD
    assert {row["verdict"] for row in result.rows if row["name"].startswith("head.")} == {"trained"}


# Buffers


@pytest.mark.parametrize("method", HANDS)
def test_the_buffers_of_what_is_frozen_drift_before_the_freeze_and_hold_after_it(method):
    result = run(method, "freeze.buffers=frozen", DECAYED)
    loop = by_hand(HANDS[method], in_inference=["norm"])
    assert_agree(result, loop)
    names = ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    ended = result.model.state_dict()
    assert [name for name in names if torch.equal(loop.start[name], loop.at_freeze[name])] == []
    assert [name for name in names if not torch.equal(loop.at_freeze[name], ended[name])] == []
    rows = [row for row in result.rows if row["kind"] == "buffer"]
    assert [(row["name"], row["frozen"], row["verdict"], row["change_l2"]) for row in rows] == [
        (name, True, "held", 0.0) for name in names
    ]
    assert ended["norm.num_batches_tracked"].item() == STEP - 1


def test_live_buffers_drift_before_the_freeze_and_after_it():
    result = run("requires_grad")
    assert {row["verdict"] for row in result.rows if row["kind"] == "buffer"} == {"drifted"}
    assert result.model.state_dict()["norm.num_batches_tracked"].item() == BATCHES


# In bfloat16


@pytest.mark.parametrize("method", HANDS)
def test_under_autocast_a_freeze_in_mid_run_is_the_loop_by_hand_under_autocast(method):
    result = run(method, "autocast=true", DECAYED)
    assert_agree(result, by_hand(HANDS[method], bfloat16=True))
    assert {row["dtype"] for row in result.rows if row["kind"] == "parameter"} == {"float32"}


@pytest.mark.parametrize("freeze", ["backbone", "bias"])
def test_under_autocast_every_method_that_holds_trains_the_rest_alike_and_not_as_in_float32(freeze):
    found = {}
    for method in METHODS:
        with suppress(SkippedError):
            found[method] = measure(f"method={method}", f"freeze={freeze}", "autocast=true")
    assert {method for method, result in found.items() if run_verdict(result.rows) == "leaked"} == {"none"}
    alike = {(result.figures["trained_digest"], *result.losses) for method, result in found.items() if method != "none"}
    assert len(alike) == 1
    assert measure(f"freeze={freeze}").losses not in [result.losses for result in found.values()]
    assert {p.dtype for result in found.values() for p in result.model.parameters()} == {torch.float32}


# Other ways to step

VARIANTS = [(name, "foreach") for name in ("adam", "asgd", "rmsprop", "sgd")]
VARIANTS += [(name, "fused") for name in ("adamw", "sgd")]


@pytest.mark.parametrize(("optimizer", "variant"), VARIANTS)
def test_foreach_and_fused_hold_and_leak_as_the_plain_step_does_by_the_same_causes(optimizer, variant):
    for method, to_none in (("requires_grad", "false"), ("zero_lr", "true")):
        more = f"optimizer={optimizer}", f"zero_grad_to_none={to_none}"
        plain, other = (run(method, *more, f"optimizer.{variant}={flag}") for flag in ("false", "true"))
        assert became(other) == became(plain)


class ByFlags(FreezingMethod):
    """Hands the optimizer what has its flag on, which `prepare` has just decided."""

    def prepare(self, model, selection, undo):
        for parameter in selection.parameters.values():
            parameter.requires_grad_(False)
        return model

    def groups(self, groups, selection):
        return [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]


def test_a_method_that_reads_flags_in_its_groups_reads_those_of_the_phase_that_begins():
    given = ("optimizer=adam", "zero_grad_to_none=false", "schedule=after", "schedule.step=3", "batches=6")
    rows = measure("method={_target_: tests.freezing.test_schedule.ByFlags}", "freeze=backbone", *given).rows
    assert {row["verdict"] for row in rows if row["frozen"]} == {"held"}
    assert {row["group"] for row in rows if row["frozen"]} == {""}


def one_by_one(selection: Selection, every: int) -> list[Phase]:
    """One more tensor is frozen each `every` steps."""
    names = list(selection.parameters)
    return [
        Phase(
            1 + number * every, replace(selection, parameters={name: selection.parameters[name] for name in names[:number]})
        )
        for number in range(len(names) + 1)
    ]


@pytest.mark.parametrize("groups", ["role", "one", "parameter"])
def test_what_freezes_bit_by_bit_keeps_a_group_at_rate_0_from_its_phase_on(groups):
    schedule = "schedule={_target_: tests.freezing.test_schedule.one_by_one, every: 2}"
    given = ("freeze=backbone", f"groups={groups}", "batches=16", schedule)
    outcome = measure("method=zero_lr", *given)
    rows = {row["name"]: row for row in outcome.rows}
    assert {row["verdict"] for row in outcome.rows if row["frozen"]} == {"held"}
    assert all(row["group"] and row["lr"] == 0 for row in outcome.rows if row["frozen"])
    assert rows["head.weight"]["lr"] == 0.1
    raised = measure("method=zero_lr", *given, "scheduler=lambda")
    leaked = [row["name"] for row in raised.rows if row["verdict"] == "leaked"]
    assert "body.weight" in leaked  # what froze in mid-run has a rate that a scheduler can raise: it was not left out
