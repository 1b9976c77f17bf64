"""DTensors: tensors of which each of several processes holds a part, and the FSDP modules that gather and shard them."""

from __future__ import annotations

import sys
from itertools import chain
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from runner.errors import ConfigError

DTensor = Any  # torch.distributed.tensor.DTensor; importing it would cost time in every process that has none
Shard = tuple[int, ...]


def is_dtensor(tensor: Tensor | None) -> TypeGuard[DTensor]:
    """Return whether a tensor is a DTensor, also if each process holds all of it (`Replicate`)."""
    return is_dtensor_class(type(tensor))


def is_dtensor_class(of: type) -> bool:
    """Return whether a class is that of DTensors."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and issubclass(of, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a DTensor that this process holds, in the same memory; any other tensor is returned as it is.

    This is never a collective.
    """
    if not is_dtensor(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def sharding_of(tensor: Tensor) -> Any:
    """Return (device mesh, placements) of a DTensor, and None for any other tensor."""
    return (tensor.device_mesh, tuple(tensor.placements)) if is_dtensor(tensor) else None


def shard_of(tensor: Tensor) -> Shard:
    """Return which shard of a tensor this process holds: processes that hold the same elements have equal results.

    These are the coordinates of the process on those dimensions of the device mesh along which the tensor is not replicated;
    none for a tensor that is no DTensor.
    """
    if not is_dtensor(tensor):
        return ()
    coordinate = tensor.device_mesh.get_coordinate() or ()
    return tuple(at for at, placement in zip(coordinate, tensor.placements, strict=False) if not placement.is_replicate())


def is_sum_of_parts(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor whose elements are sums over processes (`Partial`)."""
    return is_dtensor(tensor) and any(placement.is_partial() for placement in tensor.placements)


def is_gathered(registered: Tensor, tensor: Tensor | None) -> bool:
    """Return whether what is registered at the place of a DTensor may be the copy that FSDP gathers for a forward pass."""
    return is_dtensor(tensor) and (not is_dtensor(registered) or registered.device_mesh != tensor.device_mesh)


def fsdp_modules(model: nn.Module) -> list[Any]:
    """Return the modules of a model to which `torch.distributed.fsdp.fully_shard` was applied."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    return [] if fsdp is None else [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


def put_shards_back(model: nn.Module) -> None:
    """Let FSDP put its shards back at their names, where a forward pass without a backward has left gathered parameters.

    This is no collective. The next forward pass gathers them again.
    """
    for module in fsdp_modules(model):
        module.reshard()


def is_fsdp1(model: nn.Module) -> bool:
    """Return whether a module of a model is wrapped in `FullyShardedDataParallel`, which has no DTensors."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(module, fsdp.FullyShardedDataParallel) for module in model.modules())


def rank_and_count() -> tuple[int, int]:
    """Return (rank of this process, number of processes) as `torch.distributed` counts them; (0, 1) if it is not in use."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def refuse_several_processes(model: nn.Module) -> None:
    """Raise ConfigError if `torch.distributed` runs several processes, or if a tensor of the model is a DTensor."""
    if rank_and_count()[1] > 1:
        raise ConfigError("model: torch.distributed runs several processes; use one process and dense tensors")
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if is_dtensor(tensor):
            raise ConfigError(f"model: {name} is a DTensor (sharded); use one process and dense tensors")
