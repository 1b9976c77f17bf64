"""Epochs: the first one as the source yields it, the later ones with its samples in another order."""

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
from tests.in_memory import config_with, run_experiment

CPU = torch.device("cpu")
NUMBERED_SAMPLES = "data._target_=tests.training.test_epochs.NumberedSamples"


class NumberedSamples:
    """A source of batches of given sizes; every value of a sample is its number, the target is the number modulo 10."""

    def __init__(self, sizes, wrapped="tuple"):
        self.sizes, self.wrapped = sizes, wrapped

    def batches(self, count, input, classes, seed):
        first = 0
        for size in self.sizes[:count]:
            x = torch.arange(first, first + size).float()[:, None].repeat(1, 64)
            y = torch.arange(first, first + size) % 10
            first += size
            wrapped = {"tuple": (x, y), "dict": {"x": x, "more": [y]}, "text": (x, y, "text"), "ragged": (x[:, :size], y)}
            wrapped |= {"named": NamedBatch(x, y), "user": UserBatch({"x": x, "y": y})}
            yield wrapped[self.wrapped]


class NamedBatch(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class UserBatch(UserDict):
    """A batch of a user's mapping class, with an attribute."""

    def __init__(self, data):
        super().__init__(data)
        self.language = "en"


class ReusedTensor:
    """A source that writes each batch into the same tensor, as some loaders do."""

    def batches(self, count, input, classes, seed):
        x = torch.empty(4, *input)
        for number in range(count):
            yield x.fill_(number), torch.full((4,), number)


def custom_config(*overrides):
    """Return a config with a custom data source and these overrides."""
    return config_with("data=custom", *overrides)


def take_batches(*overrides):
    """Return the batches of a run with these overrides as a list."""
    return list(build_batches(custom_config(*overrides), CPU))


def sample_numbers(batches):
    """Return the numbers of the samples in each batch of `NumberedSamples`."""
    return [batch.batch[0][:, 0].int().tolist() for batch in batches]


def test_one_epoch_has_the_batches_of_the_source():
    config = config_with("batches=5")
    source = build_batches(config, CPU)
    for batch, (x, y) in zip(source, Synthetic(4).batches(5, [64], 10, 0), strict=True):
        assert torch.equal(batch.batch[0], x)
        assert torch.equal(batch.batch[1], y)


def test_the_first_of_several_epochs_equals_a_single_one():
    one, several = (
        list(build_batches(config_with("batches=3"), CPU)),
        list(build_batches(config_with("batches=3", "data.epochs=3"), CPU)),
    )
    assert len(several) == 9
    for a, b in zip(one, several[:3], strict=True):
        assert all(torch.equal(*pair) for pair in zip(a.batch, b.batch, strict=True))


def test_each_epoch_has_each_sample_once_with_its_target_in_another_order():
    batches = take_batches(NUMBERED_SAMPLES, "data.sizes=[4,4,4]", "data.epochs=4")
    epochs = [list(chain(*sample_numbers(batches[first : first + 3]))) for first in range(0, 12, 3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 4
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert epochs[0] == list(range(12))
    assert all((batch.batch[0][:, 0].long() % 10).equal(batch.batch[1]) for batch in batches)
    assert [batch.ids for batch in batches] == sample_numbers(batches)


def test_the_order_depends_on_the_seed_and_not_on_the_global_random_state():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    order = sample_numbers(take_batches(NUMBERED_SAMPLES, "data.sizes=[4,4]", "data.epochs=3", "batches=2"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert sample_numbers(take_batches(NUMBERED_SAMPLES, "data.sizes=[4,4]", "data.epochs=3", "batches=2")) == order
    assert (
        sample_numbers(take_batches(NUMBERED_SAMPLES, "data.sizes=[4,4]", "data.epochs=3", "batches=2", "seed=1")) != order
    )


def test_later_epochs_have_batches_of_the_same_sizes():
    sizes = [len(batch) for batch in sample_numbers(take_batches(NUMBERED_SAMPLES, "data.sizes=[4,4,1]", "data.epochs=3"))]
    assert sizes == [4, 4, 1] * 3


@pytest.mark.parametrize("wrapped", ["text", "ragged"])
def test_whole_batches_are_shuffled_if_they_cannot_be_divided_into_samples(wrapped):
    batches = take_batches(NUMBERED_SAMPLES, "data.sizes=[4,3,2]", f"data.wrapped={wrapped}", "data.epochs=5")
    epochs = [sample_numbers(batches[first : first + 3]) for first in range(0, 15, 3)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({str(epoch) for epoch in epochs}) > 1


def test_samples_in_dicts_and_lists_are_shuffled():
    batches = take_batches(NUMBERED_SAMPLES, "data.sizes=[4,4,4]", "data.wrapped=dict", "data.epochs=2")
    order = [batch.batch["x"][:, 0].int().tolist() for batch in batches[3:]]
    assert sorted(chain(*order)) == list(range(12)) != list(chain(*order))
    assert [[n % 10 for n in part] for part in order] == [batch.batch["more"][0].tolist() for batch in batches[3:]]


def test_batches_of_later_epochs_have_the_class_of_the_sources_batches():
    named = take_batches(NUMBERED_SAMPLES, "data.sizes=[4,4,4]", "data.wrapped=named", "data.epochs=2")
    assert {type(batch.batch) for batch in named} == {NamedBatch}
    assert sorted(chain(*(batch.batch.x[:, 0].int().tolist() for batch in named[3:]))) == list(range(12))
    user = take_batches(NUMBERED_SAMPLES, "data.sizes=[4,4,4]", "data.wrapped=user", "data.epochs=2")
    assert {(type(batch.batch), batch.batch.language) for batch in user} == {(UserBatch, "en")}
    order = list(chain(*(batch.batch["x"][:, 0].int().tolist() for batch in user[3:])))
    assert sorted(order) == list(range(12)) != order
    assert all((batch.batch["x"][:, 0].long() % 10).equal(batch.batch["y"]) for batch in user)


def test_batches_of_a_source_that_reuses_one_tensor_are_copied():
    batches = build_batches(custom_config("data._target_=tests.training.test_epochs.ReusedTensor", "data.epochs=2"), CPU)
    later = [batch.batch for batch in islice(batches, 3, 6)]
    assert sorted(chain(*(x[:, 0].int().tolist() for x, _ in later))) == [0] * 4 + [1] * 4 + [2] * 4
    assert all((x[:, 0].long() == y).all() for x, y in later)


def test_in_a_single_epoch_memory_does_not_grow_with_the_count():
    references = []
    for batch in islice(build_batches(config_with("batches=1000000000"), CPU), 5):
        references.append(weakref.ref(batch.batch[0]))
        del batch
        assert sum(reference() is not None for reference in references) <= 1


def test_if_the_source_ends_early_every_epoch_ends_early():
    assert len(take_batches(NUMBERED_SAMPLES, "data.sizes=[4,4]", "batches=3", "data.epochs=3")) == 6
    assert take_batches(NUMBERED_SAMPLES, "data.sizes=[]", "data.epochs=3") == []


@pytest.mark.parametrize("epochs", [0, -1, 1.5, "'many'", "true", "null"])
def test_a_number_of_epochs_that_is_not_a_positive_integer_raises_a_config_error(epochs):
    with pytest.raises(ConfigError, match=r"data\.epochs is .*; it must be a whole number of 1 or more"):
        config_with(f"data.epochs={epochs}")
    with pytest.raises(ConfigError, match=r"data\.epochs is"):
        config_with(f"data.epochs={epochs}", "scheduler=one_cycle")


# Steps are counted over all epochs


@pytest.mark.parametrize("scheduler", ["one_cycle", "cosine", "cosine_floor", "polynomial", "sequential"])
def test_a_scheduler_is_configured_for_the_steps_of_all_epochs(scheduler):
    one = run_experiment(f"scheduler={scheduler}", "batches=12")
    several = run_experiment(f"scheduler={scheduler}", "batches=4", "data.epochs=3")
    assert [step.lrs for step in several.steps] == [step.lrs for step in one.steps]


def test_a_phase_can_begin_in_a_later_epoch():
    result = run_experiment("batches=3", "data.epochs=3", "schedule=after", "schedule.step=7", "freeze=backbone")
    assert len(result.steps) == 9
    assert {row["verdict"] for row in result.rows if row["frozen"]} == {"held"}
    with pytest.raises(ConfigError, match=r"schedule\.step is 10 and batches is 3 and data\.epochs is 3"):
        config_with("batches=3", "data.epochs=3", "schedule=after", "schedule.step=10")


def test_notes_and_plan_count_the_steps_of_all_epochs(cli):
    code, out, _ = cli(
        "model=mlp",
        "batches=3",
        "data=custom",
        NUMBERED_SAMPLES,
        "++data.sizes=[4,4]",
        "data.epochs=2",
        "hydra.run.dir=here",
    )
    assert code == 0
    assert "the data ended after 4 of 6 batches" in out
    code, out, _ = cli(
        "plan=true", "model=mlp", "batches=10", "data.epochs=4", "method=zero_lr", "freeze=head", "scheduler=one_cycle"
    )
    assert code == 0
    assert "becomes 0.1 at step 12" in out
