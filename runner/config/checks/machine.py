"""Check that this machine has what a config needs: packages, a device, a data folder. Imports torch only for a GPU."""

from __future__ import annotations

import ctypes
import runpy
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runner.config.schema import Config, values_by_key
from runner.errors import ConfigError

PICTURES = "runner.training.data.pictures."
IMAGE_FOLDER, DIGITS = f"{PICTURES}image_folder", f"{PICTURES}digits"
HUGGING_FACE = f"{PICTURES}huggingface_dataset"
PACKAGES = {  # by a target of ours: the setting that chooses it, and the package that it needs
    DIGITS: ("data=digits", "sklearn"),
    HUGGING_FACE: ("data=huggingface", "datasets"),
    "runner.training.pretrained.timm_models.timm_model": ("model=timm", "timm"),
    "runner.training.pretrained.huggingface_models.huggingface_model": ("model=huggingface", "transformers"),
}
EXTRAS = {  # by package: the extra of this project that installs it
    "datasets": "huggingface",
    "peft": "huggingface",
    "safetensors": "save",
    "sklearn": "data",
    "timm": "timm",
    "transformers": "huggingface",
}
LAUNCHERS_HERE = ("basic", "joblib")  # Hydra's names of the launchers that carry out runs on this machine


def check_packages(config: Config) -> None:
    """Raise ConfigError if the config needs a package that is not installed, such as safetensors for `save=true`."""
    needed = [("save=true", "safetensors")] if config.save else []
    for key, value in values_by_key(config):
        if key.endswith("_target_") and isinstance(value, str):
            module = value.partition(".")[0]
            needed.append(PACKAGES.get(value) or (f"{key}={value}", module))
    for asked, module in needed:
        if module in EXTRAS and find_spec(module) is None:
            raise ConfigError(f"{asked} needs {module}; install it with: pip install 'freeze-runner[{EXTRAS[module]}]'")


def is_file(value: object) -> bool:
    """Return whether a value of the config is the path of a file that exists. `~` stands for the home folder."""
    return isinstance(value, str) and Path(value).expanduser().is_file()


def check_device(device: str) -> None:
    """Raise ConfigError if this machine does not have the device, `cuda` or `mps`.

    Importing torch takes seconds, so that is done only if the machine might have the device.
    """
    if device not in ("cuda", "mps"):
        return
    if (device == "mps" and sys.platform != "darwin") or (device == "cuda" and not _may_have_cuda()):
        raise ConfigError(f"device={device} is not available here; give device=cpu or device=auto")
    from runner.seeding import pick_device

    pick_device(device)


def _may_have_cuda() -> bool:
    """Return False if torch cannot use a GPU here: it was built for none, or for CUDA, and NVIDIA's driver is missing.

    Returns True if only torch itself can tell, such as with a torch that was built for ROCm.
    """
    spec = find_spec("torch")
    file = Path(spec.origin or "").with_name("version.py") if spec else None
    if file is None or not file.is_file():
        return True
    built_for = runpy.run_path(str(file))
    if built_for.get("hip", True) is not None:
        return True
    if built_for.get("cuda", True) is None:
        return False
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def check_data_folder(data: Mapping[str, Any]) -> None:
    """Raise ConfigError if the config's data is in a folder that does not exist."""
    advice = {IMAGE_FOLDER: "; give one with class subfolders", HUGGING_FACE: "; give one that save_to_disk wrote"}
    if data.get("_target_") in advice:
        root = data.get("root")
        if not isinstance(root, str) or not root or not Path(root).is_dir():
            raise ConfigError(f"data.root is {root!r}, which is not a folder{advice[data['_target_']]}")


def check_checkpoint(path: str | None) -> None:
    """Raise ConfigError if the file or folder of the config's `model.checkpoint` does not exist.

    Reading the checkpoint raises the same; here it is found before a run has a folder.
    """
    if path is not None and not (path and Path(path).expanduser().exists()):
        raise ConfigError(f"model.checkpoint is {path!r}, which does not exist; give a file or a folder with weights")


def check_input_of_images(config: Config) -> None:
    """Raise ConfigError if the config's data are images and `model.input` is not the shape of one.

    The data source raises the same for its direct use; here it is found before a run has a folder.
    """
    target, shape = config.data.get("_target_"), config.model.input
    if shape is None:
        return
    if target == IMAGE_FOLDER and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise ConfigError(f"data=image_folder has images, but model.input is {shape}; give [1 or 3,height,width]")
    if target == DIGITS and len(shape) != 3 and shape != [64]:
        raise ConfigError(f"data=digits has images, but model.input is {shape}; give [channels,height,width] or [64]")


def check_launcher(launcher: Mapping[str, Any]) -> None:
    """Raise ConfigError if the config's launcher (the node `hydra.launcher`) is joblib's and has no number of workers."""
    if "n_jobs" in launcher and launcher["n_jobs"] in (0, None):
        raise ConfigError(f"hydra.launcher.n_jobs is {launcher['n_jobs']}; give a number of processes, or -1 for all cores")
