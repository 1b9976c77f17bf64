"""Every file in conf/data gives batches and trains a fitting model for two steps; a new file is found without a change."""

from __future__ import annotations

from contextlib import ExitStack
from math import isfinite

import pytest
import torch
from datasets import Dataset
from PIL import Image

from runner.assemble.feeding import open_feed
from runner.config.check import check
from runner.config.compose import compose_config
from runner.config.schema import CONF
from runner.contract import ignore_note
from runner.experiment import experiment
from runner.tensors import leaves_in, same_bits, tensors_in
from tests.training.data.examples import HERE

FILES = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
PICTURES = ["model.input=[3,8,8]", "model.classes=3"]
# What a file needs besides `data=FILE`; a file that is not here needs nothing.
NEEDS = {
    "custom": [f"data._target_={HERE}.batches"],
    "dataset": [f"data.dataset._target_={HERE}.Numbers"],
    "image_folder": ["data.root=pictures", *PICTURES],
    "torchvision": ["data.name=ImageFolder", "data.root=pictures", *PICTURES],
    "huggingface": ["data.root=saved", *PICTURES],
    "pictures": PICTURES,
    "masks": ["model.input=[3,64,64]", "model.classes=3"],
    "boxes": ["model.input=[3,64,64]", "model.classes=3"],
    "video": ["model.input=[3,8,112,112]", "model.classes=3"],
}
BUILD = "model.build._target_="
# The model that a file's batches are for, where that is not the MLP, and the task where it is not `auto`.
FITTING = {
    "tokens": ["model=custom", f"{BUILD}{HERE}.TokenModel", "task=causal_lm", "freeze=none"],
    "huggingface": ["model=custom", f"{BUILD}{HERE}.TokenModel", "task.fields={ids: input_ids}", "task.loss=cross_entropy"],
    "masks": ["model=custom", f"{BUILD}{HERE}.segmenter", "task=segmentation", "freeze=none"],
    "boxes": ["model=custom", f"{BUILD}{HERE}.detector", "task=detection", "freeze=none"],
    "video": ["model=custom", f"{BUILD}{HERE}.video_net", "freeze=none"],
}


@pytest.fixture(autouse=True)
def _data(tmp_path):
    """Write a folder of pictures, and one that the library `datasets` saved."""
    for name in ("a", "b", "c"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (9, 7), (number, 0, 0)).save(tmp_path / "pictures" / name / f"{number}.png")
    columns = {"ids": [[1, 2, index] for index in range(12)], "label": [index % 3 for index in range(12)]}
    Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")


def config_of(data, *overrides):
    """Return the checked config of a run with `data=FILE`."""
    return check(compose_config("model=mlp", f"data={data}", *NEEDS.get(data, []), "batches=2", *overrides))


@pytest.mark.parametrize("data", FILES)
def test_every_file_gives_tensors_on_the_device_that_are_the_same_each_time(data):
    def batches():
        with ExitStack() as undo:
            feed = open_feed(config_of(data), torch.device("cpu"), ignore_note, undo)
            return [batch for step in feed.steps for batch in step]

    one, again = batches(), batches()
    assert len(one) == 2
    assert all(tensors_in(batch) and len(tensors_in(batch)) == len(leaves_in(batch)) for batch in one)
    assert all(same_bits(*pair) for pair in zip(tensors_in(one), tensors_in(again), strict=True))


@pytest.mark.long
@pytest.mark.parametrize("data", FILES)
def test_a_fitting_model_is_trained_on_what_a_file_gives_and_its_loss_changes(data):
    outcome = experiment(config_of(data, *FITTING.get(data, [])))
    assert len(outcome.steps) == 2
    assert all(isfinite(loss) for loss in outcome.losses)
    assert outcome.losses[0] != outcome.losses[1]
