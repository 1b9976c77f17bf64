"""Data sources: shapes, shuffling by the seed, and error messages."""

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


@pytest.fixture
def images(tmp_path):
    """Return a folder with three classes of two images of different sizes; each class has its own colour."""
    for name in ("cat", "ant", "bee"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number, size in enumerate([(6, 9), (12, 5)]):
            Image.new("RGB", size, COLOURS[name]).save(tmp_path / "images" / name / f"{number}.png")
    return str(tmp_path / "images")


@pytest.fixture
def grey_images(tmp_path):
    """Return a folder with seven images in two classes, each with its own grey value."""
    for number in range(7):
        folder = tmp_path / "grey_images" / ("dark" if number < 3 else "light")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 30 * number).save(folder / f"{number}.png")
    return str(tmp_path / "grey_images")


def take_batches(source, count=3, input=(3, 32, 32), classes=10, seed=0):
    """Return the batches of a source as a list."""
    return list(source.batches(count, list(input), classes, seed))


def same_batches(one, other):
    """Return whether two lists of batches have the same values."""
    return all(torch.equal(*pair) for parts in zip(one, other, strict=True) for pair in zip(*parts, strict=True))


SOURCES = pytest.mark.parametrize("source", [Synthetic(5), Digits(5)], ids=["synthetic", "digits"])


@SOURCES
def test_the_same_seed_gives_the_same_batches_and_another_seed_does_not(source):
    assert same_batches(take_batches(source, seed=0), take_batches(source, seed=0))
    assert not same_batches(take_batches(source, seed=0), take_batches(source, seed=1))


@SOURCES
@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_batches_do_not_depend_on_the_global_random_state_and_do_not_change_it(source, seed):
    torch.manual_seed(1)
    first = take_batches(source, seed=seed)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert same_batches(take_batches(source, seed=seed), first)
    assert torch.equal(torch.get_rng_state(), state)


@SOURCES
def test_a_larger_count_gives_the_same_first_batches(source):
    assert same_batches(take_batches(source, count=4)[:2], take_batches(source, count=2))


@SOURCES
def test_a_batch_has_float32_samples_and_int64_targets(source):
    for x, y in take_batches(source):
        assert (x.shape, x.dtype) == ((5, 3, 32, 32), torch.float32)
        assert (y.shape, y.dtype) == ((5,), torch.int64)
        assert y.min() >= 0
        assert y.max() < 10


@pytest.mark.parametrize(("input", "classes", "batch_size"), [([64], 2, 1), ([3, 8, 8], 1000, 7), ([2, 3, 4, 5], 1, 2)])
def test_synthetic_samples_have_the_input_shape_of_the_model(input, classes, batch_size):
    for x, y in take_batches(Synthetic(batch_size), input=input, classes=classes):
        assert list(x.shape) == [batch_size, *input]
        assert set(y.tolist()) <= set(range(classes))


def test_synthetic_targets_include_every_class():
    ((_, y),) = take_batches(Synthetic(1000), count=1, input=[1], classes=10)
    assert set(y.tolist()) == set(range(10))


def test_synthetic_samples_have_mean_0_and_deviation_1():
    ((x, _),) = take_batches(Synthetic(1000), count=1, input=[100])
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 1) < 0.02


@SOURCES
def test_memory_does_not_grow_with_the_count(source):
    batches = source.batches(10**12, [64], 10, 0)
    assert iter(batches) is batches
    references = []
    for x, _ in islice(batches, 5):
        references.append(weakref.ref(x))
        del x
        assert sum(batch() is not None for batch in references) <= 1


def test_synthetic_yields_count_batches():
    assert len(take_batches(Synthetic(), count=7, input=[1])) == 7
    assert take_batches(Synthetic(), count=0, input=[1]) == []


# Digits


@pytest.mark.parametrize("input", [[3, 32, 32], [1, 8, 8], [64], [4, 5, 11]])
def test_digits_have_the_input_shape_of_the_model_and_values_from_0_to_1(input):
    for x, _ in take_batches(Digits(6), input=input):
        assert list(x.shape) == [6, *input]
        assert x.min() >= 0
        assert x.max() <= 1


def test_the_values_of_digits_include_0_and_1():
    ((x, _),) = take_batches(Digits(200), count=1, input=[64])
    assert (x.min(), x.max()) == (0, 1)


def test_digits_have_the_same_image_in_every_channel():
    for x, _ in take_batches(Digits(6), input=[3, 16, 16]):
        assert torch.equal(x[:, 0], x[:, 1])
        assert torch.equal(x[:, 0], x[:, 2])


