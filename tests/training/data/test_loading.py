"""Datasets in batches: which samples in which order, how many batches, and what counts as a dataset."""

from __future__ import annotations

import pickle
import random
import weakref
from contextlib import nullcontext
from itertools import chain

import numpy
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset, get_worker_info

from runner.errors import ConfigError
from runner.seeding import random_state
from runner.tensors import same_bits
from runner.training.data.loading import from_dataset
from runner.training.data.options import Loading
from runner.training.data.reading import ReadError, Request, SampleReader, StreamReader
from tests.training.data import examples
from tests.training.data.examples import Noisy, Numbers, Shrinking, Stream

EVERYTHING = 10**9


def read(source, seed=0, epoch=0, count=EVERYTHING):
    """Return the batches of a pass as a list."""
    return list(source.read(seed, epoch, count))


def numbers(batches):
    """Return the numbers of the samples in each batch of Numbers."""
    return [x[:, 0].int().tolist() for x, _ in batches]


# A pass


def test_each_pass_has_each_sample_once_with_its_target_in_another_order():
    source = from_dataset(Numbers(), batch_size=10)
    passes = [read(source, epoch=epoch) for epoch in range(4)]
    orders = [list(chain(*numbers(batches))) for batches in passes]
    assert [sorted(order) for order in orders] == [list(range(30))] * 4
    assert len(set(map(tuple, orders))) == 4
    assert all(((x[:, 0].long() % 10) == y).all() for x, y in chain(*passes))


def test_without_shuffle_each_pass_has_the_order_of_the_dataset():
    source = from_dataset(Numbers(5), batch_size=2, shuffle=False)
    assert numbers(read(source)) == numbers(read(source, epoch=1)) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [8, 8, 8, 6]), (True, [8, 8, 8])])
def test_the_last_batch_is_short_or_dropped(drop_last, sizes):
    source = from_dataset(Numbers(), batch_size=8, drop_last=drop_last)
    assert [len(y) for _, y in read(source)] == sizes
    assert source.length() == len(sizes)


def test_a_number_of_batches_takes_the_first_ones_of_the_pass_and_never_wraps_round():
    source = from_dataset(Numbers(), batch_size=10)
    assert numbers(read(source, count=2)) == numbers(read(source))[:2]
    assert len(read(source, count=100)) == 3


@pytest.mark.parametrize("dataset", [Noisy(), Stream(is_noisy=True)], ids=["samples", "stream"])
def test_batches_depend_on_the_seed_and_the_pass_and_leave_the_global_generators_alone(dataset):
    source = from_dataset(dataset, batch_size=10, transform=examples.add_noise, collate=examples.noisy_collate)
    first = read(source)
    random.seed(5)
    numpy.random.seed(5)
    torch.manual_seed(5)
    before = random_state()
    again = read(source)
    assert random_state() == before
    assert all(same_bits(one, other) for (one, _), (other, _) in zip(first, again, strict=True))
    assert not same_bits(read(source, seed=1)[0][0], first[0][0])
    assert not same_bits(read(source, epoch=1)[0][0], first[0][0])


def test_a_sample_is_read_with_the_same_bits_wherever_it_stands_in_the_pass():
    by_number = {}
    for batch_size in (1, 7, 30):
        for x, y in read(from_dataset(Noisy(10), batch_size=batch_size)):
            for value, number in zip(x, y.tolist(), strict=True):
                assert same_bits(by_number.setdefault(number, value), value)


def test_reread_gives_the_samples_of_the_first_batch_as_a_later_pass_reads_them():
    source = from_dataset(Numbers(), batch_size=10)
    assert numbers([source.reread(0)]) == numbers(read(source))[:1]
    noisy = from_dataset(Noisy(), batch_size=10)
    assert not same_bits(noisy.reread(0)[0], read(noisy)[0][0])


def test_nothing_of_earlier_passes_is_kept():
    source, references = from_dataset(Numbers(), batch_size=10), []
    for epoch in range(3):
        references += [weakref.ref(x) for x, _ in source.read(0, epoch, EVERYTHING)]
    assert sum(each() is not None for each in references) == 0


