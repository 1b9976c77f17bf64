"""Models of torchvision by name: weights, other classes than the weights', and what is refused."""

from __future__ import annotations

import inspect
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from torchvision.models import get_model_builder, get_model_weights, list_models

from runner.errors import ConfigError
from runner.training.pretrained import torchvision_models
from runner.training.pretrained.torchvision_models import torchvision_model

pytestmark = pytest.mark.filterwarnings("ignore:The default weight initialization of inception_v3:FutureWarning")


@pytest.fixture
def weights_file(tmp_path, monkeypatch):
    """Return a function that saves weights where torch.hub looks for those of a model, and returns their values by name."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = Path(tmp_path, "hub", "checkpoints")
    folder.mkdir(parents=True)

    def save(name):
        weights, builder = get_model_weights(name).DEFAULT, get_model_builder(name)
        known = {"weights_backbone": None, "aux_loss": True} | dict.fromkeys(["transform_input"], True)
        taken = {key: value for key, value in known.items() if key in inspect.signature(builder).parameters}
        values = builder(num_classes=len(weights.meta["categories"]), **taken).state_dict()
        torch.save(values, folder / Path(urlsplit(weights.url).path).name)
        return values

    return save


def loss_in_train_mode(model):
    """Return the sum of what a model gives for two pictures in train mode: its outputs, or the losses of a detector."""
    model.train()
    if hasattr(model, "transform"):
        model.transform.min_size = (96,)
        target = {"boxes": torch.tensor([[10.0, 10, 90, 90]]), "labels": torch.tensor([5])}
        return sum(model(list(torch.rand(2, 3, 96, 96)), [target] * 2).values())
    output = model(torch.rand(2, 3, 299 if type(model).__name__ == "Inception3" else 64, 299))
    outputs = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else [output]
    return sum(each.sum() for each in outputs)


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("resnet18", {"fc"}),
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in [
                ("inception_v3", {"fc", "AuxLogits.fc"}),
                ("fcn_resnet50", {"classifier.4", "aux_classifier.4"}),
                ("deeplabv3_mobilenet_v3_large", {"classifier.4", "aux_classifier.4"}),
                (
                    "fasterrcnn_mobilenet_v3_large_320_fpn",
                    {f"roi_heads.box_predictor.{x}" for x in ("cls_score", "bbox_pred")},
                ),
                ("retinanet_resnet50_fpn", {"head.classification_head.cls_logits"}),
                ("ssdlite320_mobilenet_v3_large", {f"head.classification_head.module_list.{x}.1" for x in range(6)}),
            ]
        ),
    ],
)
def test_other_classes_than_the_weights_have_new_layers_and_all_else_has_the_weights(name, new, weights_file):
    values = weights_file(name)
    loaded = torchvision_model(name, "DEFAULT", 7)
    assert {each.rpartition(".")[0] for each in loaded.new} == new
    now = loaded.model.state_dict()
    assert loaded.new <= now.keys()
    assert all(torch.equal(value, values[key]) for key, value in now.items() if key not in loaded.new)
    loaded.model.requires_grad_(True)
    loss_in_train_mode(loaded.model).backward()
    assert "model.weights did not supply" in loaded.notes[0]
    assert "model.head=new" in loaded.notes[0]


@pytest.mark.parametrize(
    ("weights", "classes"),
    [("DEFAULT", None), ("default", 1000), (True, None), ("IMAGENET1K_V1", 1000), ("SqueezeNet1_1_Weights.DEFAULT", None)],
)
def test_with_the_classes_of_the_weights_everything_has_their_values(weights, classes, weights_file):
    values = weights_file("squeezenet1_1")
    loaded = torchvision_model("squeezenet1_1", weights, classes)
    assert (loaded.new, loaded.notes) == (frozenset(), ())
    assert all(torch.equal(value, values[name]) for name, value in loaded.model.state_dict().items())


@pytest.mark.parametrize("name", ["fcn_resnet50", "ssdlite320_mobilenet_v3_large"])
def test_without_weights_no_part_of_the_model_has_any(name, monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **kwargs: pytest.fail("weights were asked for"))
    with torch.device("meta"):
        loaded = torchvision_model(name, None, 3)
    assert loaded.new is None


def test_weights_of_a_part_are_loaded_where_they_are_asked_for(weights_file):
    values = weights_file("mobilenet_v3_large")
    asked = {"weights_backbone": "IMAGENET1K_V2", "classes": 3}
    model = torchvision_model("lraspp_mobilenet_v3_large", None, **asked).model
    assert torch.equal(model.backbone["0"][0].weight, values["features.0.0.weight"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet81"], r"model.name is 'resnet81': torchvision has no such model; did you mean resnet18"),
        (["resnet18", "IMAGENET1K_V9"], r"model.weights is 'IMAGENET1K_V9', no file and no weights of resnet18; it has DEF"),
        (["resnet18", "ResNet50_Weights.DEFAULT"], r"no weights of resnet18; it has DEFAULT, IMAGENET1K_V1"),
        (["mnasnet0_5", "no/such.pth"], r"no file and no weights of mnasnet0_5; it has DEFAULT"),
    ],
)
def test_an_unknown_model_or_weights_are_refused_with_those_that_there_are(arguments, message):
    with pytest.raises(ConfigError, match=message):
        torchvision_model(*arguments)


def test_weights_that_cannot_be_downloaded_are_refused_with_what_works_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = get_model_weights("resnet18").DEFAULT
    monkeypatch.setattr(type(weights), "url", "http://127.0.0.1:9/resnet18-00000000.pth")
    with pytest.raises(ConfigError, match=r"must be downloaded, .*refused.*model.weights=FILE, or model.weights=null"):
        torchvision_model("resnet18", "DEFAULT")


def test_every_model_that_torchvision_lists_has_weights_that_are_found_by_name():
    for name in list_models():
        for weights in ("DEFAULT", *(each.name for each in get_model_weights(name))):
            if len(get_model_weights(name)):
                assert torchvision_models.weights_of(name, weights) in get_model_weights(name)
