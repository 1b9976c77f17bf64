"""What is foreseen of anyone's loop is what an audit of it then finds, and foreseeing leaves no trace."""

from __future__ import annotations

import copy
from functools import partial
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional

from runner import audit, foresee
from runner.assemble.objects import build_scheduler
from runner.assemble.setup import assembled
from runner.foresight.plan import foresee_run
from runner.seeding import random_state
from runner.tensors import leaves_in, same_bits, tensor_entries
from tests.conftest import ROOT
from tests.foresight.loops import CLASSES, FEATURES, METHODS, MODELS, OPTIMIZERS, takes, training_of
from tests.in_memory import config_with
from tests.test_conformance import METHODS as RUN_METHODS

STEPS = 12  # of a real training
RUNS = [
    (),
    ("optimizer.weight_decay=0.1",),
    ("optimizer=asgd",),
    ("optimizer=rprop",),
    ("scheduler=one_cycle", "batches=5"),
]
ALL = [
    (model, optimizer, method, before)
    for model, optimizer, method, before in product(MODELS, OPTIMIZERS, METHODS, (0, 3))
    if takes(optimizer, method)
]
QUICK = [each for each in ALL if each[1] == "momentum" or each[::2] == ("mixed", "declaring")]


def foreseen(training, number=0, **options):
    """Return what is foreseen of a training that goes on with the batch of this number."""
    return foresee(training.model, training.optimizer, training.batches[number], **training.foreseen_by | options)


def by_name(hazards, *verdicts):
    """Return {name: (verdict, cause)} of the hazards with these verdicts, but for names that only a tie freezes.

    An audit says these in a note, for its rows are about tensors.
    """
    hazards = [each for each in hazards if (each.verdict, each.cause) != ("idle", "shared_tensor")]
    return {name: (each.verdict, each.cause) for each in hazards if each.verdict in verdicts for name in each.names}


def rows_of(training, first=0):
    """Train under an audit, and return its rows."""
    with audit(training.model, training.frozen, training.optimizer) as report:
        for number in range(first, first + STEPS):
            training.step(number)
    return report.rows


LEFT = [(*each, left) for each in ALL for left in ("zeros", "batch")]
QUICK_LEFT = [each for each in LEFT if each[1] == "adamw" and (each[0] == "adapted" or each[2] == "flag")]


def with_verdict(rows, *verdicts):
    """Return {name: (verdict, cause)} of the rows with these verdicts."""
    return {row["name"]: (row["verdict"], row["cause"]) for row in rows if row["verdict"] in verdicts}


def check_agreement(model, optimizer, method, before):
    given = (model, optimizer, method)
    hazards = foreseen(training_of(*given, steps_before=before), before)
    rows = rows_of(training_of(*given, steps_before=before), before)
    assert not [each for each in hazards if each.verdict == "unknown"]
    assert by_name(hazards, "leaked", "idle") == with_verdict(rows, "leaked", "idle")
    owners = {row["name"].rpartition(".")[0] for row in rows if row["frozen"]}
    drifted = {name for name in with_verdict(rows, "drifted") if name.rpartition(".")[0] in owners}
    assert by_name(hazards, "drifted").keys() == drifted


@pytest.mark.parametrize(("model", "optimizer", "method", "before"), QUICK)
def test_what_is_foreseen_to_leak_or_stay_idle_is_what_an_audit_then_finds(model, optimizer, method, before):
    check_agreement(model, optimizer, method, before)


@pytest.mark.long
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_foreseen_agrees_with_an_audit_for_every_optimizer(optimizer):
    for given in ALL:
        if given[1] == optimizer and given not in QUICK:
            check_agreement(*given)


def check_agreement_with_left_gradients(model, optimizer, method, before, left):
    """Check what is foreseen, for either kind of loop, and for one of which it is not known which kind it is."""

    def built(zero_grad):
        training = training_of(model, optimizer, method, steps_before=before, left=left)
        training.zero_grad = zero_grad
        return training

    leaks = {}
    for zero_grad in ("before", "after"):
        hazards = foreseen(built(zero_grad), before, zero_grad=zero_grad)
        rows = rows_of(built(zero_grad), before)
        assert not [each for each in hazards if each.verdict == "unknown"]
        assert by_name(hazards, "leaked", "idle") == with_verdict(rows, "leaked", "idle")
        leaks[zero_grad] = with_verdict(rows, "leaked")
    hazards = foreseen(built(None), before)
    assert by_name(hazards, "leaked") == leaks["before"]
    besides = {name: ("unknown", cause) for name, (_, cause) in leaks["after"].items() if name not in leaks["before"]}
    assert by_name(hazards, "unknown") == besides


