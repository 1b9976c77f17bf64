"""Copied numbers are the bits that drawing anew gives, and leave the generator in the same state."""

from __future__ import annotations

import random

import numpy
import pytest
import torch
import torchvision.models
from torch import nn

from runner.sharing.draws import LEAST, Draws, _Copying
from runner.training.models import MLP, TokenMLP


class Inits(nn.Module):
    """A model that draws numbers in many ways, some of which are not copied."""

    def __init__(self) -> None:
        super().__init__()
        self.size = torch.rand(()).item()
        self.layers = nn.ModuleList(nn.Linear(80, 80, bias=bias) for bias in (True, False))
        nn.init.trunc_normal_(self.layers[0].weight, std=0.02)
        nn.init.orthogonal_(self.layers[1].weight)
        self.plain = torch.empty(2, 64, 64).transpose(0, 2).normal_(1, 2)
        self.more = [torch.randn(64, 64), torch.rand(64, 64).exponential_(), torch.randint(9, (5000,)), torch.randperm(5000)]
        self.more.append(torch.bernoulli(torch.full((64, 64), 0.3)))
        self.more.append(torch.empty(64, 64).uniform_(-1, 1, generator=torch.Generator().manual_seed(1)))
        self.more.append(torch.randn(64, 64, dtype=torch.float64))
        self.narrow = nn.Parameter(torch.empty(64, 80, dtype=torch.bfloat16).normal_())
        self.register_buffer("table", torch.empty(65, 65).log_normal_())
        self.last = nn.Embedding(100, 64, padding_idx=3)
        with torch.no_grad():
            self.last.weight[:50].uniform_()
            self.last.weight[50:].data.mul_(self.size)


def timm_model():
    return pytest.importorskip("timm").create_model("vit_tiny_patch16_224")


def transformers_model():
    transformers = pytest.importorskip("transformers")
    size = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 80}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**size))


MODELS = {
    "many ways": Inits,
    "mlp": lambda: MLP([64], width=300, classes=10),
    "token_mlp": TokenMLP,
    "resnet18": torchvision.models.resnet18,
    "mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "vit_b_32": lambda: torchvision.models.vit_b_32(image_size=32),
    "timm": timm_model,
    "transformers": transformers_model,
}


def tensors_of(model: nn.Module) -> list[torch.Tensor]:
    """All tensors of a model: parameters, buffers, and those that are plain attributes or in lists."""
    attributes = [value for module in model.modules() for value in vars(module).values()]
    items = [item for value in attributes for item in (value if isinstance(value, list) else [value])]
    return [*model.state_dict().values(), *(item for item in items if isinstance(item, torch.Tensor))]


def built(build, seed=3):
    """(The tensors of a model, and the states of all generators after it was built from a seed)."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed)
    tensors = tensors_of(build())
    return tensors, [torch.get_rng_state(), torch.randn(3), torch.tensor(random.random()), torch.tensor(numpy.random.rand())]


def same_bits(ones, others):
    return len(ones) == len(others) and all(
        one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
        for one, other in zip(ones, others, strict=True)
    )


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.long] if each == "vit_b_32" else []) for each in MODELS]
)
def test_a_model_has_the_same_bits_whether_its_numbers_are_drawn_or_copied(name):
    draws, build = Draws(), MODELS[name]

    def copied():
        with draws.copied():
            return build()

    build()  # the first import of a library may draw numbers
    tensors, states = built(build)
    for number in range(4):
        again, states_again = built(copied)
        assert same_bits(again, tensors)
        assert same_bits(states_again, states)
        assert bool(draws.kept) == (number > 0) or name == "token_mlp"  # whose tensors are small
    others, states = built(build, seed=4)
    again, states_again = built(copied, seed=4)
    assert same_bits(again, others)
    assert same_bits(states_again, states)
    assert not draws.kept


def test_the_numbers_are_copied_and_not_drawn():
    draws = Draws()
    for number in range(3):
        torch.manual_seed(0)
        with draws.copied():
            layer = nn.Linear(100, 100, bias=False)
        if number == 1:
            ((values, _),) = draws.kept.values()
            values.zero_()
    assert not layer.weight.any()


def test_what_is_kept_takes_one_copy_of_the_last_model():
    draws = Draws()
    for width in (100, 100, 200, 200, 200):
        torch.manual_seed(0)
        with draws.copied():
            nn.Linear(width, width, bias=False)
    assert sum(values.numel() for values, _ in draws.kept.values()) == 200 * 200


def test_a_model_whose_building_fails_leaves_nothing():
    draws = Draws()
    for _ in range(2):
        torch.manual_seed(0)
        with draws.copied():
            nn.Linear(100, 100)
    with pytest.raises(TypeError), draws.copied():
        nn.Sequential(nn.Linear(100, 100), "no module")
    assert not draws.kept


def test_small_tensors_and_those_of_an_own_generator_are_drawn():
    torch.manual_seed(0)
    with (mode := _Copying({}, None)):
        torch.empty(LEAST - 1).normal_()
        torch.empty(LEAST).normal_(generator=torch.Generator())
        torch.empty(LEAST, device="meta").normal_()
    assert mode.first is None
