"""Every file in conf/data gives batches and trains a fitting model for two steps; a new file is found without a change."""

from __future__ import annotations

from contextlib import ExitStack
from importlib.util import find_spec

import pytest
import torch
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
# The task of these batches is none of the MLP's: only their batches are looked at here.
BATCHES_ONLY = {"masks", "boxes", "tokens", "huggingface"}


@pytest.fixture(autouse=True)
def _data(tmp_path):
    """Write a folder of pictures, and one that the library `datasets` saved."""
    for name in ("a", "b", "c"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (9, 7), (number, 0, 0)).save(tmp_path / "pictures" / name / f"{number}.png")
    if find_spec("datasets"):
        from datasets import Dataset

        columns = {"ids": [[1, 2, index] for index in range(12)], "label": [index % 3 for index in range(12)]}
        Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")


def config_of(data, *overrides):
    """Return the checked config of a run with `data=FILE`."""
    if data == "huggingface" and not find_spec("datasets"):
        pytest.skip("needs the extra huggingface")
    return check(compose_config("model=mlp", f"data={data}", *NEEDS.get(data, []), "batches=2", *overrides))


@pytest.mark.parametrize("data", FILES)
def test_every_file_gives_tensors_on_the_device_that_are_the_same_each_time(data):
    def batches():
        with ExitStack() as undo:
            feed = open_feed(config_of(data), torch.device("cpu"), ignore_note, undo)
            return list(feed.batches)

    one, again = batches(), batches()
    assert len(one) == 2
    assert all(tensors_in(batch) and len(tensors_in(batch)) == len(leaves_in(batch)) for batch in one)
    assert all(same_bits(*pair) for pair in zip(tensors_in(one), tensors_in(again), strict=True))


@pytest.mark.parametrize("data", [data for data in FILES if data not in BATCHES_ONLY])
def test_a_model_is_trained_on_what_a_file_gives(data):
    assert len(experiment(config_of(data)).steps) == 2


@pytest.mark.long
@pytest.mark.parametrize(
    ("data", "build"),
    [
        ("boxes", "torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn"),
        ("masks", "torchvision.models.segmentation.lraspp_mobilenet_v3_large"),
        ("video", "torchvision.models.video.r3d_18"),
    ],
)
def test_a_model_of_torchvision_takes_the_batches_of_its_kind(data, build):
    from runner.config.build import build as built

    options = {"num_classes": 3, "weights": None}
    model = built({"_target_": build, **options, **({} if data == "video" else {"weights_backbone": None})}, "model.build")
    with ExitStack() as undo:
        first = open_feed(config_of(data), torch.device("cpu"), ignore_note, undo).first
    model.train()
    out = model(*first) if data == "boxes" else model(first[0])
    if data == "boxes":
        loss = sum(out.values())
    else:
        loss = torch.nn.functional.cross_entropy(out["out"] if data == "masks" else out, first[1])
    loss.backward()
    assert torch.isfinite(loss)
