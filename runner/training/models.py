"""Small models that have what matters for freezing: BatchNorm, a tied pair of weights, an embedding, and a head."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn


class MLP(nn.Module):
    """`body`, a ReLU -> BatchNorm -> two layers that share one weight -> `head`.

    `features`: shape of one sample, flattened on entry; `width`: hidden units; `classes`: outputs.
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
        """(N, *features) -> (N, classes)."""
        x = self.norm(self.body(x.flatten(1)).relu())  # a bias right before a BatchNorm would get rounding noise
        x = self.back(self.there(x).relu()).relu()
        return self.head(x)


class TokenMLP(nn.Module):
    """An MLP with an embedding: numbers are binned, their embeddings averaged; BatchNorm and a tied pair as in `MLP`.

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
        """(N, length) -> (N, classes); a number is binned by twice its value, rounded down."""
        half = self.embed.num_embeddings // 2
        tokens = (2 * x).floor().long().clamp(-half, half - 1) + half
        x = self.norm(self.embed(tokens).mean(1))
        x = self.back(self.there(x).relu()).relu()
        return self.head(x)
