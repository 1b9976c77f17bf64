"""Which layers are the head where the loss has penalties on weights, and which ones lie in a block like others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from runner.freezing.trial.run import try_model


class Block(nn.Module):
    """A layer and its activation; models have such blocks anywhere, as their head too."""

    def __init__(self, width, outputs):
        super().__init__()
        self.linear = nn.Linear(width, outputs)

    def forward(self, x):
        return self.linear(x).relu()


class Kept(nn.Module):
    """A block that is used, and the original of it, which is kept for later."""

    def __init__(self):
        super().__init__()
        self.original, self.used = Block(8, 3), Block(8, 3)

    def forward(self, x):
        return self.used(x)


class Product(nn.Module):
    """A model whose head is the product of two matrices of its own."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(8, 8)
        self.up, self.down = nn.Parameter(torch.rand(8, 2)), nn.Parameter(torch.rand(2, 3))

    def forward(self, x):
        return self.body(x) @ (self.up @ self.down)


X = torch.ones(2, 8)


def test_a_head_may_be_made_of_several_parameters():
    assert try_model(Product(), X).heads == ("up", "down")


def test_the_last_of_several_blocks_is_no_head():
    trial = try_model(nn.Sequential(Block(8, 8), Block(8, 8)), X)
    assert trial.heads == ()
    assert trial.problem.startswith("the head is not clear: 1.linear is in 1, a Block like 0; ")


@pytest.mark.parametrize(("classes", "heads"), [(3, ("1.linear",)), (8, ()), (None, ())])
def test_a_layer_with_as_many_outputs_as_there_are_classes_is_the_head_in_any_block(classes, heads):
    assert try_model(nn.Sequential(Block(8, 8), Block(8, 3)), X, classes=classes).heads == heads


def test_a_block_that_is_never_called_is_not_one_of_several():
    assert try_model(nn.Sequential(nn.Linear(8, 8), Kept()), X).heads == ("1.used.linear",)


PENALTIES = {
    "the norm of the first": lambda model: 0.1 * model[0].weight.norm(),
    "the size of the second": lambda model: model[2].weight.abs().mean(),
    "the square of the head": lambda model: model[4].weight.pow(2).sum(),
    "squares": lambda model: 0.01 * sum(each.pow(2).sum() for each in model.parameters()),
    "distance from the start": lambda model: sum((each - each.detach()).pow(2).sum() for each in model.parameters()),
    "orthogonal rows": lambda model: sum(
        (each.weight @ each.weight.T - torch.eye(len(each.weight))).norm() for each in model[::2]
    ),
}


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
@pytest.mark.parametrize("in_parts", [False, True], ids=["summed", "in parts"])
def test_a_penalty_on_weights_in_the_loss_does_not_make_a_layer_the_head(penalty, in_parts):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def task(model, batch):
        parts = {"main": nn.functional.cross_entropy(model(batch), torch.tensor([0, 1])), "penalty": penalty(model)}
        return parts if in_parts else sum(parts.values())

    assert try_model(model, X, task).heads == ("4",)