# What a dataset is


def with_labels(size=30):
    """Return the samples of Numbers as a TensorDataset."""
    x, y = zip(*examples.pairs(size), strict=True)
    return TensorDataset(torch.stack(x), torch.tensor(y))


KINDS = {
    "map": Numbers(),
    "subset": Subset(Numbers(60), range(30)),
    "tensors": with_labels(),
    "concat": ConcatDataset([Numbers(30), Subset(Numbers(), [])]),
    "pairs": examples.pairs(),
    "iterable": Stream(has_length=True),
}


@pytest.mark.parametrize("dataset", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_any_kind_of_dataset_gives_each_sample_once(dataset, workers):
    source = from_dataset(dataset, batch_size=10, workers=workers)
    batches = read(source)
    assert (source.length(), [len(y) for _, y in batches]) == (3, [10, 10, 10])
    scale = 10 if isinstance(dataset, Stream) else 1
    found = sorted(round(float(value) * scale) for x, _ in batches for value in x[:, 0])
    assert found == list(range(30))


def test_samples_that_are_mappings_give_batches_that_are_mappings_and_texts_stay_as_they_are():
    samples = [{"ids": [1, 2, number], "text": f"t{number}", "score": 0.5} for number in range(4)]
    (batch,) = read(from_dataset(samples, shuffle=False))
    assert batch["ids"].tolist() == [[1, 2, 0], [1, 2, 1], [1, 2, 2], [1, 2, 3]]
    assert batch["text"] == ["t0", "t1", "t2", "t3"]
    assert batch["score"].dtype.is_floating_point


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (DataLoader(Numbers()), r"a DataLoader, which makes batches itself; give data=custom"),
        ({"train": [1], "test": [2]}, r"a dict of train, test; give one dataset"),
        ("a text", r"a str; give one dataset"),
        (None, r"a NoneType; give a dataset, with __len__ and __getitem__ or with __iter__"),
        (Numbers(0), r"data is empty: Numbers has no samples"),
    ],
    ids=["loader", "mapping", "text", "none", "empty"],
)
def test_what_is_no_dataset_is_refused(dataset, message):
    with pytest.raises(ConfigError, match=message):
        from_dataset(dataset)


def test_a_dataset_that_shrinks_between_passes_is_refused():
    source = from_dataset(Shrinking(times=5), batch_size=10)
    assert len(read(source)) == 3
    with pytest.raises(ConfigError, match=r"the dataset had 30 samples and now has 15; give one that keeps its length"):
        read(source, epoch=1)


def test_a_dataset_with_more_classes_than_the_models_head_is_refused():
    with pytest.raises(ConfigError, match=r"targets of 10 classes, the model's head has 3; give model.classes=10"):
        from_dataset(with_labels(), classes=3)
    from_dataset(with_labels(), classes=1000)
    from_dataset(with_labels(), classes=None)


# Iterables


def test_an_iterable_without_a_length_has_none_and_ends_where_it_ends():
    source = from_dataset(Stream(25), batch_size=10)
    assert source.length() is None
    assert [len(y) for _, y in read(source)] == [10, 10, 5]
    assert [len(y) for _, y in read(from_dataset(Stream(25), batch_size=10, drop_last=True))] == [10, 10]


@pytest.mark.parametrize("is_noisy", [False, True], ids=["plain", "noisy"])
def test_an_iterable_that_is_not_shared_out_among_workers_is_refused(is_noisy):
    for workers in (0, 1):
        assert len(read(from_dataset(Stream(8, False, is_noisy), workers=workers))) == 2
    with pytest.raises(ConfigError, match=r"data.workers=2: each worker reads the same samples; share them out by torch"):
        read(from_dataset(Stream(8, False, is_noisy), workers=2))


def test_a_worker_without_samples_is_no_reason_to_refuse_an_iterable():
    assert [len(y) for _, y in read(from_dataset(Stream(1), workers=2))] == [1]


