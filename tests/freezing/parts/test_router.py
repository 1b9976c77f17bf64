"""`@router`: the matrix that gives each token to one of the experts beside it."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from runner.errors import ConfigError
from runner.freezing.parts.evidence import Evidence
from runner.freezing.parts.router import find_routers
from runner.freezing.selection import select
from runner.freezing.words import FOR_PYTHON
from tests.freezing.parts.tiny_models import tiny


def found(model: nn.Module) -> list[str]:
    """Return the names that `@router` stands for in a model."""
    return list(find_routers(model, Evidence(), FOR_PYTHON))


MIXTURES = {
    "deepseek": ["model.layers.1.mlp.gate"],
    "ernie": ["model.layers.1.mlp.gate"],  # it has statistics of one row too
    "gpt_oss": ["model.layers.0.mlp.router", "model.layers.1.mlp.router"],
    "granite": ["model.layers.0.block_sparse_moe.router", "model.layers.1.block_sparse_moe.router"],
    "jetmoe": [
        *("model.layers.0.mlp.router.layer", "model.layers.0.self_attention.experts.router.layer"),
        *("model.layers.1.mlp.router.layer", "model.layers.1.self_attention.experts.router.layer"),
    ],
    "llama4": ["model.layers.0.feed_forward.router", "model.layers.1.feed_forward.router"],
    "mixtral": ["model.layers.0.mlp.gate", "model.layers.1.mlp.gate"],
    "olmoe": ["model.layers.0.mlp.gate", "model.layers.1.mlp.gate"],
    "phimoe": ["model.layers.0.mlp.router", "model.layers.1.mlp.router"],
    "qwen2_moe": ["model.layers.0.mlp.gate", "model.layers.1.mlp.gate"],
    "switch": ["encoder.block.1.layer.1.mlp.router.classifier", "decoder.block.1.layer.2.mlp.router.classifier"],
}


@pytest.mark.parametrize(("name", "expected"), MIXTURES.items())
def test_the_routers_of_mixtures_of_experts(name, expected):
    assert found(tiny(name)) == expected


@pytest.mark.parametrize("name", ["albert", "bart", "bert", "clip", "gpt2", "llama", "mamba", "t5", "vilt", "vit", "xlnet"])
def test_a_dense_model_has_no_router_and_is_refused(name):
    expected = "^patterns: '@router' matches no parameter: no matrix has as many rows as there are experts beside it$"
    with pytest.raises(ConfigError, match=expected):
        select(tiny(name), ["@router"])


@pytest.mark.parametrize("blocks", [2, 12])
def test_a_head_with_as_many_classes_as_there_are_blocks_is_no_router(blocks):
    with torch.device("meta"):
        assert found(timm.create_model("vit_tiny_patch16_224", depth=blocks, num_classes=blocks)) == []
        assert found(torchvision.models.vit_b_16(num_classes=12)) == []


def expert() -> nn.Module:
    """Return one expert."""
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))


def module(**children: nn.Module) -> nn.ModuleDict:
    """Return a module with these children."""
    return nn.ModuleDict(children)


class Packed(nn.Module):
    """Experts whose matrices are stacked in one, as in DBRX."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (nn.Parameter(torch.ones(4 * 8, 6)) for _ in range(2))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (module(experts=nn.ModuleList([expert() for _ in range(4)]), gate=nn.Linear(6, 4)), ["gate"]),
        (module(experts=nn.ModuleList([nn.Linear(6, 6) for _ in range(4)]), score=nn.Linear(6, 4)), ["score"]),
        (module(experts=module(a=expert(), b=expert()), router=module(layer=nn.Linear(6, 2))), ["router.layer"]),
        (module(experts=nn.ModuleList([expert() for _ in range(4)]), gate=nn.Linear(6, 3)), []),
        (module(experts=nn.ModuleList([expert() for _ in range(4)]), gate=nn.Linear(5, 4)), []),
        (module(experts=module(mlp=Packed()), router=module(layer=nn.Linear(6, 4))), ["router.layer"]),
        (module(layers=nn.ModuleList([nn.Linear(6, 6) for _ in range(4)]), out=nn.Linear(6, 4)), []),
        (module(conv=nn.Conv1d(4, 4, 6), gate=nn.Linear(6, 4)), []),
    ],
)
def test_a_router_has_as_many_rows_as_there_are_experts_and_takes_what_they_take(model, expected):
    assert found(model) == expected


class Mixed(nn.Module):
    """A block of modules in a list and one more layer, in names that say nothing; with a table of as many rows."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.last = nn.ModuleList(parts), nn.Linear(6, len(parts))
        self.table = nn.ModuleDict({"kinds": nn.Embedding(len(parts), 6)})


def test_in_a_block_modules_with_children_are_experts_but_layers_may_follow_each_other():
    mixtures = [Mixed(*(expert() for _ in range(4))) for _ in range(2)]
    assert found(nn.Sequential(*mixtures)) == ["0.last", "1.last"]
    assert found(mixtures[0]) == []
    assert found(nn.Sequential(*(Mixed(*(nn.Linear(6, 6) for _ in range(4))) for _ in range(2)))) == []


def test_a_router_that_is_a_parameter_of_the_mixture_is_named_alone():
    mixture = Mixed(*(expert() for _ in range(4)))
    mixture.last, mixture.gate = nn.Identity(), nn.Parameter(torch.ones(4, 6))
    assert found(mixture) == ["gate"]
    assert list(select(mixture, ["@router"]).parameters) == ["gate"]
