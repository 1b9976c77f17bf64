"""The blocks that a schedule freezes and thaws: by the structure of the model, or by patterns."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from runner.errors import ConfigError
from runner.freezing.phases.blocks import selected_blocks
from runner.freezing.selection import Selection, select
from runner.training.models import MLP, TokenMLP
from tests.freezing.parts.tiny_models import tiny

CHECKED = settings(max_examples=300, deadline=None, database=None, derandomize=True)


def names(model: nn.Module, patterns=("**",), keep=(), blocks="auto") -> list[str]:
    """Return the names of the blocks of what the patterns select in a model."""
    return list(selected_blocks(model, select(model, patterns, keep), blocks))


def on_meta(name: str) -> nn.Module:
    """Return a model of torchvision on the meta device."""
    with torch.device("meta"):
        return torchvision.models.get_model(name, **({"init_weights": False} if name == "googlenet" else {}))


def error_message(model: nn.Module, blocks: object, patterns=("**",), keep=()) -> str:
    """Return the message for a wrong value of `schedule.blocks`, and check that it is one line and a ValueError."""
    with pytest.raises(ConfigError) as caught:
        selected_blocks(model, select(model, patterns, keep), blocks)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def numbered(name: str, count: int) -> list[str]:
    """Return `name.0`, `name.1`, ... up to a count."""
    return [f"{name}.{number}" for number in range(count)]


TORCHVISION = {
    "alexnet": ["features.0", "features.3", "features.6", "features.8", "features.10", "classifier"],
    "convnext_tiny": [*numbered("features", 8), "classifier"],
    "densenet121": [
        *("features.conv0..features.norm0", "features.denseblock1..features.transition1"),
        *("features.denseblock2..features.transition2", "features.denseblock3..features.transition3"),
        *("features.denseblock4", "features.norm5..classifier"),
    ],
    "efficientnet_b0": [*numbered("features", 8), "features.8..classifier"],
    "googlenet": [
        *("conv1..conv3", "inception3a", "inception3b", "inception4a", "inception4b", "inception4c", "inception4d"),
        *("inception4e", "inception5a", "inception5b", "aux1..fc"),
    ],
    "mobilenet_v3_small": [*numbered("features", 12), "features.12..classifier"],
    "resnet18": ["conv1..bn1", "layer1", "layer2", "layer3", "layer4", "fc"],
    "resnet50": ["conv1..bn1", "layer1", "layer2", "layer3", "layer4", "fc"],
    "swin_t": [
        *("features.0", "features.1..features.2", "features.3..features.4", "features.5..features.6", "features.7"),
        "norm..head",
    ],
    "vgg16": [*(f"features.{each}" for each in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)), "classifier"],
    "vit_b_16": [
        "class_token..encoder.pos_embedding",
        *(f"encoder.layers.encoder_layer_{number}" for number in range(12)),
        "encoder.ln..heads",
    ],
}
TRANSFORMERS = {
    "bert": ["bert.embeddings", *numbered("bert.encoder.layer", 2), "bert.pooler..classifier"],
    "gpt2": [*numbered("transformer.h", 2), "transformer.wte..transformer.wpe+transformer.ln_f..lm_head"],  # tied
    "llama": ["model.embed_tokens", *numbered("model.layers", 2), "model.norm..lm_head"],
    "mamba": [*numbered("backbone.layers", 2), "backbone.embeddings+backbone.norm_f..lm_head"],  # tied
    "t5": ["shared+encoder+decoder+lm_head"],  # one tensor is in all of them
    "vit": ["vit.embeddings", *numbered("vit.layers", 2), "vit.layernorm..classifier"],
}


# By the structure of the model


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_blocks_of_a_model_of_torchvision_are_what_a_person_would_say(name):
    assert names(on_meta(name)) == TORCHVISION[name]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_blocks_of_a_model_of_transformers_are_its_layers_and_what_stands_around_them(name):
    assert names(tiny(name)) == TRANSFORMERS[name]


def test_a_block_has_the_selected_parameters_alone_and_blocks_without_any_are_dropped():
    assert names(on_meta("resnet18"), ["**"], ["fc"]) == ["conv1..bn1", "layer1", "layer2", "layer3", "layer4"]
    model = on_meta("vit_b_16")
    assert names(model, ["**"], ["heads"])[-1] == "encoder.ln"
    selection = select(model, ["re:.*ln_1.bias"])
    assert selected_blocks(model, selection) == {
        f"encoder.layers.encoder_layer_{number}": (f"encoder.layers.encoder_layer_{number}.ln_1.bias",)
        for number in range(12)
    }


def test_a_tie_joins_blocks_only_if_it_is_selected():
    model = tiny("gpt2")
    assert names(model, ["**"], ["lm_head"]) == ["transformer.wpe", *numbered("transformer.h", 2), "transformer.ln_f"]
    assert names(tiny("t5"), ["**"], ["lm_head"]) == ["encoder", "decoder"]


def test_joined_blocks_stand_where_the_last_of_them_stood():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(nn.Linear(2, 2), shared, nn.Linear(2, 2), shared, nn.Linear(2, 2))
    assert selected_blocks(model, select(model, ["**"])) == {
        "0": ("0.weight", "0.bias"),
        "2": ("2.weight", "2.bias"),
        "1+3": ("1.weight", "1.bias"),
        "4": ("4.weight", "4.bias"),
    }


def test_blocks_that_are_joined_one_with_the_next_are_all_joined():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    model[1].weight, model[2].bias = model[0].weight, model[1].bias
    assert names(model) == ["0+1+2", "3"]


def test_modules_of_different_classes_are_a_block_each():
    model = nn.Sequential(OrderedDict(embed=nn.Embedding(3, 2), mix=nn.Linear(2, 2), norm=nn.LayerNorm(2)))
    assert selected_blocks(model, select(model, ["**"])) == {
        "embed": ("embed.weight",),
        "mix": ("mix.weight", "mix.bias"),
        "norm": ("norm.weight", "norm.bias"),
    }
    assert names(model, ["**.bias"]) == ["mix", "norm"]
    assert names(nn.Sequential(nn.ReLU(), nn.ModuleDict({"body": model}))) == ["1.body.embed", "1.body.mix", "1.body.norm"]


def test_parameters_beside_modules_are_a_block_and_one_module_beside_them_is_looked_through():
    model = nn.Sequential(OrderedDict(body=nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))))
    model.scale, model.shift = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    assert names(model) == ["scale..shift", "body.0", "body.1"]


def test_a_layer_is_one_block():
    assert selected_blocks(nn.Linear(2, 2), select(nn.Linear(2, 2), ["**"])) == {"weight..bias": ("weight", "bias")}
    assert names(nn.Sequential(nn.Linear(2, 2))) == ["0"]


def test_the_blocks_of_the_small_models():
    assert names(MLP([3]), ["**"], ["head"]) == ["body..norm", "there+back"]
    assert names(TokenMLP(), ["**"], ["head"]) == ["embed..norm", "there+back"]


def test_the_prefix_of_a_wrapper_stays_in_the_names():
    assert names(nn.DataParallel(MLP([3]))) == ["module.body..module.norm", "module.there+module.back", "module.head"]


class Own(nn.Module):
    """A module with a parameter of its own, and other modules."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.inner = nn.ModuleList(modules)


