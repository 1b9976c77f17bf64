"""Fine-tuning a small net on 50 digits: what trains when, at a learning rate that is chosen for each arm.

An arm is a way to train: which layers, and when. Each is run with every rate and seed. Its rate is the one with the highest
mean accuracy on pictures that are kept for this choice; its accuracy is that on other pictures, which nothing is chosen by.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from benchmarks.known_results.digit_batches import part_of_digits
from benchmarks.known_results.runs import finished_run
from benchmarks.results import Row
from runner.kept_state import in_eval_mode

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
UNTUNED = 1e-3  # the default of torch.optim.AdamW
BATCH_SIZE, PASSES = 10, 40
ONLY = "freeze.keep=[]"
ALL = ("freeze=none",)
LP_FT, GRADUAL = ("freeze=backbone", "schedule=linear_probe_then_finetune"), ("freeze=backbone", "schedule=gradual")
TASKS: dict[str, dict[str, tuple[str, ...]]] = {  # {task: {arm: its overrides}}
    "new": {
        "everything": ALL,
        "LP-FT, one rate": (*LP_FT, "schedule.factor=1"),
        "LP-FT, then a tenth": (*LP_FT, "schedule.factor=0.1"),
        "gradual, one rate": (*GRADUAL, "schedule.rate_decay=1"),
        "gradual, slower below": (*GRADUAL, "schedule.rate_decay=2.6"),
        "head alone": ("freeze=backbone",),
    },
    "labels": {
        "middle layer alone": ("freeze=backbone", "freeze.patterns=[first,last]", ONLY),
        "last layer alone": ("freeze=backbone",),
        "everything": ALL,
    },
    "inputs": {"first layer alone": ("freeze=backbone", "freeze.patterns=[middle,last]", ONLY), "everything": ALL},
}
SEEDS = {"new": range(8), "labels": range(5), "inputs": range(5)}
MODEL = "benchmarks.known_results.models.ThreeLayers"
DATA = "benchmarks.known_results.digit_batches.DigitBatches"


def measure() -> list[Row]:
    """Return a row for each task, arm, seed and rate: the accuracy that the choice is made by, and that of the test."""
    return [
        row
        for task, arms in TASKS.items()
        for seed in SEEDS[task]
        for row in runs_of_seed(task, seed, dict.fromkeys(arms, RATES))
    ]


def runs_of_seed(task: str, seed: int, rates: Mapping[str, Iterable[float]]) -> Iterator[Row]:
    """Pretrain a net, and yield a row for each fine-tuning of it; `rates`: {arm: the rates with which it is run}."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "pretrained.pt")
        torch.save(pretrained(task, seed).state_dict(), checkpoint)
        for arm, rates_of_arm in rates.items():
            for rate in rates_of_arm:
                measured = fine_tuned(task, seed, f"model.checkpoint='{checkpoint}'", rate, TASKS[task][arm])
                yield {"task": task, "arm": arm, "seed": seed, "rate": rate, **measured}


def pretrained(task: str, seed: int) -> nn.Module:
    """Return the net that was trained on the pictures before the change, all layers of it."""
    classes = 5 if task == "new" else 10  # another number of classes, so that the head of the new ones is new
    settings = [*_net(classes), *_data(task, "pretrain", seed, batch_size=50), "data.epochs=20", f"optimizer.lr={UNTUNED}"]
    model = finished_run(*settings, *ALL).model
    assert model is not None
    return model


def fine_tuned(task: str, seed: int, checkpoint: str, rate: float, arm: Sequence[str]) -> Row:
    """Return the accuracies of a net that was fine-tuned on 50 pictures: `chosen_by`, and `test` on other pictures."""
    held_out = f"data.test={{_target_: {DATA}, task: {task}, part: choose, seed: {seed}}}"
    data = (*_data(task, "train", seed, BATCH_SIZE), f"data.epochs={PASSES}", held_out, "evaluate=true")
    result = finished_run(*_net(10), checkpoint, *data, f"optimizer.lr={rate}", *arm)
    assert result.model is not None
    chosen_by = result.record["evaluation"]["after"]["accuracy"]
    return {"chosen_by": chosen_by, "test": accuracy(result.model, *part_of_digits(task, "test", seed))}


def _net(classes: int) -> list[str]:
    """Return the overrides for the net and its optimizer."""
    build = ["model=custom", f"model.build._target_={MODEL}", "++model.build.features=[64]", "model.head=last"]
    return [*build, f"++model.build.classes={classes}", f"model.classes={classes}", "optimizer=adamw"]


def _data(task: str, part: str, seed: int, batch_size: int) -> list[str]:
    """Return the overrides for the data; the seed is also that of the run."""
    keys = {"task": task, "part": part, "seed": seed, "batch_size": batch_size}
    return [
        "data=custom",
        f"data._target_={DATA}",
        *(f"++data.{key}={value}" for key, value in keys.items()),
        f"seed={seed}",
    ]


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the share of the pictures whose class has the highest score."""
    with in_eval_mode(model), torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def rows_of(rows: Iterable[Row], task: str, arm: str) -> list[Row]:
    """Return the rows of an arm of a task."""
    return [row for row in rows if (row["task"], row["arm"]) == (task, arm)]


def chosen_rate(rows: Iterable[Row], task: str, arm: str) -> float:
    """Return the rate with the highest mean accuracy, over the seeds, on the pictures that are kept for this choice."""
    means: dict[float, Any] = {}
    for row in rows_of(rows, task, arm):
        means.setdefault(row["rate"], []).append(row["chosen_by"])
    return max(means, key=lambda rate: mean(means[rate]))


def accuracies(rows: Iterable[Row], task: str, arm: str, rate: float) -> list[float]:
    """Return the accuracy of the test for each seed, at this rate."""
    return [row["test"] for row in rows_of(rows, task, arm) if row["rate"] == rate]
