"""The audit in hand-written loops: every verdict, every cause of idle parameters, and that it changes nothing."""

from __future__ import annotations

import random
import weakref
from contextlib import nullcontext
from copy import deepcopy

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_leaves

from runner.contract import CHANGE_COLUMNS
from runner.errors import ConfigError
from runner.freezing.selection import select
from runner.proof.audit import audit
from runner.proof.audit_report import LeakError, Report
from runner.proof.changes import snapshot
from runner.tensors import tensor_entries


class Net(nn.Module):
    """A layer, a BatchNorm and a head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.body(x)).relu()))


class IdleNet(nn.Module):
    """One parameter for each cause of staying idle, and one that trains."""

    def __init__(self):
        super().__init__()
        self.trains = nn.Parameter(torch.ones(2))
        self.not_in_optimizer = nn.Parameter(torch.ones(2))
        self.unused = nn.Parameter(torch.ones(2))
        self.multiplied_by_zero = nn.Parameter(torch.ones(2))
        self.at_rate_zero = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return x * (self.trains + self.not_in_optimizer + 0 * self.multiplied_by_zero + self.at_rate_zero)


class Wrapper(nn.Module):
    """Puts `module.` before every name, as DataParallel does."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def small_net():
    torch.manual_seed(0)
    return Net()


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), lr=0.1, **options)


def train(model, optimizer, steps=4, before_step=None, x=None):
    """A plain training loop; `before_step` maps step numbers to functions to call just before the optimizer step."""
    x = torch.arange(12.0).reshape(4, 3) if x is None else x
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        (before_step or {}).get(step, lambda: None)()
        optimizer.step()


def write(tensor, value):
    def writing():
        with torch.no_grad():
            tensor.copy_(torch.as_tensor(value))

    return writing


def word(report, name):
    (row,) = [row for row in report.rows if row["name"] == name]
    return row["verdict"]


def cause(report, name):
    (row,) = [row for row in report.rows if row["name"] == name]
    return row["cause"]


def hooks(model, *optimizers):
    attributes = [vars(each) for each in (*model.modules(), *optimizers)]
    return [(key, list(value)) for names in attributes for key, value in names.items() if key.endswith("hooks")]


def change_and_restore(tensor, at=2):
    """Change a tensor before step `at` and restore it before the next one."""
    old = tensor.detach().clone()
    return {at: write(tensor, old + 1), at + 1: write(tensor, old)}


# Verdicts of parameters


@pytest.mark.parametrize("every", [None, 1, 3])
def test_a_frozen_parameter_with_equal_bits_held_and_one_with_other_bits_leaked(every):
    model = small_net()
    model.head.requires_grad_(False)
    with audit(model, ["head", "body.bias"], sgd(model), every) as report:
        train(model, sgd(model))
    assert [word(report, name) for name in ("head.weight", "head.bias", "body.bias")] == ["held", "held", "leaked"]


def test_a_trainable_parameter_that_moved_trained_and_one_that_did_not_is_idle():
    model = small_net()
    model.body.bias.requires_grad_(False)
    with audit(model, [], sgd(model)) as report:
        train(model, sgd(model))
    assert (word(report, "body.weight"), word(report, "body.bias")) == ("trained", "idle")


@pytest.mark.parametrize("frozen", [["body"], []])
def test_a_parameter_that_is_restored_returned_whether_declared_frozen_or_not(frozen):
    model = small_net()
    model.body.requires_grad_(False)
    optimizer = sgd(model)
    with audit(model, frozen, optimizer) as report:
        train(model, optimizer, before_step=change_and_restore(model.body.weight))
    row = next(row for row in report.rows if row["name"] == "body.weight")
    assert (row["verdict"], row["moved"], row["change_l2"]) == ("returned", False, 0.0)


def test_a_returned_parameter_is_not_a_leak():
    model = small_net()
    model.body.requires_grad_(False)
    optimizer = sgd(model)
    with audit(model, ["body"], optimizer) as report:
        train(model, optimizer, before_step=change_and_restore(model.body.weight))
    assert report.leaks == []
    report.raise_if_leaked()


