"""Evaluation on held-out data: what it measures, and that the training and its audit do not notice it."""

from __future__ import annotations

import random
import re
from contextlib import contextmanager
from itertools import product
from math import nan
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional

from runner.config.schema import CONF
from runner.errors import ConfigError
from runner.runs.write import steps_csv
from runner.seeding import random_state
from runner.training.data.steps import StepBatches
from runner.training.evaluate import Evaluation, EvaluationError, evaluate
from runner.training.metrics import has_classes
from tests.in_memory import run_experiment

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))


class Scored:
    """A task with `run`: the mean cross entropy of a pair (x, y), with the scores and the targets."""

    def __init__(self, **options):
        self.options = options

    def run(self, model, batch):
        x, y = batch
        scores = model(x)
        loss = functional.cross_entropy(scores, y, **self.options)
        return SimpleNamespace(loss=loss, parts={}, scores=scores, target=y)

    def __call__(self, model, batch):
        return self.run(model, batch).loss


class Writer(nn.Module):
    """A classifier with dropout and BatchNorm that writes to a parameter and buffers in eval mode too, in several ways."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3))
        self.bins = nn.Embedding(4, 16, max_norm=0.5)
        self.head = nn.Linear(16, 10)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("average", torch.zeros(16))
        self.register_buffer("last", None)

    def forward(self, x):
        self.calls += 1
        hidden = self.body(x) + self.bins(x[:, 0].abs().long().clamp(0, 3))
        self.average = 0.9 * self.average + 0.1 * hidden.detach().mean(0)
        if not self.training:
            self.last = hidden.detach()
            self.register_buffer("first_seen", hidden.detach()[0])
            self.head.bias.data = self.head.bias.data + 1
        return self.head(hidden)


def batches_of(sizes=(4, 4, 3), classes=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        yield torch.randn(size, 64, generator=generator), torch.randint(classes, (size,), generator=generator)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 10))


def test_the_loss_is_the_mean_over_samples_and_accuracy_counts_all_samples_alike():
    model = net()
    found = evaluate(model, Scored(), batches_of())
    model.eval()
    x, y = (torch.cat(parts) for parts in zip(*batches_of(), strict=True))
    assert found["loss"] == pytest.approx(functional.cross_entropy(model(x), y).item(), rel=1e-6)
    assert found["accuracy"] == (model(x).argmax(1) == y).sum().item() / 11
    assert list(found) == ["loss", "accuracy"]


def test_ignored_targets_and_the_pixels_of_all_pictures_are_counted_exactly():
    scores = torch.tensor([[[3.0, 0.0, 0.0], [0.0, 2.0, 9.0]]])  # (1, 2 classes, 3 pixels)
    target = torch.tensor([[0, 0, -100]])
    found = evaluate(nn.Identity(), Scored(), [(scores, target), (scores[:, :, :2], target[:, :2])])
    assert found["accuracy"] == 0.5
    assert "accuracy" not in evaluate(nn.Identity(), Scored(reduction="sum"), [(scores, torch.full((1, 3), -100))])


class Regression:
    def run(self, model, batch):
        x, y = batch
        return SimpleNamespace(loss=functional.mse_loss(model(x), y), parts={}, scores=model(x), target=y)


def test_there_is_no_accuracy_where_it_has_no_meaning():
    x = torch.randn(4, 3)
    assert list(evaluate(nn.Identity(), Regression(), [(x, torch.randn(4, 3))])) == ["loss"]
    assert list(evaluate(nn.Identity(), Regression(), [(x, torch.zeros(4, 3, dtype=torch.long))])) == ["loss"]
    assert list(evaluate(nn.Identity(), lambda model, batch: model(batch).mean(), [x])) == ["loss"]
    one_score, two_scores = (torch.randn(4, 1), torch.zeros(4, dtype=torch.long)), next(batches_of())
    assert list(evaluate(nn.Identity(), Scored(), [one_score])) == ["loss"]
    assert list(evaluate(nn.Identity(), Scored(), [one_score, (two_scores[0][:, :10], two_scores[1])])) == ["loss"]
    assert not has_classes(torch.randn(4, 2), torch.zeros(4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("big", "small"),
    [
        (torch.ones(3, 2), torch.zeros(1, 2)),
        ({"x": torch.ones(3, 2), "id": torch.tensor(0)}, {"x": torch.zeros(1, 2), "id": torch.tensor(0)}),
        (([torch.ones(2, 2)] * 3, [{"boxes": torch.ones(5, 4)}] * 3), ([torch.zeros(2, 2)], [{"boxes": torch.ones(0, 4)}])),
    ],
)
def test_a_batch_counts_by_its_samples_whatever_its_structure(big, small):
    losses = {id(big): 1.0, id(small): 0.0}
    found = evaluate(nn.Identity(), lambda model, batch: torch.tensor(losses[id(batch)]), [big, small])
    assert found["loss"] == 0.75


def test_the_parts_of_a_loss_that_a_function_returns_are_added():
    assert evaluate(nn.Identity(), lambda *_: {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, [torch.ones(2)])["loss"] == 3


def test_a_loss_that_is_not_finite_is_none():
    assert evaluate(nn.Identity(), lambda *_: torch.tensor(float("nan")), [torch.ones(2)])["loss"] is None


def test_modes_bits_random_states_grad_mode_and_settings_come_back():
    model = Writer()
    model.body[1].eval()  # held in eval mode by its owner
    model.body.train = lambda mode=True: pytest.fail("train() was called")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, modes = {k: v.clone() for k, v in model.state_dict().items()}, [each.training for each in model.modules()]
    tensors = [*model.parameters(), *model.buffers()]
    memory = [tensor.data_ptr() for tensor in tensors]

    def careless(model, batch):
        torch.set_grad_enabled(True)
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        torch.use_deterministic_algorithms(True)
        torch.rand(3), random.random(), numpy.random.rand()
        return functional.cross_entropy(model(batch[0]), batch[1])

    flags, state, notes = torch.backends.cudnn.benchmark, random_state(), []
    evaluate(model, careless, batches_of(), note=lambda text, *, urgent=False: notes.append(text))
    assert torch.is_grad_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert (torch.backends.cudnn.benchmark, random_state()) == (flags, state)
    assert [each.training for each in model.modules()] == modes
    now = [*model.parameters(), *model.buffers()]
    assert all(one is other for one, other in zip(now, tensors, strict=True))
    assert [tensor.data_ptr() for tensor in now] == memory
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.last is None
    assert all(parameter.grad.eq(1).all() for parameter in model.parameters())
    assert notes == [
        "evaluate: in eval mode the model writes calls, average, bins.weight and 3 more; each evaluation puts the old "
        "values back"
    ]


def test_a_model_that_writes_nothing_gets_no_note_and_an_error_puts_everything_back():
    notes = []
    evaluate(net(), Scored(), batches_of(), note=lambda text, *, urgent=False: notes.append(text))
    assert notes == []
    model = Writer()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def fails(model, batch):
        model(batch[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, fails, batches_of())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_two_evaluations_of_a_model_that_draws_in_eval_mode_are_equal():
    def noisy(model, batch):
        return torch.rand(())

    first = evaluate(nn.Identity(), noisy, [1, 2])
    torch.rand(1)
    assert evaluate(nn.Identity(), noisy, [1, 2]) == first != evaluate(nn.Identity(), noisy, [1, 2], seed=1)


class FailsInEval(nn.Linear):
    def forward(self, x):
        if not self.training:
            raise KeyError("no head in eval mode")
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "batches", "message"),
    [
        (
            FailsInEval(64, 10),
            batches_of(),
            "in evaluation, held-out batch 1: test_evaluate.py, line N: KeyError: 'no head in eval mode'",
        ),
        (
            nn.Linear(63, 10),
            batches_of(),
            "in evaluation, held-out batch 1: test_evaluate.py, line N: RuntimeError: mat1 and mat2 shapes "
            "cannot be multiplied (4x64 and 63x10)",
        ),
    ],
)
def test_what_the_model_raises_in_an_evaluation_is_told_in_one_line_with_its_place(model, batches, message):
    with pytest.raises(EvaluationError) as failed:
        evaluate(model, Scored(), batches)
    assert re.sub(r"line \d+", "line N", str(failed.value)) == message


def test_held_out_data_without_a_sample_are_refused():
    with pytest.raises(ConfigError, match=r"^evaluate: the held-out data has no sample; hold out more \(data.holdout, d"):
        evaluate(net(), Scored(), [])


def test_a_model_whose_scores_are_all_nan_has_no_accuracy_and_one_that_has_some_is_wrong_there():
    x, y = torch.ones(4, 3), torch.zeros(4, dtype=torch.long)
    assert evaluate(nn.Identity(), Scored(), [(x * nan, y)])["accuracy"] is None
    some = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, nan, 0], [nan, nan, nan]])
    assert evaluate(nn.Identity(), Scored(), [(some, y)])["accuracy"] == 0.5


def test_a_loss_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match="batch 1, in eval mode: the task returned a Tensor; it must"):
        evaluate(nn.Identity(), lambda model, x: x, [torch.ones(2)])


def test_a_timeout_is_not_reported_as_an_error_of_the_model():
    def late(model, batch):
        raise TimeoutError("the run was not done")

    with pytest.raises(TimeoutError):
        evaluate(nn.Identity(), late, [torch.ones(2)])


def test_with_epoch_each_pass_is_evaluated_once_and_the_last_one_is_that_after_training():
    seen = []
    evaluation = Evaluation(lambda: {"loss": float(len(seen))}, after_each_pass=True)
    evaluation.before()

    @contextmanager
    def paused():
        seen.append("paused")
        yield

    steps = [StepBatches(number // 2, [number], lambda batch: batch) for number in range(6)]
    assert [seen.append(*step) or step for step in evaluation.between_passes(steps, paused)] == steps
    evaluation.after()
    assert seen == [0, 1, "paused", 2, 3, "paused", 4, 5]
    assert evaluation.record == {
        "before": {"loss": 0.0},
        "passes": [{"loss": 3.0}, {"loss": 6.0}, {"loss": 8.0}],
        "after": {"loss": 8.0},
    }


def test_without_held_out_data_nothing_is_evaluated():
    assert run_experiment("method=none").record["evaluation"] == {}


DATA = ("data=digits", "data.batch_size=16", "data.holdout=0.03")


def results(outcome):
    """What a run writes, without the seconds and the evaluation."""
    steps = [line.split(",") for line in steps_csv(outcome).splitlines()]
    cost = {key: value for key, value in outcome.record["cost"].items() if "seconds" not in key}
    record = {**outcome.record, "cost": cost, "evaluation": {}}
    notes = [note for note in outcome.notes if not note.startswith("evaluate:")]
    return outcome.rows, [[*line[:2], *line[3:]] for line in steps], record, notes


REST = ("lbfgs", "rprop", "asgd", "sgd")


def both(*overrides):
    """Return what a run writes without and with evaluation, and the outcome with it."""
    plain = run_experiment(*DATA, *overrides)
    watched = run_experiment(*DATA, *overrides, "evaluate=epoch", "metrics=[F1Score]")
    return results(plain), results(watched), watched


WRITER = ("model.build={_target_: tests.training.test_evaluate.Writer}", "data.epochs=3", "batches=3")
MODELS = {"mlp": ("model=mlp", "data.epochs=3", "batches=3", "freeze=backbone"), "writer": (*WRITER, "freeze=backbone")}


SKIPPED = {("detach", "writer"), ("cached_prefix", "writer")}  # the frozen part of that model is no prefix
QUICK_WITH_WRITER = ("requires_grad", "zero_lr", "restore")


@pytest.mark.parametrize(
    ("method", "model"),
    [
        pytest.param(
            *(method, model), marks=[pytest.mark.long] if model == "writer" and method not in QUICK_WITH_WRITER else []
        )
        for method, model in product(METHODS, MODELS)
        if (method, model) not in SKIPPED
    ],
)
def test_rows_steps_verdicts_looks_costs_and_weights_are_the_same_with_evaluation(method, model):
    buffers = "freeze.buffers=frozen" if method == "cached_prefix" else "freeze.buffers=live"
    plain, watched, outcome = both(f"method={method}", *MODELS[model], "schedule=after", "schedule.step=5", buffers)
    assert watched == plain
    evaluation = outcome.record["evaluation"]
    assert evaluation["after"] == evaluation["passes"][-1] != evaluation["before"]
    assert len(evaluation["passes"]) == 3
    assert [*evaluation["before"]] == ["loss", "accuracy", "f1_score"]


@pytest.mark.parametrize("optimizer", ["adam", *(pytest.param(name, marks=pytest.mark.long) for name in REST)])
def test_causes_of_leaks_are_the_same_with_evaluation(optimizer):
    overrides = (f"optimizer={optimizer}", "clip=1.0", "groups=one", "cost=off", *WRITER)
    plain, watched, _ = both(*overrides, "freeze.patterns=[bins, body, average]", "freeze.buffers=frozen")
    assert watched == plain
    assert "forward_write" in {row["cause"] for row in watched[0]}  # of the training's own forward passes


def test_an_evaluation_does_not_count_as_a_step_that_is_timed():
    cost = run_experiment(*DATA, "cost=time", "evaluate=epoch", "data.epochs=8", "batches=1").record["cost"]
    assert cost["seconds_forward"] is not None  # None where a step has more than one forward pass


@pytest.mark.parametrize("more", [("evaluate=true",), ("evaluate=epoch", "data=digits")], ids=" ".join)
def test_an_evaluation_without_held_out_data_is_refused_before_a_folder_is_made(cli, more):
    code, _, err = cli("model=mlp", *more)
    assert (code, err.count("\n"), Path("outputs").exists()) == (2, 1, False)
    assert "needs held-out data; give data.holdout=0.2" in err


def test_data_of_ones_own_that_take_a_holdout_and_hold_nothing_out_are_refused(cli):
    Path("mine.py").write_text("import torch\ndef data(holdout):\n    return [(torch.zeros(4, 64), torch.arange(4))] * 3\n")
    own = ("data=custom", "data._target_=mine.data", "++data.holdout=0.2", "evaluate=true")
    code, _, err = cli("model=mlp", *own)
    assert (code, err.count("\n")) == (2, 1)
    assert "the data hold no samples out; give 'data.test={_target_: ...}'" in err