LAYERS = st.sampled_from([lambda: nn.Linear(1, 1), lambda: nn.BatchNorm1d(1), lambda: nn.Embedding(1, 1), nn.ReLU])
MODELS = st.recursive(
    LAYERS.map(lambda build: build()),
    lambda inner: st.builds(
        lambda cls, modules: cls(*modules), st.sampled_from([nn.Sequential, Own]), st.lists(inner, min_size=1, max_size=5)
    ),
    max_leaves=16,
)


def tie(model: nn.Module, pairs: list[tuple[int, int]]) -> None:
    """Tie the parameters of a model at these pairs of places."""
    places = [(module, key) for module in model.modules() for key, _ in module.named_parameters(recurse=False)]
    for one, other in pairs:
        module, key = places[other % len(places)]
        setattr(module, key, getattr(*places[one % len(places)]))


def some_of(model: nn.Module, chosen: list[bool]) -> Selection:
    """Return a Selection of some parameters of a model."""
    parameters = dict(model.named_parameters())
    chosen = [*chosen, *[True] * len(parameters)]
    return Selection({name: each for (name, each), is_chosen in zip(parameters.items(), chosen, strict=False) if is_chosen})


@CHECKED
@given(MODELS, st.lists(st.booleans(), max_size=8), st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=3))
def test_every_selected_parameter_is_in_exactly_one_block(model, chosen, pairs):
    assume(any(True for _ in model.parameters()))
    tie(model, pairs)
    selection = some_of(model, chosen)
    assume(selection.parameters)
    blocks = selected_blocks(model, selection)
    assert sorted(name for block in blocks.values() for name in block) == sorted(selection.parameters)
    assert all(blocks.values())
    order = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    ids = {name: id(each) for name, each in model.named_parameters(remove_duplicate=False)}
    last = [
        max(order.index(name) for name in order if ids[name] in {ids[each] for each in block}) for block in blocks.values()
    ]
    assert last == sorted(last)  # a block stands where its last part does


