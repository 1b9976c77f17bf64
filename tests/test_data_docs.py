"""The forms of `docs/data.md` in which functions of one's own are given work as they are written there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

MINE = """
import torch


class Pairs(torch.utils.data.Dataset):
    def __init__(self, count=12):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.randn(64, generator=torch.Generator().manual_seed(index)), index % 10


def transform(x):
    return 2 * x


def collate(samples):
    return torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])


def loss(output, target):
    return torch.nn.functional.cross_entropy(output, target, label_smoothing=0.1)


def task(model, batch):
    return {"fit": loss(model(batch[0]), batch[1]), "size": 0.1 * batch[0].square().mean()}
"""
COMMON = ("model=mlp", "data=dataset", "data.dataset._target_=mine.Pairs", "cost=off", "hydra.run.dir=run")
FORMS = {
    "data.transform._target_=mine.transform": (),
    "data.transform=mine.transform": (),
    "data.transform={0: {_target_: mine.transform}}": (),
    "data.test_transform._target_=mine.transform": ("data.holdout=0.5", "evaluate=true"),
    "data.collate._target_=mine.collate": (),
    "data.test={_target_: mine.Pairs, count: 5}": ("evaluate=true",),
    "data.test._target_=mine.Pairs": ("evaluate=true", "++data.test.count=5"),
    "data.holdout=0.5": ("evaluate=epoch", "metrics=[Accuracy]"),
    "task.loss=mine.loss": (),
    "task.loss._target_=torch.nn.CrossEntropyLoss": ("++task.loss.label_smoothing=0.1",),
    "task=custom": ("task._target_=mine.task",),
    "accumulate=2": (),
    "model.dtype=bfloat16": (),
}


def test_every_key_that_is_tried_here_stands_in_the_docs():
    text = (ROOT / "docs" / "data.md").read_text()
    keys = {re.split(r"[=]", form)[0] for form in FORMS} - {"data.test._target_"}
    assert [key for key in keys if key not in text] == []


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_the_docs_is_taken_as_it_is_written(cli, form):
    Path("mine.py").write_text(MINE)
    code, _, err = cli(*COMMON, form, *FORMS[form])
    assert code == 0, err
    record = json.loads(Path("run/run.json").read_text())
    assert record["status"] == "finished"
    assert bool(record["evaluation"]) is any(text.startswith("evaluate=") for text in FORMS[form])


def test_a_transform_and_a_loss_are_used(cli):
    Path("mine.py").write_text(MINE)
    losses = []
    for number, more in enumerate([(), ("data.transform=mine.transform",), ("task.loss=mine.loss",)]):
        assert cli(*COMMON[:-1], *more, f"hydra.run.dir=run{number}")[0] == 0
        losses.append(json.loads(Path(f"run{number}", "run.json").read_text())["loss_first"])
    assert len(set(losses)) == 3


@pytest.mark.parametrize("held_out", ["data.holdout=0.5", "data.test={_target_: mine.Pairs, count: 5}"])
def test_a_transform_of_the_held_out_samples_changes_the_evaluation_and_not_the_training(cli, held_out):
    Path("mine.py").write_text(MINE)
    records = []
    for number, more in enumerate([(), ("data.test_transform=mine.transform",)]):
        assert cli(*COMMON[:-1], held_out, "evaluate=true", *more, f"hydra.run.dir=run{number}")[0] == 0
        records.append(json.loads(Path(f"run{number}", "run.json").read_text()))
    assert records[0]["trained_digest"] == records[1]["trained_digest"]
    assert records[0]["evaluation"]["before"]["loss"] != records[1]["evaluation"]["before"]["loss"]
