"""What a run sets of the machine is put back."""

from __future__ import annotations

import random

import numpy
import pytest
import torch

from runner.errors import ConfigError
from runner.seeding import machine_settings, pick_device, seed_all

AVAILABLE = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}


@pytest.fixture(autouse=True)
def _the_machine_as_it_was():
    threads = torch.get_num_threads()
    strict, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict, warn_only=warn_only)


def drawn():
    return random.random(), float(numpy.random.rand()), float(torch.rand(())), float(torch.randn(()))


def test_threads_are_set_and_put_back():
    torch.set_num_threads(2)
    with machine_settings(1, deterministic=False):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_auto_changes_no_thread(threads):
    torch.set_num_threads(threads)
    with machine_settings("auto", deterministic=False):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("was", [False, True])
def test_determinism_is_set_and_put_back(was):
    torch.use_deterministic_algorithms(was)
    with machine_settings("auto", deterministic=True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.are_deterministic_algorithms_enabled() is was


@pytest.mark.parametrize("deterministic", [False, True])
def test_determinism_that_only_warned_only_warns_again(deterministic):
    torch.use_deterministic_algorithms(True, warn_only=True)
    with machine_settings("auto", deterministic):
        pass
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_the_random_state_is_put_back():
    seed_all(1)
    expected = drawn()
    seed_all(1)
    with machine_settings("auto", deterministic=False):
        seed_all(2)
        drawn()
    assert drawn() == expected


def test_all_is_put_back_after_an_exception_too():
    torch.set_num_threads(2)
    seed_all(1)
    expected = drawn()
    seed_all(1)

    def interrupted():
        with machine_settings(1, deterministic=True):
            drawn()
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        interrupted()
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert drawn() == expected


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
def test_one_seed_gives_the_same_numbers_everywhere(seed):
    seed_all(seed)
    first = drawn()
    seed_all(seed)
    assert drawn() == first


def test_another_seed_gives_other_numbers_everywhere():
    seed_all(0)
    first = drawn()
    seed_all(1)
    assert all(one != other for one, other in zip(first, drawn(), strict=True))


@pytest.mark.parametrize("name", [name for name, is_there in AVAILABLE.items() if not is_there])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ConfigError, match=f"device={name} is not available here; give device=cpu or device=auto"):
        pick_device(name)


@pytest.mark.parametrize("name", ["cpu", *(name for name, is_there in AVAILABLE.items() if is_there)])
def test_a_device_that_is_there_is_picked(name):
    assert pick_device(name) == torch.device(name)


def test_auto_picks_an_accelerator_where_there_is_one_and_the_cpu_otherwise():
    assert pick_device("auto").type == next((name for name, is_there in AVAILABLE.items() if is_there), "cpu")
