"""What a run sets of the machine: device, threads, determinism, random state. All but the device is put back."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy
import torch

from runner.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """The device of `auto`, `cpu`, `cuda` or `mps`; ConfigError where it is not there."""
    there: dict[str, Callable[[], bool]] = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if name == "auto":
        return torch.device(next((kind for kind, is_there in there.items() if is_there()), "cpu"))
    if name in there and not there[name]():
        raise ConfigError(f"device={name} is not available here; give device=cpu or device=auto")
    return torch.device(name)


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch on every device."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        torch.manual_seed(seed)
    else:  # which would note the call, with its stack, for devices that are not there
        torch.default_generator.manual_seed(seed)


@contextmanager
def machine(threads: int | str, deterministic: bool) -> Iterator[None]:
    """Set threads and determinism; on leaving, put them and the random state back as they were."""
    was_threads, was_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    was_warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if threads != "auto":
        torch.set_num_threads(int(threads))
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(True)
    try:
        with kept_random_state():
            yield
    finally:
        torch.set_num_threads(was_threads)
        torch.use_deterministic_algorithms(was_deterministic, warn_only=was_warn_only)


def random_state() -> bytes:
    """The random state of Python, numpy and torch, on every device, to be compared."""
    _, keys, place, *_ = numpy.random.get_state()
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
    drawn = b"".join(state.numpy().tobytes() for state in states)
    return drawn + repr((random.getstate(), place)).encode() + numpy.asarray(keys).tobytes()


@contextmanager
def kept_random_state() -> Iterator[None]:
    """On leaving, put the random state of Python, numpy and torch, on every device, back as it was."""
    was = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    was_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    was_mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(was[0])
        numpy.random.set_state(was[1])
        torch.set_rng_state(was[2])
        if was_cuda:
            torch.cuda.set_rng_state_all(was_cuda)
        if was_mps is not None:
            torch.mps.set_rng_state(was_mps)
