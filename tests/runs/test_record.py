"""How an error is worded in `run.json` and on stderr."""

from __future__ import annotations

from runner.runs.record import error_line


def test_an_assertion_on_a_gpu_says_what_is_most_likely_and_how_to_find_out():
    error = RuntimeError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`")
    assert error_line(error).startswith("RuntimeError: CUDA error: device-side assert triggered; most likely a target")
    assert error_line(error).endswith("device=cpu says which")
    assert error_line(RuntimeError("CUDA error: out of memory")) == "RuntimeError: CUDA error: out of memory"
