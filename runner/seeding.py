"""What is set in the process: device, threads, determinism, random state, garbage collection; only the device stays."""

from __future__ import annotations

import gc
import hashlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch

from runner.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """Return the torch device with this name; for `auto`, the first one that is available: `cuda`, then `mps`, then `cpu`.

    Raises ConfigError if `name` is `cuda` or `mps` and that device is not available.
    """
    checks: dict[str, Callable[[], bool]] = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if name == "auto":
        return torch.device(next((kind for kind, is_available in checks.items() if is_available()), "cpu"))
    if name in checks and not checks[name]():
        raise ConfigError(f"device={name} is not available here; give device=cpu or device=auto")
    return torch.device(name)


def seed_all(seed: int) -> None:
    """Seed the random generators of Python, numpy and torch (on all devices)."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        torch.manual_seed(seed)
    else:  # without a device, manual_seed would store a call with its stack trace, to seed the device later
        torch.default_generator.manual_seed(seed)


@contextmanager
def machine_settings(threads: int | str, deterministic: bool) -> Iterator[None]:
    """Within the `with` block, set torch's number of threads and make torch use deterministic algorithms.

    `threads`: the number of threads, or `auto` to leave it unchanged. `deterministic`: if False, torch's setting for
    deterministic algorithms is left unchanged. When the block is left, both settings and the random states of Python, numpy
    and torch are restored.
    """
    with preserve_settings(), preserve_random_state():
        if threads != "auto":
            torch.set_num_threads(int(threads))
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it is first used
            torch.use_deterministic_algorithms(True)
        yield


@contextmanager
def preserve_settings() -> Iterator[None]:
    """When the block is left, restore torch's threads, grad mode, deterministic algorithms and the flags of cuDNN."""
    threads, grad_mode = torch.get_num_threads(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    flags: Any = torch.backends.cudnn
    cudnn = {name: getattr(flags, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")}
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_grad_enabled(grad_mode)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        for name, value in cudnn.items():
            setattr(flags, name, value)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the block, torch computes with one thread, as it does in the workers of a DataLoader."""
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


def random_state() -> bytes:
    """Return the states of the random generators of Python, numpy and torch (CPU and CUDA) as one bytes object.

    Two results are equal if no random number was drawn between the two calls.
    """
    _, keys, position, *_ = numpy.random.get_state()
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
    torch_states = b"".join(state.numpy().tobytes() for state in states)
    return torch_states + repr((random.getstate(), position)).encode() + numpy.asarray(keys).tobytes()


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Inside the `with` block, Python looks for no reference cycles: it takes long, and frees memory at any moment."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """When the `with` block is left, restore the random states that Python, numpy and torch (all devices) had on entry."""
    python_state, numpy_state, torch_state = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)


def derived_seed(*parts: int) -> int:
    """Return a seed from 0 to 2**63 - 1 that depends on all the numbers and on their order."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class PrivateRandomness:
    """A context manager: what is drawn within its `with` blocks is drawn from states of its own.

    On entry, the states of the generators of Python, numpy and torch's CPU are put aside and its own are put in their place.
    On leaving, its own are kept for the next entry, and the others are put back. It begins with the states that `seed`
    gives. CUDA is not touched, because a worker of a DataLoader must not use it.
    """

    def __init__(self, seed: int) -> None:
        self._seed: int | None = seed
        self._own: Any = None
        self._outer: Any = None

    def reseed(self, seed: int) -> None:
        """Seed the generators anew; only within a `with` block."""
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)

    def __enter__(self) -> PrivateRandomness:
        self._outer = _cpu_states()
        if self._seed is None:
            _set_cpu_states(self._own)
        else:
            self.reseed(self._seed)
            self._seed = None
        return self

    def __exit__(self, *_: object) -> None:
        self._own = _cpu_states()
        _set_cpu_states(self._outer)


def _cpu_states() -> tuple[Any, Any, torch.Tensor]:
    """Return the states of the generators of Python, numpy and torch's CPU."""
    return random.getstate(), numpy.random.get_state(), torch.get_rng_state()


def _set_cpu_states(states: tuple[Any, Any, torch.Tensor]) -> None:
    """Set the states of the generators of Python, numpy and torch's CPU."""
    python_state, numpy_state, torch_state = states
    random.setstate(python_state)
    numpy.random.set_state(numpy_state)
    torch.set_rng_state(torch_state)