def test_comparing_after_every_step_finds_what_comparing_after_powers_of_two_misses():
    words = []
    for every in (None, 1):
        model = small_net()
        model.body.requires_grad_(False)
        optimizer = sgd(model)
        with audit(model, ["body"], optimizer, every) as report:
            train(model, optimizer, before_step=change_and_restore(model.body.weight, at=3))
        words.append(word(report, "body.weight"))
    assert words == ["held", "returned"]


def test_a_write_after_the_last_step_is_a_leak():
    model = small_net()
    model.body.requires_grad_(False)
    optimizer = sgd(model)
    with audit(model, ["body"], optimizer) as report:
        train(model, optimizer)
        write(model.body.bias, 7.0)()
    assert report.leaks == ["body.bias"]


def test_minus_zero_instead_of_zero_is_a_leak():
    model = small_net()
    write(model.head.bias, [0.0, 0.0])()
    with audit(model, ["head"]) as report:
        write(model.head.bias, [0.0, -0.0])()
    row = next(row for row in report.rows if row["name"] == "head.bias")
    assert (row["verdict"], row["moved"], row["change_l2"], row["change_max"]) == ("leaked", True, 0.0, 0.0)


@pytest.mark.parametrize(("frozen", "expected"), [(["body"], "leaked"), ([], "trained")])
def test_weights_that_became_nan_have_moved_and_their_norms_are_nan(frozen, expected):
    model = small_net()
    with audit(model, frozen, sgd(model)) as report:
        write(model.body.bias, float("nan"))()
    row = next(row for row in report.rows if row["name"] == "body.bias")
    assert (row["verdict"], row["moved"]) == (expected, True)
    assert all(row[key] != row[key] for key in ("change_l2", "change_rel", "change_max"))


def test_weights_that_were_nan_and_stay_nan_held():
    model = small_net()
    write(model.body.bias, float("nan"))()
    with audit(model, ["body"]) as report:
        pass
    assert word(report, "body.bias") == "held"


# Verdicts of buffers


@pytest.mark.parametrize(
    ("buffers", "training", "expected"),
    [("live", True, "drifted"), ("live", False, "still"), ("frozen", True, "leaked"), ("frozen", False, "held")],
)
def test_the_verdict_of_a_buffer_depends_on_whether_it_was_declared_frozen(buffers, training, expected):
    model = small_net().train(training)
    selection = select(model, ["norm"], buffers=buffers)
    with audit(model, selection, sgd(model)) as report:
        train(model, sgd(model))
    names = ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    assert [word(report, name) for name in names] == [expected] * 3


@pytest.mark.parametrize(("buffers", "expected"), [("live", "drifted"), ("frozen", "returned")])
def test_a_buffer_that_is_restored_drifted_if_live_and_returned_if_frozen(buffers, expected):
    model = small_net().eval()
    optimizer = sgd(model)
    with audit(model, select(model, ["norm"], buffers=buffers), optimizer) as report:
        train(model, optimizer, before_step=change_and_restore(model.norm.running_mean))
    assert word(report, "norm.running_mean") == expected


# Comparisons


@settings(max_examples=60, deadline=None)
@given(steps=st.integers(0, 40), every=st.none() | st.integers(1, 12))
def test_bits_are_compared_after_steps_1_2_4_8_or_every_nth_and_the_last(steps, every):
    model = nn.Linear(1, 1)
    optimizer = sgd(model)
    with audit(model, [], optimizer, every) as report:
        for _ in range(steps):
            optimizer.step()
    wanted = range(every, steps + 1, every) if every else [2**power for power in range(10) if 2**power <= steps]
    assert report.looks == sorted({*wanted, *([steps] if steps else [])})


def test_the_report_has_rows_when_the_block_has_been_left_and_not_before():
    model = small_net()
    with audit(model) as report:
        assert report.rows == []
    assert len(report.rows) == len(model.state_dict())


