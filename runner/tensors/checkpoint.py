"""Read a checkpoint: {name: tensor} of a safetensors file, a torch file, or a folder of them. No code in a file is run."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.contract import RECORD, WEIGHTS
from runner.errors import ConfigError, listed, short_repr

WRAPPINGS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts save a state_dict
SAFETENSORS = ".safetensors"
TORCH_FILES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
MAIN_FILES = (WEIGHTS, f"{WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
EXTRA_STATE = "_extra_state"  # the end of a name in a state_dict whose value need not be a tensor
Note = Callable[[str], None]
Tensors = dict[str, Any]  # what a `state_dict` is: a tensor for each name, any object for a name with EXTRA_STATE


MAGIC_NUMBER = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)[2:-1]  # near the beginning of an older file of torch.save


def _no_note(text: str) -> None:
    """Ignore a note."""


def read_checkpoint(path: str, key: str = "model.checkpoint", note: Note = _no_note) -> Tensors:
    """Return what a checkpoint holds, as a `state_dict` on the CPU: of a file, or of all files of a folder together.

    `path`: a safetensors file, a file of `torch.save`, or a folder with such files; a `~` is expanded. `key`: what messages
    call it. A `state_dict` that is saved within a dict, such as Lightning's, is taken out of it; `note` is called with a
    message where it was one of several. Raises ConfigError if there is none, if a file is truncated, or if reading it would
    run code.
    """
    place = Path(path).expanduser()
    if not path or not place.exists():
        raise ConfigError(f"{key} is {path!r}, which does not exist; give a file or a folder with weights")
    if place.is_dir():
        return _read_folder(place, key, note)
    return state_dict_in(_read_file(place, key), place, key, note)


def _read_folder(folder: Path, key: str, note: Note) -> Tensors:
    """Return the tensors of all files with weights in a folder. Raises ConfigError if two files have one of a name."""
    tensors: Tensors = {}
    for file in files_of(folder, key):
        read = state_dict_in(_read_file(file, key), file, key, note)
        if twice := sorted(tensors.keys() & read.keys()):
            raise ConfigError(
                f"{key}: {folder} has {listed(twice, most=2)} in several files, {file.name} is one; give one of the files"
            )
        tensors |= read
    return tensors


def files_of(folder: Path, key: str, takes_adapters: bool = False) -> list[Path]:
    """Return the files of a folder that hold the weights. Raises ConfigError if there are none, or if that is not clear.

    `takes_adapters`: whether the folder may be that of a peft adapter.
    """
    if (folder / "adapter_config.json").is_file() and not takes_adapters:
        raise ConfigError(
            f"{key}: {folder} is a peft adapter, not a model's weights; give the weights of its base model here, and load "
            "the adapter around the model with peft.PeftModel.from_pretrained"
        )
    main = next((folder / name for name in MAIN_FILES if (folder / name).is_file()), None)
    indices = [main] if main else sorted(folder.glob("*.index.json"))
    if len(indices) == 1:
        return _files_of_index(indices[0], key) if indices[0].suffix == ".json" else indices
    if files := sorted(folder.glob(f"*{SAFETENSORS}")):
        return files
    files = sorted(file for pattern in TORCH_FILES for file in folder.glob(pattern))
    if not files:
        advice = "a run writes them with save=true" if (folder / RECORD).is_file() else "give a file, or its folder"
        raise ConfigError(f"{key}: {folder} has no weights, neither *{SAFETENSORS} nor {', '.join(TORCH_FILES)}; {advice}")
    if len(files) > 1:
        raise ConfigError(f"{key}: {folder} has {listed([file.name for file in files], most=4)}; give one of the files")
    return files


def _files_of_index(index: Path, key: str) -> list[Path]:
    """Return the files that an index lists, as transformers writes one beside its shards: {"weight_map": {name: file}}."""
    try:
        names = sorted({*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
        files = [index.parent / name for name in names]
        outside = [
            name for name in names if Path(name).is_absolute() or ".." in Path(name).parts
        ]  # links are the user's own
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ConfigError(f"{key}: {index} is no index of files with weights ({type(error).__name__}: {error})") from error
    if outside:
        raise ConfigError(f"{key}: {index} lists {listed(outside, most=2)}, which is not in its folder, so it is not read")
    if missing := [file.name for file in files if not file.is_file()]:
        raise ConfigError(f"{key}: {index.parent} lacks {listed(missing, most=4)}, which {index.name} lists")
    return files


def _read_file(file: Path, key: str) -> object:
    """Return what a safetensors file or a file of `torch.save` holds. Raises ConfigError if that cannot be read."""
    with refusing_unreadable(file, key):
        if is_safetensors(file):
            return _safetensors_reader(file, key)(file)
        return load_torch_file(file)


def is_safetensors(file: Path) -> bool:
    """Return whether a file is a safetensors file, by its name or its beginning. Raises OSError if it cannot be read."""
    return file.suffix == SAFETENSORS or _begin_of(file)[8:9] == b"{"  # after the size of the header, in 8 bytes


def is_zip(file: Path) -> bool:
    """Return whether a file of `torch.save` is a zip file, whose tensors can be read one by one; older ones are not."""
    return _begin_of(file).startswith(b"PK")


def load_torch_file(file: Path) -> object:
    """Return what a file of `torch.save` holds, on the CPU. Raises what `torch.load` raises; code in the file is not run."""
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the protocol of a pickle
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip(file) or None)


def _begin_of(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(64)


@contextmanager
def refusing_unreadable(file: Path, key: str) -> Iterator[None]:
    """Raise ConfigError in place of what reading a file in this block raises. `key`: what messages call the file."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # safetensors has an Exception of its own
        code = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code:
            raise ConfigError(
                f"{key}: {file} holds more than tensors: reading it would run the code of {code[1]}, so it is refused; save "
                "the weights alone, torch.save(model.state_dict(), FILE)"
            ) from error
        if file.is_file() and _is_plain_pickle(file):
            raise ConfigError(
                f"{key}: {file} is a plain pickle, not a file of torch.save, and is not read; load it yourself if you "
                "trust it, and save its tensors by name, torch.save({NAME: TENSOR}, FILE)"
            ) from error
        is_other = isinstance(error, (pickle.UnpicklingError, KeyError, IndexError))  # by bytes that are no pickle
        why = "not a file of torch.save" if is_other else str(error).split("\n")[0]
        why = "it is empty" if file.is_file() and not file.stat().st_size else why or type(error).__name__
        raise ConfigError(
            f"{key}: {file} cannot be read ({why[:100]}); it may be truncated: save or fetch it again"
        ) from error


