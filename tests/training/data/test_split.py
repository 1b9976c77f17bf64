"""Which samples are held out: a share of each class, the same for every seed."""

from __future__ import annotations

from collections import Counter

import numpy
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from runner.errors import ConfigError
from runner.training.data.reading import ReadError
from runner.training.data.split import class_count, read_targets, targets_of, train_and_held_out
from tests.training.data.examples import Numbers, pairs


class Labelled(Numbers):
    """Numbers that list their targets, as datasets of torchvision do."""

    def __init__(self, targets):
        super().__init__(len(targets))
        self.targets = targets

    def __getitem__(self, index):
        raise AssertionError("samples need not be read")


def test_the_share_of_each_class_is_held_out():
    targets = [0] * 50 + [1] * 30 + [2] * 20
    trained, held_out = train_and_held_out(Labelled(targets), targets, 0.2)
    assert sorted(trained + held_out) == list(range(100))
    assert Counter(targets[index] for index in held_out) == {0: 10, 1: 6, 2: 4}


def test_samples_are_drawn_from_all_over_a_class():
    targets = [0] * 50 + [1] * 50
    _, held_out = train_and_held_out(Labelled(targets), targets, 0.2)
    assert held_out[:10] != list(range(10))


def test_the_split_does_not_depend_on_the_global_generator():
    splits = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        splits.append(train_and_held_out(Numbers(50), None, 0.3))
    assert splits[0] == splits[1]


def test_numbers_that_are_no_classes_are_split_as_one_group():
    targets = list(range(20))
    trained, held_out = train_and_held_out(Labelled(targets), targets, 0.25)
    assert (len(trained), len(held_out)) == (15, 5)


def test_a_share_that_is_less_than_one_sample_of_each_class_is_still_held_out_in_all():
    targets = [index % 5 for index in range(20)]
    _, held_out = train_and_held_out(Labelled(targets), targets, 0.1)
    assert len(held_out) == 2


@pytest.mark.parametrize(
    ("targets", "share", "message"),
    [
        ([0, 1] * 15, 0.001, r"data.holdout=0.001 of 30 samples leaves none held out; give another share"),
        ([0], 0.999, r"data.holdout=0.999 of 1 samples leaves none to train on; give another share"),
        ([0, 1] * 15, 0.04, r"data.holdout=0.04 of 30 samples leaves one class of 2 held out; give another share"),
        (
            [0] * 9 + [1],
            0.2,
            r"data.holdout=0.2 of 10 samples leaves one class of 2 .*, since no two classes have two samples; give d",
        ),
    ],
)
def test_a_share_that_leaves_nothing_or_one_class_is_refused(targets, share, message):
    with pytest.raises(ConfigError, match=message):
        train_and_held_out(Labelled(targets), targets, share)


TENSORS = TensorDataset(torch.zeros(4, 2), torch.tensor([1, 0, 1, 2]))
LISTED = {
    "tensors": (TENSORS, [1, 0, 1, 2]),
    "targets": (Labelled([1, 0]), [1, 0]),
    "array": (Labelled(torch.tensor([1, 0]).numpy()), [1, 0]),
    "bytes": (Labelled([numpy.uint8(1), numpy.uint8(0)]), [1, 0]),
    "subset": (Subset(TENSORS, [3, 0]), [2, 1]),
    "concat": (ConcatDataset([TENSORS, Subset(TENSORS, [0])]), [1, 0, 1, 2, 1]),
    "unknown": (ConcatDataset([TENSORS, Numbers(3)]), None),
    "regression": (TensorDataset(torch.zeros(2, 2), torch.tensor([0.5, 1.0])), None),
}


@pytest.mark.parametrize(("dataset", "targets"), LISTED.values(), ids=LISTED)
def test_targets_are_found_without_reading_samples(dataset, targets):
    assert targets_of(dataset) == targets


@pytest.mark.parametrize(
    ("dataset", "targets"),
    [
        (pairs(3), [0, 1, 2]),
        ([{"x": torch.zeros(2), "label": 4}], [4]),
        ([{"a": 1, "label": 4}], None),
        ([(torch.zeros(2), torch.tensor(3))], [3]),
        ([(torch.zeros(2), numpy.uint8(3))], [3]),
        ([(torch.zeros(2), numpy.int16(3))], [3]),
        ([(torch.zeros(2), True)], None),
        ([(torch.zeros(2), numpy.bool_(True))], None),
        ([(torch.zeros(2), 0.5)], None),
        ([torch.zeros(2)], None),
    ],
)
def test_targets_are_read_from_the_samples_of_a_small_dataset(dataset, targets):
    assert read_targets(dataset) == targets


def test_the_number_of_classes_is_that_of_the_list_or_the_highest_target():
    dataset = Labelled([0, 5])
    assert class_count(dataset, dataset.targets) == 6
    dataset.classes = list("abcdefgh")
    assert class_count(dataset, dataset.targets) == 8
    assert class_count(Numbers(), None) is None


class Broken:
    """A dataset without a list of targets whose third sample cannot be read."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == 2:
            raise KeyError("no such picture")
        return torch.zeros(2), index % 2


def test_a_sample_that_cannot_be_read_to_find_the_classes_is_named():
    with pytest.raises(ReadError, match=r"^sample 2 of 6: test_split\.py, line \d+: KeyError: 'no such picture'$"):
        train_and_held_out(Broken(), None, 0.5)
