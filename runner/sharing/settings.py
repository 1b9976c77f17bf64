"""The settings of a process on which the bits of a computation depend."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

import runner

VARIABLES = (  # how the names of environment variables begin that libraries for computing read
    *(
        "MKL_",
        "DNNL_",
        "ONEDNN_",
        "ATEN_",
        "CUBLAS_",
        "CUDNN_",
        "NVIDIA_",
        "TORCH_",
        "PYTORCH_",
        "OMP_",
        "KMP_",
        "OPENBLAS_",
    ),
)
PRECISIONS = (
    *("fp32_precision", "allow_tf32", "allow_fp16_accumulation"),
    *("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"),
)
ATTENTION = ("flash_sdp_enabled", "mem_efficient_sdp_enabled", "math_sdp_enabled", "cudnn_sdp_enabled")


def process_settings(device: torch.device) -> dict[str, Any]:
    """Return {setting: value} of this process: threads, precision, determinism, the device, the processor, and versions."""
    cudnn: Any = torch.backends.cudnn
    cuda: Any = torch.backends.cuda
    settings = {
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "dtype": str(torch.get_default_dtype()),
        "grad": torch.is_grad_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": [
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ],
        "attention": {name: getattr(cuda, name)() for name in ATTENTION if hasattr(cuda, name)},
        "transformers": torch.backends.mha.get_fastpath_enabled(),
        "precisions": _precisions(),
        "einsum": [getattr(torch.backends.opt_einsum, name) for name in ("enabled", "strategy")],
        "subnormal": float(torch.full((), 2.0**-149) * 1) > 0,  # or flushed to zero
        "autocast": [torch.is_autocast_enabled(), torch.is_autocast_enabled("cpu")],
        "mkldnn": torch.backends.mkldnn.is_available() and str(torch.backends.mkldnn.enabled),
        "cudnn": {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")},
        "device": str(device),
        "processor": processor(),
        "versions": [runner.__version__, torch.__version__, platform.python_version(), platform.platform()],
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)},
    }
    if device.type == "cuda":
        settings["cuda"] = [torch.cuda.get_device_name(device), torch.version.cuda]
    return settings


def _precisions() -> dict[str, Any]:
    """Return {setting: value} of the precisions in which the backends of torch compute, as far as this version has them."""
    found: dict[str, Any] = {}
    for name in ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "cudnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn", "mkldnn"):
        backend: Any = torch.backends
        for part in name.split("."):
            backend = getattr(backend, part, None)
        for setting in PRECISIONS:
            with suppress(AttributeError, RuntimeError):  # an old name beside a new one may not be read
                found[f"{name}.{setting}"] = getattr(backend, setting)
    return found


@cache
def processor() -> list[str]:
    """Return what says which kernels the processor selects: its model, and the instructions that torch uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # another system than Linux
        lines = []
    models = {line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "flags"))}
    return [platform.machine(), platform.processor(), torch.backends.cpu.get_cpu_capability(), *sorted(models)]