@pytest.mark.parametrize(("model", "optimizer", "method", "before", "left"), QUICK_LEFT)
def test_what_gradients_of_earlier_steps_do_is_foreseen_as_an_audit_then_finds_it(model, optimizer, method, before, left):
    check_agreement_with_left_gradients(model, optimizer, method, before, left)


@pytest.mark.long
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_gradients_of_earlier_steps_do_agrees_with_an_audit_for_every_optimizer(optimizer):
    for given in LEFT:
        if given[1] == optimizer and given not in QUICK_LEFT:
            check_agreement_with_left_gradients(*given)


def test_the_page_says_how_many_loops_agree():
    page = (ROOT / "docs" / "foresee.md").read_text()
    assert f"{len(ALL)} loops" in page
    assert f"{2 * len(LEFT):,} that begin with gradients" in page


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run[0] if run else "default")
@pytest.mark.parametrize("method", RUN_METHODS)
def test_of_a_run_the_same_leaks_are_foreseen_as_by_its_plan(method, run):
    given = ("freeze=backbone", *run, f"method={method}")
    with assembled(config_with(*given)) as setup:
        setup.method.attach(setup.optimizer, setup.selection, setup.undo)
        task = setup.task.task
        hazards = foresee(
            setup.model,
            setup.optimizer,
            setup.feed.first,
            frozen=setup.selection,
            task=lambda model, batch: task(model, batch),
            scheduler=partial(build_scheduler, setup.config) if setup.config.scheduler else None,
            set_to_none=setup.config.zero_grad_to_none,
        )
    with assembled(config_with(*given)) as setup:
        planned = with_verdict(foresee_run(setup).rows, "leaked")
    assert by_name(hazards, "leaked") == planned


# No trace is left


def everything(training):
    """Return all that a training consists of: (values, objects whose identity matters)."""
    model, optimizer, scheduler = training.model, training.optimizer, training.scheduler
    entries = tensor_entries(model)
    state = [(entries_name(entries, key), dict(value)) for key, value in optimizer.state.items()]
    values = {
        "tensors": {name: entry.tensor.detach().clone() for name, entry in entries.items()},
        "gradients": {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
        "flags": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "state": copy.deepcopy(state),
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups],
        "attributes": sorted(vars(optimizer)),
        "scheduler": copy.deepcopy(scheduler.state_dict()) if scheduler else None,
        "random": random_state(),
        "hooks": [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules()],
    }
    objects = [*(e.tensor for e in entries.values()), *(p.grad for p in model.parameters()), *leaves_in(state)]
    return values, [id(each) for each in objects if isinstance(each, torch.Tensor)]


def entries_name(entries, tensor):
    return next(name for name, entry in entries.items() if entry.tensor is tensor)


