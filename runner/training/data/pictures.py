"""Datasets of pictures: scikit-learn's digits, a folder with a subfolder for each class, and torchvision's datasets."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from runner.errors import ConfigError, did_you_mean
from runner.training.data.loading import from_dataset
from runner.training.data.options import takes_loading
from runner.training.data.source import Source
from runner.training.data.transforms import in_eight_bits


class Digits(Dataset[tuple[Tensor, int]]):
    """The 1,797 grey pictures of digits in scikit-learn (8x8 pixels, ten classes), as pairs (x, y) with x in [0, 1].

    `input`: the shape of x: [channels, height, width], where the grey channel is repeated for each channel, or [64]; None
    for [1, 8, 8]. Raises ConfigError for another shape.
    Source: https://archive.ics.uci.edu/dataset/80
    """

    def __init__(self, input: Sequence[int] | None = None) -> None:
        from sklearn.datasets import load_digits

        self.input = list(input or [1, 8, 8])
        if len(self.input) != 3 and self.input != [64]:
            raise ConfigError(
                f"data=digits has images, but model.input is {self.input}; give [channels,height,width] or [64]"
            )
        digits = load_digits()
        self.images, self.targets = torch.from_numpy(digits.images).float() / 16, digits.target.tolist()
        self.classes = [str(digit) for digit in range(10)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        channels, *size = self.input if len(self.input) == 3 else (1, 8, 8)
        x = torch.nn.functional.interpolate(self.images[index][None, None], size=size, mode="bilinear")[0]
        return x.expand(channels, -1, -1).reshape(self.input), self.targets[index]


@takes_loading
def digits(input: Sequence[int] | None = None, **loading: Any) -> Source:
    """Return a Source of `Digits`; `loading`: the attributes of Loading."""
    return from_dataset(Digits(input), input=input, **loading)


@takes_loading
def image_folder(root: str, input: Sequence[int] | None = None, **loading: Any) -> Source:
    """Return a Source of the pictures in `root`, which has a subfolder for each class (`root/CLASS/picture.png`).

    `input`: the shape of a picture, [1 or 3, height, width]. `loading`: the attributes of Loading. Raises ConfigError if
    the folder does not exist, has no subfolders, or a subfolder has no pictures.
    Source: https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.ImageFolder.html
    """
    from torchvision.datasets import ImageFolder

    if not Path(root).is_dir():
        raise ConfigError(f"data.root is {root!r}, which is not a folder; give one with class subfolders")
    try:
        dataset = ImageFolder(root, loader=open_picture)
    except FileNotFoundError as error:
        raise ConfigError(f"data.root={root}: {str(error).splitlines()[0]}") from error
    return from_dataset(dataset, input=input, **loading)


def open_picture(path: str) -> Image.Image:
    """Return the picture in a file, in RGB."""
    with Image.open(path) as picture:
        return in_eight_bits(picture).convert("RGB")


@takes_loading
def torchvision_dataset(
    name: str, root: str, input: Sequence[int] | None = None, options: dict[str, Any] | None = None, **loading: Any
) -> Source:
    """Return a Source of a dataset of torchvision by its class's name, such as CIFAR10, from the folder `root`.

    `options`: more arguments of the class, such as `{train: false}` or `{download: true}`. `loading`: the attributes of
    Loading. Raises ConfigError if there is no such dataset, or if it refuses its arguments or its folder.
    """
    from torchvision import datasets

    classes: dict[str, Any] = {each: value for each, value in vars(datasets).items() if inspect.isclass(value)}
    if name not in classes:
        raise ConfigError(f"data.name is {name!r}, which is no dataset of torchvision{did_you_mean(name, classes)}")
    try:
        dataset = classes[name](root, **(options or {}))
    except (RuntimeError, FileNotFoundError, TypeError, ValueError) as error:
        raise ConfigError(f"data.root={root}: {name} says: {' '.join(str(error).split())}") from error
    return from_dataset(dataset, input=input, **loading)


@takes_loading
def huggingface_dataset(root: str, split: str = "train", **loading: Any) -> Source:
    """Return a Source of a folder that `save_to_disk` of the library `datasets` wrote; samples are mappings.

    `split`: which part of it, where the folder has several. `loading`: the attributes of Loading. Raises ConfigError if the
    library is not installed, if the folder is none of its, or has no such split.
    """
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise ConfigError("data=huggingface needs datasets: pip install 'freeze-runner[huggingface]'") from error
    try:
        loaded = load_from_disk(root)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"data.root={root}: datasets says: {' '.join(str(error).split())}") from error
    if isinstance(loaded, dict):
        if split not in loaded:
            raise ConfigError(f"data.split is {split!r}; {root} has {', '.join(loaded)}{did_you_mean(split, loaded)}")
        loaded = loaded[split]
    return from_dataset(loaded, **loading)
