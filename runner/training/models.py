"""Small models with what matters for freezing: BatchNorm, tied weights, an embedding, and a head."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn


class MLP(nn.Module):
    """A linear layer, BatchNorm, two linear layers with tied weights (`there`, `back`), and a linear head.

    `features`: shape of one sample, which is flattened; `width`: hidden units; `classes`: outputs.
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
        """Map x (N, *features) to logits (N, classes)."""
        # ReLU in between, because the gradient of a bias directly before BatchNorm consists only of rounding errors.
        x = self.norm(self.body(x.flatten(1)).relu())
        x = self.back(self.there(x).relu()).relu()
        return self.head(x)


class TokenMLP(nn.Module):
    """A model with an embedding: rounds each number to a bin, averages the bins' embeddings, and continues as `MLP` does.

    `bins`: rows of the embedding; `width`: hidden units; `classes`: outputs.
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
        """Map x (N, length) to logits (N, classes). A bin is 0.5 wide; numbers outside go to the first or last bin."""
        half = self.embed.num_embeddings // 2
        tokens = (2 * x).floor().long().clamp(-half, half - 1) + half
        x = self.norm(self.embed(tokens).mean(1))
        x = self.back(self.there(x).relu()).relu()
        return self.head(x)
