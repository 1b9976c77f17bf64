"""Samples on their way into a batch: transforms, pictures of any mode, lists of numbers."""

from __future__ import annotations

import copy

import numpy
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from runner.errors import ConfigError
from runner.tensors import leaves_in
from runner.training.data.transforms import picture_to_tensor, prepared

RED = Image.new("RGB", (9, 7), (255, 0, 0))


def test_a_transform_is_called_with_the_first_part_of_a_pair_the_pictures_of_a_mapping_or_the_whole_sample():
    x, y = prepared((RED, 3), v2.Resize([4, 5]), None)
    assert (x.shape, y) == ((3, 4, 5), 3)
    sample = prepared({"image": RED, "label": 3}, v2.Resize([4, 5]), None)
    assert (sample["image"].shape, sample["label"]) == ((3, 4, 5), 3)
    assert prepared({"a": 1}, lambda sample: {**sample, "b": 2}, None) == {"a": 1, "b": 2}
    assert prepared(torch.ones(2), lambda x: x + 1, None).tolist() == [2, 2]


def brightened(x):
    """Change a tensor, an array or a picture in place, and return it."""
    if isinstance(x, Image.Image):
        x.paste((0, 255, 0), (0, 0, 2, 2))
    else:
        x += 1
    return x


IN_MEMORY = [torch.zeros(3), numpy.zeros(3), Image.new("RGB", (2, 2))]
FORMS = {"pair": lambda x: (x, 3), "mapping": lambda x: {"x": x, "y": 3}, "whole": lambda x: x}


@pytest.mark.parametrize("x", IN_MEMORY, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_transform_in_place_does_not_change_the_dataset(x, form):
    before, transform = copy.deepcopy(x), {"x": brightened} if isinstance(form(x), dict) else brightened
    first, again = (leaves_in(prepared(form(x), transform, None))[0].tolist() for _ in range(2))
    assert x.tobytes() == before.tobytes() if isinstance(x, Image.Image) else x.tolist() == before.tolist()
    assert first == again


def test_without_a_transform_samples_are_not_copied():
    x = torch.zeros(3)
    assert prepared((x, 1), None, None)[0] is x


def test_functions_by_field_are_called_with_that_field_alone():
    assert prepared((1, 2), {"1": lambda y: y * 10}, None) == (1, 20)
    assert prepared({"a": 1, "b": 2}, {"b": lambda y: y * 10}, None) == {"a": 1, "b": 20}


@pytest.mark.parametrize("sample", [(1, 2), {"a": 1, "b": 2}])
def test_a_field_that_does_not_exist_is_refused_with_those_that_do(sample):
    with pytest.raises(ConfigError, match=r"data.transform: samples have no field 'c'; they have (0, 1|a, b)$"):
        prepared(sample, {"c": abs}, None)


@pytest.mark.parametrize("sample", [(RED, RED), {"0": RED, "1": RED, "label": 3}])
def test_a_second_picture_which_may_be_a_mask_is_not_made_a_tensor_of_colours(sample):
    with pytest.raises(ConfigError, match=r"fields 0 and 1 of a sample are pictures, .*; for the others give \+\+data"):
        prepared(sample, None, [3, 4, 5])
    parts = prepared(sample, {"1": v2.PILToTensor()}, [3, 4, 5])
    x, mask, *_ = parts.values() if isinstance(parts, dict) else parts
    assert (x.shape, x.dtype) == ((3, 4, 5), torch.float32)
    assert (mask.shape, mask.dtype) == ((3, 7, 9), torch.uint8)


def test_a_row_of_pictures_in_one_field_such_as_the_frames_of_a_film_is_converted():
    frames, label = prepared(([RED, RED], 3), None, [3, 4, 5])
    assert ([frame.shape for frame in frames], label) == ([(3, 4, 5)] * 2, 3)


MODES = ("RGB", "RGBA", "P", "L", "LA", "1", "CMYK", "I;16")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("input", [[3, 4, 5], [1, 4, 5]])
def test_a_picture_of_any_mode_and_size_gets_the_input_shape_and_values_from_0_to_1(mode, input):
    x = picture_to_tensor(Image.new(mode, (9, 7)), input)
    assert (type(x), x.dtype, list(x.shape)) == (torch.Tensor, torch.float32, input)
    assert 0 <= x.min() <= x.max() <= 1


@pytest.mark.parametrize("mode", MODES)
def test_without_an_input_shape_a_picture_keeps_its_size_and_is_grey_or_rgb(mode):
    channels = 1 if mode in ("L", "LA", "1", "I;16") else 3
    assert picture_to_tensor(Image.new(mode, (9, 7)), None).shape == (channels, 7, 9)


def test_the_values_of_a_picture_of_16_bits_are_scaled():
    picture = Image.fromarray(numpy.array([[0, 2**15, 2**16 - 1]], dtype="uint16"))
    assert picture_to_tensor(picture, None).flatten().tolist() == [0, pytest.approx(128 / 255), 1]


@pytest.mark.parametrize("input", [[64], [2, 8, 8], [3, 8]])
def test_pictures_for_a_model_whose_input_is_no_picture_are_refused(input):
    with pytest.raises(ConfigError, match=r"data has pictures, but model.input is \[.*; give \[1 or 3,height,width\]"):
        picture_to_tensor(RED, input)


def test_lists_of_numbers_become_tensors_and_other_values_stay():
    sample = prepared({"ids": [1, 2], "boxes": [[0.5, 1.0]], "text": "a", "words": ["a"], "n": 3}, None, None)
    assert (sample["ids"].tolist(), sample["ids"].dtype) == ([1, 2], torch.int64)
    assert sample["boxes"].shape == (1, 2)
    assert (sample["text"], sample["words"], sample["n"]) == ("a", ["a"], 3)
    assert prepared({"ragged": [[1], [1, 2]]}, None, None)["ragged"] == [[1], [1, 2]]
    assert prepared([1, 2], None, None) == [1, 2]
