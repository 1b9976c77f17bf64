"""Split the samples of a dataset into those to train on and those that are held out, the same for every seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from runner.errors import ConfigError
from runner.training.data.reading import failure_of

TARGETS = ("targets", "labels")  # attributes in which datasets of torchvision keep their targets
MOST_READ = 10_000  # samples that are read to find their targets, where the dataset has none of these attributes


def targets_of(dataset: Any) -> list[int] | None:
    """Return the class of every sample as the dataset lists it, without reading a sample; None if it lists none.

    Subsets and concatenations are looked into.
    """
    for name in TARGETS:
        if (found := _whole_numbers(getattr(dataset, name, None))) is not None and len(found) == len(dataset):
            return found
    if isinstance(dataset, torch.utils.data.Subset):
        inner = targets_of(dataset.dataset)
        return None if inner is None else [inner[index] for index in dataset.indices]
    if isinstance(dataset, torch.utils.data.ConcatDataset):
        parts = [targets_of(each) for each in dataset.datasets]
        return None if None in parts else [target for part in parts for target in part or ()]
    if isinstance(dataset, torch.utils.data.TensorDataset) and len(dataset.tensors) == 2:
        return _whole_numbers(dataset.tensors[1])
    return None


def read_targets(dataset: Any) -> list[int] | None:
    """Return the class of every sample of a dataset by reading them; None if they have none, or are more than MOST_READ.

    Raises ReadError with the number of a sample that cannot be read.
    """
    if len(dataset) > MOST_READ:
        return None
    found = []
    for index in range(len(dataset)):
        try:
            sample = dataset[index]
        except Exception as error:
            failure_of(error, f"sample {index} of {len(dataset)}").throw()
        target = _target_in(sample)
        if target is None:
            return None
        found.append(target)
    return found


def _target_in(sample: Any) -> int | None:
    """Return the whole number that is the second part of a pair, or the one whole number of a mapping; else None."""
    if isinstance(sample, (tuple, list)) and len(sample) == 2:
        return _whole_number(sample[1])
    if isinstance(sample, Mapping):
        numbers = [number for number in map(_whole_number, sample.values()) if number is not None]
        return numbers[0] if len(numbers) == 1 else None
    return None


def _whole_number(value: Any) -> int | None:
    """Return a value as an int if it is one whole number, else None."""
    if isinstance(value, Tensor):
        is_whole = not value.dim() and not value.is_floating_point() and not value.is_complex()
        return int(value) if is_whole else None
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def _whole_numbers(values: Any) -> list[int] | None:
    """Return a sequence of whole numbers, such as a tensor or an array, as a list; None if it is anything else."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, (list, tuple)) or not values:
        return None
    found = [number for number in map(_whole_number, values) if number is not None]
    return found if len(found) == len(values) else None


def class_count(dataset: Any, targets: Sequence[int] | None) -> int | None:
    """Return the number of classes of a dataset: the length of its list `classes`, else the highest target plus 1."""
    classes = getattr(dataset, "classes", None)
    if isinstance(classes, (list, tuple)) and classes:
        return len(classes)
    return max(targets) + 1 if targets else None


def train_and_held_out(dataset: Any, targets: list[int] | None, share: float) -> tuple[list[int], list[int]]:
    """Return the numbers of the samples to train on, and of those held out: about `share` of each class.

    Without classes, or if every sample has one of its own, `share` of all; so too if the dataset does not list its targets
    and has more than MOST_READ samples. The split does not depend on the run's seed.
    Raises ConfigError if one of the parts would be empty, or have one class of several.
    """
    size = len(dataset)
    targets = targets or read_targets(dataset)
    groups: dict[Any, list[int]] = defaultdict(list)
    for index in range(size):
        groups[targets[index] if targets else None].append(index)
    if len(groups) > size / 2:  # numbers that are no classes
        groups = {None: list(range(size))}
    generator = torch.Generator().manual_seed(0)
    held_out: set[int] = set()
    owed = 0.0  # samples that rounding has not held out yet
    for _, members in sorted(groups.items(), key=lambda item: (item[0] is not None, item[0])):
        order = torch.randperm(len(members), generator=generator).tolist()
        owed += share * len(members)
        count = min(max(round(owed), 0), max(len(members) - 1, 1))  # a class of two or more stays among those to train on
        owed -= count
        held_out |= {members[position] for position in order[:count]}
    parts = [index for index in range(size) if index not in held_out], sorted(held_out)
    for part, name in zip(parts, ("to train on", "held out"), strict=True):
        if not part:
            raise ConfigError(f"data.holdout={share} of {size} samples leaves none {name}; give another share")
        if targets and len(groups) > 1 and len({targets[index] for index in part}) == 1:
            problem = f"data.holdout={share} of {size} samples leaves one class of {len(groups)} {name}"
            if sum(len(members) > 1 for members in groups.values()) < 2:
                raise ConfigError(f"{problem}, since no two classes have two samples; give data.test, or more samples")
            raise ConfigError(f"{problem}; give another share")
    return parts
