"""The chain of a model: the like modules that follow one another in it."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from runner.freezing.parts.chain import main_chain
from tests.freezing.parts.tiny_models import tiny

CHECKED = settings(max_examples=300, deadline=None, database=None, derandomize=True)


class Block(nn.Module):
    """A block of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


def blocks(count: int, *others: nn.Module) -> nn.Sequential:
    """Return a container of this number of blocks, and of other modules behind them."""
    return nn.Sequential(*(Block() for _ in range(count)), *others)


def chain(model: nn.Module) -> str:
    """Return the chain of a model, its members separated by spaces, and the modules of a member by `+`."""
    return " ".join("+".join(member) for member in main_chain(model))


STAGES = "stages.0 stages.1 stages.2 stages.3"
TORCHVISION = {
    "alexnet": "features.0 features.3 features.6 features.8 features.10",
    "convnext_tiny": "features.1 features.2 features.3 features.4 features.5 features.6 features.7",
    "densenet121": (
        "features.denseblock1+features.transition1 features.denseblock2+features.transition2 "
        "features.denseblock3+features.transition3 features.denseblock4"
    ),
    "efficientnet_b0": "features.1 features.2 features.3 features.4 features.5 features.6 features.7",
    "efficientnet_v2_s": "features.1 features.2 features.3 features.4 features.5 features.6",  # of two classes of blocks
    "googlenet": " ".join(f"inception{each}" for each in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")),
    "mobilenet_v3_small": " ".join(f"features.{number}" for number in range(1, 12)),
    "resnet18": "layer1 layer2 layer3 layer4",
    "resnet50": "layer1 layer2 layer3 layer4",  # and not the six blocks of layer3
    "swin_t": "features.1+features.2 features.3+features.4 features.5+features.6 features.7",
    "vgg16": " ".join(f"features.{number}" for number in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
    "vgg11_bn": " ".join(f"features.{each}+features.{each + 1}" for each in (0, 4, 8, 11, 15, 18, 22, 25)),
    "vit_b_16": " ".join(f"encoder.layers.encoder_layer_{number}" for number in range(12)),
}
TIMM = {
    "convnext_atto": STAGES,  # `stem` and `stages` are containers too
    "crossvit_tiny_240": "blocks.0 blocks.1 blocks.2",  # its children are four containers of different modules
    "levit_128s": "stages.0 stages.1 stages.2",  # and not the four convolutions of its stem
    "swin_tiny_patch4_window7_224": "layers.0 layers.1 layers.2 layers.3",
    "tresnet_m": "body.layer1 body.layer2 body.layer3 body.layer4",  # of two classes of blocks
    "vit_tiny_patch16_224": " ".join(f"blocks.{number}" for number in range(12)),
}
TRANSFORMERS = {
    "bert": "bert.encoder.layer.0 bert.encoder.layer.1",  # and not its three embeddings
    "convnext": " ".join(f"convnext.encoder.stages.{number}" for number in range(4)),
    "gpt2": "transformer.h.0 transformer.h.1",
    "llama": "model.layers.0 model.layers.1",
    "vit": "vit.layers.0 vit.layers.1",
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_chain_of_a_model_of_torchvision_is_what_a_person_would_say(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, **({"init_weights": False} if name == "googlenet" else {}))
    assert chain(model) == TORCHVISION[name]


@pytest.mark.parametrize("name", TIMM)
def test_the_chain_of_a_model_of_timm_is_what_a_person_would_say(name):
    with torch.device("meta"):
        assert chain(timm.create_model(name)) == TIMM[name]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_chain_of_a_model_of_transformers_is_what_a_person_would_say(name):
    assert chain(tiny(name)) == TRANSFORMERS[name]


def test_a_model_without_two_like_modules_that_follow_one_another_has_no_chain():
    assert main_chain(nn.Linear(2, 2)) == []
    assert main_chain(nn.Sequential(nn.ReLU(), nn.ReLU())) == []
    assert main_chain(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))) == []


def test_modules_without_parameters_do_not_interrupt_a_chain():
    assert chain(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))) == "0 2 4"


def test_a_group_of_modules_that_repeats_is_a_member_and_the_last_one_may_be_incomplete():
    layers = [module for _ in range(3) for module in (nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU())]
    assert chain(nn.Sequential(*layers)) == "0+1 3+4 6+7"
    assert chain(nn.Sequential(*layers, nn.Linear(2, 2))) == "0+1 3+4 6+7 9"


def test_a_chain_within_a_member_of_another_never_counts():
    assert chain(nn.ModuleDict({"a": blocks(5), "b": blocks(5)})) == "a b"


def test_of_two_chains_the_one_with_more_parameter_tensors_counts_and_of_equal_ones_the_first():
    one, other = nn.Sequential(blocks(3), nn.Linear(2, 2)), nn.Sequential(nn.BatchNorm1d(2), blocks(4))
    assert chain(nn.ModuleDict({"one": one, "other": other})) == "other.1.0 other.1.1 other.1.2 other.1.3"
    other[1].pop(0)
    assert chain(nn.ModuleDict({"one": one, "other": other})) == "one.0.0 one.0.1 one.0.2"


def test_containers_are_a_chain_only_if_two_of_them_hold_modules_of_the_same_classes():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert chain(nn.ModuleDict({"features": blocks(2), "classifier": layers})) == "features.0 features.1"
    assert chain(nn.ModuleDict({"one": blocks(2), "other": blocks(2), "classifier": layers})) == "one other classifier"


def test_a_module_that_is_registered_several_times_is_one():
    shared, other = Block(), Block()
    assert main_chain(nn.Sequential(shared, shared)) == []
    assert chain(nn.Sequential(shared, other, shared)) == "0 1 2"


def test_parametrized_layers_are_alike_although_each_has_a_class_of_its_own():
    layers = [weight_norm(nn.Linear(2, 2)) for _ in range(3)]
    assert len({type(layer) for layer in layers}) == 3
    assert chain(nn.Sequential(*layers)) == "0 1 2"


CLASSES = {"l": lambda: nn.Linear(2, 2), "e": lambda: nn.Embedding(2, 2), "b": lambda: nn.BatchNorm1d(2), "r": nn.ReLU}


@CHECKED
@given(letters=st.lists(st.sampled_from("lebr"), max_size=12))
def test_a_chain_is_the_longest_repetition_that_a_search_through_all_stretches_finds(letters):
    model = nn.Sequential(*(CLASSES[letter]() for letter in letters))
    sizes = [len(list(module.parameters())) for module in model]
    places = [place for place, size in enumerate(sizes) if size]
    found = []
    for size in range(1, len(places) // 2 + 1):
        for first in range(len(places)):
            for end in range(first + 2 * size, len(places) + 1):
                stretch = places[first:end]
                if all(letters[one] == letters[other] for one, other in zip(stretch, stretch[size:], strict=False)):
                    members = [stretch[place : place + size] for place in range(0, len(stretch), size)]
                    found.append((sum(sizes[place] for place in stretch), members))
    longest = max(found, key=lambda each: each[0], default=(0, []))[1]
    assert main_chain(model) == [[str(place) for place in member] for member in longest]
