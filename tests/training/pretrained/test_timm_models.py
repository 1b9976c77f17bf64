"""Models of timm by name: tags, a new head for other classes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from runner.errors import ConfigError
from runner.training.pretrained.timm_models import name_with_tag, timm_model


@pytest.fixture
def pretrained_cfg(tmp_path):
    """Return what timm takes in place of a download: the file with the weights of a test_resnet for 1000 classes."""
    model = timm.create_model("test_resnet")
    save_file(model.state_dict(), Path(tmp_path, "weights.safetensors"))
    overlay = {"file": str(Path(tmp_path, "weights.safetensors")), "hf_hub_id": None, "url": ""}
    return {"pretrained_cfg_overlay": overlay}, model.state_dict()


@pytest.mark.parametrize(("classes", "new"), [(None, set()), (1000, set()), (4, {"fc.weight", "fc.bias"})])
def test_the_head_is_new_for_other_classes_than_the_weights_and_all_else_has_the_weights(classes, new, pretrained_cfg):
    overlay, values = pretrained_cfg
    loaded = timm_model("test_resnet", True, classes, **overlay)
    assert loaded.new == new
    assert all(torch.equal(value, values[key]) for key, value in loaded.model.state_dict().items() if key not in new)
    assert [note.split(":")[0] for note in loaded.notes] == (["model.weights did not supply fc"] if new else [])


def test_what_timm_takes_besides_is_passed_on():
    model = timm_model("test_vit", None, 5, img_size=32, drop_rate=0.25).model
    assert (model.head.out_features, model.head_drop.p) == (5, 0.25)
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 5)


def test_without_weights_nothing_is_known_to_be_new():
    assert timm_model("test_resnet").new is None


@pytest.mark.parametrize(
    ("name", "weights", "full_name"),
    [
        ("vit_tiny_patch16_224", None, "vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224", True, "vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224", "augreg_in21k", "vit_tiny_patch16_224.augreg_in21k"),
        ("vit_tiny_patch16_224.augreg_in21k", "default", "vit_tiny_patch16_224.augreg_in21k"),
        ("vit_tiny_patch16_224.augreg_in21k", "augreg_in21k_ft_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
        ("hf-hub:timm/anything", True, "hf-hub:timm/anything"),
    ],
)
def test_the_weights_name_a_tag_of_the_architecture(name, weights, full_name):
    assert name_with_tag(name, weights) == full_name


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("test_rsnet", None, r"model.name is 'test_rsnet': timm has no such architecture; did you mean test_resnet"),
        ("test_resnet.r160", None, r"model.name is 'test_resnet.r160': timm has no tag 'r160' of test_resnet; "),
        ("test_resnet", "r160_in1", r"model.weights is 'r160_in1', no file: .* did you mean r160_in1k\?"),
        ("test_resnet", "xyz", r"timm has no tag 'xyz' of test_resnet; it has r160_in1k$"),
        ("vit_base_patch16_18x2_224", True, r"model.weights is true: timm has no weights of vit_base_patch16_18x2_224"),
    ],
)
def test_an_unknown_architecture_or_tag_is_refused_with_the_nearest_names(name, weights, message):
    with pytest.raises(ConfigError, match=message):
        timm_model(name, weights)