# What is declared frozen


def test_patterns_and_a_selection_of_the_same_patterns_give_the_same_rows():
    reports = []
    for as_selection in (False, True):
        model = small_net()
        optimizer = sgd(model)
        with audit(model, select(model, ["**.bias"]) if as_selection else ["**.bias"], optimizer) as report:
            train(model, optimizer)
        reports.append(report)
    assert reports[0].rows == reports[1].rows
    assert [row["name"] for row in reports[0].rows if row["frozen"]] == ["body.bias", "norm.bias", "head.bias"]


def test_without_patterns_every_parameter_whose_requires_grad_is_false_on_entry_counts_as_frozen_to_the_end():
    model = small_net()
    model.head.requires_grad_(False)
    optimizer = sgd(model)
    with audit(model, None, optimizer) as report:
        train(model, optimizer, steps=1)
        model.head.requires_grad_(True)
        model.body.requires_grad_(False)
        train(model, optimizer, steps=1)
    assert [row["name"] for row in report.rows if row["frozen"]] == ["head.weight", "head.bias"]
    assert report.leaks == ["head.weight", "head.bias"]
    assert [row["name"] for row in report.rows if row["requires_grad"]] == [
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    ]


def test_without_patterns_and_flags_nothing_is_frozen():
    model = small_net()
    with audit(model) as report:
        pass
    assert not any(row["frozen"] for row in report.rows)


def test_a_tied_parameter_is_one_row_with_its_aliases_and_frozen_under_either_name():
    model = nn.ModuleDict({"there": nn.Linear(2, 2), "back": nn.Linear(2, 2)})
    model["back"].weight = model["there"].weight
    with audit(model, ["back.weight"]) as report:
        pass
    assert [(row["name"], row["aliases"], row["frozen"]) for row in report.rows] == [
        ("there.weight", "back.weight", True),
        ("there.bias", "", False),
        ("back.bias", "", False),
    ]


def test_patterns_match_without_the_prefix_that_a_wrapper_adds():
    model = Wrapper(small_net())
    with audit(model, ["head"]) as report:
        pass
    assert [row["name"] for row in report.rows if row["frozen"]] == ["module.head.weight", "module.head.bias"]


def test_a_selection_of_a_model_works_for_a_wrapper_of_it():
    model = small_net()
    selection = select(model, ["norm"], buffers="frozen")
    with audit(Wrapper(model), selection) as report:
        pass
    assert [row["name"] for row in report.rows if row["frozen"]] == [
        "module.norm.weight",
        "module.norm.bias",
        "module.norm.running_mean",
        "module.norm.running_var",
        "module.norm.num_batches_tracked",
    ]


def test_a_selection_works_after_the_model_was_converted_to_another_dtype():
    model = small_net()
    selection = select(model, ["norm"], buffers="frozen")
    with audit(model.double(), selection) as report:
        pass
    assert [row["name"] for row in report.rows if row["frozen"]] == [
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    ]


def test_an_earlier_snapshot_shows_what_moved_before_the_block():
    model = small_net()
    before = snapshot(model)
    write(model.body.bias, 3.0)()
    with audit(model, ["body"], before=before) as report:
        pass
    assert report.leaks == ["body.bias"]


