"""Small example models with what can make freezing difficult: BatchNorm, tied weights, an embedding, and a head."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn


class MLP(nn.Module):
    """A small classifier: linear layer, BatchNorm, two linear layers with one shared weight (`there`, `back`), linear head.

    `features`: shape of one sample, which is flattened. `width`: hidden units. `classes`: number of logits per sample.
    """

    def __init__(self, features: Sequence[int], width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Linear(prod(features), width)
        self.norm = nn.BatchNorm1d(width)
        self.there = nn.Linear(width, width)
        self.back = nn.Linear(width, width)
        self.back.weight = self.there.weight
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, classes) for samples x (N, *features)."""
        # ReLU in between, because the gradient of a bias directly before BatchNorm consists only of rounding errors.
        x = self.norm(self.body(x.flatten(1)).relu())
        x = self.back(self.there(x).relu()).relu()
        return self.head(x)


class TokenMLP(nn.Module):
    """A small classifier with an embedding: each number of a sample falls into a bin, and each bin has its own embedding.

    The mean of a sample's embeddings goes through BatchNorm, two linear layers that share one weight, and a linear head.
    `bins`: number of embeddings. `width`: hidden units. `classes`: number of logits per sample.
    """

    def __init__(self, bins: int = 8, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(bins, width)
        self.norm = nn.BatchNorm1d(width)
        self.there = nn.Linear(width, width)
        self.back = nn.Linear(width, width)
        self.back.weight = self.there.weight
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, classes) for samples x (N, length).

        Each bin is 0.5 wide. Half of the bins are for negative numbers, the other half for all others. Numbers beyond the
        bins go to the first or the last bin.
        """
        half = self.embed.num_embeddings // 2
        tokens = (2 * x).floor().long().clamp(-half, half - 1) + half
        x = self.norm(self.embed(tokens).mean(1))
        x = self.back(self.there(x).relu()).relu()
        return self.head(x)