def same(one, other):
    """Return whether two results of `everything` are the same to the last bit."""
    pairs = list(zip(leaves_in(one[0]), leaves_in(other[0]), strict=True))
    bits = all(same_bits(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)
    return bits and one[1] == other[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("model", "method"), [("mixed", "flag"), ("tied", "flag_with_zeros"), ("adapted", "step_hook")])
def test_everything_is_put_back_bit_by_bit(model, optimizer, method):
    for before in (0, 3):
        training = training_of(model, optimizer, method, steps_before=before)
        expected = everything(training)
        foreseen(training, before)
        assert same(everything(training), expected)


@pytest.mark.parametrize(("optimizer", "method"), [("adamw", "rate_that_rises"), ("momentum", "flag"), ("lbfgs", "flag")])
def test_a_training_after_it_gives_the_same_bits_as_one_without(optimizer, method):
    trained, plain = (training_of("mixed", optimizer, method, steps_before=2) for _ in range(2))
    foreseen(trained, 2)
    for training in (trained, plain):
        torch.manual_seed(1)  # for the dropout
        for number in range(2, 7):
            training.step(number)
    values, expected = everything(trained)[0], everything(plain)[0]
    assert same((values, []), (expected, []))


def test_everything_is_put_back_if_the_loss_raises():
    training = training_of("mixed", "adamw", "flag", steps_before=2)
    expected, calls = everything(training), []

    def raises_later(model, batch):
        calls.append(batch)
        if len(calls) == 2:
            raise KeyError("mine")
        return functional.cross_entropy(model(batch[0]), batch[1])

    with pytest.raises(KeyError, match="mine"):
        foresee(training.model, training.optimizer, training.batches[0], task=raises_later)
    assert same(everything(training), expected)


def test_the_batch_and_what_the_task_holds_are_put_back():
    class Task:
        def __init__(self):
            self.seen, self.mean = [], torch.zeros(())

        def __call__(self, model, batch):
            self.seen.append(len(self.seen))
            self.mean += 1
            batch[0].add_(1)
            return functional.cross_entropy(model(batch[0]), batch[1])

    training, task = training_of("mixed", "sgd", "flag"), Task()
    kept = [each.clone() for each in training.batches[0]]
    foresee(training.model, training.optimizer, training.batches[0], task=task)
    assert task.seen == []
    assert not task.mean
    assert all(map(torch.equal, training.batches[0], kept))


def test_attributes_of_modules_are_put_back():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(FEATURES, CLASSES)
            self.calls, self.seen = 0, []

        def forward(self, x):
            self.calls += 1
            self.seen.append(x)
            self.output = super().forward(x)
            return self.output

    model = nn.Sequential(Counting())
    foresee(model, torch.optim.SGD(model.parameters()), training_of("mixed", "sgd", "flag").batches[0])
    assert (model[0].calls, model[0].seen, hasattr(model[0], "output")) == (0, [], False)


def test_another_optimizer_that_steps_in_a_hook_is_put_back_too():
    training = training_of("mixed", "sgd", "flag", steps_before=1)
    model = training.model
    other = torch.optim.Adam(model.head.parameters())
    model.head.weight.register_post_accumulate_grad_hook(lambda parameter: other.step())
    training.step(1)
    expected = copy.deepcopy(other.state_dict())
    foreseen(training, 1)
    assert all(map(torch.equal, leaves_in(other.state_dict()["state"]), leaves_in(expected["state"])))


def test_tensors_of_the_optimizer_that_are_not_in_the_model_are_put_back():
    model, stray = nn.Linear(FEATURES, CLASSES), nn.Parameter(torch.ones(3))
    stray.grad = torch.ones(3)
    optimizer = torch.optim.SGD([*model.parameters(), stray], lr=0.1)
    foresee(model, optimizer, (torch.ones(2, FEATURES), torch.tensor([0, 1])), set_to_none=False)
    assert stray.eq(1).all()
    assert stray.grad.eq(1).all()


@pytest.mark.long
def test_a_compiled_model_is_foreseen_and_put_back():
    training = training_of("mixed", "adamw", "declaring")
    training.model = torch.compile(training.model, backend="eager")
    training.frozen = ["body"]
    expected = everything(training)
    hazards = foreseen(training)
    leaked = {name for name in by_name(hazards, "leaked") if "body" in name}
    assert len(leaked) == 3
    assert same(everything(training), expected)


# Lines


LEAKING = [
    (model, optimizer, method, before, left)
    for model, optimizer, method, before, left in product(
        ("adapted", "tied"), OPTIMIZERS, METHODS, (0, 3), ("", "zeros", "batch")
    )
    if takes(optimizer, method) and optimizer in ("adamw", "asgd", "rprop", "lbfgs")
]


@pytest.mark.parametrize(("model", "optimizer", "method", "before", "left"), LEAKING)
def test_after_the_line_of_a_leak_nothing_leaks(model, optimizer, method, before, left):
    training = training_of(model, optimizer, method, steps_before=before, left=left)
    training.zero_grad = "after" if left else "before"
    for hazard in foreseen(training, before):
        if hazard.verdict == "leaked" or (left and hazard.verdict == "unknown"):
            names = {"model": training.model, "optimizer": training.optimizer, "torch": torch}
            exec(hazard.line, names)
            training.optimizer = names["optimizer"]
    assert with_verdict(rows_of(training, before), "leaked") == {}
