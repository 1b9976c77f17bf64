"""The linear regression of LP-FT: its true function, its samples, and the expected error of two layers.

A sample x lies in a subspace of 6 of 20 dimensions; its target is the product of a true head and two true features of x.
Source: https://arxiv.org/abs/2202.10054
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

DIMENSIONS, FEATURES, SAMPLES, SUBSPACE = 20, 2, 10, 6


@dataclass(frozen=True)
class Truth:
    """A true function, and samples of it.

    Attributes:
        features: the true features, two orthonormal rows: (2, 20), float64.
        head: the true head, of length 1: (1, 2), float64.
        x: the samples: (10, 20), float64; in coordinates of the subspace they are from the standard normal distribution.
    """

    features: Tensor
    head: Tensor
    x: Tensor

    @property
    def y(self) -> Tensor:
        """The targets of the samples: (10, 1)."""
        return self.x @ self.features.T @ self.head.T


def draw_truth(seed: int) -> Truth:
    """Return the true function and the samples that the seed gives."""
    generator = Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    features = torch.linalg.qr(normal(DIMENSIONS, FEATURES)).Q.T
    head = normal(1, FEATURES)
    subspace = torch.linalg.qr(normal(DIMENSIONS, SUBSPACE)).Q
    return Truth(features, head / head.norm(), normal(SAMPLES, SUBSPACE) @ subspace.T)


def full_batches(seed: int, steps: int) -> list[tuple[Tensor, Tensor]]:
    """Return the data of a run of `steps` steps: each batch has all samples, so that each step has the full gradient."""
    truth = draw_truth(seed)
    return [(truth.x, truth.y)] * steps


def expected_error(features: Tensor, head: Tensor, seed: int) -> float:
    """Return the mean squared error over samples from the standard normal distribution in all 20 dimensions, exactly.

    `features` (2, 20) and `head` (1, 2): the weights of the two layers. The error of a linear function is the squared length
    of what its weights differ from the true ones.
    """
    truth = draw_truth(seed)
    return float((head @ features - truth.head @ truth.features).square().sum())
