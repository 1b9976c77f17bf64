"""Synthetic data: random values of any shape, the same for every freezing method at the same seed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from runner.errors import ConfigError, is_integer, listed
from runner.tensors import map_tensors, tensors_in
from runner.training.data.source import HELD_OUT, Source, as_source

KEYS = ("shape", "below", "same")
MOST_PASSES, MOST_BYTES = 4, 2**25  # passes whose first batches are kept; of the batches of each
LEAST_BYTES = 2**12  # that a batch counts, for its objects


@dataclass
class _Kept:
    """The first batches of a pass: their bytes in all, and the generator's state after the last of them."""

    batches: list[Any] = field(default_factory=list)
    size: int = 0
    state: Tensor | None = None


_kept: dict[tuple[str, str, int], _Kept] = {}


class Synthetic:
    """Batches of random values, drawn anew in each pass from a generator of their own: every pass has the same batches.

    `fields`: `{name: field}` for batches that are mappings, or a list of fields for tuples. A field is `{shape: [3, 8, 8]}`
    (numbers from the standard normal distribution), `{shape: [16], below: 100}` (whole numbers from 0 to 99), or
    `{same: NAME}` (a copy of another field). A shape is that of one sample, [] for a single value. Without `fields`, batches
    are pairs (x, y): x of the shape `input`, and y a random class below `classes`.
    Each batch is generated only when it is asked for, so memory never holds the whole data set; the first MOST_BYTES of a
    pass are kept for later passes, and for later runs of the process. Raises ConfigError if a field is malformed, or if
    `input` or `classes` is needed and missing.
    """

    def __init__(
        self,
        batch_size: int = 4,
        fields: Mapping[Any, Any] | Sequence[Any] | None = None,
        input: Sequence[int] | None = None,
        classes: int | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.test: Source | None = None
        self.is_mapping = isinstance(fields, Mapping)
        if fields is None:
            for key, value in (("model.input", input), ("model.classes", classes)):
                if value is None:
                    raise ConfigError(f"data=synthetic needs {key}; give it, or the fields of a batch by data.fields")
            fields = [{"shape": list(input or ())}, {"shape": [], "below": classes}]
        elif not fields or isinstance(fields, str) or not isinstance(fields, (Mapping, Sequence)):
            raise ConfigError(f"data.fields is {fields!r}; give a mapping or a list of fields, such as [{{shape: [8]}}]")
        self.fields = dict(fields) if isinstance(fields, Mapping) else dict(enumerate(fields))
        depends_on = batch_size, self.is_mapping, self.fields
        self.form = repr(depends_on) if type(self) is Synthetic else ""  # "": nothing is kept
        for name, each in self.fields.items():
            self._refuse_malformed(name, each)

    def _refuse_malformed(self, name: Any, field: Any) -> None:
        """Raise ConfigError if a field is none of the forms that the class describes."""
        key, example = f"data.fields.{name}", "{shape: [16], below: 100}"
        if not isinstance(field, Mapping) or not field or set(field) - set(KEYS):
            raise ConfigError(f"{key} is {field!r}; give {example}, without `below` for real numbers, or {{same: NAME}}")
        if "same" in field:
            others = [other for other, each in self.fields.items() if other != name and "same" not in (each or ())]
            if field["same"] not in others or len(field) > 1:
                raise ConfigError(
                    f"{key}.same is {field['same']!r}; give one of {listed(list(map(str, others)))}, and no other key"
                )
            return
        shape, below = field.get("shape"), field.get("below", 1)
        if not isinstance(shape, (list, tuple)) or not all(is_integer(size) and size >= 1 for size in shape):
            raise ConfigError(f"{key}.shape is {shape!r}; give the shape of one sample, such as [3, 8, 8], [] for one value")
        if not is_integer(below) or below < 1:
            raise ConfigError(f"{key}.below is {below!r}; give a whole number of 1 or more")

    def length(self) -> int | None:
        return None

    def read(self, seed: int, epoch: int, count: int) -> Iterator[Any]:
        kept = _kept_batches((self.form, str(torch.get_default_dtype()), seed)) if self.form else None
        return _drawn(self.draw, seed, count, kept)

    def draw(self, generator: Generator) -> Any:
        """Return one batch, drawn from the generator."""
        drawn = {name: self._draw_field(field, generator) for name, field in self.fields.items() if "same" not in field}
        parts = {
            name: drawn[field["same"]].clone() if "same" in field else drawn[name] for name, field in self.fields.items()
        }
        return parts if self.is_mapping else tuple(parts.values())

    def _draw_field(self, field: Mapping[str, Any], generator: Generator) -> Tensor:
        """Return the values of a field for one batch: (N, *shape), float32, or int64 with `below`."""
        shape = (self.batch_size, *field["shape"])
        if "below" in field:
            return torch.randint(field["below"], shape, generator=generator)
        return torch.randn(shape, generator=generator)

    def reread(self, seed: int) -> Any | None:
        return next(self.read(seed, 1, 1))

    def hold_out(self, make: Callable[[], Any]) -> None:
        self.test = as_source(make(), make, "data.test")

    def read_held_out(self, seed: int) -> Iterator[Any] | None:
        return None if self.test is None else self.test.read(0, HELD_OUT, sys.maxsize)


class Boxes(Synthetic):
    """Random pictures with random boxes for models that detect: a batch is a list of pictures and a list of targets.

    A target is `{boxes: (count, 4) float32, labels: (count,) int64}` with boxes as x1, y1, x2, y2 in pixels and labels from
    1 to `classes` - 1 (0 is the background). `input`: [channels, height, width] of a picture. With `masks` a target also has
    `masks: (count, height, width) uint8`, which are 1 within the box, and with `keypoints` that many visible points in each
    box, `keypoints: (count, keypoints, 3) float32` as x, y, 1. Raises ConfigError if an argument is missing or wrong.
    """

    def __init__(
        self,
        input: Sequence[int] | None = None,
        classes: int | None = None,
        batch_size: int = 2,
        count: int = 2,
        masks: bool = False,
        keypoints: int = 0,
    ) -> None:
        if input is None or len(input) != 3 or classes is None or classes < 2:
            raise ConfigError(
                "data=boxes needs model.input=[3,height,width] and model.classes of 2 or more; "
                f"they are {input} and {classes}"
            )
        if not isinstance(masks, bool):
            raise ConfigError(f"data.masks is {masks!r}; give true or false")
        if not is_integer(keypoints) or keypoints < 0:
            raise ConfigError(f"data.keypoints is {keypoints!r}; give a whole number of 0 or more")
        super().__init__(batch_size, [{"shape": list(input)}])
        self.input, self.classes, self.count = list(input), classes, count
        self.masks, self.keypoints = masks, keypoints

    def draw(self, generator: Generator) -> Any:
        """Return one batch (pictures, targets), drawn from the generator."""
        pictures, targets = [], []
        for _ in range(self.batch_size):
            pictures.append(torch.rand(self.input, generator=generator))
            targets.append(self._draw_target(generator))
        return pictures, targets

    def _draw_target(self, generator: Generator) -> dict[str, Tensor]:
        """Return the target of one picture."""
        height, width = self.input[1:]
        size = torch.tensor([width, height])
        corners = torch.rand(self.count, 2, generator=generator) * 0.5
        extents = 0.25 + torch.rand(self.count, 2, generator=generator) * 0.25
        boxes = torch.cat([corners * size, (corners + extents) * size], dim=1)
        target = {"boxes": boxes, "labels": torch.randint(1, self.classes, (self.count,), generator=generator)}
        if self.masks:
            x, y = torch.arange(width), torch.arange(height)
            left, top, right, bottom = boxes.T[:, :, None]
            rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
            target["masks"] = (rows[:, :, None] & columns[:, None, :]).to(torch.uint8)
        if self.keypoints:
            within = torch.rand(self.count, self.keypoints, 2, generator=generator)
            points = (corners[:, None] + within * extents[:, None]) * size
            target["keypoints"] = torch.cat([points, torch.ones(self.count, self.keypoints, 1)], dim=2)
        return target


def _drawn(draw: Callable[[Generator], Any], seed: int, count: int, kept: _Kept | None) -> Iterator[Any]:
    """Yield `count` batches of `draw(generator)`, with a generator that begins with the seed.

    `kept`: the first batches of such a pass, which are copied, not drawn: that takes a tenth of the time. Those that are
    drawn here are added to it, up to MOST_BYTES. None if nothing is to be kept.
    """
    generator = Generator().manual_seed(seed)
    for number in range(count):
        if kept is not None and number < len(kept.batches):
            yield map_tensors(kept.batches[number], Tensor.clone)
            continue
        if kept is not None and number == len(kept.batches) and kept.state is not None:
            generator.set_state(kept.state)
        batch = draw(generator)
        if kept is None or number > len(kept.batches):
            yield batch
            continue
        size = max(LEAST_BYTES, sum(tensor.nbytes for tensor in tensors_in(batch)))
        if kept.size + size <= MOST_BYTES:
            kept.batches.append(batch)
            kept.size, kept.state = kept.size + size, generator.get_state()
            batch = map_tensors(batch, Tensor.clone)
        yield batch


def _kept_batches(key: tuple[str, str, int]) -> _Kept:
    """Return what is kept of the passes with a key (form, dtype, seed); it is forgotten after MOST_PASSES others."""
    kept = _kept.pop(key, _Kept())
    _kept[key] = kept  # as the last one
    if len(_kept) > MOST_PASSES:
        del _kept[next(iter(_kept))]
    return kept
