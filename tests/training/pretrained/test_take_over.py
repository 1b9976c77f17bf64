"""`take_over_layers` gives a model the layers of a fresh one that depend on the number of classes, and no others."""

from __future__ import annotations

import torch
from torch import nn

from runner.training.pretrained.take_over import take_over_layers


class Net(nn.Module):
    """A body, a head with a norm of one size, a bare parameter per class, and the number of classes."""

    def __init__(self, classes):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, classes))
        self.bias = nn.Parameter(torch.rand(classes))
        self.num_classes, self.is_small = classes, classes < 10

    def forward(self, x):
        return self.head(self.body(x)) + self.bias


def test_only_layers_of_another_shape_are_taken_over_as_a_whole():
    model, fresh = Net(5), Net(20)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    new = take_over_layers(model, fresh)
    assert new == {"head.2.weight", "head.2.bias", "bias"}
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name] if name in new else before[name]), name
    assert model(torch.rand(2, 3)).shape == (2, 20)


def test_whole_numbers_are_copied_and_truth_values_are_not():
    model = Net(5)
    take_over_layers(model, Net(20))
    assert (model.num_classes, model.head[2].out_features, model.is_small) == (20, 20, True)


def test_a_layer_that_stands_at_two_places_is_taken_over_at_both():
    model, fresh = (nn.ModuleList([layer, layer]) for layer in (nn.Linear(2, 3), nn.Linear(2, 5)))
    assert take_over_layers(model, fresh) == {"0.weight", "0.bias"}
    assert model[0].weight is model[1].weight is fresh[0].weight


def test_a_fresh_model_of_the_same_classes_changes_nothing():
    model = Net(5)
    before = dict(model.named_parameters())
    assert take_over_layers(model, Net(5)) == frozenset()
    assert all(value is before[name] for name, value in model.named_parameters())


def test_modules_that_the_fresh_model_lacks_stay():
    model, fresh = Net(5), Net(20)
    model.extra, extra = nn.Linear(2, 2), Net(5).body
    fresh.other = extra
    take_over_layers(model, fresh)
    assert model.extra.out_features == 2
    assert not hasattr(model, "other")
