"""The stored outputs of the last frozen module: one row per sample, whatever the shapes of the batches are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from runner.contract import Note
from runner.methods.prefix.bypass import Recording
from runner.methods.prefix.row_store import DamagedError, MemoryBudget, RowStore
from runner.tensors import tensors_in

RowFormat = tuple[torch.dtype, torch.Size]  # of one row


class OutputCache:
    """Stores what the last frozen module returned for each sample, and returns it with the same bits.

    `limit`: how many bytes of outputs stay in memory; further outputs go to files in temporary folders inside `folder`
    (None: inside the system's folder for temporary files). If a file cannot be written or is damaged, nothing more is
    stored, and `note`, a function that shows a message to the user, is called.
    """

    def __init__(self, limit: int, folder: str | None) -> None:
        self.budget, self.folder = MemoryBudget(limit), folder
        self.stores: dict[RowFormat, RowStore] = {}
        self.storing = True  # False after a write or read of a file failed

    def saver(self, boundary: str, keys: Sequence[bytes], recording: Recording, note: Note) -> Callable[[str, Any], None]:
        """Return a function `save(module_name, output)` that stores the output of the module `boundary`.

        `save` ignores all other modules, an output of another shape than in `recording`, and samples whose output is already
        stored. `keys`: those of the batch's samples.
        """
        expected = recording.last_tensor

        def save(name: str, output: Any) -> None:
            if name != boundary or not self.storing or [each.shape for each in tensors_in(output)] != [expected.shape]:
                return
            (rows,) = tensors_in(output)
            store = self.stores.setdefault(row_format(rows), RowStore(self.budget, self.folder))
            new = {key: position for position, key in enumerate(keys) if key not in store}
            try:
                if new:
                    store.put(list(new), rows.detach()[list(new.values())].permute(*recording.dim_order))
            except OSError as error:
                self.storing = False
                note(f"the frozen prefix's outputs cannot all be cached ({error}): missing ones are computed again")

        return save

    def loader(self, keys: Sequence[bytes], recording: Recording, note: Note) -> Callable[[], Tensor] | None:
        """Return a function without arguments that returns the stored outputs of N samples as one tensor (N, ...).

        Returns None if the output of any sample is missing or damaged. `keys`: those of the samples. The rows are loaded at
        once for the function's first call. Each later call loads a new copy from the store, because the model may have
        written to the earlier one.
        """
        store = self.stores.get(row_format(recording.last_tensor))
        if store is None or not all(key in store for key in keys):
            return None
        try:
            unused = [store.get(keys)]
        except (DamagedError, OSError) as error:
            store.forget_file()
            self.storing = False
            note(f"the file of the frozen prefix's outputs is damaged ({error}): what was in it is computed again")
            return None
        return lambda: restore_dim_order(unused.pop() if unused else store.get(keys), recording.dim_order)

    def close(self) -> None:
        """Remove all stored outputs, and delete the files."""
        for store in self.stores.values():
            store.close()
        self.stores.clear()


def row_format(output: Tensor) -> RowFormat:
    """Return the dtype and shape of one row of an output (N, ...)."""
    return output.dtype, output.shape[1:]


def memory_dim_order(rows: Tensor) -> list[int]:
    """Return the dimensions of `rows` (N, ...) in memory order: 0 first, then the others from largest to smallest stride."""
    return [0, *sorted(range(1, rows.dim()), key=rows.stride, reverse=True)]


def restore_dim_order(rows: Tensor, dim_order: Sequence[int]) -> Tensor:
    """Undo `permute(dim_order)`: return the view `tensor` of `rows` for which `tensor.permute(dim_order)` equals `rows`."""
    return rows.permute(*sorted(range(len(dim_order)), key=lambda dim: dim_order[dim]))
