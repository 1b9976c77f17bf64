"""How well settings learned: a loss that rose is counted, and that none beats guessing is said only where it is certain."""

from __future__ import annotations

import math

import pytest

from runner.report.answer.learning import chance_text, classes_of, is_cross_entropy, rose_text
from tests.report.page.reports import SWEEP, read_sweep
from tests.run_folders import write_run

CONFIG = """
model: {build: {_target_: runner.training.models.MLP, classes: '${model.classes}'}, classes: 10, dtype: null, then: []}
task: {_target_: runner.training.tasks.task.BatchTask, loss: auto, outputs: null, shift: false}
autocast: false
"""
GUESSING = math.log(10)


def write(number: int, loss: float = 3.0, accuracy: float | None = None, config: str = CONFIG) -> None:
    """Write a run of its own setting, which ends with this loss and accuracy."""
    evaluation = {} if accuracy is None else {"after": {"accuracy": accuracy}}
    folder = write_run(SWEEP, "zero_lr", f"optimizer.lr={number}", losses=(2.5, loss), evaluation=evaluation)
    (folder / ".hydra" / "config.yaml").write_text(f"optimizer: {{lr: {number}}}\n{config}")


def test_in_how_many_runs_of_a_setting_the_loss_rose():
    for seed, losses in enumerate(((2.0, 3.0), (2.0, 1.0), (2.0, 2.5))):
        write_run(SWEEP, "zero_lr", f"seed={seed}", losses=losses)
    write_run(SWEEP, "restore", losses=(2.0, 2.1))
    write_run(SWEEP, "exclude", losses=(2.0, 2.0))
    write_run(SWEEP, "detach", losses=(2.0, 3.0), loss_not_finite_at=1)
    found = {setting.method: rose_text(setting) for setting in read_sweep().settings}
    assert found == {"zero_lr": "loss rose in 2 of 3", "restore": "loss rose", "exclude": "", "detach": ""}


@pytest.mark.parametrize(("least", "is_said"), [(GUESSING, True), (math.nextafter(GUESSING, 0), False)])
def test_no_loss_below_that_of_equal_scores_is_said_exactly(least, is_said):
    write(1, 9.0)
    write(2, least)
    assert chance_text(read_sweep()) == (
        "No loss of the last quarter of the steps is below that of guessing among 10 classes: ln(10) = 2.303."
        if is_said
        else ""
    )


@pytest.mark.parametrize(("most", "is_said"), [(0.1, True), (math.nextafter(0.1, 1), False)])
def test_no_accuracy_above_that_of_guessing_is_said_exactly_and_the_loss_says_nothing_then(most, is_said):
    write(1, 9.0, accuracy=0.02)
    write(2, 9.0, accuracy=most)
    assert chance_text(read_sweep()) == (
        "No run is better than guessing among 10 classes: an accuracy of 0.1." if is_said else ""
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("loss: auto", "loss: mse_loss"),
        ("loss: auto", "loss: {_target_: torch.nn.CrossEntropyLoss}"),
        ("runner.training.models.MLP", "mine.Net"),
        ("runner.training.models.MLP", "torchvision.models.detection.fasterrcnn_resnet50_fpn"),
        ("outputs: null", "outputs: {out: 0.5}"),
        ("shift: false", "shift: true"),
        ("tasks.task.BatchTask", "other.Task"),
        ("autocast: false", "autocast: true"),
        ("dtype: null", "dtype: bfloat16"),
        ("'${model.classes}'", "1000"),
        ("classes: 10", "classes: null"),
        ("then: []", "then: [{_target_: mine.change}]"),
        (CONFIG, "{["),
    ],
)
def test_nothing_is_said_of_a_loss_that_may_be_another_or_of_classes_that_the_model_may_not_have(old, new):
    write(1, 9.0)
    write(2, 9.0, config=CONFIG.replace(old, new))
    assert chance_text(read_sweep()) == ""


def test_the_loss_of_a_named_cross_entropy_is_known_for_any_model():
    write(
        1, 9.0, config=CONFIG.replace("loss: auto", "loss: cross_entropy").replace("runner.training.models.MLP", "mine.Net")
    )
    (run,) = read_sweep().runs
    assert is_cross_entropy(run.config)
    assert classes_of(run.config) == 10


def test_an_accuracy_is_compared_whatever_the_loss():
    for number in (1, 2):
        write(number, accuracy=0.05, config=CONFIG.replace("loss: auto", "loss: model"))
    assert "an accuracy of 0.1" in chance_text(read_sweep())


def test_without_a_value_nothing_is_said():
    write_run(SWEEP, "zero_lr", status="failed", rows=(), losses=(), verdict=None)
    write_run(SWEEP, "restore", status="failed", rows=(), losses=(), verdict=None)
    assert chance_text(read_sweep()) == ""
