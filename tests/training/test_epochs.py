"""Passes over one run's samples: the first as the source gives it, the others its samples in another order."""

from __future__ import annotations

import weakref
from collections import UserDict
from itertools import chain, islice
from typing import NamedTuple

import pytest
import torch

from runner.assemble import build_batches
from runner.errors import ConfigError
from runner.training.data import Synthetic
from tests.measure import configured, measure

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
ROWS = "data._target_=tests.training.test_epochs.Rows"


class Rows:
    """Samples that hold their own number, in batches of the sizes that are given; the target is the number, too."""

    def __init__(self, sizes, wrapped="tuple"):
        self.sizes, self.wrapped = sizes, wrapped

    def batches(self, count, input, classes, seed):
        first = 0
        for size in self.sizes[:count]:
            x = torch.arange(first, first + size).float()[:, None].repeat(1, 64)
            y = torch.arange(first, first + size) % 10
            first += size
            wrapped = {"tuple": (x, y), "dict": {"x": x, "more": [y]}, "text": (x, y, "text"), "ragged": (x[:, :size], y)}
            wrapped |= {"named": Named(x, y), "user": Mine({"x": x, "y": y})}
            yield wrapped[self.wrapped]


class Named(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Mine(UserDict):
    """A mapping of a class of its own, with an attribute."""

    def __init__(self, data):
        super().__init__(data)
        self.language = "en"


class OneBuffer:
    """Fills one tensor anew for each batch, as loaders do."""

    def batches(self, count, input, classes, seed):
        x = torch.empty(4, *input)
        for number in range(count):
            yield x.fill_(number), torch.full((4,), number)


def of(*overrides):
    return configured("data=custom", *overrides)


def taken(*overrides):
    return list(build_batches(of(*overrides), CPU))


def numbers(batches):
    return [one.batch[0][:, 0].int().tolist() for one in batches]


def test_one_pass_is_what_the_source_gives():
    config = configured("batches=5")
    source = build_batches(config, CPU)
    for one, (x, y) in zip(source, Synthetic(4).batches(5, [64], 10, 0), strict=True):
        assert torch.equal(one.batch[0], x)
        assert torch.equal(one.batch[1], y)


def test_the_first_of_several_passes_has_the_bytes_of_a_single_one():
    one, several = (
        list(build_batches(configured("batches=3"), CPU)),
        list(build_batches(configured("batches=3", "data.epochs=3"), CPU)),
    )
    assert len(several) == 9
    for a, b in zip(one, several[:3], strict=True):
        assert all(torch.equal(*pair) for pair in zip(a.batch, b.batch, strict=True))


def test_each_pass_holds_each_sample_once_with_its_target_in_an_order_of_its_own():
    batches = taken(ROWS, "data.sizes=[4,4,4]", "data.epochs=4")
    passes = [list(chain(*numbers(batches[at : at + 3]))) for at in range(0, 12, 3)]
    assert [sorted(one) for one in passes] == [list(range(12))] * 4
    assert len({tuple(one) for one in passes}) == 4
    assert passes[0] == list(range(12))
    assert all((one.batch[0][:, 0].long() % 10).equal(one.batch[1]) for one in batches)
    assert [one.ids for one in batches] == numbers(batches)


def test_the_seed_gives_the_order_and_the_global_random_state_neither_matters_nor_changes():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = numbers(taken(ROWS, "data.sizes=[4,4]", "data.epochs=3", "batches=2"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert numbers(taken(ROWS, "data.sizes=[4,4]", "data.epochs=3", "batches=2")) == one
    assert numbers(taken(ROWS, "data.sizes=[4,4]", "data.epochs=3", "batches=2", "seed=1")) != one


def test_later_passes_have_batches_of_the_same_sizes():
    sizes = [len(batch) for batch in numbers(taken(ROWS, "data.sizes=[4,4,1]", "data.epochs=3"))]
    assert sizes == [4, 4, 1] * 3


@pytest.mark.parametrize("wrapped", ["text", "ragged"])
def test_batches_that_cannot_be_cut_into_samples_are_shuffled_whole(wrapped):
    batches = taken(ROWS, "data.sizes=[4,3,2]", f"data.wrapped={wrapped}", "data.epochs=5")
    passes = [numbers(batches[at : at + 3]) for at in range(0, 15, 3)]
    assert all(sorted(one) == sorted(passes[0]) for one in passes)
    assert len({str(one) for one in passes}) > 1


def test_samples_in_dicts_and_lists_are_shuffled_too():
    batches = taken(ROWS, "data.sizes=[4,4,4]", "data.wrapped=dict", "data.epochs=2")
    order = [one.batch["x"][:, 0].int().tolist() for one in batches[3:]]
    assert sorted(chain(*order)) == list(range(12)) != list(chain(*order))
    assert [[n % 10 for n in part] for part in order] == [one.batch["more"][0].tolist() for one in batches[3:]]


def test_samples_come_back_in_the_class_of_batch_that_the_source_gave():
    named = taken(ROWS, "data.sizes=[4,4,4]", "data.wrapped=named", "data.epochs=2")
    assert {type(one.batch) for one in named} == {Named}
    assert sorted(chain(*(one.batch.x[:, 0].int().tolist() for one in named[3:]))) == list(range(12))
    user = taken(ROWS, "data.sizes=[4,4,4]", "data.wrapped=user", "data.epochs=2")
    assert {(type(one.batch), one.batch.language) for one in user} == {(Mine, "en")}
    order = list(chain(*(one.batch["x"][:, 0].int().tolist() for one in user[3:])))
    assert sorted(order) == list(range(12)) != order
    assert all((one.batch["x"][:, 0].long() % 10).equal(one.batch["y"]) for one in user)


def test_a_source_that_fills_one_tensor_anew_is_kept_as_it_was():
    batches = build_batches(of("data._target_=tests.training.test_epochs.OneBuffer", "data.epochs=2"), CPU)
    later = [one.batch for one in islice(batches, 3, 6)]
    assert sorted(chain(*(x[:, 0].int().tolist() for x, _ in later))) == [0] * 4 + [1] * 4 + [2] * 4
    assert all((x[:, 0].long() == y).all() for x, y in later)


def test_memory_does_not_grow_with_the_count_of_a_single_pass():
    seen = []
    for one in islice(build_batches(configured("batches=1000000000"), CPU), 5):
        seen.append(weakref.ref(one.batch[0]))
        del one
        assert sum(batch() is not None for batch in seen) <= 1


def test_a_source_that_ends_early_ends_every_pass_early_and_that_is_said():
    assert len(taken(ROWS, "data.sizes=[4,4]", "batches=3", "data.epochs=3")) == 6
    assert taken(ROWS, "data.sizes=[]", "data.epochs=3") == []


@pytest.mark.parametrize("epochs", [0, -1, 1.5, "'many'", "true", "null"])
def test_a_number_of_passes_that_is_none_is_refused(epochs):
    with pytest.raises(ConfigError, match=r"data\.epochs is .*; it must be a whole number of 1 or more"):
        configured(f"data.epochs={epochs}")
    with pytest.raises(ConfigError, match=r"data\.epochs is"):
        configured(f"data.epochs={epochs}", "scheduler=one_cycle")


# What counts steps counts all passes


@pytest.mark.parametrize("scheduler", ["one_cycle", "cosine", "cosine_floor", "polynomial", "sequential"])
def test_a_scheduler_spans_all_passes(scheduler):
    one = measure(f"scheduler={scheduler}", "batches=12")
    several = measure(f"scheduler={scheduler}", "batches=4", "data.epochs=3")
    assert [step.lrs for step in several.steps] == [step.lrs for step in one.steps]


def test_a_phase_may_begin_in_a_later_pass():
    result = measure("batches=3", "data.epochs=3", "schedule=after", "schedule.step=7", "freeze=backbone")
    assert len(result.steps) == 9
    assert {row["verdict"] for row in result.rows if row["frozen"]} == {"held"}
    with pytest.raises(ConfigError, match=r"schedule\.step is 10 and batches is 3 and data\.epochs is 3"):
        configured("batches=3", "data.epochs=3", "schedule=after", "schedule.step=10")


def test_the_record_says_of_how_many_steps_the_data_ended_and_a_plan_counts_them_all(door):
    code, out, _ = door(
        "model=mlp", "batches=3", "data=custom", ROWS, "++data.sizes=[4,4]", "data.epochs=2", "hydra.run.dir=here"
    )
    assert code == 0
    assert "the data ended after 4 of 6 batches" in out
    code, out, _ = door(
        "plan=true", "model=mlp", "batches=10", "data.epochs=4", "method=zero_lr", "freeze=head", "scheduler=one_cycle"
    )
    assert code == 0
    assert "becomes 0.1 at step 12" in out
