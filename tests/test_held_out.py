"""Runs that are evaluated on held-out data, from the command to the page; the training does not notice it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from runner.errors import SkippedError
from runner.methods.base import FreezingMethod
from runner.training.evaluate import EvaluationError
from runner.training.tasks.task import BatchTask
from tests.conftest import read_table
from tests.in_memory import run_experiment
from tests.training.data.test_workers import children
from tests.training.test_evaluate import results

DATA = ("model=mlp", "data=digits", "data.batch_size=8", "data.holdout=0.05", "data.epochs=3", "freeze=backbone")


def both(*overrides):
    """Return what a run writes without and with evaluation, and the outcome with it."""
    plain = run_experiment(*DATA, *overrides)
    watched = run_experiment(*DATA, *overrides, "evaluate=epoch")
    return results(plain), results(watched), watched


class TakesOneBatchAtATime(FreezingMethod):
    """From when it gives a batch until the next one is requested, the model takes that batch alone."""

    def feed(self, batches, context):
        for batch in batches:
            self.expected = batch[0]
            yield batch
            self.expected = None

    def prepare(self, model, selection, undo):
        self.expected = None

        def refuse(module, args):
            assert self.expected is None or args[0] is self.expected

        undo.callback(model.register_forward_pre_hook(refuse).remove)
        return model


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=cached_prefix", "freeze.buffers=frozen", "batches=3"),
        ("method=detach", "freeze.buffers=frozen", "batches=3"),
        ("method={_target_: tests.test_held_out.TakesOneBatchAtATime}", "batches=3", "cost=off"),
        ("method=requires_grad", "batches=5", "accumulate=2"),
        ("method=zero_lr", "batches=4", "scheduler=one_cycle", "optimizer=adam"),
        ("method=requires_grad", "batches=3", "autocast=true"),
    ],
)
def test_a_run_writes_the_same_with_evaluation_whatever_its_method_does_between_two_batches(overrides):
    plain, watched, outcome = both(*overrides)
    assert watched == plain
    assert len(outcome.record["evaluation"]["passes"]) == 3


def random_batches():
    """Return four batches that are drawn when this is called."""
    return [(torch.randn(4, 64), torch.randint(10, (4,))) for _ in range(4)]


def test_held_out_data_that_draws_random_numbers_when_it_is_opened_changes_no_bit_of_the_training():
    batches = "_target_: tests.test_held_out.random_batches"
    data = f"data={{{batches}, epochs: 3, test: {{{batches}}}}}"
    model = "model.build={_target_: tests.training.test_evaluate.Writer}"
    plain, watched = (run_experiment(data, model, "freeze=backbone", f"evaluate={each}") for each in ("false", "epoch"))
    assert results(watched) == results(plain)


SHARED = torch.Generator()


def shuffled(seed=None):
    """Return a DataLoader that draws its order from SHARED; with a seed, from where that begins."""
    if seed is not None:
        SHARED.manual_seed(seed)
    samples = [(torch.full((64,), float(index)), index % 10) for index in range(12)]
    return DataLoader(samples, 4, shuffle=True, generator=SHARED)


def test_a_generator_that_the_loaders_of_training_and_test_share_is_left_as_it_was_by_an_evaluation():
    target = "_target_: tests.test_held_out.shuffled"
    data = f"data={{{target}, seed: 1, epochs: 3, test: {{{target}}}}}"
    model = "model.build={_target_: tests.training.test_evaluate.Writer}"
    plain, watched = (run_experiment(data, model, "freeze=backbone", f"evaluate={each}") for each in ("false", "epoch"))
    assert results(watched) == results(plain)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the processes of Linux")
def test_the_workers_of_held_out_data_end_when_an_evaluation_raises():
    before = children()
    build = "model.build={_target_: tests.test_held_out.TrainsOnly}"
    with pytest.raises(EvaluationError) as failed:
        run_experiment(build, *DATA[1:5], "freeze=none", "evaluate=true", "data.workers=2")
    assert children() == before, failed  # which still refers to the frames that read the batches


def test_in_cached_prefix_an_evaluation_is_that_of_the_whole_model():
    evaluations = []
    for method in ("cached_prefix", "requires_grad"):
        outcome = run_experiment(*DATA, f"method={method}", "freeze.buffers=frozen", "batches=4", "evaluate=epoch")
        evaluations.append(outcome.record["evaluation"])
    assert evaluations[0] == evaluations[1]


class InterruptedInEvalMode(BatchTask):
    """Is interrupted when it is called in eval mode for the second evaluation."""

    calls = 0

    def run(self, model, batch):
        if not model.training:
            type(self).calls += 1
            if self.calls > 12:  # the batches of one evaluation
                raise KeyboardInterrupt
        return super().run(model, batch)


def test_an_interrupted_evaluation_after_the_training_loses_nothing_of_the_training():
    task = "task={_target_: tests.test_held_out.InterruptedInEvalMode}"
    outcome = run_experiment(*DATA, task, "batches=3", "evaluate=true", "cost=off")
    assert (outcome.interrupted, len(outcome.steps), len(outcome.rows) > 0) == (True, 9, True)
    assert list(outcome.record["evaluation"]) == ["before"]


class TrainsOnly(nn.Linear):
    """A classifier of 64 numbers that fails in eval mode."""

    def __init__(self):
        super().__init__(64, 10)

    def forward(self, x):
        assert self.training, "no forward pass in eval mode"
        return super().forward(x.flatten(1))


@pytest.mark.long
def test_a_model_that_fails_in_eval_mode_ends_with_1_and_one_line_that_says_where(cli):
    build = "model.build._target_=tests.test_held_out.TrainsOnly"
    given = ("model=custom", build, "model.input=[64]", "model.classes=10", *DATA[1:5], "freeze=none", "evaluate=true")
    code, _, err = cli(*given)
    assert (code, err.count("\n")) == (1, 1)
    assert "EvaluationError: in evaluation, held-out batch 1: test_held_out.py, line " in err
    assert "AssertionError: no forward pass in eval mode" in err


def test_a_metric_that_does_not_fit_ends_with_2_and_one_line(cli):
    code, _, err = cli(*DATA, "batches=2", "evaluate=true", "metrics=[MeanSquaredError]")
    assert (code, err.count("\n")) == (2, 1)
    assert "metrics: MeanSquaredError does not fit scores of shape (8, 10) and targets of shape (8,)" in err


def test_a_run_says_how_well_it_learned_in_the_terminal_in_its_record_and_on_its_page(cli):
    code, out, err = cli(*DATA, "data.epochs=1", "evaluate=true", "metrics=[F1Score]", "hydra.run.dir=it")
    assert (code, err) == (0, "")
    evaluation = json.loads(Path("it/run.json").read_text())["evaluation"]
    assert list(evaluation) == ["before", "after"]
    assert list(evaluation["after"]) == ["loss", "accuracy", "f1_score"]
    before, after = (evaluation[key]["accuracy"] for key in ("before", "after"))
    assert f"; held-out: accuracy {before:.4g} -> {after:.4g}, loss " in out
    assert f"accuracy {before:.4g} -&gt; {after:.4g}, loss " in Path("it/report.html").read_text()


@pytest.mark.long
def test_a_sweep_ranks_frozen_sets_by_accuracy_over_seeds_in_the_terminal_and_on_its_page(cli):
    given = (*DATA[:4], "data.epochs=1", "optimizer.lr=0.1", "evaluate=true", "seed=0,1", "freeze=head,all")
    code, out, _ = cli("-m", *given, "hydra.sweep.dir=sweep")
    assert code == 0
    lines = out.splitlines()
    heading = next(number for number, line in enumerate(lines) if line.startswith("method") and "accuracy" in line)
    first, second = lines[heading + 1 : heading + 3]
    assert (" head " in first, " all " in second) == (True, True)
    assert "±" in first
    rows = read_table(Path("sweep/comparison.csv"))
    accuracies = {(row["freeze"], row["seed"]): float(row["test_accuracy"]) for row in rows}
    assert min(accuracies["head", seed] for seed in "01") > max(accuracies["all", seed] for seed in "01")
    page = Path("sweep/report.html").read_text()
    assert "<h1>requires_grad held</h1>" in page  # what freezes everything is nothing to choose
    assert "all frozen" in page
    assert "Accuracy on held-out data of 2 settings, the best first" in page


def test_skipping_is_not_hidden_by_an_evaluation():
    with pytest.raises(SkippedError):
        run_experiment(*DATA, "method=cached_prefix", "batches=3", "evaluate=true")
