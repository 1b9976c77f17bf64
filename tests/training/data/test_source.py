"""Any iterable of batches as the data of a run, and the number of batches of a pass."""

from __future__ import annotations

import random

import pytest
import torch

from runner.errors import ConfigError
from runner.seeding import random_state
from runner.tensors import same_bits
from runner.training.data.source import as_source, batches_a_pass
from tests.training.data import examples

MAKERS = {
    "loader": examples.loader,
    "workers": lambda: examples.loader(2),
    "persistent": lambda: examples.loader(2, persistent=True),
    "list": examples.list_of_batches,
    "generator": examples.batches,
    "iterable": lambda: examples.Loader(10, 10, 10),
}


def source_of(make):
    """Return what `make()` returns as a Source."""
    return as_source(make(), make)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_every_pass_over_an_iterable_has_all_its_batches(make):
    source = source_of(make)
    for epoch in range(3):
        assert [len(y) for _, y in source.read(0, epoch, 100)] == [10, 10, 10]
    assert [len(y) for _, y in source.read(0, 3, 2)] == [10, 10]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_same_seed_gives_the_same_batches_and_the_global_generators_are_left_alone(make):
    def first_and_third_pass():
        source = source_of(make)
        passes = [list(source.read(0, epoch, 100)) for epoch in range(3)]
        return torch.cat([x for x, _ in (*passes[0], *passes[2])])

    torch.manual_seed(1)
    random.seed(1)
    before = random_state()
    one = first_and_third_pass()
    assert random_state() == before or make is examples.list_of_batches
    torch.manual_seed(2)
    if make is not examples.list_of_batches:  # it is drawn when it is built, which `open_feed` does under a seed
        assert same_bits(one, first_and_third_pass())


@pytest.mark.parametrize("make", [examples.loader, lambda: examples.loader(2)], ids=["loader", "workers"])
def test_a_loader_that_shuffles_has_another_order_in_each_pass_and_for_each_seed(make):
    source = source_of(make)
    orders = [
        tuple(int(value) for x, _ in source.read(seed, epoch, 9) for value in x[:, 0])
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len(set(orders)) == 3


def test_an_iterable_is_iterated_over_once_a_pass():
    loader = examples.Loader(10)
    source = as_source(loader, lambda: loader)
    for epoch in range(3):
        list(source.read(0, epoch, 5))
    assert loader.calls == 3


def test_the_length_of_an_iterable_is_known_if_it_says_it():
    assert [source_of(MAKERS[kind]).length() for kind in ("loader", "list", "generator", "iterable")] == [3, 3, None, None]


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (examples.Numbers(), r"gives a Numbers, a dataset, .*; give data=dataset data.dataset._target_=\.\.\."),
        (examples.Stream(), r"gives a Stream, a dataset, .*; give data=dataset"),
        (torch.ones(3), r"gives a Tensor; give an iterable of batches, such as a DataLoader"),
        ("text", r"gives a str; give an iterable"),
        (3, r"gives a int; give an iterable"),
        ({"x": torch.ones(3)}, r"gives a dict; give an iterable"),
    ],
    ids=["dataset", "stream", "tensor", "text", "number", "mapping"],
)
def test_what_gives_no_batches_is_refused(built, message):
    with pytest.raises(ConfigError, match=message):
        as_source(built, lambda: built)


@pytest.mark.parametrize("make", [examples.batches, examples.loader, examples.list_of_batches])
def test_a_test_node_is_made_anew_where_it_can_be_used_only_once(make):
    source = source_of(examples.batches)
    assert source.read_held_out(0) is None
    source.hold_out(make)
    first, again = (torch.cat([x for x, _ in source.read_held_out(0)]) for _ in range(2))
    assert same_bits(first, again)


@pytest.mark.parametrize(
    ("asked", "length", "count"),
    [("auto", 7, 7), ("all", 7, 7), (3, 7, 3), (9, 7, 7), ("auto", None, 10), (3, None, 3)],
)
def test_the_number_of_batches_of_a_pass(asked, length, count):
    assert batches_a_pass(asked, length, 10) == count


@pytest.mark.parametrize(
    ("asked", "length", "message"), [("all", None, "batches=all needs"), ("auto", 0, "no batch"), (3, 0, "no batch")]
)
def test_a_number_of_batches_that_cannot_be_is_refused(asked, length, message):
    with pytest.raises(ConfigError, match=message):
        batches_a_pass(asked, length, 10)
