"""The blocks of a model in the order of its forward pass."""

from __future__ import annotations

from torch import nn

from runner.cost.blocks import blocks_in_order


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(3)])
        self.token = nn.Parameter(nn.Linear(2, 2).weight)

    def forward_order(self):
        names = [name for name, _ in self.named_parameters()]
        return ["token", *(name for name in names if name.startswith("layers")), "head.weight", "head.bias"]


def test_blocks_stand_in_the_order_of_the_forward_pass_and_a_list_that_holds_most_of_the_model_is_divided():
    model = Transformer()
    blocks = blocks_in_order(model, model.forward_order())
    assert [block.name for block in blocks] == ["token", "layers.0", "layers.1", "layers.2", "head"]


def test_every_parameter_that_is_called_is_in_one_block():
    model = Transformer()
    names = [name for block in blocks_in_order(model, model.forward_order()) for name in block.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_a_model_of_one_layer_is_one_block():
    assert [block.parameters for block in blocks_in_order(nn.Linear(2, 2), ["weight", "bias"])] == [("weight", "bias")]


def test_a_module_that_holds_one_other_is_looked_through():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    order = [name for name, _ in model.named_parameters()]
    assert [block.name for block in blocks_in_order(model, order)] == ["0.0", "0.1"]