@pytest.mark.parametrize(("batch_size", "count"), [(599, 3), (1797, 1), (599, 6)])
def test_each_digit_is_used_once_per_epoch_with_its_own_target(batch_size, count):
    digits = load_digits()
    expected = sorted(
        [*row, target] for row, target in zip((digits.data / 16).tolist(), digits.target.tolist(), strict=True)
    )
    batches = take_batches(Digits(batch_size), count, input=[64])
    x, y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    for epoch in range(len(x) // 1797):
        part = slice(1797 * epoch, 1797 * (epoch + 1))
        assert sorted([*row, target] for row, target in zip(x[part].tolist(), y[part].tolist(), strict=True)) == expected


def test_digits_are_in_another_order_in_each_epoch():
    (_, first), (_, second) = take_batches(Digits(1797), count=2, input=[64])
    assert not torch.equal(first, second)


def test_all_batches_have_the_same_size_even_if_an_epoch_ends_inside_one():
    assert {len(x) for x, _ in take_batches(Digits(1000), count=5, input=[64])} == {1000}
    assert [len(x) for x, _ in take_batches(Digits(4000), count=1, input=[64])] == [4000]


def test_digits_raise_an_error_if_the_head_has_too_few_classes_but_not_if_it_has_more():
    with pytest.raises(ConfigError, match=r"data=digits has targets of 10 classes, .* has 9; give model.classes=10"):
        take_batches(Digits(), classes=9)
    assert len(take_batches(Digits(), classes=1000)) == 3


@pytest.mark.parametrize("input", [[63], [8, 8], [1, 1, 8, 8]])
def test_digits_raise_an_error_if_the_models_input_is_not_an_image(input):
    with pytest.raises(ConfigError, match=r"data=digits has images, but model.input is \["):
        take_batches(Digits(), input=input)


# A folder of images


def test_classes_are_numbered_in_the_order_of_their_folder_names_and_channels_are_rgb(images):
    batches = take_batches(ImageFolder(images, 6), count=1, input=[3, 8, 7], classes=3)
    ((x, y),) = batches
    assert (x.shape, x.dtype, y.dtype) == ((6, 3, 8, 7), torch.float32, torch.int64)
    assert sorted(y.tolist()) == [0, 0, 1, 1, 2, 2]
    for image, target in zip(x, y, strict=True):
        expected = torch.zeros(3, 8, 7)
        expected[target] = 1.0
        assert torch.equal(image, expected)


def test_colour_images_become_grey_for_a_model_with_one_channel(images):
    ((x, y),) = take_batches(ImageFolder(images, 6), count=1, input=[1, 8, 7], classes=3)
    assert x.shape == (6, 1, 8, 7)
    grey_values = {int(target): round(float(image.mean()) * 255) for image, target in zip(x, y, strict=True)}
    assert grey_values == {0: 76, 1: 150, 2: 29}


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_images_fit_a_model_with_one_or_three_channels(grey_images, channels):
    batches = take_batches(ImageFolder(grey_images, 7), count=1, input=[channels, 4, 4], classes=2)
    ((x, y),) = batches
    assert x.shape == (7, channels, 4, 4)
    grey_values = sorted((round(float(image.mean()) * 255), int(target)) for image, target in zip(x, y, strict=True))
    assert grey_values == [(30 * number, int(number >= 3)) for number in range(7)]
    assert all(torch.equal(x[:, 0], x[:, channel]) for channel in range(channels))
    assert x.min() >= 0
    assert x.max() <= 1


def test_each_image_is_used_once_per_epoch(grey_images):
    batches = take_batches(ImageFolder(grey_images, 2), count=7, input=[1, 4, 4], classes=2)
    grey_values = [round(float(image.mean()) * 255) for x, _ in batches for image in x]
    assert sorted(grey_values[:7]) == sorted(grey_values[7:]) == [30 * number for number in range(7)]


def test_a_folder_gives_the_same_batches_for_the_same_seed_but_not_for_another(grey_images):
    first, again, other = (take_batches(ImageFolder(grey_images, 7), 3, [1, 4, 4], 2, seed) for seed in (0, 0, 1))
    assert same_batches(first, again)
    assert not same_batches(first, other)


def test_a_folder_raises_an_error_if_the_head_has_too_few_classes_but_not_if_it_has_more(images):
    with pytest.raises(ConfigError, match=r"has targets of 3 classes, .* has 2; give model.classes=3"):
        take_batches(ImageFolder(images), classes=2)
    assert len(take_batches(ImageFolder(images), input=[3, 8, 8], classes=1000)) == 3


def test_a_folder_raises_an_error_if_the_models_input_is_not_an_image(images):
    for input in ([64], [2, 8, 8], [3, 8]):
        with pytest.raises(ConfigError, match=r"data=image_folder has images, but model.input is \["):
            take_batches(ImageFolder(images), input=input, classes=3)


@pytest.mark.parametrize("root", ["nowhere", "a_file", "empty", "without_images"])
def test_the_message_for_a_root_without_images_has_its_name(root, tmp_path):
    (tmp_path / "a_file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "without_images" / "class").mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"data\.root.*{root}"):
        take_batches(ImageFolder(str(tmp_path / root)), classes=10)