def rows_of_a_model_with_a_layer(layer: nn.Module, **options) -> list[tuple]:
    """Return what an audit says of a frozen layer that is stepped, normalises by the batch and is written to."""
    torch.manual_seed(0)
    model = nn.Sequential(layer, nn.Linear(2, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with audit(model, ["0"], optimizer, **options) as report:
        for _ in range(3):
            model(torch.randn(4, 2)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            next(layer.parameters()).add_(1)
    return [(row["name"], row["verdict"], row["cause"], row["moved_elements"]) for row in report.rows]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize("options", [{}, {"every": 1, "buffers": "frozen"}, {"until": 1}], ids=str)
def test_a_layer_that_torch_has_scripted_is_judged_like_any_other(options):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    scripted = torch.jit.script(deepcopy(layer))
    rows = rows_of_a_model_with_a_layer(scripted, **options)
    assert rows == rows_of_a_model_with_a_layer(layer, **options)
    assert {verdict for _, verdict, *_ in rows} >= {"leaked", "trained"}


# Optimizers


def test_without_an_optimizer_those_that_step_the_model_are_found():
    model = small_net()
    model.head.requires_grad_(False)
    with audit(model, ["head", "body.bias"]) as report:
        train(model, sgd(model))
    assert report.looks == [1, 2, 4]
    assert [(row["name"], row["cause"]) for row in report.rows if row["verdict"] == "leaked"] == [("body.bias", "gradient")]
    assert (word(report, "head.weight"), word(report, "body.weight")) == ("held", "trained")
    assert {(row["group"], row["lr"]) for row in report.rows if row["kind"] == "parameter"} == {("0", 0.1)}


def test_the_groups_of_several_optimizers_have_different_names():
    model = small_net()
    one = torch.optim.SGD([model.body.weight, model.norm.weight], lr=0.1)
    other = torch.optim.Adam([{"params": [model.head.weight]}, {"params": [model.head.bias], "name": "mine"}], lr=0.25)
    with audit(model, [], [one, other]) as report:
        for optimizer in (one, other, other):
            train(model, optimizer, steps=1)
    assert report.looks == [1, 2]
    placed = {row["name"]: (row["group"], row["lr"], row["verdict"]) for row in report.rows if row["kind"] == "parameter"}
    assert placed == {
        "body.weight": ("0.0", 0.1, "trained"),
        "body.bias": ("", None, "idle"),
        "norm.weight": ("0.0", 0.1, "trained"),
        "norm.bias": ("", None, "idle"),
        "head.weight": ("1.0", 0.25, "trained"),
        "head.bias": ("mine", 0.25, "trained"),
    }
    assert cause(report, "body.bias") == "not_in_optimizer"


def test_a_named_group_keeps_its_name_and_an_unnamed_one_gets_its_position():
    model = small_net()
    groups = [{"params": model.body.parameters()}, {"params": model.head.parameters(), "name": "top", "lr": 0.5}]
    with audit(model, [], torch.optim.SGD(groups, lr=0.1)) as report:
        pass
    groups = [(row["group"], row["lr"]) for row in report.rows if row["kind"] == "parameter"]
    assert groups == [("0", 0.1), ("0", 0.1), ("", None), ("", None), ("top", 0.5), ("top", 0.5)]


def test_the_learning_rate_of_a_row_is_that_of_the_last_step_of_its_group():
    model = small_net()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with audit(model, [], optimizer) as report:
        for _ in range(3):
            train(model, optimizer, steps=1)
            scheduler.step()
    assert report.rows[0]["lr"] == 0.025
    assert optimizer.param_groups[0]["lr"] == 0.0125  # the scheduler has changed it, and no step followed


# Causes of idle parameters


def idle_causes(report):
    return {row["name"]: row["cause"] for row in report.rows if row["verdict"] == "idle"}


@pytest.mark.parametrize("every", [None, 1])
def test_each_idle_parameter_has_its_own_cause(every):
    model = IdleNet()
    optimizer = torch.optim.SGD(
        [
            {"params": [model.trains, model.unused, model.multiplied_by_zero], "lr": 0.1},
            {"params": [model.at_rate_zero], "lr": 0.0},
        ]
    )
    with audit(model, [], optimizer, every) as report:
        train(model, optimizer, x=torch.tensor([1.0, 0.0]))
    assert idle_causes(report) == {
        "not_in_optimizer": "not_in_optimizer",
        "unused": "no_gradient",
        "multiplied_by_zero": "zero_gradient",
        "at_rate_zero": "lr_zero",
    }
    assert word(report, "trains") == "trained"


def test_bfloat16_weights_of_one_under_adamw_are_rounded_away():
    model = nn.Linear(3, 2).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    nn.init.ones_(model.bias)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with audit(model, [], optimizer) as report:
        train(model, optimizer, steps=10, x=torch.ones(4, 3, dtype=torch.bfloat16))
    assert idle_causes(report) == {"weight": "rounded_away", "bias": "rounded_away"}


def test_a_learning_rate_of_zero_at_some_steps_only_is_not_the_cause_of_an_idle_parameter():
    model = nn.Linear(3, 2, bias=False).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step >= 2))
    with audit(model, [], optimizer) as report:
        for _ in range(4):
            train(model, optimizer, steps=1, x=torch.ones(4, 3, dtype=torch.bfloat16))
            scheduler.step()
    assert idle_causes(report) == {"weight": "rounded_away"}


@pytest.mark.parametrize("name", ["trains", "unused"])
def test_a_parameter_that_is_not_declared_frozen_but_does_not_require_a_gradient_is_idle_by_no_gradient(name):
    model = IdleNet()
    model.get_parameter(name).requires_grad_(False)
    optimizer = sgd(model)
    with audit(model, [], optimizer) as report:
        train(model, optimizer, x=torch.ones(2))
    assert idle_causes(report)[name] == "no_gradient"


def test_the_cause_of_an_idle_parameter_is_found_if_gradients_are_cleared_after_each_step():
    model = IdleNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with audit(model, ["not_in_optimizer"], optimizer, every=10) as report:
        for _ in range(3):
            train(model, optimizer, steps=1, x=torch.ones(2))
            optimizer.zero_grad()
    assert idle_causes(report) == {
        "trains": "lr_zero",
        "unused": "no_gradient",
        "multiplied_by_zero": "zero_gradient",
        "at_rate_zero": "lr_zero",
    }


def test_a_learning_rate_raised_after_the_last_step_does_not_change_the_cause_lr_zero():
    model = IdleNet()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step >= 3))
    with audit(model, [], optimizer) as report:
        for _ in range(3):
            train(model, optimizer, steps=1, x=torch.ones(2))
            scheduler.step()
    assert idle_causes(report)["trains"] == "lr_zero"


