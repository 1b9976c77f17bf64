"""Each setting of the process on which bits depend is among its settings."""

from __future__ import annotations

import pytest
import torch

from runner.sharing.settings import process_settings

CPU = torch.device("cpu")
FLIPS = {
    "threads": (torch.set_num_threads, torch.get_num_threads, lambda value: value + 1),
    "dtype": (torch.set_default_dtype, torch.get_default_dtype, lambda value: torch.float64),
    "grad": (torch.set_grad_enabled, torch.is_grad_enabled, lambda value: not value),
    "deterministic": (
        torch.use_deterministic_algorithms,
        torch.are_deterministic_algorithms_enabled,
        lambda value: not value,
    ),
    "flash attention": (
        torch.backends.cuda.enable_flash_sdp,
        torch.backends.cuda.flash_sdp_enabled,
        lambda value: not value,
    ),
    "the fast path of transformers": (
        torch.backends.mha.set_fastpath_enabled,
        torch.backends.mha.get_fastpath_enabled,
        lambda value: not value,
    ),
    "einsum": (
        lambda value: setattr(torch.backends.opt_einsum, "strategy", value),
        lambda: torch.backends.opt_einsum.strategy,
        lambda value: "greedy" if value != "greedy" else "optimal",
    ),
    "numbers below the normal ones": (
        torch.set_flush_denormal,
        lambda: False,
        lambda value: not value,
    ),
    "autocast": (
        lambda value: torch.set_autocast_enabled("cpu", value),
        lambda: torch.is_autocast_enabled("cpu"),
        lambda value: not value,
    ),
    "reduced precision": (
        lambda value: setattr(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", value),
        lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        lambda value: not value,
    ),
    "mkldnn": (
        lambda value: setattr(torch.backends.mkldnn, "enabled", value),
        lambda: torch.backends.mkldnn.enabled,
        lambda value: not value,
    ),
}


@pytest.mark.parametrize("name", FLIPS)
def test_a_setting_that_changes_shows(name):
    change, read, other = FLIPS[name]
    before, value = process_settings(CPU), read()
    assert process_settings(CPU) == before
    change(other(value))
    try:
        assert process_settings(CPU) != before
    finally:
        change(value)
    assert process_settings(CPU) == before


def test_the_precision_of_matrix_products_shows():
    torch.set_float32_matmul_precision("highest")
    before = process_settings(CPU)
    torch.set_float32_matmul_precision("medium")
    try:
        assert process_settings(CPU) != before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert process_settings(CPU) == before


def test_a_variable_of_a_library_for_computing_shows(monkeypatch):
    before = process_settings(CPU)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert process_settings(CPU) != before
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    assert process_settings(CPU)["variables"]["MKL_CBWR"] == "AVX2"
