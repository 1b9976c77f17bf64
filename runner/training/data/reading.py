"""Read the samples of a batch and collate them, in this process or in a worker of torch's DataLoader."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from runner.errors import ConfigError, place_in_user_code
from runner.seeding import PrivateRandomness, derived_seed
from runner.training.data.collate import refuse_samples
from runner.training.data.transforms import prepared

COLLATE = -3  # stands for the number of a sample in the seed under which a batch is collated


class ReadError(Exception):
    """Raised if a sample cannot be read or a batch cannot be collated; the message says which one and why."""


class WorkerTraceback(Exception):
    """The cause of a ReadError: the traceback of the original error, which may have happened in another process."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True)
class Request:
    """A batch that is to be read: the pass (`epoch`, from 0), its number in the pass (from 1), and its samples' numbers."""

    epoch: int
    number: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Failure:
    """What stands in place of a batch that could not be read: a message, the traceback, whether the config is to blame."""

    message: str
    details: str
    is_config: bool

    def throw(self) -> NoReturn:
        """Raise a ConfigError or a ReadError with the message."""
        raise (ConfigError if self.is_config else ReadError)(self.message) from WorkerTraceback(self.details)


def failure_of(error: Exception, what: str) -> Failure:
    """Return the Failure for an error that was raised while `what` was done, such as `sample 7 of 30`."""
    if isinstance(error, ConfigError):
        return Failure(str(error), traceback.format_exc(), True)
    parts = (what, place_in_user_code(error), type(error).__name__, " ".join(str(error).split()))
    return Failure(": ".join(filter(None, parts)), traceback.format_exc(), False)


class SampleReader(torch.utils.data.Dataset[Any]):
    """Reads batches of a dataset, each under random states that depend on the seed, the pass and the sample alone.

    `transform`, `collate`, `input`: see `Loading`.
    """

    def __init__(self, dataset: Any, transform: Any, collate: Any, input: Sequence[int] | None, seed: int) -> None:
        self.dataset, self.transform, self.collate, self.input, self.seed = dataset, transform, collate, input, seed

    def __getitem__(self, request: Request) -> Any:
        """Return the batch that is asked for, or the Failure of the first sample that could not be read."""
        samples, size = [], len(self.dataset)
        with PrivateRandomness(0) as randomness:
            for index in request.indices:
                randomness.reseed(derived_seed(self.seed, request.epoch, index))
                try:
                    samples.append(prepared(self.dataset[index], self.transform, self.input))
                except Exception as error:
                    return failure_of(error, f"sample {index} of {size}")
            randomness.reseed(derived_seed(self.seed, request.epoch, COLLATE, request.number))
            return self.collated(samples, request.indices)

    def collated(self, samples: list[Any], numbers: Sequence[int]) -> Any:
        """Return the batch of these samples, or a Failure; `numbers` are those of the samples, for its message."""
        collate: Callable[[list[Any]], Any] = self.collate or default_collate
        try:
            return collate(samples)
        except Exception as error:
            if self.collate is None:
                try:
                    refuse_samples(samples, numbers, error)
                except ConfigError as refusal:
                    return failure_of(refusal, "")
            return failure_of(error, f"data.collate of samples {', '.join(map(str, numbers[:8]))}")


class StreamReader(IterableDataset[Any]):
    """Reads the batches of one pass over a dataset that can only be iterated over. `samples` reads its single samples."""

    def __init__(self, samples: SampleReader, epoch: int, batch_size: int, drop_last: bool) -> None:
        self.samples, self.epoch, self.batch_size, self.drop_last = samples, epoch, batch_size, drop_last

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches, each read when it is asked for; a Failure in place of one that cannot be read ends the pass."""
        worker = get_worker_info()
        place = (self.samples.seed, self.epoch, worker.id if worker else 0)
        randomness = PrivateRandomness(derived_seed(*place))
        ended, number, batch = False, 0, 0
        iterator: Iterator[Any] | None = None
        while not ended:
            samples: list[Any] = []
            with randomness:
                while len(samples) < self.batch_size:
                    try:
                        iterator = iter(self.samples.dataset) if iterator is None else iterator
                        randomness.reseed(derived_seed(*place, number))
                        samples.append(prepared(next(iterator), self.samples.transform, self.samples.input))
                    except StopIteration:
                        ended = True
                        break
                    except Exception as error:
                        yield failure_of(error, f"sample {number} (counted from 0)")
                        return
                    number += 1
                batch += 1
                randomness.reseed(derived_seed(*place, COLLATE, batch))
                if samples and not (self.drop_last and len(samples) < self.batch_size):
                    made = self.samples.collated(samples, range(number - len(samples), number))
                else:
                    return
            yield made
