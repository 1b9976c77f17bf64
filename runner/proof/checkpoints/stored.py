"""The tensors of a checkpoint where they lie in its files, without their elements, which are read in blocks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from runner.errors import ConfigError, listed
from runner.tensors import flattened, quantiser_of
from runner.tensors.checkpoint import (
    EXTRA_STATE,
    files_of,
    is_safetensors,
    is_zip,
    load_torch_file,
    refusing_unreadable,
    state_dict_in,
)

ADAPTER = "adapter_config.json"  # in the folder of a peft adapter, whose files hold no tensor of the base model
LARGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it
SAFETENSORS_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "C64": torch.complex64},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu},
}
"""Source: https://github.com/huggingface/safetensors, `Dtype` in `tensor.rs`."""


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        file: the file.
        offset: where its first element is, in bytes.
        dtype: its dtype; `uint8` where torch has none for its elements, which `stored_as` then names.
        shape: its sizes; of elements without a dtype of torch, the number of bytes.
        place: what two names of one tensor have in common.
        loaded: all elements in one dimension, where they do not lie in the file one after another; otherwise None.
        stored_as: the dtype as a person reads it.
    """

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    place: object = None
    loaded: Tensor | None = None
    stored_as: str = ""

    @property
    def numel(self) -> int:
        """The number of its elements."""
        return prod(self.shape)

    def read(self, start: int, count: int, memory: Tensor) -> Tensor:
        """Return `count` elements from number `start` on, in the order of the last dimension first, as one dimension.

        `memory`: bytes, enough for these elements, into which they are read. Raises ConfigError if the file has become too
        short.
        """
        if self.loaded is not None:
            return self.loaded[start : start + count]
        size = self.dtype.itemsize
        room = memory[: count * size]
        with self.file.open("rb", buffering=0) as opened:
            opened.seek(self.offset + start * size)
            view, done = memoryview(room.numpy().data), 0
            while done < len(view):
                if not (read := opened.readinto(view[done:])):
                    raise ConfigError(f"{self.file} has changed while it was read: it is too short now")
                done += read
        return room.view(self.dtype)


@dataclass
class StoredCheckpoint:
    """The tensors of a checkpoint by name, without their elements.

    Attributes:
        path: the file or folder.
        tensors: {name: where the tensor is}.
        is_adapter: whether it is a peft adapter, which stores what it adds to a base model and nothing of that.
        metadata: the texts in the header of a safetensors file; mostly `format` alone.
        notes: sentences about how it is read.
        has_key: whether a state dict was taken by its name.
    """

    path: Path
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    is_adapter: bool = False
    metadata: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    has_key: bool = False
    states: dict[Path, tuple[int, ...]] = field(default_factory=dict)  # of the files, before anything was read

    def refuse_if_changed(self) -> None:
        """Raise ConfigError if one of the files is not as it was when the checkpoint was opened."""
        for file, state in self.states.items():
            if not file.exists() or _state_of(file) != state:
                raise ConfigError(f"{file} has changed while it was read; compare it again when nothing writes to it")


def open_pair(before: str | Path, after: str | Path, key: str | None) -> tuple[StoredCheckpoint, StoredCheckpoint]:
    """Return two checkpoints, as `open_checkpoint` does; `key` is that of each file of `torch.save` in them."""
    old, new = open_checkpoint(before, "BEFORE", key), open_checkpoint(after, "AFTER", key)
    if key is not None and not (old.has_key or new.has_key):
        raise ConfigError(f"--key {key} is for files of torch.save, and there are safetensors files alone, without dicts")
    return old, new


def open_checkpoint(path: str | Path, what: str, key: str | None = None) -> StoredCheckpoint:
    """Return where the tensors of a checkpoint are: of a file, or of all files of a folder together.

    `what`: what messages call it. `key`: the name of the state dict in a file that has several, with dots between names of
    dicts within dicts; None: the one there is, or that named `state_dict` or `model`. Older files of `torch.save` are loaded
    whole. Raises ConfigError if there are no weights, if a file is truncated, or if reading it would run code.
    """
    try:
        place = Path(path).expanduser()
        is_there = bool(str(path)) and place.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, or a user who is not known
        raise ConfigError(f"{what}: {str(path)[:80]!r} cannot be found: {error}") from error
    if not is_there:
        raise ConfigError(f"{what}: {str(path)!r} does not exist; give a file or a folder with weights")
    found = StoredCheckpoint(place, is_adapter=place.is_dir() and (place / ADAPTER).is_file())
    for file in files_of(place, what, takes_adapters=True) if place.is_dir() else [place]:
        found.states[file] = _state_of(file)
        with refusing_unreadable(file, what):
            tensors = _tensors_of(file, what, key, found)
        if twice := sorted(tensors.keys() & found.tensors.keys()):
            raise ConfigError(f"{what}: {listed(twice, most=2)} stands in several files of {place}, in {file.name} too")
        found.tensors |= tensors
    for index in place.glob("*.index.json") if place.is_dir() else ():
        _refuse_incomplete(index, found, what)
    if not found.tensors:
        raise ConfigError(f"{what}: {place} holds no tensor; give a file or a folder with weights")
    return found


def _refuse_incomplete(index: Path, found: StoredCheckpoint, what: str) -> None:
    """Raise ConfigError if the files that were read lack a tensor that an index says is in them."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        expected = [name for name, file in places.items() if index.parent / file in found.states]
    except (ValueError, KeyError, TypeError, AttributeError, OSError):  # it is not the index by which they were found
        return
    if missing := [name for name in expected if name not in found.tensors]:
        raise ConfigError(f"{what}: {index} lists {listed(missing, most=2)}, which its file lacks; fetch it again")