@CHECKED
@given(MODELS, st.lists(st.booleans(), max_size=8))
def test_without_ties_the_blocks_in_their_order_are_what_is_selected_in_the_order_of_the_model(model, chosen):
    assume(any(True for _ in model.parameters()))
    selection = some_of(model, chosen)
    assume(selection.parameters)
    blocks = selected_blocks(model, selection)
    assert [name for block in blocks.values() for name in block] == [*selection.parameters]


# By patterns


def test_each_entry_of_a_list_is_a_block_in_the_given_order():
    model = on_meta("resnet18")
    found = selected_blocks(model, select(model, ["**"]), ["layer4", ["conv1", "bn1"], ["layer1", "layer2"], "re:layer3.*"])
    assert list(found) == ["layer4", "conv1+bn1", "layer1+layer2", "re:layer3.*"]
    assert found["conv1+bn1"] == ("conv1.weight", "bn1.weight", "bn1.bias")
    assert [len(block) for block in found.values()] == [15, 3, 27, 15]


def test_a_parameter_belongs_to_the_first_entry_that_matches_it_and_to_none_if_freeze_does_not_select_it():
    model = on_meta("resnet18")
    found = selected_blocks(model, select(model, ["**"], ["fc", "**.bias"]), ["layer1.0.bn?", "layer1.0", "layer1"])
    assert found == {
        "layer1.0.bn?": ("layer1.0.bn1.weight", "layer1.0.bn2.weight"),
        "layer1.0": ("layer1.0.conv1.weight", "layer1.0.conv2.weight"),
        "layer1": tuple(f"layer1.1.{each}.weight" for each in ("conv1", "bn1", "conv2", "bn2")),
    }


def test_a_tied_tensor_is_matched_by_either_name_and_has_its_first():
    model = MLP([3])
    assert selected_blocks(model, select(model, ["**"]), ["back", "there"]) == {
        "back": ("there.weight", "back.bias"),
        "there": ("there.bias",),
    }


def test_a_named_part_of_the_model_is_a_pattern_too():
    model = tiny("bert")
    found = selected_blocks(model, select(model, ["**"]), ["@embeddings", "@norms"])
    assert len(found["@embeddings"]) == 3
    assert all("LayerNorm" in name for name in found["@norms"])


@pytest.mark.parametrize(
    ("blocks", "expected_texts"),
    [
        (["layer1", "layerr2"], ["'layerr2'", "matches no parameter", "did you mean layer2"]),
        ([["layer1", "layerr2"]], ["'layerr2'", "did you mean layer2"]),
        (["layer1", "fc"], ["'fc'", "nothing that freeze selects"]),
        ([["fc.weight", "fc.bias"]], ["'fc.weight+fc.bias'", "nothing that freeze selects"]),
        (["layer*", "layer1"], ["'layer1'", "in earlier blocks"]),
        (["layer1", "layer1"], ["'layer1'", "in earlier blocks"]),
        ("layer1", ["'layer1'", "auto, or a list"]),
        ([], ["[]", "auto, or a list"]),
        (["layer1", []], ["an empty list", "auto, or a list"]),
        (None, ["None", "auto, or a list"]),
        (4, ["4", "auto, or a list"]),
        ({"layer1": 1}, ["auto, or a list"]),
        ([1], ["1 is not a pattern"]),
        ([[["layer1"]]], ["['layer1'] is not a pattern"]),
        (["re:("], ["not a regular expression"]),
    ],
)
def test_the_message_for_wrong_blocks_has_the_key_and_what_to_give(blocks, expected_texts):
    text = error_message(on_meta("resnet18"), blocks, keep=["fc"])
    assert text.startswith("schedule.blocks")
    assert [part for part in expected_texts if part not in text] == []
    assert len(text) < 250


@pytest.mark.parametrize("blocks", ["auto", ["body"]])
def test_where_freeze_selects_nothing_the_message_says_what_to_freeze(blocks):
    text = error_message(MLP([3]), blocks, patterns=())
    assert text == ("freeze selects no parameter, so the schedule has nothing to act on; give freeze=backbone or freeze=all")
    text = error_message(MLP([3]), blocks, patterns=["@as_built"])
    assert "(no parameter has requires_grad=False as built)" in text
