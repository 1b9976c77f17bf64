"""The settings of a process on which the bits of a computation depend."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch

VARIABLES = ("MKL_", "DNNL_", "ONEDNN_", "ATEN_", "CUBLAS_", "CUDNN_", "NVIDIA_", "TORCH_", "PYTORCH_", "OMP_")


def process_settings(device: torch.device) -> dict[str, Any]:
    """Return {setting: value} of this process: threads, precision, determinism, the device, the processor, and versions."""
    cudnn: Any = torch.backends.cudnn
    settings = {
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "dtype": str(torch.get_default_dtype()),
        "grad": torch.is_grad_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": [
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ],
        "mkldnn": torch.backends.mkldnn.is_available() and str(torch.backends.mkldnn.enabled),
        "cudnn": {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")},
        "device": str(device),
        "processor": processor(),
        "versions": [torch.__version__, platform.python_version(), platform.platform()],
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)},
    }
    if device.type == "cuda":
        settings["cuda"] = [torch.cuda.get_device_name(device), torch.version.cuda, torch.backends.cuda.matmul.allow_tf32]
    return settings


@cache
def processor() -> list[str]:
    """Return what says which kernels the processor selects: its model, and the instructions that torch uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # another system than Linux
        lines = []
    models = {line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "flags"))}
    return [platform.machine(), platform.processor(), torch.backends.cpu.get_cpu_capability(), *sorted(models)]
