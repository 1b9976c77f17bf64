"""`machine_settings` restores threads, determinism and random states; `seed_all` and `pick_device`."""

from __future__ import annotations

import random

import numpy
import pytest
import torch

from runner.errors import ConfigError
from runner.seeding import machine_settings, pick_device, seed_all

AVAILABLE = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}


@pytest.fixture(autouse=True)
def _restore_settings():
    """Restore the number of threads and the determinism after each test."""
    threads = torch.get_num_threads()
    deterministic, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def random_numbers():
    """Return a number of each random generator that `seed_all` seeds."""
    return random.random(), float(numpy.random.rand()), float(torch.rand(())), float(torch.randn(()))


def test_threads_are_set_and_restored():
    torch.set_num_threads(2)
    with machine_settings(1, deterministic=False):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_auto_does_not_change_the_number_of_threads(threads):
    torch.set_num_threads(threads)
    with machine_settings("auto", deterministic=False):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("initial", [False, True])
def test_determinism_is_set_and_restored(initial):
    torch.use_deterministic_algorithms(initial)
    with machine_settings("auto", deterministic=True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.are_deterministic_algorithms_enabled() is initial


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_option_to_only_warn_is_restored(deterministic):
    torch.use_deterministic_algorithms(True, warn_only=True)
    with machine_settings("auto", deterministic):
        pass
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_the_random_states_are_restored():
    seed_all(1)
    expected = random_numbers()
    seed_all(1)
    with machine_settings("auto", deterministic=False):
        seed_all(2)
        random_numbers()
    assert random_numbers() == expected


def test_everything_is_restored_after_an_exception():
    torch.set_num_threads(2)
    seed_all(1)
    expected = random_numbers()
    seed_all(1)

    def fail_in_block():
        """Raise an error within `machine_settings`, after the settings and random states have changed."""
        with machine_settings(1, deterministic=True):
            random_numbers()
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail_in_block()
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert random_numbers() == expected


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
def test_the_same_seed_gives_the_same_numbers_in_every_generator(seed):
    seed_all(seed)
    first = random_numbers()
    seed_all(seed)
    assert random_numbers() == first


def test_another_seed_gives_other_numbers_in_every_generator():
    seed_all(0)
    first = random_numbers()
    seed_all(1)
    assert all(number != other for number, other in zip(first, random_numbers(), strict=True))


@pytest.mark.parametrize("name", [name for name, is_available in AVAILABLE.items() if not is_available])
def test_a_device_that_is_not_available_is_refused(name):
    with pytest.raises(ConfigError, match=f"device={name} is not available here; give device=cpu or device=auto"):
        pick_device(name)


@pytest.mark.parametrize("name", ["cpu", *(name for name, is_available in AVAILABLE.items() if is_available)])
def test_a_device_that_is_available_is_returned(name):
    assert pick_device(name) == torch.device(name)


def test_auto_is_an_available_accelerator_or_else_the_cpu():
    assert pick_device("auto").type == next((name for name, is_available in AVAILABLE.items() if is_available), "cpu")