def test_a_parameter_that_held_trained_or_returned_has_no_cause():
    model = small_net()
    model.norm.requires_grad_(False)
    optimizer = sgd(model)
    with audit(model, ["norm"], optimizer) as report:
        train(model, optimizer, before_step=change_and_restore(model.norm.bias))
    assert {row["cause"] for row in report.rows if row["verdict"] in ("held", "returned", "trained", "drifted")} == {""}


# An audit changes nothing


def training_result(make_optimizer, watched):
    """Everything that a training changes, as one flat list of tensors and plain values."""
    random.seed(0)
    numpy.random.seed(0)
    model, losses = small_net(), []
    optimizer = make_optimizer(model.parameters())
    generator = torch.Generator().manual_seed(1)
    with audit(model, ["head"], optimizer, every=1) if watched else nullcontext():
        for _ in range(5):
            x = torch.randn(4, 3, generator=generator)

            def closure(x=x):
                optimizer.zero_grad()
                loss = model(x).square().mean()
                loss.backward()
                losses.append(loss.detach())
                return loss

            optimizer.step(closure)
    tensors = [*model.parameters(), *model.buffers()]
    gradients = [parameter.grad for parameter in model.parameters()]
    versions = [tensor._version for tensor in tensors]
    random_states = [torch.get_rng_state(), random.random(), float(numpy.random.rand())]
    return tree_leaves(
        [tensors, gradients, versions, losses, optimizer.state_dict(), random_states, hooks(model, optimizer)]
    )


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda params: torch.optim.AdamW(params, lr=0.1),
        lambda params: torch.optim.Adam(params, lr=0.1, foreach=True),
        lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=3),
    ],
    ids=["SGD", "AdamW", "foreach", "LBFGS"],
)
def test_an_audit_changes_no_bit_of_the_training_it_watches(make_optimizer):
    unwatched, watched = training_result(make_optimizer, watched=False), training_result(make_optimizer, watched=True)
    assert len(unwatched) == len(watched)
    for one, other in zip(unwatched, watched, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_an_audit_draws_no_random_number():
    model = small_net()
    random.seed(0)
    numpy.random.seed(0)
    before = random.getstate(), numpy.random.get_state()[1].tobytes(), torch.get_rng_state()
    optimizer = sgd(model.eval())
    with audit(model, ["head"], optimizer, every=1):
        train(model, optimizer)
    assert random.getstate() == before[0]
    assert numpy.random.get_state()[1].tobytes() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_an_audit_leaves_no_hook():
    model = small_net()
    one, other = sgd(model), sgd(model)
    hooks_before = hooks(model, one, other)
    with audit(model, [], [one, other]):
        train(model, one)
    assert hooks(model, one, other) == hooks_before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_block_propagates_and_leaves_the_rows_and_no_hook(error):
    model = small_net()
    optimizer = sgd(model)
    hooks_before, raised, reports = hooks(model, optimizer), error("mine"), []

    def interrupted():
        with audit(model, ["head"], optimizer) as report:
            reports.append(report)
            train(model, optimizer, steps=3)
            raise raised

    with pytest.raises(error) as caught:
        interrupted()
    (report,) = reports
    assert caught.value is raised
    assert hooks(model, optimizer) == hooks_before
    assert report.looks == [1, 2, 3]
    assert report.leaks == ["head.weight", "head.bias"]


def test_steps_after_the_block_are_not_watched():
    model = small_net()
    optimizer = sgd(model)
    with audit(model, [], optimizer) as report:
        train(model, optimizer, steps=1)
    rows = [dict(row) for row in report.rows]
    train(model, optimizer, steps=4)
    assert report.looks == [1]
    assert report.rows == rows


def test_two_audits_of_one_training_agree():
    model = small_net()
    optimizer = sgd(model)
    with audit(model, ["body"], optimizer) as outer, audit(model, ["body"], optimizer, every=1) as inner:
        train(model, optimizer)
    assert outer.rows == inner.rows
    assert (outer.looks, inner.looks) == ([1, 2, 4], [1, 2, 3, 4])


def test_parameters_with_sparse_gradients_are_watched():
    model = nn.Sequential(nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with audit(model, [], optimizer) as report:
        train(model, optimizer, x=torch.tensor([1, 2]))
    assert {row["verdict"] for row in report.rows} == {"trained"}


# The report


def test_a_row_has_the_columns_of_the_contract_in_order():
    model = small_net()
    optimizer = sgd(model)
    with audit(model, ["head"], optimizer) as report:
        train(model, optimizer)
    assert {tuple(row) for row in report.rows} == {CHANGE_COLUMNS}
    assert list(report.frame.columns) == list(CHANGE_COLUMNS)
    assert report.frame["name"].tolist() == [row["name"] for row in report.rows]
    assert report.frame["verdict"].tolist() == [row["verdict"] for row in report.rows]


def test_rows_come_module_by_module_with_parameters_before_buffers_and_non_persistent_ones_too():
    model = small_net()
    model.register_buffer("scale", torch.tensor(2.0), persistent=False)
    with audit(model) as report:
        pass
    assert [
        (row["name"], row["kind"], row["module_type"], row["shape"], row["numel"], row["dtype"]) for row in report.rows
    ] == [
        ("scale", "buffer", "Net", "", 1, "float32"),
        ("body.weight", "parameter", "Linear", "4x3", 12, "float32"),
        ("body.bias", "parameter", "Linear", "4", 4, "float32"),
        ("norm.weight", "parameter", "BatchNorm1d", "4", 4, "float32"),
        ("norm.bias", "parameter", "BatchNorm1d", "4", 4, "float32"),
        ("norm.running_mean", "buffer", "BatchNorm1d", "4", 4, "float32"),
        ("norm.running_var", "buffer", "BatchNorm1d", "4", 4, "float32"),
        ("norm.num_batches_tracked", "buffer", "BatchNorm1d", "", 1, "int64"),
        ("head.weight", "parameter", "Linear", "2x4", 8, "float32"),
        ("head.bias", "parameter", "Linear", "2", 2, "float32"),
    ]


def test_the_relative_change_is_none_if_the_initial_norm_is_zero():
    model = small_net()
    write(model.body.bias, 0.0)()
    with audit(model) as report:
        write(model.body.bias, 2.0)()
    row = next(row for row in report.rows if row["name"] == "body.bias")
    assert (row["initial_l2"], row["change_l2"], row["change_rel"], row["change_max"]) == (0.0, 4.0, None, 2.0)


def test_a_frame_without_rows_still_has_the_columns():
    assert list(Report(ended=True).frame.columns) == list(CHANGE_COLUMNS)


def test_raise_if_leaked_names_every_leak_with_its_cause():
    model = small_net()
    optimizer = sgd(model)
    with audit(model, ["head"], optimizer) as report:
        train(model, optimizer)
    with pytest.raises(LeakError) as caught:
        report.raise_if_leaked()
    assert report.leaks == ["head.weight", "head.bias"]
    for name in report.leaks:
        assert cause(report, name) != ""
        assert f"{name} ({cause(report, name)})" in str(caught.value)


def test_raise_if_leaked_does_nothing_without_a_leak():
    model = small_net()
    with audit(model, ["head"]) as report:
        pass
    report.raise_if_leaked()


# Arguments that raise


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every is 0"),
        ({"every": -1}, "every is -1"),
        ({"every": True}, "every is True"),
        ({"frozen": "head"}, "give a list of patterns"),
        ({"frozen": ["haed"]}, "did you mean head"),
        ({"frozen": ["body", ""]}, "not a pattern"),
        ({"frozen": ["re:("]}, "not a regular expression"),
    ],
    ids=str,
)
def test_a_bad_argument_raises_before_the_block_begins_and_leaves_no_hook(arguments, message):
    model = small_net()
    optimizer = sgd(model)
    hooks_before = hooks(model, optimizer)
    with pytest.raises(ConfigError, match=message), audit(model, optimizer=optimizer, **arguments):
        raise AssertionError("the block began")
    assert hooks(model, optimizer) == hooks_before