class Given(IterableDataset):
    """Any samples, shared out among workers unless `order` gives another order to each worker: then all read all of them."""

    def __init__(self, samples, order=None):
        self.samples, self.order = samples, order

    def __iter__(self):
        worker = get_worker_info()
        if self.order is None:
            return iter(self.samples[worker.id :: worker.num_workers])
        return iter(random.Random(worker.id * self.order).sample(self.samples, len(self.samples)))


DISTINCT = [numpy.full(3, index) for index in range(30)]
SHARED_OUT = {
    "arrays": DISTINCT,
    "tensors": [torch.full((3,), index) for index in range(30)],
    "two that are equal": [DISTINCT[0], *DISTINCT],
    "all equal": [torch.zeros(3)] * 30,
    "few values": random.Random(0).choices(range(3), k=30),
}


@pytest.mark.parametrize("samples", SHARED_OUT.values(), ids=SHARED_OUT)
def test_samples_that_workers_share_out_are_accepted_whatever_they_are(samples):
    batches = read(from_dataset(Given(samples), workers=2, batch_size=len(samples)))
    assert sum(map(len, batches)) == len(samples)


@pytest.mark.parametrize("order", [0, 1], ids=["same order", "own order"])
@pytest.mark.parametrize("samples", [DISTINCT, SHARED_OUT["tensors"], DISTINCT[:5]], ids=["arrays", "tensors", "five"])
def test_samples_that_every_worker_reads_are_refused_in_whatever_order(samples, order):
    with pytest.raises(ConfigError, match=r"data.workers=2: each worker reads the same samples"):
        read(from_dataset(Given(samples, order), workers=2))


class GoesOn(IterableDataset):
    """A stream that goes on where it was."""

    def __init__(self):
        self.number = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.number += 1
        return torch.full((2,), float(self.number)), 0


def test_a_stream_that_goes_on_where_it_was_is_not_asked_for_its_first_batch_again():
    source = from_dataset(GoesOn(), batch_size=2)
    assert numbers(read(source, count=2)) == [[1, 2], [3, 4]]
    assert source.reread(0) is None
    assert numbers(read(source, epoch=1, count=1)) == [[5, 6]]


@pytest.mark.parametrize("dataset", [examples.batches(), iter([1, 2])], ids=["generator", "iterator"])
def test_samples_that_can_be_read_only_once_are_refused(dataset):
    message = f"^data.dataset gives a {type(dataset).__name__}, an iterator, which can be read only once; give a list of"
    with pytest.raises(ConfigError, match=message):
        from_dataset(dataset)


def test_a_collate_that_returns_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"^data.collate returned None; it must return the batch of a list of samples$"):
        read(from_dataset(Numbers(), collate=lambda samples: None))


class Late:
    """Two samples; the run's timeout ends the reading of the second one, or their collating."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index:
            raise TimeoutError("the run was not done")
        return torch.zeros(2), 0


class LateTensor(torch.Tensor):
    """A tensor whose stacking is ended by the timeout."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.stack:
            raise TimeoutError("the run was not done")
        return super().__torch_function__(func, types, args, kwargs)


def late(samples):
    raise TimeoutError("the run was not done")


@pytest.mark.parametrize(
    "source",
    [
        lambda: from_dataset(Late()),
        lambda: from_dataset(Late(), holdout=0.5),
        lambda: from_dataset(Numbers(), collate=late),
        lambda: from_dataset([torch.zeros(2).as_subclass(LateTensor)]),
        lambda: from_dataset(Stream(), transform=late),
    ],
    ids=["sample", "targets", "collate", "default_collate", "stream"],
)
def test_a_timeout_of_the_run_is_not_reported_as_an_error_of_the_data(source):
    with pytest.raises(TimeoutError, match=r"^the run was not done$"):
        read(source())


def test_a_timeout_that_a_dataset_raises_in_a_worker_names_its_sample():
    with pytest.raises(ReadError, match=r"^sample 1 of 2: .*TimeoutError: the run was not done$"):
        read(from_dataset(Late(), workers=1))


