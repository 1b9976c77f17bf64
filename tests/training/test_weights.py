"""`data.transform=weights` makes inputs of pictures as the weights of the chosen model need them, for each library."""

from __future__ import annotations

import pickle

import pytest
import torch
from PIL import Image

from runner.errors import ConfigError
from runner.training.weights import transforms_of

OURS = "runner.training.pretrained."
TORCHVISION = {"_target_": f"{OURS}torchvision_models.torchvision_model", "name": "resnet18"}
TIMM = {"_target_": f"{OURS}timm_models.timm_model", "name": "test_resnet"}
HUGGINGFACE = {"_target_": f"{OURS}huggingface_models.huggingface_model", "name": "saved", "weights": True}
PICTURE = Image.new("RGB", (300, 200))


@pytest.mark.parametrize(
    ("build", "size"),
    [
        ({"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"}, 224),
        ({**TORCHVISION, "weights": "IMAGENET1K_V1"}, 224),
        ({**TIMM, "weights": True}, 160),
        ({**TIMM, "weights": "r160_in1k"}, 160),
        (HUGGINGFACE, 32),
    ],
)
def test_a_picture_has_the_size_and_range_of_the_weights_in_other_processes_too(build, size):
    from transformers import ViTImageProcessor

    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained("saved")
    transform = transforms_of(build)
    value = transform(PICTURE)
    assert (value.shape, value.dtype) == ((3, size, size), torch.float32)
    assert value.max() < -0.9  # black, normalised
    assert torch.equal(pickle.loads(pickle.dumps(transform))(PICTURE), value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ({**TORCHVISION, "weights": None}, r"^data.transform=weights needs weights; give model.weights=DEFAULT"),
        ({**TORCHVISION, "weights": "V9"}, r"^model.weights is 'V9'.*; it has DEFAULT"),
        ({**TIMM, "weights": "xyz"}, r"^model.weights is 'xyz'.*; it has r160_in1k"),
        ({"_target_": "torchvision.models.resnet18"}, r"give model.build.weights=DEFAULT, or another transform"),
        ({"_target_": "mine.resnet18", "weights": "DEFAULT"}, r"mine.resnet18 is none of its builders"),
    ],
)
def test_without_such_weights_there_are_no_transforms(build, message):
    with pytest.raises(ConfigError, match=message):
        transforms_of(build)