def test_an_argument_that_is_not_an_optimizer_raises_and_leaves_no_hook():
    model = small_net()
    optimizer = sgd(model)
    hooks_before = hooks(model, optimizer)
    with pytest.raises((ConfigError, TypeError, AttributeError)), audit(model, [], [optimizer, None]):
        raise AssertionError("the block began")
    assert hooks(model, optimizer) == hooks_before


def test_a_model_on_the_meta_device_raises():
    with pytest.raises(ConfigError, match=r"body\.weight is on the meta device"), audit(Net().to("meta")):
        raise AssertionError("the block began")


# Identity


def test_a_tensor_that_a_wrapper_renames_is_one_row_and_held():
    model = small_net()
    with audit(model, ["norm"], sgd(model)) as report:
        model.norm = torch.nn.Sequential(model.norm)
    assert [row["verdict"] for row in report.rows if row["frozen"]] == ["held", "held"]
    assert len({row["name"] for row in report.rows}) == len(report.rows) == len(tensor_entries(model))


def test_an_exception_in_the_block_is_raised_even_if_the_audit_cannot_finish():
    model = small_net()

    def fail():
        model.to("meta")  # the audit cannot compare the tensors either
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), audit(model, ["norm"], sgd(model)):
        fail()


def test_reading_a_report_before_its_audit_has_ended_raises():
    model = small_net()
    with audit(model, ["norm"], sgd(model)) as report:
        for read in (report.raise_if_leaked, lambda: report.leaks, lambda: report.frame):
            with pytest.raises(RuntimeError, match="after the with block"):
                read()
    assert report.leaks == []


