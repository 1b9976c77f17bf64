"""Refuse collectives: what only one of several processes does must not wait for the others."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from runner.shards import is_dtensor_class, rank_and_count


def no_collectives() -> AbstractContextManager[Any]:
    """Return a context in which a collective raises RuntimeError instead of waiting for other processes."""
    return _RefuseCollectives() if rank_and_count()[1] > 1 else nullcontext()


class _RefuseCollectives(TorchDispatchMode):
    """Sees every operation on plain tensors, those that operations on DTensors are made of included."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(is_dtensor_class(each) for each in types):
            return NotImplemented  # so that the DTensor calls the operations on its local parts, which come here again
        if "c10d" in func.namespace or "dtensor" in func.namespace:
            raise RuntimeError(f"it needs the other processes: {func.__name__}")
        return func(*args, **(kwargs or {}))