@pytest.mark.parametrize(("classes", "is_refused"), [(None, False), (1, False), (10, False), (9, True)])
def test_whole_numbers_are_no_classes_for_a_model_with_one_output(classes, is_refused):
    dataset = TensorDataset(torch.zeros(20, 2), torch.arange(20) % 10)
    with pytest.raises(ConfigError, match=r"give model.classes=10$") if is_refused else nullcontext():
        from_dataset(dataset, classes=classes)


def test_an_iterable_cannot_hold_out_samples():
    with pytest.raises(ConfigError, match=r"data.holdout needs samples with an index, and a Stream has none; give data"):
        from_dataset(Stream(), holdout=0.2)


# Held-out batches


@pytest.mark.parametrize("workers", [0, 2])
def test_held_out_batches_are_disjoint_from_the_others_and_the_same_in_each_call_and_for_each_seed(workers):
    source = from_dataset(Numbers(100), batch_size=10, holdout=0.2, workers=workers)
    trained = set(chain(*numbers(read(source))))
    held_out = [numbers(source.read_held_out(seed)) for seed in (0, 0, 1)]
    assert held_out[0] == held_out[1] == held_out[2]
    assert trained | set(chain(*held_out[0])) == set(range(100))
    assert (len(trained), len(list(chain(*held_out[0])))) == (80, 20)
    assert source.length() == 8
    assert held_out[0] == numbers(from_dataset(Numbers(100), batch_size=10, holdout=0.2).read_held_out(0))


def test_noise_in_held_out_samples_is_the_same_in_each_call():
    source = from_dataset(Noisy(), batch_size=10, holdout=0.5)
    first, again = (torch.cat([x for x, _ in source.read_held_out(0)]) for _ in range(2))
    assert same_bits(first, again)


TESTS = {
    "dataset": lambda: Numbers(7),
    "pairs": lambda: examples.pairs(7),
    "iterable": lambda: Stream(7),
    "generator": lambda: examples.batches((4, 3)),
    "loader": lambda: DataLoader(Numbers(7), 4, shuffle=True),
    "source": lambda: from_dataset(Numbers(7), batch_size=4, shuffle=False),
}


@pytest.mark.parametrize("make", TESTS.values(), ids=TESTS)
@pytest.mark.parametrize("dataset", [Numbers(), Stream()], ids=["samples", "stream"])
def test_a_test_node_gives_the_held_out_batches_in_each_call(dataset, make):
    source = from_dataset(dataset, drop_last=True)
    source.hold_out(make)
    for _ in range(2):
        assert [len(y) for _, y in source.read_held_out(0)] == [4, 3]


def test_a_test_dataset_is_read_in_its_own_order():
    source = from_dataset(Numbers())
    source.hold_out(lambda: Numbers(7))
    assert numbers(source.read_held_out(0)) == [[0, 1, 2, 3], [4, 5, 6]]


def test_holdout_and_a_test_node_together_are_refused():
    with pytest.raises(ConfigError, match=r"data.holdout and data.test are both given; give one of them"):
        from_dataset(Numbers(), holdout=0.5).hold_out(lambda: Numbers(7))


def test_without_held_out_samples_there_are_no_held_out_batches():
    assert from_dataset(Numbers()).read_held_out(0) is None
    assert from_dataset(Stream()).read_held_out(0) is None


# Other systems start workers by `spawn`


def test_what_a_worker_is_given_can_be_pickled():
    loading = Loading(transform=examples.add_noise, collate=examples.noisy_collate)
    reader = pickle.loads(pickle.dumps(SampleReader(Noisy(), loading, 0)))
    request = Request(0, 1, (3, 4))
    assert same_bits(reader[request][0], SampleReader(Noisy(), loading, 0)[request][0])
    (first, *_) = pickle.loads(pickle.dumps(StreamReader(Stream(), loading, 0, 0)))
    assert first[1] == 0
