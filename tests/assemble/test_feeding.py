"""The data of a run: how many steps they give, what is said where they end early, and the functions that a config names."""

from __future__ import annotations

import weakref
from contextlib import ExitStack

import pytest
import torch
from PIL import Image

from runner.assemble.feeding import open_feed
from runner.config.check import check
from runner.config.compose import compose_config
from runner.errors import ConfigError
from runner.experiment import experiment
from runner.runs.write import training_notes
from runner.tensors import same_bits
from runner.training.data.steps import StepBatches
from tests.training.data.examples import HERE, data_here, model_here

CPU = torch.device("cpu")


def config_of(*overrides):
    """Return the checked config of the MLP with these overrides, composed as on the command line."""
    return check(compose_config("model=mlp", *overrides))


def feed_of(*overrides):
    """Return the opened data of a run, and its notes."""
    notes = []
    return open_feed(config_of(*overrides), CPU, lambda text, **_: notes.append(text), ExitStack()), notes


def run_here(*overrides):
    """Carry out a run; returns how many batches a pass has, how many steps were made, and the notes."""
    notes = []
    outcome = experiment(config_of(*overrides), on_note=lambda text, **_: notes.append(text))
    notes += training_notes(outcome)
    return outcome.record["batches"], len(outcome.steps), [note for note in notes if not note.startswith("cost:")]


# Steps


