"""Where batches come from: the same for every method at the same seed."""

from __future__ import annotations

import weakref
from itertools import islice

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from runner.errors import ConfigError
from runner.training.data import Digits, ImageFolder, Synthetic

COLOURS = {"ant": (255, 0, 0), "bee": (0, 255, 0), "cat": (0, 0, 255)}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def pictures(tmp_path):
    """Three classes of one colour each, two pictures a class, of different sizes; written in another order."""
    for name in ("cat", "ant", "bee"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number, size in enumerate([(6, 9), (12, 5)]):
            Image.new("RGB", size, COLOURS[name]).save(tmp_path / "pictures" / name / f"{number}.png")
    return str(tmp_path / "pictures")


@pytest.fixture
def greys(tmp_path):
    """Seven pictures in two classes, each of its own shade of grey."""
    for number in range(7):
        folder = tmp_path / "greys" / ("dark" if number < 3 else "light")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 30 * number).save(folder / f"{number}.png")
    return str(tmp_path / "greys")


def taken(source, count=3, input=(3, 32, 32), classes=10, seed=0):
    return list(source.batches(count, list(input), classes, seed))


def equal(one, other):
    return all(torch.equal(*pair) for parts in zip(one, other, strict=True) for pair in zip(*parts, strict=True))


SOURCES = pytest.mark.parametrize("source", [Synthetic(5), Digits(5)], ids=["synthetic", "digits"])


@SOURCES
def test_one_seed_gives_the_same_batches_and_another_gives_others(source):
    assert equal(taken(source, seed=0), taken(source, seed=0))
    assert not equal(taken(source, seed=0), taken(source, seed=1))


@SOURCES
@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_batches_neither_depend_on_the_global_random_state_nor_change_it(source, seed):
    torch.manual_seed(1)
    first = taken(source, seed=seed)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert equal(taken(source, seed=seed), first)
    assert torch.equal(torch.get_rng_state(), state)


@SOURCES
def test_more_batches_begin_with_the_same_ones(source):
    assert equal(taken(source, count=4)[:2], taken(source, count=2))


@SOURCES
def test_a_batch_is_float32_samples_and_int64_targets(source):
    for x, y in taken(source):
        assert (x.shape, x.dtype) == ((5, 3, 32, 32), torch.float32)
        assert (y.shape, y.dtype) == ((5,), torch.int64)
        assert y.min() >= 0
        assert y.max() < 10


@pytest.mark.parametrize(("input", "classes", "batch_size"), [([64], 2, 1), ([3, 8, 8], 1000, 7), ([2, 3, 4, 5], 1, 2)])
def test_synthetic_samples_have_the_shape_of_the_models_input(input, classes, batch_size):
    for x, y in taken(Synthetic(batch_size), input=input, classes=classes):
        assert list(x.shape) == [batch_size, *input]
        assert set(y.tolist()) <= set(range(classes))


def test_synthetic_targets_reach_every_class():
    ((_, y),) = taken(Synthetic(1000), count=1, input=[1], classes=10)
    assert set(y.tolist()) == set(range(10))


def test_synthetic_samples_are_normal():
    ((x, _),) = taken(Synthetic(1000), count=1, input=[100])
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 1) < 0.02


@SOURCES
def test_memory_does_not_grow_with_the_count(source):
    batches = source.batches(10**12, [64], 10, 0)
    assert iter(batches) is batches
    seen = []
    for x, _ in islice(batches, 5):
        seen.append(weakref.ref(x))
        del x
        assert sum(batch() is not None for batch in seen) <= 1


def test_synthetic_gives_as_many_batches_as_asked():
    assert len(taken(Synthetic(), count=7, input=[1])) == 7
    assert taken(Synthetic(), count=0, input=[1]) == []


# Digits


@pytest.mark.parametrize("input", [[3, 32, 32], [1, 8, 8], [64], [4, 5, 11]])
def test_digits_take_the_models_shape_and_lie_between_zero_and_one(input):
    for x, _ in taken(Digits(6), input=input):
        assert list(x.shape) == [6, *input]
        assert x.min() >= 0
        assert x.max() <= 1


def test_digits_reach_both_zero_and_one():
    ((x, _),) = taken(Digits(200), count=1, input=[64])
    assert (x.min(), x.max()) == (0, 1)


def test_digits_repeat_one_picture_in_every_channel():
    for x, _ in taken(Digits(6), input=[3, 16, 16]):
        assert torch.equal(x[:, 0], x[:, 1])
        assert torch.equal(x[:, 0], x[:, 2])


