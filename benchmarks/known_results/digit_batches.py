"""The digits of scikit-learn, divided by a seed: to pretrain with, to fine-tune with, to choose a rate by, and to test with.

The two tasks are to learn other digits than those of the pretraining (`new`), and the same ten digits after a change: each
label stands for another digit (`labels`), or the pixels of each picture are mixed (`inputs`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Generator, Tensor

from runner.training.data.pictures import Digits

PRETRAINED_ON = 1000  # pictures of all ten digits; of the task `new`, all pictures of 0-4
TUNED_ON, CHOSEN_BY = 50, 250  # pictures; the tests have those that are left
PARTS = ("pretrain", "train", "choose", "test")


@lru_cache(maxsize=1)
def all_digits() -> tuple[Tensor, Tensor]:
    """Return all pictures (1797, 64) with values in [0, 1], and their labels (1797)."""
    digits = Digits([64])
    return digits.images.flatten(1), torch.tensor(digits.targets)


def part_of_digits(task: str, part: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return the pictures (N, 64) and the labels (N) of a part of the digits, in the order that the seed gives.

    `task`: `new`, `labels` or `inputs`. `part`: one of PARTS; no picture is in two of them. To fine-tune with there are as
    many pictures of each class.
    """
    pictures, labels = all_digits()
    generator = Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    mixed, renamed = torch.randperm(64, generator=generator), torch.randperm(10, generator=generator)
    is_before = labels[order] < 5 if task == "new" else torch.arange(len(order)) < PRETRAINED_ON
    before, after = order[is_before], order[~is_before]
    if part == "pretrain":
        return pictures[before], labels[before]
    is_trained = number_within_class(labels[after]) < TUNED_ON // len(labels[after].unique())
    rest = after[~is_trained]
    chosen = {"train": after[is_trained], "choose": rest[:CHOSEN_BY], "test": rest[CHOSEN_BY:]}[part]
    x, y = pictures[chosen], labels[chosen]
    return (x[:, mixed] if task == "inputs" else x), (renamed[y] if task == "labels" else y)


def number_within_class(labels: Tensor) -> Tensor:
    """Return, for each label, how many equal ones stand before it: (N,)."""
    return torch.nn.functional.one_hot(labels).cumsum(0).gather(1, labels[:, None])[:, 0] - 1


class DigitBatches:
    """Batches of a part of the digits, in a new random order in each pass; one batch in the order of the part for tests."""

    def __init__(self, task: str, part: str, seed: int, batch_size: int | None = None) -> None:
        self.x, self.y = part_of_digits(task, part, seed)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return 1 if self.batch_size is None else -(-len(self.y) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.batch_size is None:
            yield self.x, self.y
            return
        for indices in torch.randperm(len(self.y)).split(self.batch_size):
            yield self.x[indices], self.y[indices]
