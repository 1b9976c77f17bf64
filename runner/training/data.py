"""Where batches come from. A source yields `count` batches `(x, y)`, the same for every method at the same seed.

A source is any class with a method `batches(count, input, classes, seed)`; `input` is the shape of one sample and
`classes` the number of the model's outputs. Each draws from a generator of its own, so that what a method does to the
global random state does not change the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.errors import ConfigError
from runner.tensors import each_tensor

Batch = tuple[Tensor, Tensor]


class Synthetic:
    """Standard normal samples and uniform targets, made when they are asked for: memory does not grow with the count."""

    def __init__(self, batch_size: int = 4) -> None:
        self.batch_size = batch_size

    def batches(self, count: int, input: Sequence[int], classes: int, seed: int) -> Iterator[Batch]:
        """Yields x (N, *input) float32 and y (N,) int64."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            x = torch.randn(self.batch_size, *input, generator=generator)
            yield x, torch.randint(classes, (self.batch_size,), generator=generator)


class Digits:
    """The 1,797 scanned digits that scikit-learn ships (8x8, ten classes), resized and repeated to the model's channels.

    Source: https://archive.ics.uci.edu/dataset/80
    """

    def __init__(self, batch_size: int = 4) -> None:
        self.batch_size = batch_size

    def batches(self, count: int, input: Sequence[int], classes: int, seed: int) -> Iterator[Batch]:
        """Yields x (N, *input) float32 in [0, 1] and y (N,) int64; raises ConfigError where they cannot fit the model."""
        from sklearn.datasets import load_digits

        _check_classes("data=digits", 10, classes)
        if len(input) == 3:
            channels, height, width = input
        elif list(input) == [64]:
            channels, height, width = 1, 8, 8
        else:
            raise ConfigError(
                f"data=digits holds pictures, model.input is {list(input)}; give [channels,height,width] or [64]"
            )
        digits = load_digits()
        pictures, targets = torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target).long()
        for chosen in _shuffled(len(targets), self.batch_size, count, seed):
            x = torch.nn.functional.interpolate(pictures[chosen, None], size=(height, width), mode="bilinear")
            yield x.expand(-1, channels, -1, -1).reshape(-1, *input), targets[chosen]


class ImageFolder:
    """Any folder of pictures by class (`root/CLASS/picture.png`), resized to the model's input.

    Source: https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.ImageFolder.html
    """

    def __init__(self, root: str, batch_size: int = 4) -> None:
        self.root, self.batch_size = root, batch_size

    def batches(self, count: int, input: Sequence[int], classes: int, seed: int) -> Iterator[Batch]:
        """Yields x (N, *input) float32 in [0, 1] and y (N,) int64; raises ConfigError where they cannot fit the model."""
        from torchvision import datasets
        from torchvision.transforms import v2

        if not Path(self.root).is_dir():
            raise ConfigError(f"data.root is {self.root!r}, which is not a folder; give one with a subfolder a class")
        if len(input) != 3 or input[0] not in (1, 3):
            raise ConfigError(f"data=image_folder holds pictures, model.input is {list(input)}; give [1 or 3,height,width]")
        transform = v2.Compose(
            [
                v2.Grayscale(num_output_channels=input[0]) if input[0] == 1 else v2.Identity(),
                v2.Resize(list(input[1:])),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )
        try:
            pictures = datasets.ImageFolder(self.root, transform)
        except FileNotFoundError as error:
            raise ConfigError(f"data.root={self.root}: {str(error).splitlines()[0]}") from error
        _check_classes(f"data.root={self.root}", len(pictures.classes), classes)
        for chosen in _shuffled(len(pictures), self.batch_size, count, seed):
            samples = [pictures[index] for index in chosen.tolist()]
            yield torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])


def _check_classes(key: str, held: int, classes: int) -> None:
    if held > classes:
        raise ConfigError(f"{key} has targets of {held} classes, the model's head has {classes}; give model.classes={held}")


def _shuffled(samples: int, batch_size: int, count: int, seed: int) -> Iterator[Tensor]:
    """The indices of `count` batches, all of one size: each sample once an epoch, in an order drawn anew each epoch."""
    generator = torch.Generator().manual_seed(seed)
    pending = torch.empty(0, dtype=torch.long)
    for _ in range(count):
        short = batch_size - len(pending)
        epochs = [torch.randperm(samples, generator=generator) for _ in range(ceil(short / samples))]
        pending = torch.cat([pending, *epochs])
        yield pending[:batch_size]
        pending = pending[batch_size:]


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with every tensor in its tuples, lists and mappings on the device."""
    return each_tensor(batch, lambda tensor: tensor.to(device))
