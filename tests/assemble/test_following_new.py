"""What no weights supplied is followed through wrappers, and into the copies that they make."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from runner.assemble.following_new import names_of_new, new_entries
from runner.tensors import tensor_entries
from runner.training.pretrained.loaded import Loaded


class Head(nn.Module):
    """Two layers; both biases are zeros."""

    def __init__(self):
        super().__init__()
        self.dense, self.out = nn.Linear(2, 2), nn.Linear(2, 2)
        nn.init.zeros_(self.dense.bias)
        nn.init.zeros_(self.out.bias)


class Saved(nn.Module):
    """A module and a copy of it that is trained, as peft makes one."""

    def __init__(self, module):
        super().__init__()
        self.original_module, self.saved = module.requires_grad_(False), nn.ModuleDict()
        self.saved["default"] = copy.deepcopy(module).requires_grad_(True)


def model_and_new(*new):
    """Return a model with a head, its new tensors, and the ids of all its tensors."""
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": Head()})
    nn.init.zeros_(model["body"].bias)
    loaded = Loaded(model, frozenset(name for name, _ in model.named_parameters() if name.startswith(new)))
    return model, new_entries(loaded), {id(each.tensor) for each in tensor_entries(model).values()}


HEAD = [f"{layer}.{part}" for layer in ("dense", "out") for part in ("weight", "bias")]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_copy_that_trains_is_new_in_place_of_the_original_that_does_not(device):
    with torch.device(device):
        model, new, known = model_and_new("head")
    model["head"] = Saved(model["head"])
    assert names_of_new(nn.ModuleDict({"base": model}), new, known) == {f"base.head.saved.default.{name}" for name in HEAD}


def test_an_original_that_trains_is_new_and_its_average_is_not():
    model, new, known = model_and_new("head")
    average = copy.deepcopy(model).requires_grad_(False)
    assert names_of_new(nn.ModuleDict({"model": model, "average": average}), new, known) == {
        f"model.head.{name}" for name in HEAD
    }


def test_both_are_new_where_both_train_and_where_neither_does():
    for flag in (True, False):
        model, new, known = model_and_new("head.out")
        both = nn.ModuleDict({"one": model, "two": copy.deepcopy(model)}).requires_grad_(flag)
        assert names_of_new(both, new, known) == {
            f"{n}.head.out.{part}" for n in ("one", "two") for part in ("weight", "bias")
        }


def test_of_a_model_that_is_copied_as_a_whole_the_copies_are_new():
    model, new, known = model_and_new("head.out")
    assert names_of_new(copy.deepcopy(model), new, known) == {"head.out.weight", "head.out.bias"}


def test_equal_bits_under_another_name_are_no_copy():
    model, new, known = model_and_new("head.out")
    model["head"].dense, model["added"] = nn.Linear(2, 2), nn.Linear(2, 2)
    for layer in (model["head"].dense, model["added"]):
        nn.init.zeros_(layer.bias)  # as the new one is
    assert names_of_new(model, new, known) == {"head.out.weight", "head.out.bias"}


def test_other_bits_under_the_name_of_a_wrapper_are_no_copy():
    model, new, known = model_and_new("head.out")
    layer = model["head"].out
    model["head"].out = nn.ModuleDict({"base_layer": layer, "lora_A": nn.Linear(2, 2), "lora_B": nn.Linear(2, 2)})
    assert names_of_new(model, new, known) == {"head.out.base_layer.weight", "head.out.base_layer.bias"}