@pytest.mark.parametrize(("batch_size", "count"), [(599, 3), (1797, 1), (599, 6)])
def test_each_digit_comes_exactly_once_an_epoch_with_its_own_target(batch_size, count):
    held = load_digits()
    expected = sorted([*row, target] for row, target in zip((held.data / 16).tolist(), held.target.tolist(), strict=True))
    batches = taken(Digits(batch_size), count, input=[64])
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    for epoch in range(len(x) // 1797):
        part = slice(1797 * epoch, 1797 * (epoch + 1))
        assert sorted([*row, target] for row, target in zip(x[part].tolist(), y[part].tolist(), strict=True)) == expected


def test_digits_come_in_another_order_each_epoch():
    (_, first), (_, second) = taken(Digits(1797), count=2, input=[64])
    assert not torch.equal(first, second)


def test_every_batch_has_one_size_even_where_an_epoch_ends_inside_it():
    assert {len(x) for x, _ in taken(Digits(1000), count=5, input=[64])} == {1000}
    assert [len(x) for x, _ in taken(Digits(4000), count=1, input=[64])] == [4000]


def test_digits_refuse_a_head_with_too_few_classes_and_take_one_with_more():
    with pytest.raises(ConfigError, match=r"data=digits has targets of 10 classes, .* has 9; give model.classes=10"):
        taken(Digits(), classes=9)
    assert len(taken(Digits(), classes=1000)) == 3


@pytest.mark.parametrize("input", [[63], [8, 8], [1, 1, 8, 8]])
def test_digits_refuse_a_model_that_takes_no_pictures(input):
    with pytest.raises(ConfigError, match=r"data=digits holds pictures, model.input is \["):
        taken(Digits(), input=input)


# A folder of pictures


def test_the_classes_of_a_folder_are_numbered_by_name_and_the_colours_stay_in_order(pictures):
    batches = taken(ImageFolder(pictures, 6), count=1, input=[3, 8, 7], classes=3)
    ((x, y),) = batches
    assert (x.shape, x.dtype, y.dtype) == ((6, 3, 8, 7), torch.float32, torch.int64)
    assert sorted(y.tolist()) == [0, 0, 1, 1, 2, 2]
    for picture, target in zip(x, y, strict=True):
        expected = torch.zeros(3, 8, 7)
        expected[target] = 1.0
        assert torch.equal(picture, expected)


def test_colour_pictures_become_grey_for_a_model_of_one_channel(pictures):
    ((x, y),) = taken(ImageFolder(pictures, 6), count=1, input=[1, 8, 7], classes=3)
    assert x.shape == (6, 1, 8, 7)
    shades = {int(target): round(float(picture.mean()) * 255) for picture, target in zip(x, y, strict=True)}
    assert shades == {0: 76, 1: 150, 2: 29}


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_pictures_fit_a_model_of_one_channel_or_three(greys, channels):
    batches = taken(ImageFolder(greys, 7), count=1, input=[channels, 4, 4], classes=2)
    ((x, y),) = batches
    assert x.shape == (7, channels, 4, 4)
    shades = sorted((round(float(picture.mean()) * 255), int(target)) for picture, target in zip(x, y, strict=True))
    assert shades == [(30 * number, int(number >= 3)) for number in range(7)]
    assert all(torch.equal(x[:, 0], x[:, channel]) for channel in range(channels))
    assert x.min() >= 0
    assert x.max() <= 1


def test_each_picture_comes_exactly_once_an_epoch(greys):
    batches = taken(ImageFolder(greys, 2), count=7, input=[1, 4, 4], classes=2)
    shades = [round(float(picture.mean()) * 255) for x, _ in batches for picture in x]
    assert sorted(shades[:7]) == sorted(shades[7:]) == [30 * number for number in range(7)]


def test_a_folder_gives_the_same_batches_for_the_same_seed_and_others_for_another(greys):
    first, again, other = (taken(ImageFolder(greys, 7), 3, [1, 4, 4], 2, seed) for seed in (0, 0, 1))
    assert equal(first, again)
    assert not equal(first, other)


def test_a_folder_refuses_a_head_with_too_few_classes_and_takes_one_with_more(pictures):
    with pytest.raises(ConfigError, match=r"has targets of 3 classes, .* has 2; give model.classes=3"):
        taken(ImageFolder(pictures), classes=2)
    assert len(taken(ImageFolder(pictures), input=[3, 8, 8], classes=1000)) == 3


def test_a_folder_refuses_a_model_that_takes_no_pictures(pictures):
    for input in ([64], [2, 8, 8], [3, 8]):
        with pytest.raises(ConfigError, match=r"data=image_folder holds pictures, model.input is \["):
            taken(ImageFolder(pictures), input=input, classes=3)


@pytest.mark.parametrize("root", ["nowhere", "a_file", "empty", "without_pictures"])
def test_a_root_without_pictures_is_refused_by_its_name(root, tmp_path):
    (tmp_path / "a_file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "without_pictures" / "class").mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"data\.root.*{root}"):
        taken(ImageFolder(str(tmp_path / root)), classes=10)