@pytest.mark.parametrize(
    ("overrides", "batches", "steps", "notes"),
    [
        ([], 3, 9, []),
        (["batches=all"], 3, 9, []),
        (["batches=2"], 2, 6, []),
        (["batches=100"], 3, 9, ["the data have 3 batches a pass, fewer than batches=100"]),
        (["data.batch_size=8"], 4, 12, []),
        (["data.batch_size=8", "data.drop_last=true"], 3, 9, []),
        (["accumulate=2"], 3, 6, []),
        (["accumulate=3"], 3, 3, []),
        (["accumulate=7"], 3, 3, []),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_thirty_samples_in_three_passes(overrides, batches, steps, notes):
    found = run_here(*data_here("Numbers"), "data.batch_size=10", "data.epochs=3", *overrides)
    assert found == (batches, steps, notes)


def test_synthetic_data_give_ten_batches_a_pass():
    assert run_here("data.epochs=2") == (10, 20, [])


def test_all_batches_of_data_without_a_length_are_refused_in_one_line(cli):
    code, _, err = cli("model=mlp", "batches=all", "hydra.run.dir=run")
    message = "batches=all needs data with a length, which these have not; give a number of batches a pass"
    assert (code, err) == (2, f"freeze-runner: failed: {message} (log: run/runner.log)\n")


@pytest.mark.parametrize(
    ("name", "options", "batches", "steps", "notes"),
    [
        ("Loader", ["_args_=[10,10]"], "auto", 4, ["the data ended after 4 of 20 steps"]),
        ("Loader", ["_args_=[10,10]"], "3", 4, ["the data ended after 4 of 6 steps"]),
        ("Loader", ["_args_=[10,10]"], "2", 4, []),
        ("ShorterEachTime", ["_args_=[10,10,10]"], "3", 5, ["the data ended after 5 of 6 steps"]),
        ("batches", [], "3", 6, []),
        ("loader", ["workers=1", "persistent=true"], "auto", 6, []),
        ("list_of_batches", [], "auto", 6, []),
    ],
)
def test_batches_of_an_iterable_are_taken_as_long_as_it_gives_some(name, options, batches, steps, notes):
    _, steps_made, said = run_here(*data_here(name, *options, data="custom"), f"batches={batches}", "data.epochs=2")
    assert (steps_made, said) == (steps, notes)


def test_a_batch_of_another_structure_is_refused_with_its_number(cli):
    code, _, err = cli("model=mlp", *data_here("OtherAtStep7", data="custom"), "hydra.run.dir=run")
    assert code == 2
    assert "data: batch 7 is {x: a tensor}, the batches before were (a tensor, a tensor); give one form" in err


def test_fewer_samples_than_a_batch_are_refused_if_the_last_batch_is_dropped():
    with pytest.raises(ConfigError, match=r"data: there is no batch; .* less than one batch with data.drop_last=true"):
        feed_of(*data_here("Numbers", "size=5"), "data.batch_size=10", "data.drop_last=true")


def test_data_that_yield_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"^data: there is no batch; give data that yield at least one$"):
        feed_of(*data_here("Loader", data="custom"))


def test_the_first_batch_is_the_one_of_the_first_step():
    feed, _ = feed_of(*data_here("Numbers"), "data.batch_size=10")
    (first,) = next(feed.steps)
    assert all(part is other for part, other in zip(feed.first, first, strict=True))
    assert same_bits(feed.reread()[0], feed.first[0])


# Several batches a step


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_two_batches_a_step_train_as_one_of_twice_the_size(optimizer):
    overrides = [*model_here("WithoutNorm"), *data_here("Numbers"), "data.shuffle=false", f"optimizer={optimizer}"]
    overrides += ["method=none", "freeze=none", "optimizer.lr=0.001", "data.epochs=2"]
    one = experiment(config_of(*overrides, "data.batch_size=10"))
    two = experiment(config_of(*overrides, "data.batch_size=5", "accumulate=2"))
    assert len(one.steps) == len(two.steps) == 6
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    for left, right in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("data", ["custom", "dataset"])
def test_a_step_takes_batches_of_one_pass_and_the_mean_over_those_that_came(data):
    given = {"custom": data_here("Loader", "_args_=[5,5,5,5,5,5]", data="custom"), "dataset": data_here("Stream")}[data]
    size = [] if data == "custom" else ["data.batch_size=5"]
    overrides = [*model_here("WithoutNorm"), *given, *size, "data.epochs=2", "method=none", "freeze=none"]
    many = experiment(config_of(*overrides, "accumulate=4", "optimizer.lr=0"))
    single = experiment(config_of(*overrides, "optimizer.lr=0"))
    assert (len(many.steps), len(single.steps), many.record["batches"]) == (4, 12, 6)
    expected = [sum(single.losses[a:b]) / (b - a) for a, b in ((0, 4), (4, 6), (6, 10), (10, 12))]
    assert many.losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_data_that_end_earlier_than_assumed_are_evaluated_after_each_of_their_passes(accumulate):
    test = f"++data.test={{_target_: {HERE}.list_of_batches}}"
    overrides = [*data_here("Loader", "_args_=[5,5,5,5,5,5]", data="custom"), "data.epochs=3", "evaluate=epoch", test]
    outcome = experiment(config_of(*overrides, f"accumulate={accumulate}"))
    assert outcome.record["batches"] == 6
    assert len(outcome.steps) == 3 * -(-6 // accumulate)
    assert len(outcome.record["evaluation"]["passes"]) == 3


def test_a_batch_that_a_step_takes_later_is_moved_to_the_device_only_then():
    moved = []
    step = StepBatches(0, [1, 2], lambda batch: moved.append(batch) or batch)
    assert (next(iter(step)), moved) == (1, [1])


# The number of steps is known once the data are open


@pytest.mark.parametrize("scheduler", ["one_cycle", "cosine", "polynomial", "sequential"])
def test_a_scheduler_is_built_for_the_steps_that_the_data_give(scheduler):
    numbers = experiment(config_of(*data_here("Numbers"), "data.batch_size=10", "data.epochs=4", f"scheduler={scheduler}"))
    synthetic = experiment(config_of("batches=4", "data.epochs=3", f"scheduler={scheduler}"))
    assert [step.lrs for step in numbers.steps] == [step.lrs for step in synthetic.steps]


def test_a_schedule_beyond_the_end_is_refused_once_the_data_are_open(cli):
    overrides = [*data_here("Numbers"), "data.batch_size=10", "data.epochs=3", "freeze=backbone", "schedule=after"]
    assert len(experiment(config_of(*overrides, "schedule.step=9")).steps) == 9
    code, _, err = cli("model=mlp", *overrides, "schedule.step=10", "hydra.run.dir=run")
    assert code == 2
    assert "schedule.step is 10 and batches is 3 and data.epochs is 3: nothing would ever be frozen" in err


@pytest.mark.parametrize("epochs", [0, -1, 1.5, "'many'", "true", "null"])
def test_a_number_of_passes_that_is_no_positive_integer_is_refused(epochs):
    with pytest.raises(ConfigError, match=r"data\.epochs is .*; it must be a whole number of 1 or more"):
        config_of(f"data.epochs={epochs}")


# Functions that a config names


@pytest.fixture
def pictures(tmp_path):
    """Return the overrides that read a folder of two classes of pictures."""
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40 + number, 30), (number, 0, 0)).save(tmp_path / "pictures" / name / f"{number}.png")
    return ["data=image_folder", "data.root=pictures", "model.input=[3,8,8]", "model.classes=2"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["++data.transform._target_=torchvision.transforms.v2.CenterCrop", "++data.transform.size=[8,8]", "data.input=null"],
        ["++data.transform._target_=torchvision.transforms.v2.functional.hflip"],
        ["++data.transform.0._target_=torchvision.transforms.v2.functional.hflip"],
        ["++data.collate._target_=torch.utils.data.default_collate"],
    ],
)
def test_transforms_and_collate_are_named_by_their_targets(overrides, pictures):
    feed, _ = feed_of(*pictures, *overrides)
    assert feed.first[0].shape == (4, 3, 8, 8)


