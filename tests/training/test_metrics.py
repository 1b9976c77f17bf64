"""Metrics of torchmetrics in an evaluation: their arguments, their values, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torchmetrics
from torch import nn

from runner.config.checks.metrics import metric_factories
from runner.errors import ConfigError
from runner.training.evaluate import evaluate


class Given:
    """A task that gives the parts of its batch as scores and targets."""

    def run(self, model, batch):
        return SimpleNamespace(loss=torch.tensor(0.0), parts={}, scores=batch[0], target=batch[1])


def measured(metrics, *batches, notes=None):
    """Return the values of the metrics over batches of (scores, target)."""
    note = (lambda text, *, urgent=False: notes.append(text)) if notes is not None else (lambda text, *, urgent=False: None)
    values = evaluate(nn.Identity(), Given(), batches, metric_factories(metrics), note=note)
    return {key: value for key, value in values.items() if key not in ("loss", "accuracy")}


def classified(*shape, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count, *positions = shape
    scores = torch.randn(count, classes, *positions, generator=generator)
    return scores, torch.randint(classes, shape, generator=generator)


def test_the_arguments_that_the_scores_tell_are_filled_in_and_all_batches_count():
    one, other = classified(6), classified(3, seed=1)
    expected = torchmetrics.F1Score(task="multiclass", num_classes=5)
    expected.update(*one), expected.update(*other)
    classwise = torchmetrics.classification.MulticlassF1Score(num_classes=5)
    classwise.update(*one), classwise.update(*other)
    found = measured(["F1Score", "MulticlassF1Score"], one, other)
    assert found == {"f1_score": expected.compute().item(), "multiclass_f1_score": classwise.compute().item()}


def test_pixels_with_an_ignored_target_do_not_count():
    scores, target = classified(2, 4, 4)
    target[:, :2] = -100
    expected = torchmetrics.Recall(task="multiclass", num_classes=5)
    expected.update(scores[:, :, 2:], target[:, 2:])
    assert measured(["Recall"], (scores, target)) == {"recall": expected.compute().item()}


def test_a_metric_of_numbers_needs_no_argument_and_half_precision_is_measured_in_float32():
    scores, target = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.5], [1.0]])
    assert measured(["MeanSquaredError"], (scores, target)) == {"mean_squared_error": 0.625}
    assert measured(["MeanSquaredError"], (scores.bfloat16(), target)) == {"mean_squared_error": 0.625}


class Biggest:
    """The largest score that was seen, times `factor`."""

    def __init__(self, factor=1):
        self.factor, self.value = factor, 0.0

    def update(self, scores, target):
        self.value = max(self.value, float(scores.max()) * self.factor)

    def compute(self):
        return self.value


def test_a_node_is_built_as_it_is_anew_for_each_evaluation_and_any_class_with_update_and_compute_will_do():
    batch = torch.tensor([[0.0, 3.0]]), torch.tensor([1])
    node = {"_target_": "tests.training.test_metrics.Biggest", "factor": 2}
    metrics = ["tests.training.test_metrics.Biggest", node]
    for _ in range(2):
        assert measured(metrics, batch) == {"biggest": 3.0, "biggest_2": 6.0}
    macro = {"_target_": "torchmetrics.F1Score", "task": "multiclass", "num_classes": 5, "average": "macro"}
    found = measured(["Accuracy", "F1Score", macro], classified(9))
    assert list(found) == ["accuracy_2", "f1_score", "f1_score_2"]
    assert found["f1_score"] != found["f1_score_2"]


@pytest.mark.parametrize(
    ("name", "key"),
    [("F1Score", "f1_score"), ("BinaryAUROC", "binary_auroc"), ("KLDivergence", "kl_divergence"), ("R2Score", "r2_score")],
)
def test_the_key_of_a_metric_is_its_name_in_snake_case(name, key):
    assert list(metric_factories([name])) == [key]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("F1score", "metrics[0]: torchmetrics has no metric F1score; did you mean F1Score"),
        ("no_such_module.Metric", "metrics[0]: 'no_such_module.Metric' does not exist; there is no module 'no_such_module'"),
        ({"_target_": "torchmetrics.F1Scor"}, "metrics[0]._target_: 'torchmetrics.F1Scor' does not exist"),
        (3, "metrics[0] is 3; give the name of a metric of torchmetrics, such as F1Score, or a node with a _target_"),
        ({"task": "binary"}, "metrics[0] is {'task': 'binary'}; give the name of a metric"),
        ("", "metrics[0] is ''; give the name of a metric"),
    ],
)
def test_a_metric_that_does_not_exist_is_refused_with_the_nearest_names(metric, message):
    with pytest.raises(ConfigError) as refused:
        metric_factories([metric])
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("metric", "batch", "message"),
    [
        (
            "MeanSquaredError",
            classified(8, classes=10),
            "metrics: MeanSquaredError does not fit scores of shape (8, 10) and targets of shape (8,): RuntimeError: "
            "Predictions and targets are expected to have the same shape",
        ),
        (
            "F1Score",
            (torch.rand(8), torch.ones(8)),
            "metrics: F1Score cannot be built for scores of shape (8,) and targets of shape (8,): TypeError: ",
        ),
        ("ConfusionMatrix", classified(8), "metrics: ConfusionMatrix gives 25 values; give a metric with one"),
        (
            {"_target_": "torchmetrics.F1Score", "task": "multiclass"},
            classified(8),
            "metrics[0]: torchmetrics.F1Score refused its arguments: `num_classes` is expected to be `int`",
        ),
        (
            {"_target_": "torch.nn.ReLU"},
            classified(8),
            "metrics: ReLU cannot be built for scores of shape (8, 5) and targets of shape (8,): TypeError: a ReLU has no "
            "methods update(scores, target) and compute()",
        ),
        (
            "F1Score",
            (None, None),
            "metrics: F1Score needs scores and targets, and this task gives a loss alone; give another task, or metrics=[]",
        ),
    ],
)
def test_a_metric_that_does_not_fit_is_refused_in_one_line_that_names_it_and_the_shapes(metric, batch, message):
    with pytest.raises(ConfigError) as refused:
        measured([metric], batch)
    assert str(refused.value).startswith(message)
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


class Late(Biggest):
    """A metric during which the timeout of the run ends."""

    def compute(self):
        raise TimeoutError("the run was not done")


def test_a_timeout_is_not_reported_as_an_error_of_a_metric():
    with pytest.raises(TimeoutError):
        measured(["tests.training.test_metrics.Late"], classified(4))


def test_a_warning_of_a_metric_is_a_note():
    notes = []
    measured(["AUROC"], (torch.randn(4, 3), torch.zeros(4, dtype=torch.long)), notes=notes)
    assert notes
    assert all(note.startswith("metrics: AUROC: ") for note in notes)
