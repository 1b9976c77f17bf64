"""Data sources: classes that yield batches `(x, y)`, which are the same for every freezing method at the same seed.

A source is any class with a method `batches(count, input, classes, seed)` that yields `count` batches. `input` is the shape
of one sample, and `classes` is the number of classes that the model predicts. Each source has its own random generator, so
the data stays the same if a freezing method draws numbers from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.errors import ConfigError
from runner.tensors import map_tensors

Batch = tuple[Tensor, Tensor]


class Synthetic:
    """Random data: x is drawn from the standard normal distribution, and each target y is a random class.

    Each batch is generated only when it is asked for, so memory never holds the whole data set.
    """

    def __init__(self, batch_size: int = 4) -> None:
        self.batch_size = batch_size

    def batches(self, count: int, input: Sequence[int], classes: int, seed: int) -> Iterator[Batch]:
        """Yield `count` batches (x, y): x (N, *input) float32 and y (N,) int64 from 0 to `classes` - 1."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            x = torch.randn(self.batch_size, *input, generator=generator)
            yield x, torch.randint(classes, (self.batch_size,), generator=generator)


class Digits:
    """The 1,797 grey images of digits in scikit-learn (8x8 pixels, ten classes).

    Images are resized to the height and width of the model's input, and the grey channel is repeated for each input channel.

    Source: https://archive.ics.uci.edu/dataset/80
    """

    def __init__(self, batch_size: int = 4) -> None:
        self.batch_size = batch_size

    def batches(self, count: int, input: Sequence[int], classes: int, seed: int) -> Iterator[Batch]:
        """Yield `count` batches (x, y): x (N, *input) float32 in [0, 1] and y (N,) int64 from 0 to 9.

        Raises ConfigError if `input` is neither [channels, height, width] nor [64], or if `classes` is below 10.
        """
        from sklearn.datasets import load_digits

        _check_classes("data=digits", 10, classes)
        if len(input) == 3:
            channels, height, width = input
        elif list(input) == [64]:
            channels, height, width = 1, 8, 8
        else:
            raise ConfigError(
                f"data=digits has images, but model.input is {list(input)}; give [channels,height,width] or [64]"
            )
        digits = load_digits()
        images, targets = torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target).long()
        for indices in _shuffled_indices(len(targets), self.batch_size, count, seed):
            x = torch.nn.functional.interpolate(images[indices, None], size=(height, width), mode="bilinear")
            yield x.expand(-1, channels, -1, -1).reshape(-1, *input), targets[indices]


class ImageFolder:
    """Images in a folder `root` with a subfolder for each class (`root/CLASS/image.png`), resized to the model's input.

    Source: https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.ImageFolder.html
    """

    def __init__(self, root: str, batch_size: int = 4) -> None:
        self.root, self.batch_size = root, batch_size

    def batches(self, count: int, input: Sequence[int], classes: int, seed: int) -> Iterator[Batch]:
        """Yield `count` batches (x, y): x (N, *input) float32 in [0, 1] and y (N,) int64, the index of the class subfolder.

        Raises ConfigError if the folder does not exist, if it has no subfolders or more than `classes`, if a subfolder has
        no images, or if `input` is not [1 or 3, height, width].
        """
        from torchvision import datasets
        from torchvision.transforms import v2

        if not Path(self.root).is_dir():
            raise ConfigError(f"data.root is {self.root!r}, which is not a folder; give one with class subfolders")
        if len(input) != 3 or input[0] not in (1, 3):
            raise ConfigError(f"data=image_folder has images, but model.input is {list(input)}; give [1 or 3,height,width]")
        transform = v2.Compose(
            [
                v2.Grayscale(num_output_channels=input[0]) if input[0] == 1 else v2.Identity(),
                v2.Resize(list(input[1:])),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )
        try:
            images = datasets.ImageFolder(self.root, transform)
        except FileNotFoundError as error:
            raise ConfigError(f"data.root={self.root}: {str(error).splitlines()[0]}") from error
        _check_classes(f"data.root={self.root}", len(images.classes), classes)
        for indices in _shuffled_indices(len(images), self.batch_size, count, seed):
            samples = [images[index] for index in indices.tolist()]
            yield torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])


def _check_classes(key: str, data_classes: int, classes: int) -> None:
    """Raise ConfigError if the data has more classes than the model.

    `key`: the text that the error message begins with, such as `data=digits`. `data_classes`: the number of classes in the
    data. `classes`: the number of classes that the model predicts.
    """
    if data_classes > classes:
        raise ConfigError(
            f"{key} has targets of {data_classes} classes, the model's head has {classes}; give model.classes={data_classes}"
        )


def _shuffled_indices(samples: int, batch_size: int, count: int, seed: int) -> Iterator[Tensor]:
    """Yield `count` tensors, one per batch, of `batch_size` random sample indices from 0 to `samples` - 1.

    Each sample comes once per epoch, and every epoch has a new random order. All batches have the same size: a batch can
    contain the end of one epoch and the beginning of the next.
    """
    generator = torch.Generator().manual_seed(seed)
    pending = torch.empty(0, dtype=torch.long)
    for _ in range(count):
        missing = batch_size - len(pending)
        epochs = [torch.randperm(samples, generator=generator) for _ in range(ceil(missing / samples))]
        pending = torch.cat([pending, *epochs])
        yield pending[:batch_size]
        pending = pending[batch_size:]


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch (nested tuples, lists and mappings) with all its tensors moved to the device."""
    return map_tensors(batch, lambda tensor: tensor.to(device))