def test_a_report_does_not_keep_the_model_alive(collect_garbage):
    model = small_net()
    optimizer = sgd(model)
    with audit(model, ["head"], optimizer) as report:
        train(model, optimizer)
    kept = weakref.ref(model)
    del model, optimizer
    collect_garbage()
    assert kept() is None
    assert report.ended


class CallsItsParent(torch.optim.SGD):
    """Overrides `step`; torch wraps it and the parent's `step`, and calls the hooks for both."""

    def step(self, closure=None):
        return super().step(closure)


def test_a_step_that_calls_the_step_of_its_parent_class_is_counted_once():
    sgd(small_net())  # torch wraps a class when it is first built
    model = small_net()
    optimizer = CallsItsParent(model.parameters(), lr=0.1)
    with audit(model, ["head"], optimizer) as report:
        train(model, optimizer, steps=3)
    assert report.looks == [1, 2, 3]


def test_what_was_declared_before_stays_declared_if_more_is_frozen_later():
    model = small_net()
    optimizer = sgd(model)
    with audit(model, ["head"], optimizer) as report:
        train(model, optimizer, steps=2)
        model.body.requires_grad_(False)
        report.freeze(["body"])
        train(model, optimizer, steps=2)
    assert word(report, "head.weight") == "leaked"
    assert word(report, "body.weight") == "held"


