"""What happens to a sample between its dataset and its batch: transforms, pictures and lists that become tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from PIL import Image
from torchvision.transforms import v2

from runner.errors import ConfigError, listed
from runner.tensors import map_leaves


def prepared(sample: Any, transform: Any, input: Sequence[int] | None) -> Any:
    """Return a sample as it goes into its batch: transformed, with its pictures and lists of numbers as tensors.

    `transform`: a function or None. Of a pair or row, it is called with the first part; of a mapping, with each picture; or
    with the whole sample if it has neither. `{field: function}` calls each function with that field alone. `input`: the
    shape [channels, height, width] that pictures are given; None to keep their size.
    Raises ConfigError if a field does not exist, if `input` is not the shape of a picture, or if several fields still are
    pictures: one of them may be a mask, whose values are no colours.
    """
    sample = transformed(sample, transform)
    pictures = [str(field) for field, value in _fields(sample).items() if isinstance(value, Image.Image)]
    if len(pictures) > 1:
        raise ConfigError(
            f"data: fields {listed(pictures)} of a sample are pictures, of which one is made a tensor; for the others give "
            f"++data.transform.{pictures[1]}._target_=..., such as torchvision.transforms.v2.PILToTensor"
        )
    return _as_tensors(sample, input, is_nested=False)


def transformed(sample: Any, transform: Any) -> Any:
    """Return the sample with `transform` applied, as `prepared` says.

    The transform is given copies, so that one that works in place does not change the dataset.
    """
    if transform is None:
        return sample
    sample = map_leaves(sample, _own_copy)
    if isinstance(transform, Mapping):
        return _with_fields(sample, transform)
    if isinstance(sample, Mapping):
        pictures = {key: transform(value) for key, value in sample.items() if isinstance(value, Image.Image)}
        return {**sample, **pictures} if pictures else transform(sample)
    if isinstance(sample, (tuple, list)) and sample:
        return (transform(sample[0]), *sample[1:])
    return transform(sample)


def _own_copy(value: Any) -> Any:
    """Return a copy of a tensor, an array, or a picture in memory. What else is in a sample is not copied."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    return value.copy() if isinstance(value, numpy.ndarray) or type(value) is Image.Image else value


def _with_fields(sample: Any, transforms: Mapping[Any, Any]) -> Any:
    """Return the sample with each function of {field: function} applied to its field."""
    fields = _fields(sample)
    for field, function in transforms.items():
        key = field if field in fields or not str(field).isdigit() else int(field)
        if key not in fields:
            raise ConfigError(f"data.transform: samples have no field {field!r}; they have {', '.join(map(str, fields))}")
        fields[key] = function(fields[key])
    return fields if isinstance(sample, Mapping) else tuple(fields.values())


def _fields(sample: Any) -> dict[Any, Any]:
    """Return {key or index: value} of a mapping or row; of another sample, itself under 0."""
    if isinstance(sample, Mapping):
        return dict(sample)
    return dict(enumerate(sample if isinstance(sample, (tuple, list)) else [sample]))


def _as_tensors(value: Any, input: Sequence[int] | None, is_nested: bool = True) -> Any:
    """Return the value with each picture in it as a float tensor, and each list of numbers in it as a tensor.

    `is_nested`: False for a whole sample, which is not itself taken for a list of numbers.
    """
    if isinstance(value, Image.Image):
        return picture_to_tensor(value, input)
    if isinstance(value, Mapping):
        return {key: _as_tensors(each, input) for key, each in value.items()}
    if isinstance(value, list) and is_nested and _holds_numbers(value):
        try:
            return torch.as_tensor(value)
        except (ValueError, TypeError):  # rows of different lengths
            return value
    if type(value) in (tuple, list):
        return type(value)(_as_tensors(each, input) for each in value)
    return value


def _holds_numbers(value: list[Any]) -> bool:
    """Return whether the first item of a list, at whatever depth, is a number."""
    while isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, (int, float))


def picture_to_tensor(picture: Image.Image, input: Sequence[int] | None) -> torch.Tensor:
    """Return a picture as a float32 tensor (channels, height, width) in [0, 1], with the shape `input` if it is given."""
    if input is not None and (len(input) != 3 or input[0] not in (1, 3)):
        raise ConfigError(f"data has pictures, but model.input is {list(input)}; give [1 or 3,height,width]")
    picture = in_eight_bits(picture)
    channels = (1 if picture.mode in ("1", "L", "LA", "I", "F") else 3) if input is None else input[0]
    picture = picture.convert("L" if channels == 1 else "RGB")
    resize = v2.Identity() if input is None else v2.Resize(list(input[1:]))
    return v2.Compose([resize, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])(picture).as_subclass(torch.Tensor)


def in_eight_bits(picture: Image.Image) -> Image.Image:
    """Return a grey picture of 16 bits with 8 bits, as Pillow would cut its values off at 255; others are not changed."""
    if not picture.mode.startswith("I;16"):
        return picture
    return Image.fromarray((numpy.asarray(picture) >> 8).astype("uint8"))
