"""Every config key with its half line: what `--help` and `docs/config.md` say about it. Does not import torch."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from runner.config import schema
from runner.config.schema import Config

# Keys that only some files of a config group have, and the groups whose files set keys of other groups.
OPTIONS = {
    "model.name": "Which model of the library, or a folder.",
    "model.weights": "The library's weights, or a file; null: random.",
    "model.auto": "Auto class of transformers.",
    "model.config": "Builds it from a config: {model_type: gpt2}.",
    "method.clean": "If true, drops gradients and optimizer state.",
    "method.guard": "If true, sets rate and decay to 0 each step.",
    "method.memory_mb": "MiB of stored outputs that stay in memory.",
    "method.folder": "Where the other stored outputs go.",
    "optimizer.lr": "Learning rate.",
    "optimizer.momentum": "Momentum.",
    "optimizer.weight_decay": "Weight decay.",
    "schedule.step": "Freezes from this step on.",
    "schedule.every": "Steps of a phase: 100, 2 passes, 25%; null: even.",
    "schedule.blocks": "What is frozen one by one: auto, or patterns.",
    "schedule.state": "Optimizer state on freezing: keep or drop.",
    "schedule.rate_decay": "Divides the rate of each further block.",
    "schedule.reverse": "If true, freezes from the input up.",
    "schedule.factor": "Factor on the rate of the second phase.",
    "schedule.how": "How long blocks train: linear or cubic.",
    "schedule.t0": "Share of the run that the first block trains.",
    "schedule.scaled": "If true, blocks that freeze early learn faster.",
    "schedule.at_once": "How many blocks train at a time.",
    "schedule.by": "Order: cyclic, random or gradient_norm.",
    "schedule.phases": "Items such as {at: 100, thaw: [layer4]}.",
    "schedule.window": "Steps between decisions; null: 10% of the run.",
    "schedule.threshold": "Freezes what moves less than this share.",
    "schedule.stall": "Thaws if the loss falls by less than this share.",
    "task.call": "What the model gets: auto, first, args, kwargs.",
    "task.fields": "Which field of a batch is which argument.",
    "task.target": "Which field of a batch is the target.",
    "task.loss": "Loss: auto, model, a name, or your function.",
    "task.outputs": "Weights of several outputs: {out: 1, aux: 0.4}.",
    "task.shift": "If true, the target is the next token.",
    "data.dataset": "Your dataset: a `_target_` and its arguments.",
    "data.name": "Which dataset of torchvision.",
    "data.root": "Folder of the data.",
    "data.options": "More arguments of the dataset: {train: false}.",
    "data.split": "Which split of the dataset.",
    "data.batch_size": "Samples in a batch.",
    "data.epochs": "Passes over the data.",
    "data.workers": "Processes that read samples.",
    "data.shuffle": "If true, a new order in each pass.",
    "data.drop_last": "If true, leaves out a last, smaller batch.",
    "data.holdout": "Share of the samples that is held out: 0.2.",
    "data.test": "A dataset that is held out instead.",
    "data.transform": "Your function for a picture, or weights.",
    "data.test_transform": "The one of held-out samples, if another.",
    "data.collate": "Your function from samples to a batch.",
    "data.fields": "Shapes and ranges of synthetic samples.",
    "data.count": "Boxes in a picture.",
    "data.masks": "If true, adds a mask for each box.",
    "data.keypoints": "Points in each box.",
    "experiment": "A recipe that sets several of these.",
}


def known_keys() -> list[str]:
    """Return every key of the schema in dotted form, such as `seed` and `freeze.keep`.

    A node with a `_target_` counts as one key, because the keys in it depend on its target.
    """
    return list(_of_schema())


@cache
def sentences() -> dict[str, str]:
    """Return {dotted key: its half line}: for every key of the schema, then for those in OPTIONS."""
    return {**_of_schema(), **OPTIONS}


@cache
def _of_schema() -> dict[str, str]:
    """Return {dotted key: the first line of the docstring beneath it} for every key of the schema; "" where it has none."""
    docstrings = docstrings_of_fields(inspect.getsource(schema))

    def keys_of(node: type, prefix: str) -> dict[str, str]:
        found = {}
        for each in fields(node):
            found[prefix + each.name] = docstrings[node.__name__].get(each.name, "")
            if isinstance(each.default_factory, type) and is_dataclass(each.default_factory):
                found |= keys_of(each.default_factory, f"{prefix}{each.name}.")
        return found

    return keys_of(Config, "")


def docstrings_of_fields(source: str) -> dict[str, dict[str, str]]:
    """Return {class: {field: the first line of the docstring beneath it}} of a module's source."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = {}
            for member, following in zip(node.body, node.body[1:], strict=False):
                if isinstance(member, ast.AnnAssign) and isinstance(following, ast.Expr):
                    text = ast.literal_eval(following.value)
                    found[node.name][ast.unparse(member.target)] = text.splitlines()[0]
    return found


def is_passed_on(key: str, value: Any) -> bool:
    """Return whether the value of a key only passes another one of the same name on, as `input: ${model.input}` does."""
    return str(value).endswith((f".{key}}}", f".{key}:}}"))
