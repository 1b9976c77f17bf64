"""How well settings learned: in how many runs the loss rose, and whether any run is better than guessing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from runner.display.units import digits_text
from runner.report.compare.run_set import RunSet
from runner.report.compare.settings import Setting
from runner.runs.headline import loss_rose

TASK = "runner.training.tasks.task.BatchTask"
WITHOUT_OWN_LOSS = re.compile(r"(runner\.training|torchvision)\.models\.\w+")  # models that return scores and never a loss
ROSE = "↑"
PLAIN_TASK = {"task._target_": TASK, "task.shift": "false", "task.outputs": "null"}
FULL_PRECISION = {"autocast": "false", "model.dtype": "null"}


def rose_text(setting: Setting) -> str:
    """Return in how many finished runs of a setting the training loss rose, such as `loss rose in 2 of 3`; "" if in none."""
    rose, total = rose_in(setting), len(setting.finished)
    return "" if not rose else "loss rose" if total == 1 else f"loss rose in {rose} of {total}"


def rose_in(setting: Setting) -> int:
    """Return in how many finished runs of a setting the training loss rose."""
    return sum(loss_rose(run.record) for run in setting.finished)


def chance_text(run_set: RunSet) -> str:
    """Return a sentence that says that no setting is better than guessing among the classes; "" unless that is certain.

    Guessing has an accuracy of 1 / classes, and equal scores for all classes a cross entropy of ln(classes), whatever the
    data. Compared is the accuracy on held-out data of each run, or else the training losses of its last quarter of steps.
    """
    values = [value for each in run_set.settings for value in (each.accuracies if run_set.has_accuracies else each.losses)]
    found = {classes_of(run.config) for run in run_set.runs if run.finished}
    classes = found.pop() if len(found) == 1 else None
    if not values or classes is None:
        return ""
    if run_set.has_accuracies:
        guessing = digits_text(1 / classes)
        worse = max(values) <= 1 / classes
        return f"No run is better than guessing among {classes} classes: an accuracy of {guessing}." if worse else ""
    late = [loss for run in run_set.runs if run.finished for loss in run.losses[-max(1, len(run.losses) // 4) :]]
    if min(late or values) < math.log(classes) or not all(
        is_cross_entropy(run.config) for run in run_set.runs if run.finished
    ):
        return ""
    guessing = f"ln({classes}) = {digits_text(math.log(classes))}"
    return f"No loss of the last quarter of the steps is below that of guessing among {classes} classes: {guessing}."


def classes_of(config: Mapping[str, str]) -> int | None:
    """Return the number of classes of a run's model: `model.classes`, if the model was built with it alone; else None."""
    used = any(key.startswith("model.build.") and value == "${model.classes}" for key, value in config.items())
    used = used and not any(key.startswith("model.then.") for key in config)  # what would change the model after that
    text = config.get("model.classes", "")
    return int(text) if used and text.isdecimal() and int(text) > 1 else None


def is_cross_entropy(config: Mapping[str, str]) -> bool:
    """Return whether it is certain that a run's loss is the plain cross entropy of one output, in full precision."""
    if any(config.get(key) != value for key, value in (PLAIN_TASK | FULL_PRECISION).items()):
        return False
    loss, model = config.get("task.loss"), config.get("model.build._target_", "")
    return loss == "cross_entropy" or (loss == "auto" and bool(WITHOUT_OWN_LOSS.fullmatch(model)))
