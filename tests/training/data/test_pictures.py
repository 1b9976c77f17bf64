"""Datasets of pictures: digits, folders, torchvision's, and those that the library `datasets` saved."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from PIL import Image

from runner.errors import ConfigError
from runner.training.data.pictures import Digits, digits, huggingface_dataset, image_folder, torchvision_dataset

COLOURS = {"ant": (255, 0, 0), "bee": (0, 255, 0), "cat": (0, 0, 255)}


def read(source, epoch=0):
    """Return the batches of a pass as a list."""
    return list(source.read(0, epoch, 10**9))


@pytest.fixture
def images(tmp_path):
    """Return a folder with three classes of two images of different sizes; each class has its own colour."""
    for name in ("cat", "ant", "bee"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number, size in enumerate([(6, 9), (12, 5)]):
            Image.new("RGB", size, COLOURS[name]).save(tmp_path / "images" / name / f"{number}.png")
    return str(tmp_path / "images")


# Digits


@pytest.mark.parametrize("input", [[3, 32, 32], [1, 8, 8], [64], [4, 5, 11]])
def test_digits_have_the_input_shape_of_the_model_and_values_from_0_to_1(input):
    x, y = read(digits(input, batch_size=1797))[0]
    assert list(x.shape) == [1797, *input]
    assert 0 <= x.min() <= x.max() <= 1
    assert set(y.tolist()) == set(range(10))
    if len(input) == 3:
        assert (x == x[:, :1]).all()


def test_each_digit_is_read_once_a_pass_with_its_own_target():
    dataset = Digits([64])
    expected = sorted((*dataset[index][0].tolist(), dataset[index][1]) for index in range(len(dataset)))
    source = digits([64], batch_size=599)
    for epoch in range(2):
        x, y = (torch.cat(parts) for parts in zip(*read(source, epoch), strict=True))
        assert sorted((*row, target) for row, target in zip(x.tolist(), y.tolist(), strict=True)) == expected
    assert source.length() == 3


@pytest.mark.parametrize("input", [[63], [8, 8], [1, 1, 8, 8]])
def test_digits_for_a_model_whose_input_is_no_image_are_refused(input):
    with pytest.raises(ConfigError, match=r"data=digits has images, but model.input is \["):
        digits(input)


# Folders


def test_classes_are_numbered_in_the_order_of_their_folder_names_and_channels_are_rgb(images):
    ((x, y),) = read(image_folder(images, [3, 8, 7], batch_size=6, classes=3))
    assert (x.shape, x.dtype, y.dtype) == ((6, 3, 8, 7), torch.float32, torch.int64)
    assert sorted(y.tolist()) == [0, 0, 1, 1, 2, 2]
    for image, target in zip(x, y, strict=True):
        expected = torch.zeros(3, 8, 7)
        expected[target] = 1.0
        assert torch.equal(image, expected)


def test_colour_images_become_grey_for_a_model_with_one_channel(images):
    ((x, y),) = read(image_folder(images, [1, 8, 7], batch_size=6))
    grey_values = {int(target): round(float(image.mean()) * 255) for image, target in zip(x, y, strict=True)}
    assert grey_values == {0: 76, 1: 150, 2: 29}


def test_pictures_of_any_mode_become_rgb_and_those_of_16_bits_keep_their_values(tmp_path):
    (tmp_path / "pics" / "a").mkdir(parents=True)
    for mode in ("RGB", "RGBA", "P", "L", "LA", "1"):
        Image.new(mode, (9, 7)).save(tmp_path / "pics" / "a" / f"{mode}.png")
    Image.new("I;16", (9, 7), 2**15).save(tmp_path / "pics" / "a" / "deep.png")
    ((x, _),) = read(image_folder(str(tmp_path / "pics"), batch_size=7, shuffle=False))
    assert x.shape == (7, 3, 7, 9)
    assert sorted(x.amax((1, 2, 3)).tolist()) == [0] * 6 + [pytest.approx(128 / 255)]


def test_images_of_different_sizes_need_an_input_shape(images):
    with pytest.raises(ConfigError, match=r"field 0 of sample \d has shape .*; give data.transform to make them equal"):
        read(image_folder(images, None, batch_size=6))


def test_a_folder_with_more_classes_than_the_head_is_refused(images):
    with pytest.raises(ConfigError, match=r"has targets of 3 classes, .* has 2; give model.classes=3"):
        image_folder(images, classes=2)


@pytest.mark.parametrize("root", ["nowhere", "a_file", "empty", "without_images"])
def test_the_message_for_a_root_without_images_has_its_name(root, tmp_path):
    (tmp_path / "a_file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "without_images" / "class").mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"data\.root.*{root}"):
        image_folder(str(tmp_path / root))


# torchvision


def test_a_dataset_of_torchvision_is_found_by_its_name(images):
    source = torchvision_dataset("ImageFolder", images, input=[3, 4, 4], batch_size=6)
    assert read(source)[0][0].shape == (6, 3, 4, 4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("CIFAR11", {}, r"data.name is 'CIFAR11', which is no dataset of torchvision; did you mean CIFAR10"),
        ("CIFAR10", {}, r"data.root=.*: CIFAR10 says: Dataset not found or corrupted. You can use download=True"),
        ("CIFAR10", {"trian": True}, r"data.root=.*: CIFAR10 says: .*unexpected keyword argument 'trian'"),
    ],
)
def test_what_torchvision_refuses_is_said_in_one_line(name, options, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        torchvision_dataset(name, str(tmp_path), options=options)
    assert "\n" not in str(caught.value)


# The library `datasets`

needs_datasets = pytest.mark.skipif(find_spec("datasets") is None, reason="needs the extra huggingface")


@pytest.fixture
def saved(tmp_path):
    """Return a folder in which `datasets` saved two splits of pictures, lists of numbers and texts."""
    from datasets import Dataset, DatasetDict

    def split(size):
        pictures = [Image.new("RGB", (6 + index, 8), (index, 0, 0)) for index in range(size)]
        columns = {"image": pictures, "ids": [[1, 2, index] for index in range(size)], "label": [i % 2 for i in range(size)]}
        return Dataset.from_dict({**columns, "text": [f"t{index}" for index in range(size)]})

    DatasetDict(train=split(6), test=split(4)).save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved")


@needs_datasets
@pytest.mark.parametrize("workers", [0, 1])
def test_a_saved_dataset_gives_mappings_of_tensors_and_leaves_texts_alone(saved, workers):
    (batch,) = read(huggingface_dataset(saved, input=[3, 8, 8], batch_size=6, workers=workers))
    assert batch["image"].shape == (6, 3, 8, 8)
    assert sorted(batch["ids"].tolist()) == [[1, 2, index] for index in range(6)]
    assert sorted(batch["text"]) == [f"t{index}" for index in range(6)]
    (batch,) = read(huggingface_dataset(saved, "test", input=[3, 8, 8], batch_size=6))
    assert len(batch["label"]) == 4


@needs_datasets
def test_samples_of_a_saved_dataset_are_held_out_by_class(saved):
    source = huggingface_dataset(saved, input=[3, 8, 8], holdout=0.34)
    assert sorted(torch.cat([batch["label"] for batch in source.read_held_out(0)]).tolist()) == [0, 1]


@needs_datasets
def test_a_split_that_does_not_exist_is_refused_with_those_that_do(saved, tmp_path):
    with pytest.raises(ConfigError, match=r"data.split is 'tset'; .* has train, test; did you mean test\?"):
        huggingface_dataset(saved, "tset")
    with pytest.raises(ConfigError, match=r"data.root=.*: datasets says: "):
        huggingface_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("overrides", "needs"),
    [
        (["data=digits"], "data=digits needs sklearn; install it with: pip install 'freeze-runner[data]'"),
        (
            ["data=huggingface", "data.root=."],
            "data=huggingface needs datasets; install it with: pip install 'freeze-runner[huggingface]'",
        ),
    ],
)
def test_a_missing_library_is_named_with_its_extra(overrides, needs, cli, monkeypatch):
    monkeypatch.setattr("runner.config.checks.machine.find_spec", lambda name: None)
    code, _, err = cli("model=mlp", *overrides)
    assert (code, err) == (2, f"freeze-runner: {needs}\n")
