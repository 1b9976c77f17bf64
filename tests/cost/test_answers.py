"""Why freezing saves little: by what is frozen, where it stands, and what its layers compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from runner.cost.answers import (
    AT_END,
    BETWEEN,
    COMPUTED,
    LITTLE,
    THROUGH,
    FrozenPart,
    explain_cost,
    explain_small_saving,
    flops_computed_again,
)
from runner.cost.copies import ModelCopy, count_step
from runner.cost.flops import StepCount
from runner.freezing.selection import select
from runner.tensors import tensor_entries

WIDTH, SAMPLES = 8, 5
BATCH = torch.ones(SAMPLES, WIDTH)
FLOPS_OF_A_LAYER = 2 * SAMPLES * WIDTH * WIDTH


class Net(nn.Module):
    """An embedding and four layers, which may be checkpointed; the input of the first may require a gradient."""

    def __init__(self, *, needs_input_gradient=False, reentrant=None):
        super().__init__()
        self.embedding = nn.Embedding(300, WIDTH)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(4)])
        self.needs_input_gradient, self.reentrant = needs_input_gradient, reentrant

    def forward(self, x):
        x = x + self.embedding(x.long()).mean(1)
        if self.needs_input_gradient:
            x = x.detach().requires_grad_()
        for layer in self.layers:
            x = layer(x) if self.reentrant is None else checkpoint(layer, x, use_reentrant=self.reentrant)
        return x


def counted(model, frozen, *, by_flags=True) -> tuple[StepCount, FrozenPart]:
    """Count a step in which this is frozen, by flags or not."""
    selection = select(model, frozen)
    copied = ModelCopy.unfrozen(model)
    for name, parameter in copied.model.named_parameters():
        parameter.requires_grad_(name not in selection.parameters or not by_flags)
    count = count_step(copied, lambda model, batch: model(batch).sum(), BATCH)
    return count, FrozenPart.of(tensor_entries(model), selection)


@pytest.mark.parametrize(
    ("frozen", "why"),
    [
        (["embedding"], LITTLE),
        (["layers.3"], AT_END),
        (["embedding", "layers.3"], AT_END),
        (["layers.1", "layers.2"], BETWEEN),
        (["embedding", "layers.1", "layers.2"], BETWEEN),
        (["**.bias"], BETWEEN),
        (["embedding", "layers.0", "layers.1", "layers.2"], LITTLE),
    ],
)
def test_the_reason_is_where_most_of_what_the_frozen_part_computes_stands(frozen, why):
    assert explain_cost(*counted(Net(), frozen)) == why


def test_gradients_that_are_computed_all_the_same_are_the_reason():
    assert explain_cost(*counted(Net(), ["layers.0", "layers.1"], by_flags=False)) == COMPUTED


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_an_input_that_requires_a_gradient_is_the_reason_if_backward_runs_through_the_first_layers(reentrant):
    frozen = ["embedding", "layers.0", "layers.1", "layers.2"]
    assert explain_cost(*counted(Net(needs_input_gradient=True, reentrant=reentrant), frozen)) == THROUGH


def test_a_tied_weight_counts_where_it_is_used_last():
    model = Net()
    model.layers[3] = nn.Linear(WIDTH, 300, bias=False)
    model.layers[3].weight = model.embedding.weight
    assert explain_cost(*counted(model, ["embedding"])) == AT_END


def test_a_small_saving_is_explained_and_no_other():
    count, part = counted(Net(), ["layers.3"])
    assert [explain_small_saving(share, count, part) for share in (None, 0.3, 0.9)] == ["", "", AT_END]
    assert explain_small_saving(1.0, count, FrozenPart(frozenset(), 0.0)) == ""


def test_the_frozen_part_has_all_names_of_a_tied_weight_and_its_share_of_the_weights():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[2].weight = model[0].weight
    part = FrozenPart.of(tensor_entries(model), select(model, ["0"]))
    assert part == FrozenPart(frozenset({"0.weight", "2.weight"}), 0.5)
    assert FrozenPart.of(tensor_entries(nn.Tanh()), [Tensor()]) == FrozenPart(frozenset(), 0.0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_forward_passes_of_frozen_layers_that_backward_makes_again_are_counted(reentrant):
    frozen = ["layers.1", "layers.2"]
    assert flops_computed_again(*counted(Net(reentrant=reentrant), frozen)) == 2 * FLOPS_OF_A_LAYER
    assert flops_computed_again(*counted(Net(), frozen)) == 0
