"""The models of the known results, and the loss of the linear one."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torchvision.models import DenseNet

from benchmarks.known_results import linear_truth


class TwoLinear(nn.Module):
    """Two linear layers without bias: `features` (20 -> 2) with the true features, and `head` (2 -> 1), drawn anew.

    `seed`: of the true function. The head is drawn from the standard normal distribution.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        truth = linear_truth.draw_truth(seed)
        self.features = nn.Linear(truth.features.shape[1], truth.features.shape[0], bias=False)
        self.head = nn.Linear(truth.features.shape[0], 1, bias=False)
        self.features.weight.data = truth.features.clone()
        self.head.weight.data = torch.randn(1, truth.features.shape[0], dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (N, 1) for samples x (N, 20)."""
        return self.head(self.features(x))


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Return half the sum of the squared errors: the loss of a full-gradient step on all samples."""
    return (output - target).square().sum() / 2


class ThreeLayers(nn.Module):
    """A classifier of three linear layers with ReLU between them: `first`, `middle`, and `last`, its head.

    `features`: shape of one sample, which is flattened. `width`: hidden units. `classes`: number of logits per sample.
    """

    def __init__(self, features: Sequence[int], width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.first = nn.Linear(prod(features), width)
        self.middle = nn.Linear(width, width)
        self.last = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, classes) for samples x (N, *features)."""
        return self.last(self.middle(self.first(x.flatten(1)).relu()).relu())


def equal_layers(layers: int, features: int) -> nn.Module:
    """Return `layers` linear layers of the same size, without bias, one after the other."""
    return nn.Sequential(*(nn.Linear(features, features, bias=False) for _ in range(layers)))


def densenet_bc(classes: int = 100) -> nn.Module:
    """Return DenseNet-BC with growth rate 12 and 76 layers for pictures of 32x32 pixels, as FreezeOut trains it."""
    model = DenseNet(growth_rate=12, block_config=(12, 12, 12), num_init_features=24, bn_size=4, num_classes=classes)
    model.features.conv0 = nn.Conv2d(3, 24, kernel_size=3, padding=1, bias=False)
    model.features.norm0, model.features.relu0, model.features.pool0 = nn.Identity(), nn.Identity(), nn.Identity()
    return model