def test_the_transforms_of_the_models_weights_can_be_named(pictures):
    build = ["++model.build.weights=DEFAULT", "model.build._target_=torchvision.models.resnet18"]
    feed, _ = feed_of(*pictures, *build, "data.transform=weights")
    assert feed.first[0].shape == (4, 3, 224, 224)
    assert feed.first[0].min() < -1  # normalised


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.transform=weights"], r"data.transform=weights needs weights; give model.build.weights=DEFAULT"),
        (
            ["++model.build.weights=DEFAULT", "data.transform=weights"],
            r"data.transform=weights knows torchvision's weights, and .*MLP is none of its builders",
        ),
        (["data.transform=3"], r"data.transform is 3; give data.transform._target_=\.\.\."),
        (["data.collate=3"], r"data.collate is 3; give data.collate._target_=\.\.\."),
        (["++data.transform._target_=torch.nope"], r"data.transform._target_: 'torch.nope' does not exist"),
        (["++data.collate._target_=torch.Size"], r"data.collate .* a Size; .*give a function"),
        ([f"++data.transform.3._target_={HERE}.add_noise"], r"data.transform: samples have no field '?3'?; they have 0, 1"),
    ],
)
def test_a_function_that_cannot_be_is_refused(overrides, message, pictures):
    with pytest.raises(ConfigError, match=message):
        feed_of(*pictures, *overrides)


# Held-out data


def test_a_test_node_is_built_and_read_in_each_call():
    overrides = [f"++data.test._target_={HERE}.Numbers", "++data.test.size=8"]
    for data in (data_here("Numbers"), data_here("Stream")):
        feed, _ = feed_of(*data, *overrides)
        assert [len(y) for _, y in feed.held_out()] == [len(y) for _, y in feed.held_out()] == [4, 4]
    feed, _ = feed_of(*data_here("batches", data="custom"), f"++data.test._target_={HERE}.batches")
    assert [len(y) for _, y in feed.held_out()] == [len(y) for _, y in feed.held_out()] == [10, 10, 10]


def test_a_dataset_given_as_batches_is_refused_with_what_to_give():
    with pytest.raises(ConfigError, match=r"data gives a Numbers, a dataset, .*; give data=dataset data"):
        feed_of(*data_here("Numbers", data="custom"))
    with pytest.raises(ConfigError, match=r"data.test gives a Numbers, a dataset, where batches are expected"):
        feed_of(*data_here("batches", data="custom"), f"++data.test._target_={HERE}.Numbers")


# Memory


@pytest.mark.parametrize(
    "overrides",
    [data_here("Numbers"), data_here("Stream", "has_length=true"), data_here("batches", data="custom"), []],
    ids=["samples", "stream", "custom", "synthetic"],
)
def test_of_all_batches_only_the_first_is_kept(overrides):
    size = ["data.batch_size=10"] if "data=custom" not in overrides else []
    feed, _ = feed_of(*overrides, *size, "batches=3", "data.epochs=3")
    references = []
    for x, _ in (batch for step in feed.steps for batch in step):
        references.append(weakref.ref(x))
        del x
        assert sum(each() is not None for each in references) <= 2
    assert len(references) == 9


def test_the_transforms_of_the_weights_are_no_collate():
    with pytest.raises(ConfigError, match=r"^data.collate .*weights"):
        feed_of(*data_here("Numbers"), "++data.collate=weights")
