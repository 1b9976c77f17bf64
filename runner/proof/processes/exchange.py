"""The processes that hold the shards of one model: find them, and complete the report of each with those of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import nn

from runner.errors import ConfigError
from runner.proof.audit_report import Report
from runner.proof.processes.merge import Part, merged, refuse_other_declarations
from runner.shards import Shard, is_dtensor, is_fsdp1, is_sum_of_parts, put_shards_back, rank_and_count, shard_of
from runner.tensors import names_and_tensors


class Ranks:
    """The processes of a device mesh that hold the shards of a model.

    Args:
        model: the model whose DTensors they share.
        mesh: the device mesh of its DTensors; if they have several, the one that has the processes of all others.
    """

    def __init__(self, model: nn.Module, mesh: Any) -> None:
        self.model, self.mesh = model, mesh
        self.shards: dict[str, Shard] = {}
        self.sums = set[str]()
        self._see_shards()

    def complete(self, report: Report, finish: Callable[[], None]) -> None:
        """Call `finish`, which completes the report of this process, and merge it with those of the others.

        Afterwards the report is the same in each process. This is a collective. Raises what `finish` raises, RuntimeError if
        it raised in another process, and, in each process, ConfigError if they do not declare the same tensors frozen; then
        the report stays without an end, for this process alone cannot judge a tensor.
        """
        try:
            finish()
        except Exception as error:  # the others are waiting
            self._gather(f"rank {dist.get_rank()}: {type(error).__name__}: {error}")
            raise
        parts = self._gather(self._part(report))
        report.ended = False
        if failed := [part for part in parts if isinstance(part, str)]:
            raise RuntimeError(f"the audit could not be completed on {failed[0]}")
        refuse_other_declarations(parts)
        whole = merged(parts)
        report.rows, report.looks, report.why_unknown = whole.rows, whole.looks, whole.why_unknown
        report.is_empty, report.phases, report.ended = whole.is_empty, whole.phases, True
        report.notes = [f"the shards of {len(parts)} processes are one report, the same in each of them", *whole.notes]

    def _part(self, report: Report) -> Part:
        """Return what this process has to say."""
        self._see_shards()
        return Part(
            rank=dist.get_rank(),
            rows=report.rows,
            looks=report.looks,
            notes=report.notes,
            why_unknown=report.why_unknown,
            shards=self.shards,
            sums=frozenset(self.sums),
            is_empty=report.is_empty,
            declarations=report.declarations,
            phases=report.phases,
        )

    def _see_shards(self) -> None:
        """Note which shard this process holds of each tensor that is new in the model."""
        for name, tensor in zip(*names_and_tensors(self.model), strict=True):
            self.shards.setdefault(name, shard_of(tensor))
            if is_sum_of_parts(tensor):
                self.sums.add(name)

    def _gather(self, value: Part | str) -> list[Any]:
        """Return the values of all processes, in the order of the mesh, gathered along one of its dimensions at a time."""
        found: list[Any] = [value]
        for dim in reversed(range(self.mesh.ndim)):
            received: list[Any] = [None] * self.mesh.size(dim)
            dist.all_gather_object(received, found, group=self.mesh.get_group(dim))
            found = [each for values in received for each in values]
        return found


def ranks_of(model: nn.Module) -> Ranks | None:
    """Return the processes that hold the shards of a model; None if this process holds all of it.

    FSDP puts its shards back at their names first, where a forward pass has left gathered parameters.
    Raises ConfigError if the model is wrapped in `FullyShardedDataParallel`, if this process holds no shard, or if the
    tensors are on device meshes none of which has the processes of all others.
    """
    put_shards_back(model)
    rank, count = rank_and_count()
    if count > 1 and is_fsdp1(model):
        raise ConfigError("model: FullyShardedDataParallel hides which parameter a shard belongs to; use fully_shard")
    for name, tensor in model.named_parameters():
        held, whole = tensor.numel(), getattr(tensor, "ds_numel", tensor.numel())  # the attribute is DeepSpeed ZeRO-3's
        if held != whole:
            raise ConfigError(
                f"model: rank {rank} holds {held} of the {whole} elements of {name}, and no DTensor says which; "
                "use fully_shard"
            )
    sharded = {name: tensor for name, tensor in zip(*names_and_tensors(model), strict=True) if is_dtensor(tensor)}
    for name, tensor in sharded.items():
        if tensor.device_mesh.get_coordinate() is None:
            raise ConfigError(
                f"model: rank {rank} holds no part of {name}; enter audit() on the ranks of its device mesh only"
            )
    meshes = [tensor.device_mesh for tensor in sharded.values() if tensor.device_mesh.size() > 1]
    if not meshes:
        return None
    largest = max(meshes, key=lambda mesh: mesh.size())
    members = set(largest.mesh.flatten().tolist())
    if any(not members.issuperset(mesh.mesh.flatten().tolist()) for mesh in meshes):
        raise ConfigError("model: its DTensors are on several device meshes; shard it on one, or on meshes within one")
    return Ranks(model, largest)


def single_process_notes() -> list[str]:
    """Return a sentence for a report that says nothing of other processes, if there are some."""
    rank, count = rank_and_count()
    return [f"rank {rank} of {count}: this report is about the tensors of this process alone"] if count > 1 else []