def _state_of(file: Path) -> tuple[int, ...]:
    """Return what changes when a file is written: its identity, its size, and when it was written last."""
    found = os.stat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _tensors_of(file: Path, what: str, key: str | None, found: StoredCheckpoint) -> dict[str, StoredTensor]:
    """Return the tensors of one file by name, and add its notes and metadata to those of the checkpoint."""
    note = found.notes.append
    if is_safetensors(file):
        tensors, metadata = _safetensors(file)
        found.metadata |= metadata
        return tensors
    found.has_key |= key is not None
    value, is_whole = _load(file)
    if is_whole:
        why = "has tensors that are sparse or quantised" if is_zip(file) else "is an older file of torch.save"
        note(f"{what}: {file.name} {why}, so it is loaded whole")
    state = _at_key(value, key, file, what) if key is not None else state_dict_in(value, file, what, note)
    values = {name: each for name, each in state.items() if isinstance(each, Tensor)}
    if left := [name for name in state if name not in values and name.endswith(EXTRA_STATE)]:
        note(f"{what}: {listed(left, most=2)}: no tensor, so it is not compared")
    whole: Mapping[str, Tensor] = values
    if not is_whole:
        scattered = [name for name, each in values.items() if not _lies_in_file(each)]
        loaded = _loaded(file, key, what) if scattered else {}
        whole = {name: loaded[name] for name in scattered}
    return {name: _stored(file, each, whole.get(name)) for name, each in values.items()}


def _at_key(value: object, key: str, file: Path, what: str) -> Mapping[str, Any]:
    """Return the state dict at a key of what a file holds, such as `state_dict` or `ema.model`."""
    inner = value
    for part in [key] if isinstance(value, Mapping) and key in value else key.split("."):
        if not isinstance(inner, Mapping) or part not in inner:
            names = listed([*map(str, inner)], most=6) if isinstance(inner, Mapping) else f"a {type(inner).__name__}"
            raise ConfigError(f"{what}: {file} has no {part!r} of --key {key}; there is {names}")
        inner = inner[part]
    return state_dict_in(inner, file, what, lambda text: None)


