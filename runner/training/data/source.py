"""What a run needs of its data, whatever they are: the batches of each pass, their number, and held-out batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from runner.errors import ConfigError, is_integer
from runner.seeding import PrivateRandomness, derived_seed
from runner.tensors import map_tensors

HELD_OUT = -2  # stands for the number of a pass where held-out data are read


@runtime_checkable
class Source(Protocol):
    """What gives a run its batches. A pass is one time through the data, `data.epochs` says how many there are."""

    def length(self) -> int | None:
        """Return the number of batches of a pass; None if the data have no length."""

    def read(self, seed: int, epoch: int, count: int) -> Iterator[Any]:
        """Yield at most `count` batches of the pass number `epoch`, counted from 0, on the CPU.

        With the same arguments, the same bits are yielded again. The process's random states are as before after each batch.
        """

    def reread(self, seed: int) -> Any | None:
        """Return the first batch of the first pass as it would be read in the second one; None if that cannot be asked."""

    def hold_out(self, make: Callable[[], Any]) -> None:
        """Take what `make()` builds of `data.test` as the held-out data. Raises ConfigError if it cannot be that."""

    def read_held_out(self, seed: int) -> Iterator[Any] | None:
        """Yield the batches that are held out from training, the same in each call; return None if there are none."""


class Batches:
    """The batches of any iterable, such as a list or a DataLoader; each pass iterates over it anew.

    `make`: a function that returns the iterable. An iterator, which can be used only once, is made anew for each pass. All
    that is drawn from the global random generators while a batch is made is drawn from generators of its own, which depend
    on the seed and the pass alone. A DataLoader's own generators draw on from pass to pass, and held-out batches leave them
    as they were, since the loader of the training may share them.
    """

    def __init__(self, make: Callable[[], Iterable[Any]]) -> None:
        self.make = make
        self.held_out: Source | None = None
        self.made: Iterable[Any] | None = make()

    def length(self) -> int | None:
        try:
            return len(self.made)  # type: ignore[arg-type]
        except TypeError:
            return None

    def read(self, seed: int, epoch: int, count: int) -> Iterator[Any]:
        randomness = PrivateRandomness(derived_seed(seed, epoch))
        with randomness:
            iterable = self._iterable()
        with preserve_generators(iterable) if epoch == HELD_OUT else nullcontext():
            with randomness:
                batches = iter(iterable)
            for _ in range(count):
                with randomness:
                    try:
                        batch = next(batches)
                    except StopIteration:
                        return
                yield batch

    def _iterable(self) -> Iterable[Any]:
        """Return the iterable for the next pass: the one that was made first, unless it can be used only once."""
        made, self.made = self.made, None
        made = self.make() if made is None else made
        if not isinstance(made, Iterator):
            self.made = made
        return made

    def reread(self, seed: int) -> Any | None:
        return None

    def hold_out(self, make: Callable[[], Any]) -> None:
        self.held_out = as_source(make(), make, "data.test")

    def read_held_out(self, seed: int) -> Iterator[Any] | None:
        return None if self.held_out is None else self.held_out.read(0, HELD_OUT, sys.maxsize)


def generators_of(loader: Any) -> list[torch.Generator]:
    """Return the generators of its own that a DataLoader of torch draws from, which another loader may draw from too."""
    sampler, batch_sampler = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    owners = (loader, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())


@contextmanager
def preserve_generators(loader: Any) -> Iterator[None]:
    """When the block is left, restore the states that the generators of a DataLoader had on entry."""
    states = [(generator, generator.get_state()) for generator in generators_of(loader)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def as_source(built: Any, make: Callable[[], Any], key: str = "data") -> Source:
    """Return what a config's node `data` built as a Source: itself, or an iterable of batches as Batches.

    `make` builds the node again, `key` is where it is in the config. Raises ConfigError for anything else.
    """
    if isinstance(built, Source):
        return built
    has_index = hasattr(built, "__getitem__") and hasattr(built, "__len__")
    if isinstance(built, Dataset) or (has_index and not isinstance(built, (Iterable, str, bytes, Mapping))):
        raise ConfigError(
            f"{key} gives a {type(built).__name__}, a dataset, where batches are expected; "
            "give data=dataset data.dataset._target_=..., which reads its samples in batches"
        )
    if isinstance(built, (str, bytes, Tensor, Mapping)) or not isinstance(built, Iterable):
        raise ConfigError(f"{key} gives a {type(built).__name__}; give an iterable of batches, such as a DataLoader")
    rest = [built]
    return Batches(lambda: rest.pop() if rest else make())


def batches_a_pass(asked: int | str, length: int | None, default: int) -> int:
    """Return the number of batches of a pass: `asked`, but not more than there are.

    `asked`: a number, `auto` (all that there are, or `default` where the data have no length), or `all`.
    Raises ConfigError for `all` without a length, and if there are none.
    """
    if length == 0:
        raise ConfigError(
            "data: there is no batch; the data are empty, or have less than one batch with data.drop_last=true"
        )
    if length is None and asked == "all":
        raise ConfigError("batches=all needs data with a length, which these have not; give a number of batches a pass")
    if length is None:
        return int(asked) if is_integer(asked) else default
    return min(int(asked), length) if is_integer(asked) else length


def to_device(batch: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """Return the batch with all its tensors on the device, and those of real numbers in `dtype` unless it is None."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if dtype and tensor.is_floating_point() else None)

    return map_tensors(batch, move)
