"""The options with which a dataset is read in batches, whatever dataset it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from typing import Any, TypeVar

from runner.errors import ConfigError, is_integer

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Loading:
    """How a dataset is read: the keys of a config's node `data` that are the same for every dataset.

    Raises ConfigError if one of them has a wrong value.

    Attributes:
        batch_size: samples in a batch; the last one of a pass may be smaller.
        workers: processes that read samples; 0 to read them in this process.
        shuffle: whether each pass has a new random order.
        drop_last: whether a last batch with fewer samples is left out.
        holdout: the share of the samples that are held out from training, from 0 to 1.
        transform: a function for the first part of a sample (`{field: function}` for others); see `transforms`.
        test_transform: the transform of held-out samples, where it is another one; None for the same.
        collate: a function that makes a batch of a list of samples; torch's `default_collate` if it is None.
        input: the shape that pictures are given, `[1 or 3, height, width]`; None to leave them as they are.
        classes: the number of classes of the model, or None.
    """

    batch_size: int = 4
    workers: int = 0
    shuffle: bool = True
    drop_last: bool = False
    holdout: float | None = None
    transform: Any = None
    test_transform: Any = None
    collate: Callable[[list[Any]], Any] | None = None
    input: Sequence[int] | None = None
    classes: int | None = None

    def __post_init__(self) -> None:
        for key, least in (("batch_size", 1), ("workers", 0)):
            value = getattr(self, key)
            if not is_integer(value) or value < least:
                raise ConfigError(f"data.{key} is {value!r}; it must be a whole number of {least} or more")
        for key in ("shuffle", "drop_last"):
            if not isinstance(getattr(self, key), bool):
                raise ConfigError(f"data.{key} is {getattr(self, key)!r}; give true or false")
        if self.holdout is not None and (not isinstance(self.holdout, (int, float)) or not 0 < self.holdout < 1):
            raise ConfigError(f"data.holdout is {self.holdout!r}; give the share to hold out, above 0 and below 1")
        for name, transform in (("transform", self.transform), ("test_transform", self.test_transform)):
            by_field = transform if isinstance(transform, Mapping) else {"": transform}
            for field, function in by_field.items():
                if function is not None and not callable(function):
                    key = f"data.{name}.{field}".rstrip(".")
                    raise ConfigError(f"{key} is a {type(function).__name__}; give a function of a part of a sample")
        if self.collate is not None and not callable(self.collate):
            raise ConfigError(f"data.collate is a {type(self.collate).__name__}; give a function of a list of samples")

    @property
    def of_held_out(self) -> Loading:
        """How held-out samples are read: in their order, all of them, with their own transform if there is one."""
        return replace(self, shuffle=False, drop_last=False, transform=self.test_transform or self.transform)

    def batch_count(self, samples: int) -> int:
        """Return the number of batches of this many samples."""
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)


def takes_loading(function: F) -> F:
    """Return a function that has `**loading`, with the attributes of Loading in its signature in place of that.

    A key of a config that is none of them is then refused before anything is built.
    """
    own = signature(function)
    named = {name: each for name, each in own.parameters.items() if each.kind is not Parameter.VAR_KEYWORD}
    options = [
        each.replace(kind=Parameter.KEYWORD_ONLY)
        for name, each in signature(Loading).parameters.items()
        if name not in named
    ]
    vars(function)["__signature__"] = own.replace(parameters=[*named.values(), *options])
    return function