def _load(file: Path) -> tuple[object, bool]:
    """Return (what a file of `torch.save` holds, whether its tensors have elements).

    Of a zip file they are not read: torch notes where they are in the file, if they are dense. Raises what it raises.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    if is_zip(file):
        with suppress(RuntimeError, NotImplementedError), FakeTensorMode():
            return load_torch_file(file), False
    return load_torch_file(file), True


def _lies_in_file(tensor: Tensor) -> bool:
    """Return whether the elements of a tensor that was loaded without them lie in the file one after another."""
    return (
        tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def _loaded(file: Path, key: str | None, what: str) -> Mapping[str, Tensor]:
    """Return the tensors of a zip file themselves, memory-mapped."""
    value = load_torch_file(file)
    return _at_key(value, key, file, what) if key is not None else state_dict_in(value, file, what, lambda text: None)


def _stored(file: Path, tensor: Tensor, whole: Tensor | None) -> StoredTensor:
    """Return where a tensor is. `whole`: the tensor with its elements, if it was loaded."""
    dtype, shape = tensor.dtype, tuple(tensor.shape)
    if whole is None:
        storage: Any = tensor.untyped_storage()
        at = storage._checkpoint_offset + int(tensor.storage_offset()) * dtype.itemsize
        place = (file, at, dtype, shape) if tensor.numel() else object()
        return StoredTensor(file, at, dtype, shape, place=place, stored_as=_name_of(dtype))
    if whole.layout is not torch.strided:
        sparse = whole.to_sparse_coo().coalesce()
        parts = [each.contiguous().view(-1).view(torch.uint8) for each in (sparse.indices(), sparse.values())]
        content, label = torch.cat(parts), f"sparse {_name_of(dtype)} {list(shape)}"
        return StoredTensor(file, 0, torch.uint8, tuple(content.shape), place=object(), loaded=content, stored_as=label)
    if whole.is_quantized:
        label = f"{_name_of(dtype)} {quantiser_of(whole)}"
        return StoredTensor(file, 0, dtype, shape, place=object(), loaded=flattened(whole, like=whole), stored_as=label)
    place = (whole.data_ptr(), whole.stride(), dtype, shape) if whole.numel() else object()
    flat = whole.resolve_conj().resolve_neg().contiguous().view(-1)
    return StoredTensor(file, 0, dtype, shape, place=place, loaded=flat, stored_as=_name_of(dtype))


def _safetensors(file: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return (the tensors of a safetensors file, its metadata), as its header says: {name: {dtype, shape, data_offsets}}.

    Source: https://github.com/huggingface/safetensors#format
    """
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        begin, end = 8 + size, os.fstat(opened.fileno()).st_size
        if size > LARGEST_HEADER or begin > end:
            _refuse(f"its header is said to have {size} bytes, the file has {end}")
        header = json.loads(opened.read(size), object_pairs_hook=_without_repeats)
    metadata, tensors = header.pop("__metadata__", {}), {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        dtype, shape = SAFETENSORS_DTYPES.get(entry["dtype"]), tuple(entry["shape"])
        if not all(isinstance(each, int) and each >= 0 for each in (*shape, first, last)):
            _refuse(f"{name} is said to have the shape {list(shape)}")
        stored_as = _name_of(dtype) if dtype else f"{entry['dtype'].lower()} {list(shape)}"
        if dtype is None:
            dtype, shape = torch.uint8, (last - first,)
        if not 0 <= first <= last <= end - begin or prod(shape) * dtype.itemsize != last - first:
            _refuse(f"{name} is said to lie at bytes {first} to {last} of {end - begin}")
        tensors[name] = StoredTensor(
            file, begin + first, dtype, shape, place=(file, begin + first) if last > first else object(), stored_as=stored_as
        )
    return tensors, metadata


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the dict of a JSON object. Raises ValueError if a key is there twice, so that one value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        _refuse("a name is in its header twice")
    return found


def _refuse(why: str) -> NoReturn:
    """Raise ValueError, which says that a file is not what its beginning says."""
    raise ValueError(why)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
