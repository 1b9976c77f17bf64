"""Say why torch's `default_collate` cannot make a batch of some samples: which of them, and which field, differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from runner.errors import ConfigError
from runner.training.data.structure import described_structure, structure_of


def refuse_samples(samples: Sequence[Any], numbers: Sequence[int], error: Exception) -> None:
    """Raise ConfigError that says which samples do not fit together, or which field is nothing that can be a tensor.

    `numbers`: those of the samples in the dataset. `error`: what torch's `default_collate` raised for them.
    """
    first = fields_of(samples[0])
    for number, sample in zip(numbers, samples, strict=True):
        fields = fields_of(sample)
        for name, value in fields.items():
            what = f"sample {number}" + (f", field {name}" if name else "")
            if value is None or (not isinstance(value, (Tensor, int, float, str, bytes)) and not _is_array(value)):
                raise ConfigError(
                    f"data: {what} is of type {type(value).__name__}; "
                    "give data.transform or data.collate to make it a tensor"
                )
        if fields.keys() != first.keys():
            given, expected = (described_structure(structure_of(each)) for each in (sample, samples[0]))
            raise ConfigError(
                f"data: sample {number} is {given}, sample {numbers[0]} is {expected}; give samples of one form"
            )
        for name, value in fields.items():
            given, expected = _kind(value), _kind(first[name])
            if given != expected:
                what = f"field {name}" if name else "the samples"
                raise ConfigError(
                    f"data: {what} of sample {number} has {given}, of sample {numbers[0]} {expected}; "
                    "give data.transform to make them equal, or data.collate to pad them"
                )
    raise ConfigError(f"data: samples {', '.join(map(str, numbers[:8]))} make no batch: {error}; give data.collate")


def fields_of(sample: Any, name: str = "") -> dict[str, Any]:
    """Return {dotted name or index: value} of all values nested in a sample; the name is "" if nothing is nested."""
    if isinstance(sample, Mapping):
        items = [(str(key), value) for key, value in sample.items()]
    elif isinstance(sample, (tuple, list)):
        items = [(str(index), value) for index, value in enumerate(sample)]
    else:
        return {name: sample}
    return {inner: v for key, value in items for inner, v in fields_of(value, f"{name}.{key}" if name else key).items()}


def _is_array(value: Any) -> bool:
    """Return whether a value is an array or a number of numpy."""
    return type(value).__module__ == "numpy"


def _kind(value: Any) -> str:
    """Return the shape of a tensor or array in words, or the type of another value."""
    shape = getattr(value, "shape", None)
    return f"type {type(value).__name__}" if shape is None else f"shape {tuple(shape)}"
