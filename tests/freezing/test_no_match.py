"""The message for a pattern that matches nothing: near names, and the parameters behind a computed name."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torchvision.models import resnet18

from runner import audit
from runner.errors import ConfigError
from runner.freezing.selection import select
from runner.freezing.words import FOR_CONFIG


def message(model: nn.Module, pattern: str, **options) -> str:
    """Return the error message of `select` for one pattern."""
    with pytest.raises(ConfigError) as caught:
        select(model, [pattern], **options)
    return str(caught.value)


def suggestions(model: nn.Module, pattern: str) -> list[str]:
    """Return the names that the message for one pattern suggests, in their order."""
    return re.findall(r"[\w.]+", message(model, pattern).partition("did you mean ")[2].replace(" or ", " "))


# Words


def test_each_caller_gets_the_message_in_its_own_words():
    model = nn.ModuleDict({"fc": nn.Linear(2, 2)})
    rest = "'fcc' matches no parameter or module of the model; did you mean fc?"
    assert message(model, "fcc") == f"patterns: {rest}"
    assert message(model, "fcc", words=FOR_CONFIG) == f"freeze.patterns: {rest}"
    with pytest.raises(ConfigError, match=f"^{re.escape(f'frozen: {rest}')}$"), audit(model, ["fcc"]):
        pass
    with pytest.raises(ConfigError, match=f"^{re.escape(f'frozen: {rest}')}$"), audit(model) as report:
        report.freeze(["fcc"])


@pytest.mark.parametrize("pattern", ["fcc", "type:Dropout", "**.running_mean", "@head", "re:bn", "backbone", "fc..0"])
def test_no_message_of_audit_has_a_key_of_the_config(pattern):
    model = nn.ModuleDict({"bn": nn.BatchNorm1d(2), "drop": nn.Dropout()})
    with pytest.raises(ConfigError, match=r"^(frozen: |select)") as caught, audit(model, [pattern]):
        pass
    assert not re.search(r"freeze[.=]|model\.", str(caught.value))


# Near names


def encoder() -> nn.Module:
    """Return a model with the modules `encoder.layer.N.attention` and `encoder.layer.N.output`."""
    layers = [nn.ModuleDict({name: nn.Sequential(nn.Linear(2, 2)) for name in ("attention", "output")}) for _ in range(3)]
    return nn.ModuleDict({"encoder": nn.ModuleDict({"layer": nn.ModuleList(layers)})})


@pytest.mark.parametrize(
    ("pattern", "first"),
    [
        ("layer1.0.conv3", {"layer1.0.conv1", "layer1.0.conv2"}),
        ("layer4.1.bn3", {"layer4.1.bn1", "layer4.1.bn2"}),
        ("layer2.0.Conv1", {"layer2.0.conv1"}),
        ("layer3.1.cnov1.weight", {"layer3.1.conv1.weight"}),
        ("layer3.1.conv1.wieght", {"layer3.1.conv1.weight"}),
    ],
)
def test_names_in_the_same_module_are_suggested_first(pattern, first):
    model = resnet18()
    for each in (model, nn.DataParallel(model)):
        assert set(suggestions(each, pattern)[: len(first)]) == first


def test_after_the_children_of_a_module_come_what_is_deeper_in_it_and_then_the_others():
    assert suggestions(encoder(), "encoder.layer.0.atention")[:2] == [
        "encoder.layer.0.attention",
        "encoder.layer.0.attention.0",
    ]
    assert suggestions(encoder(), "encoder.layer.1.outputs")[0] == "encoder.layer.1.output"
    assert (
        suggestions(encoder(), "encoder.layers.1.output")[0] == "encoder.layer.1.output"
    )  # `encoder.layers` does not exist
    assert len(suggestions(resnet18(), "layer1.0.conv3")) == 3
    assert suggestions(resnet18(), "layer1.0.conv3")[2].endswith("conv2")


def test_a_name_at_the_end_of_a_longer_one_is_suggested_first_if_there_are_few():
    model = nn.ModuleDict({"f": nn.Linear(2, 2), "head": nn.ModuleDict({"fc": nn.Linear(2, 2)})})
    assert suggestions(model, "fc") == ["head.fc", "f"]
    assert suggestions(resnet18(), "conv2")[0] == "conv1"  # `conv2` is in each of eight blocks


# What fits other models


@pytest.mark.parametrize("layer", ["fc", "conv1", "classifier.weight", "lm_head", "score"])
def test_a_layer_that_other_models_have_is_answered_with_the_head_in_the_words_of_the_caller(layer):
    model = nn.Sequential(nn.Linear(2, 2))
    problem = f"{layer!r} matches no parameter or module of the model"
    assert message(model, layer).startswith(f"patterns: {problem}; @head is its head")
    assert message(model, layer, words=FOR_CONFIG).startswith(f"freeze.patterns: {problem}; freeze=head freezes its head")
    with pytest.raises(ConfigError, match=r"^freeze\.keep: .*; freeze=backbone freezes all but its head"):
        select(model, ["**"], keep=[layer], words=FOR_CONFIG)


def test_a_wrong_name_in_a_layer_that_the_model_has_is_not_answered_with_the_head():
    assert "head" not in message(nn.ModuleDict({"fc": nn.Linear(2, 2)}), "fc.wait")


def test_a_class_of_norms_that_the_model_lacks_is_answered_with_its_norms_if_it_has_some():
    assert message(nn.Sequential(nn.LayerNorm(2)), "type:_BatchNorm").endswith(
        '; @norms are its norm layers, as in select(model, ["@norms"])'
    )
    assert message(nn.Sequential(nn.Linear(2, 2)), "type:_BatchNorm").endswith("; it has Linear and Sequential")


# Names that are computed from parameters


def two_layers() -> nn.Sequential:
    """Return two linear layers; a name of the first is similar to one of the second."""
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


COMPUTED = {
    parametrizations.weight_norm: ["parametrizations.weight.original0", "parametrizations.weight.original1"],
    parametrizations.spectral_norm: ["parametrizations.weight.original"],
    torch.nn.utils.weight_norm: ["weight_g", "weight_v"],
    torch.nn.utils.spectral_norm: ["weight_orig"],
    lambda layer: prune.l1_unstructured(layer, "weight", 0.5): ["weight_orig"],
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
@pytest.mark.parametrize(("compute", "expected"), COMPUTED.items())
def test_a_name_that_is_computed_is_answered_with_the_parameters_behind_it(compute, expected, wrap):
    model = two_layers()
    compute(model[0])
    model = wrap(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for pattern in ("0.weight", "re:0.weight", "0.w*t"):
        text = message(model, pattern)
        assert text.startswith(f"patterns: {pattern!r} ")
        assert "0.weight is computed by a parametrization" in text.replace("'", "")
        given = re.split(", | and ", text.partition("computed from: ")[2])
        assert [name.removeprefix("module.") for name in given] == [f"0.{name}" for name in expected]
        assert set(select(model, given).parameters) == set(given)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())  # nothing was computed


def test_keep_refuses_a_computed_name_too():
    model = two_layers()
    parametrizations.weight_norm(model[0])
    with pytest.raises(
        ConfigError, match=r"^keep: '0.weight' is computed by a parametrization; give .*original0 and .*original1$"
    ):
        select(model, ["**"], keep=["0.weight"])


def test_a_property_that_returns_a_module_or_a_tensor_that_is_no_parameter_is_not_taken_for_a_computed_name():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleDict({"layers": nn.Linear(2, 2)})
            self.mask = torch.ones(2)

        @property
        def layers(self) -> nn.Module:
            return self.inner["layers"]

    assert "did you mean inner.layers" in message(Outer(), "layers")
    assert "computed" not in message(Outer(), "mask")