def _is_plain_pickle(file: Path) -> bool:
    begin = _begin_of(file)
    return begin[:1] == pickle.PROTO and MAGIC_NUMBER not in begin


def _safetensors_reader(file: Path, key: str) -> Callable[[Path], Tensors]:
    """Return the function that reads a safetensors file. Raises ConfigError if safetensors is not installed."""
    if find_spec("safetensors") is None:
        raise ConfigError(f"{key}: {file} needs safetensors; install it with: pip install 'freeze-runner[save]'")
    from safetensors.torch import load_file

    return load_file


def state_dict_in(value: object, file: Path, key: str, note: Note) -> Tensors:
    """Return the `state_dict` that a file's content is or contains. Raises ConfigError if there is none, or several.

    Of several, one under a name in WRAPPINGS is taken; `note` is called with that.
    """
    if _is_state_dict(value):
        return value  # type: ignore[return-value]
    inner = {str(name): each for name, each in value.items() if _is_state_dict(each)} if isinstance(value, Mapping) else {}
    named = [name for name in WRAPPINGS if name in inner] or [*inner]
    if named and (len(inner) == 1 or named[0] in WRAPPINGS):
        if len(inner) > 1:
            others = listed([name for name in inner if name != named[0]], most=3)
            note(
                f"{key}: of the weights in {file}, {named[0]} are loaded and {others} are not; save those alone to load them"
            )
        return inner[named[0]]
    what = f"a {type(value).__name__}" if isinstance(value, (list, tuple, Tensor)) else short_repr(value)
    what = f"a dict of {listed([*map(str, value)], most=4)}" if isinstance(value, Mapping) and value else what
    raise ConfigError(
        f"{key}: {file} holds {what[:120]}; expected names and tensors of one model: torch.save(model.state_dict(), FILE)"
    )


def _is_state_dict(value: object) -> bool:
    """Return whether a value is a dict of names and tensors, at least one."""
    if not isinstance(value, dict) or not any(isinstance(each, Tensor) for each in value.values()):
        return False
    names = [name for name, each in value.items() if not isinstance(each, Tensor)]
    return all(isinstance(name, str) for name in value) and all(name.endswith(EXTRA_STATE) for name in names)
