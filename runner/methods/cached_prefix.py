"""Freezing with `requires_grad`, and keeping the outputs of the frozen first layers to use them again in later epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from runner.contract import Note
from runner.errors import SkippedError
from runner.freezing.selection import Selection
from runner.methods.base import PhaseContext
from runner.methods.prefix.boundary import frozen_prefix
from runner.methods.prefix.bypass import Bypass, Recording, find_prefix_modules
from runner.methods.prefix.check import restore_dim_order, verified_recording, why_not_repeatable
from runner.methods.prefix.row_store import DamagedError, RowStore
from runner.methods.requires_grad import RequiresGrad
from runner.tensors import is_compiled
from runner.training.epochs import LazyBatch


class CachedPrefix(RequiresGrad):
    """Sets `requires_grad` to False, and runs the frozen first layers once per sample: later epochs use the stored outputs.

    Needs `freeze.buffers=frozen`, which keeps the frozen layers in eval mode. The frozen layers must also give the same bits
    each time. Both are checked on copies of the model; if a check fails, the run is skipped with the reason. With one epoch
    nothing is stored, and the method is the same as `requires_grad`. Frozen parameters can change in the same cases as with
    `requires_grad`.
    The trained weights have the same bits as with `requires_grad` if two conditions hold: all batches have one size, and the
    stored output of a sample does not depend on the sample's index in the batch. If it depends on the index, a note to the
    user gives the largest difference.

    `input`: shape of one sample. `epochs`: number of epochs. `memory_mb`: how many MiB of outputs stay in memory; further
    outputs go to a file in a temporary folder inside `folder` (None: inside the system's folder for temporary files).
    Source: https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html (ConvNet as fixed feature extractor)
    """

    def __init__(self, input: Sequence[int], epochs: int = 1, memory_mb: float = 1024, folder: str | None = None) -> None:
        super().__init__()
        self.input, self.epochs, self.limit, self.folder = input, epochs, int(memory_mb * 2**20), folder
        self.boundary: str | None = None  # the module at the end of the frozen prefix
        self.prefix_modules: list[str] = []  # the outermost modules that run before it
        self.checked_selection: Selection | None = None  # the selection that `boundary` and `prefix_modules` are for
        self.bypass: Bypass | None = None
        self.store = RowStore(self.limit, folder)
        self.storing = True  # False after a write or read of the store failed
        self.recordings: dict[int, Recording] = {}  # by batch size
        self.dim_order: Sequence[int] | None = None  # memory order of the dimensions of the boundary's output

    def skip(self, model: nn.Module, selection: Selection) -> str | None:
        if self.epochs == 1:
            return None
        self.checked_selection, self.boundary = selection, None
        if not selection.parameters:
            return "nothing is frozen, so there is no frozen prefix to cache"
        if is_compiled(model):
            return "a part of the model is compiled; skipping the prefix would compile it again"
        device = next(model.parameters()).device
        sample = torch.randn(4, *self.input, generator=torch.Generator().manual_seed(0)).to(device)
        try:
            boundary, reason = frozen_prefix(model, selection, self.input)
            reason = reason or why_not_repeatable(model, selection, boundary or "", sample)
            self.prefix_modules = find_prefix_modules(model, boundary or "", sample) if not reason else []
        except Exception as error:  # the user's model may not accept the random samples
            return f"the model does not run on a batch of shape [4, *model.input]: {type(error).__name__}: {error}"
        self.boundary = None if reason else boundary
        return reason or None

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        if self.bypass is not None:  # from earlier steps, in which fewer layers were frozen
            self.bypass.undo()
            self.store.close()
            self.bypass = None
        if self.epochs > 1 and selection.parameters:
            if selection is not self.checked_selection and (reason := self.skip(model, selection)):
                raise SkippedError(reason)
            assert self.boundary is not None
            self.store, self.storing = RowStore(self.limit, self.folder), True
            self.recordings, self.dim_order = {}, None
            self.bypass = Bypass(model, self.boundary, self.prefix_modules)
            undo.callback(self.store.close)
            undo.callback(self.bypass.undo)
        return super().prepare(model, selection, undo)

    def feed(self, batches: Iterable[LazyBatch], context: PhaseContext) -> Iterator[Any]:
        if self.epochs == 1:
            context.note("data.epochs is 1: each sample is used once, so the frozen prefix's outputs are not cached")
        if self.bypass is None:
            yield from super().feed(batches, context)
            return
        for lazy_batch in batches:
            if not lazy_batch.is_flat_sequence or lazy_batch.ids is None:
                raise SkippedError("data yields batches that are not (tensor, ...) with one row per sample")
            rows = self.cached_rows(lazy_batch.ids, context.note)
            if rows is not None:
                recording = self.recordings[len(lazy_batch.ids)]
                with self.bypass.replay(recording, self.output_loader(lazy_batch.ids, rows)):
                    yield lazy_batch.with_first(recording.x)
                context.not_run.update([*self.prefix_modules, self.boundary or ""])
            else:
                batch = lazy_batch.batch
                self.check_batch_size(batch, context)
                with self.bypass.record(batch[0], self.output_saver(lazy_batch.ids, context.note)):
                    yield batch

    def check_batch_size(self, batch: Any, context: PhaseContext) -> None:
        """Check, once per batch size, that a training step can skip the frozen first layers. Works on a copy of the model.

        Stores the placeholders that later steps with this batch size need to skip the layers. Raises SkippedError, which
        ends the run as skipped, if a step without the layers gives other bits than a full step.
        """
        assert self.boundary is not None
        size = len(batch[0])
        if size in self.recordings:
            return
        self.recordings[size], self.dim_order, difference = verified_recording(
            model=context.model,
            boundary=self.boundary,
            prefix_modules=self.prefix_modules,
            task=context.task,
            batch=batch,
            dim_order=self.dim_order,
        )
        if difference:
            context.note(
                f"the frozen prefix's output for a sample depends on its position in a batch of {size} (by up to "
                f"{difference:.2g}): the weights may differ from those of requires_grad by rounding"
            )
        if len(self.recordings) == 2:
            context.note(
                "batches have more than one size, and the frozen prefix's output for a sample may depend on it: "
                "the weights may differ from those of requires_grad by rounding"
            )

    def output_saver(self, ids: list[int], note: Note) -> Callable[[str, Any], None]:
        """Return a function `save(module_name, output)` that stores the output of the last frozen module.

        `save` ignores all other modules. It also ignores samples whose output is already stored. `ids`: the numbers of the
        batch's samples. If the file of outputs cannot be written, `note` is called with a message, and nothing more is
        stored.
        """

        def save(name: str, output: Any) -> None:
            new = [position for position, number in enumerate(ids) if number not in self.store]
            if name != self.boundary or not new or not self.storing:
                return
            assert self.dim_order is not None
            try:
                self.store.put([ids[position] for position in new], output.detach()[new].permute(*self.dim_order))
            except OSError as error:
                self.storing = False
                note(f"the frozen prefix's outputs cannot all be cached ({error}): missing ones are computed again")

        return save

    def cached_rows(self, ids: list[int], note: Note) -> Tensor | None:
        """Return the stored outputs of the last frozen module for N samples as one tensor (N, ...).

        Returns None if the output of any sample is missing or damaged. `ids`: the numbers of the N samples. If the file of
        outputs is damaged, `note` is called with a message, and the outputs in the file are computed again when they are
        needed.
        """
        if not all(number in self.store for number in ids):
            return None
        try:
            return self.store.get(ids)
        except (DamagedError, OSError) as error:
            self.store.forget_file()
            self.storing = False
            note(f"the file of the frozen prefix's outputs is damaged ({error}): what was in it is computed again")
            return None

    def output_loader(self, ids: list[int], rows: Tensor) -> Callable[[], Tensor]:
        """Return a function without arguments that returns the stored output of the last frozen module for some samples.

        `ids`: the numbers of the samples. `rows`: the stored output for these samples, already loaded. The function's first
        call returns `rows`. Each later call loads a new copy from the store, because the model may have written to the
        earlier one.
        """
        unused = [rows]
        dim_order = self.dim_order
        assert dim_order is not None
        return lambda: restore_dim_order(unused.pop() if unused else self.store.get(ids), dim_order)
