"""Datasets, iterables, transforms and models that the tests of data use by their dotted paths."""

from __future__ import annotations

import os
import random
import signal
import time
from itertools import count, islice

import numpy
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

HERE = "tests.training.data.examples"


class Numbers(Dataset):
    """Pairs (x, y) of 64 values that are all the sample's number, and the number modulo 10."""

    def __init__(self, size=30):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.full((64,), float(index)), index % 10


def noise():
    """Return a number that is drawn from each of the three global generators."""
    return torch.randn(64) + numpy.random.rand() + random.random()


class Noisy(Numbers):
    """Numbers with noise of torch, numpy and Python's random."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x / 10 + noise(), y


class Stream(IterableDataset):
    """The samples of Numbers in turn, shared out among the workers of a DataLoader."""

    def __init__(self, size=30, is_shared_out=True, is_noisy=False, has_length=False):
        self.size, self.is_shared_out, self.is_noisy = size, is_shared_out, is_noisy
        if has_length:
            self.__class__ = StreamWithLength

    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker and self.is_shared_out else (0, 1)
        for index in range(first, self.size, step):
            yield torch.full((64,), index / 10) + (noise() if self.is_noisy else 0), index % 10


class StreamWithLength(Stream):
    """A Stream that says how many samples it has."""

    def __len__(self):
        return self.size


class Pictures(Numbers):
    """Eight pictures of random values, large enough for torch to use several threads."""

    def __init__(self):
        super().__init__(8)

    def __getitem__(self, index):
        return torch.randn(3, 256, 256), index


class PictureStream(IterableDataset):
    """The samples of Pictures in turn."""

    def __iter__(self):
        return map(Pictures().__getitem__, range(8))


def normalised(x):
    """Return x with mean 0 and standard deviation 1."""
    return (x - x.mean()) / x.std()


class Shrinking(Numbers):
    """Numbers whose length goes down after it was asked for `times` times."""

    def __init__(self, size=30, times=8):
        super().__init__(size)
        self.asked = count()
        self.times = times

    def __len__(self):
        return self.size if next(self.asked) < self.times else self.size // 2


class Failing(Numbers):
    """Numbers of which the sample `at` cannot be read, or is of another form."""

    def __init__(self, kind="raise", at=7, size=30):
        super().__init__(size)
        self.kind, self.at = kind, at

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        if index != self.at:
            return x, y
        if self.kind == "raise":
            raise KeyError("boom")
        if self.kind == "index":
            return [][index]
        if self.kind == "exit":
            os._exit(3)
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "hang":
            time.sleep(600)
        others = {"none": None, "object": object(), "text": "seven", "ragged": x[:3]}
        return (x, y, y) if self.kind == "longer" else {"x": x} if self.kind == "mapping" else (others[self.kind], y)


def add_noise(x):
    """Return x with noise of torch, numpy and Python's random."""
    return x + noise()


def noisy_collate(samples):
    """Return the batch of the samples with one random number added to all."""
    return torch.stack([x for x, _ in samples]) + torch.rand(()) + random.random(), torch.tensor([y for _, y in samples])


def failing_collate(samples):
    """Raise an error of two lines."""
    raise ValueError("cannot\ncollate")


def batches(sizes=(10, 10, 10)):
    """Yield batches of Numbers; a generator, which can be used only once."""
    for size in sizes:
        yield torch.randn(size, 64), torch.arange(size) % 10


class Loader:
    """An object with `__iter__` only, which counts how often that is called."""

    def __init__(self, *sizes):
        self.sizes, self.calls = sizes, 0

    def __iter__(self):
        self.calls += 1
        return batches(self.sizes)


class ShorterEachTime(Loader):
    """A Loader that yields one batch less each time."""

    def __iter__(self):
        self.calls += 1
        return batches(self.sizes[self.calls - 1 :])


class OtherAtStep7:
    """Ten batches, the seventh of which is a mapping."""

    def __iter__(self):
        for number in range(1, 11):
            yield {"x": torch.ones(4, 64)} if number == 7 else (torch.ones(4, 64), torch.zeros(4).long())


def loader(workers=0, persistent=False, shuffle=True):
    """Return a DataLoader of Numbers in batches of ten."""
    persistent = persistent and workers > 0
    return DataLoader(Numbers(), 10, shuffle=shuffle, num_workers=workers, persistent_workers=persistent)


def list_of_batches():
    """Return three batches as a list."""
    return list(islice(batches(), 3))


def pairs(size=30):
    """Return a list of the samples of Numbers."""
    return [Numbers(size)[index] for index in range(size)]


class WithoutNorm(nn.Sequential):
    """A model without BatchNorm or dropout: its gradients are means over samples."""

    def __init__(self):
        super().__init__(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))


class WithDropout(nn.Sequential):
    """A model whose steps draw from the global generator."""

    def __init__(self):
        super().__init__(nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))


def model_here(name):
    """Return the overrides that use a model of this file."""
    return ["model=custom", f"model.build._target_={HERE}.{name}", "model.head='2'", "model.input=[64]", "model.classes=10"]


def data_here(name, *options, data="dataset"):
    """Return the overrides that use a dataset of this file, or with data=custom its batches."""
    node = "data.dataset" if data == "dataset" else "data"
    return [f"data={data}", f"{node}._target_={HERE}.{name}", *(f"++{node}.{option}" for option in options)]


class TokenModel(nn.Module):
    """Scores of 32 classes: for each token, or, for tokens without labels of their own, for each sample."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(32, 8), nn.Linear(8, 32)

    def forward(self, input_ids):
        scores = self.head(self.embed(input_ids))
        return scores.mean(1) if input_ids.shape[1] == 3 else scores


def segmenter():
    """Return a model of torchvision that gives a class for each pixel."""
    return torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)


def detector():
    """Return a small detector of torchvision."""
    build = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn
    sizes = {"min_size": 64, "max_size": 64, "rpn_pre_nms_top_n_train": 50, "rpn_post_nms_top_n_train": 20}
    return build(weights=None, weights_backbone=None, num_classes=3, **sizes)


def video_net():
    """Return a small model for video."""
    return nn.Sequential(nn.Conv3d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))