def test_an_audit_without_patterns_and_flags_notes_that_nothing_was_frozen():
    model = small_net()
    with audit(model) as report:
        model.head.requires_grad_(False)
    assert report.notes == ["no parameter was frozen (requires_grad=False) on entry: give patterns"]
    with audit(model, []) as report:
        pass
    assert report.notes == []


@pytest.mark.parametrize("frozen", [nn.Linear(1, 1), torch.ones(2), [nn.Linear(1, 1)], 3])
def test_an_argument_that_is_not_a_list_of_patterns_raises_with_a_short_message(frozen):
    message = r"^frozen is .*; give a list of patterns, a Selection or None$"
    with pytest.raises(ConfigError, match=message), audit(small_net(), frozen):
        pass


class WrapsOptimizer(torch.optim.Optimizer):
    """Wraps an optimizer as the one of Accelerate does: torch's `Optimizer.__init__` is never called."""

    def __init__(self, inner):
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self, closure=None):
        self.inner.step(closure)

    def zero_grad(self):
        self.inner.zero_grad()


def test_an_optimizer_behind_a_wrapper_is_found():
    model = small_net()
    with audit(model, ["head"], WrapsOptimizer(sgd(model))) as report:
        train(model, WrapsOptimizer(sgd(model)))
    assert {row["cause"] for row in report.rows if row["frozen"]} == {"gradient"}


class StepsByItself(torch.optim.Optimizer):
    """Has not called torch's `Optimizer.__init__` and wraps no other optimizer."""

    def __init__(self, parameters):
        self.param_groups = [{"params": list(parameters), "lr": 0.1}]

    def step(self, closure=None):
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(parameter.grad, alpha=-0.1)

    def zero_grad(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None


def test_a_note_says_that_the_steps_of_an_optimizer_are_not_seen():
    model = small_net()
    optimizer = StepsByItself(model.parameters())
    with audit(model, ["head"], optimizer) as report:
        train(model, optimizer)
    assert {(row["verdict"], row["cause"]) for row in report.rows if row["frozen"]} == {("leaked", "unknown")}
    assert any("the steps of StepsByItself are not seen" in note for note in report.notes)


class PassesArgumentToClosure(torch.optim.SGD):
    """Calls its closure with an argument."""

    def step(self, closure=None):
        closure(backward=True)
        return super().step()


def test_a_closure_that_takes_arguments_is_called_with_them():
    model = small_net()
    optimizer = PassesArgumentToClosure(model.parameters(), lr=0.1)

    def closure(backward):
        optimizer.zero_grad()
        loss = model(torch.ones(4, 3)).square().mean()
        if backward:
            loss.backward()
        return loss

    with audit(model, ["head"], optimizer) as report:
        for _ in range(3):
            optimizer.step(closure)
    assert cause(report, "head.weight") == "gradient"
