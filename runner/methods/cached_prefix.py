"""Freezing with `requires_grad`, and keeping the outputs of the frozen first layers to use them again in later epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from runner.contract import Note
from runner.errors import SkippedError
from runner.freezing.selection import Selection
from runner.methods.base import Example, PhaseContext
from runner.methods.prefix.boundary import NO_EXAMPLE, frozen_prefixes
from runner.methods.prefix.bypass import Bypass, Recording, find_prefix_modules
from runner.methods.prefix.check import Prefix, restore_dim_order, verified_recording
from runner.methods.prefix.repeatable import why_not_repeatable
from runner.methods.prefix.row_store import DamagedError, RowStore
from runner.methods.prefix.samples import Format, batch_format, first_difference, part_named, sample_keys, why_no_samples
from runner.methods.prefix.trial import trial_copy
from runner.methods.requires_grad import RequiresGrad
from runner.tensors import is_compiled, tensors_in


class CachedPrefix(RequiresGrad):
    """Sets `requires_grad` to False, and runs the frozen first layers once per sample: later epochs use the stored outputs.

    Needs `freeze.buffers=frozen`, which keeps the frozen layers in eval mode. The frozen layers must also give the same bits
    each time, and the data the same bits when a sample is read again. All of this is tried on copies of the model with the
    first batch; if a check fails, the run is skipped with the reason. A stored output is used only for a sample that has
    the same bits in all tensors of its batch. With one epoch nothing is stored, and the method is the same as
    `requires_grad`. Frozen parameters can change in the same cases as with `requires_grad`.
    The trained weights have the same bits as with `requires_grad` if two conditions hold: all batches have the same shapes,
    and the stored output of a sample does not depend on the other samples of its batch, nor on its index in it. If it does
    in the batches that are tried, a note to the user gives the largest difference.

    `epochs`: number of epochs. `memory_mb`: how many MiB of outputs stay in memory; further outputs go to a file in a
    temporary folder inside `folder` (None: inside the system's folder for temporary files).
    Source: https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html (ConvNet as fixed feature extractor)
    """

    def __init__(self, epochs: int = 1, memory_mb: float = 1024, folder: str | None = None) -> None:
        super().__init__()
        self.epochs, self.limit, self.folder = epochs, int(memory_mb * 2**20), folder
        self.prefix: Prefix | None = None  # where the frozen first layers end
        self.not_cached = ""  # why the outputs of frozen layers after `prefix` cannot be cached; "" if there are none
        self.checked_selection: Selection | None = None  # the selection that `prefix` is for
        self.bypass: Bypass | None = None
        self.store = RowStore(self.limit, folder)
        self.storing = True  # False after a write or read of the store failed
        self.recordings: dict[Format, Recording] = {}
        self.dim_order: Sequence[int] | None = None  # memory order of the dimensions of the boundary's output

    def skip(self, model: nn.Module, selection: Selection) -> str | None:
        if self.epochs == 1:
            return None
        self.checked_selection, self.prefix = selection, None
        if not selection.parameters:
            return "nothing is frozen, so there is no frozen prefix to cache"
        if is_compiled(model):
            return "a part of the model is compiled; skipping the prefix would compile it again"
        if self.example is None:
            return NO_EXAMPLE
        if reason := why_not_reusable(self.example):
            return reason
        reasons: list[str] = []
        try:
            for boundary in frozen_prefixes(model, selection, self.example, may_use_again=True):
                copied, example = trial_copy(model, selection, self.example)
                modules = find_prefix_modules(copied, boundary, example)
                reason = why_not_repeatable(copied, selection, boundary, example)
                if not reason:
                    self.prefix, self.not_cached = Prefix(boundary, modules), (reasons or [""])[0]
                    return None
                if reason in reasons:  # it lies further ahead in the model: earlier boundaries will have it too
                    break
                reasons.append(reason)
        except SkippedError as error:
            return str(error)
        return reasons[0]

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        if self.bypass is not None:  # from earlier steps, in which fewer layers were frozen
            self.bypass.undo()
            self.store.close()
            self.bypass = None
        if self.epochs > 1 and selection.parameters:
            if selection is not self.checked_selection and (reason := self.skip(model, selection)):
                raise SkippedError(reason)
            assert self.prefix is not None
            self.store, self.storing = RowStore(self.limit, self.folder), True
            self.recordings, self.dim_order = {}, None
            self.bypass = Bypass(model, self.prefix.boundary, self.prefix.modules)
            undo.callback(self.store.close)
            undo.callback(self.bypass.undo)
        return super().prepare(model, selection, undo)

    def feed(self, batches: Iterable[Any], context: PhaseContext) -> Iterator[Any]:
        if self.epochs == 1:
            context.note("data.epochs is 1: each sample is used once, so the frozen prefix's outputs are not cached")
        if self.bypass is None:
            yield from super().feed(batches, context)
            return
        if self.not_cached:
            context.note(f"the outputs of {self.bypass.boundary} are cached, and what follows it runs: {self.not_cached}")
        for batch in batches:
            if reason := why_no_samples(batch):
                raise SkippedError(f"a batch cannot be divided into samples: {reason}")
            keys, shapes = sample_keys(batch), batch_format(batch)
            rows = self.cached_rows(keys, context.note) if shapes in self.recordings else None
            if rows is not None:
                recording = self.recordings[shapes]
                with self.bypass.replay(recording, self.output_loader(keys, rows)):
                    yield batch
                context.not_run.update([*recording.outputs, self.bypass.boundary])
            else:
                self.check_batch(batch, shapes, context)
                with self.bypass.record(self.output_saver(keys, self.recordings[shapes], context.note)):
                    yield batch

    def check_batch(self, batch: Any, shapes: Format, context: PhaseContext) -> None:
        """Check, once for all batches of the same shapes, that a step can skip the frozen first layers, on a copy.

        Stores the placeholders that later steps with such batches need to skip the layers. Raises SkippedError, which ends
        the run as skipped, if a step without the layers gives other bits than a full step.
        """
        if shapes in self.recordings:
            return
        assert self.prefix is not None
        example = Example(context.task, batch)
        recording, self.dim_order, difference = verified_recording(context.model, self.prefix, example, self.dim_order)
        size = len(tensors_in(batch)[0])
        sizes = {len(tensors_in(each.last)[0]) for each in self.recordings.values()}
        self.recordings[shapes] = recording
        if difference:
            context.note(
                f"the frozen prefix's output for a sample depends on the rest of its batch of {size} (by up to "
                f"{difference:.2g}): the weights may differ from those of requires_grad by rounding"
            )
        if len(sizes) == 1 and size not in sizes:
            context.note(
                "batches have more than one size, and the frozen prefix's output for a sample may depend on it: "
                "the weights may differ from those of requires_grad by rounding"
            )

    def output_saver(self, keys: list[bytes], recording: Recording, note: Note) -> Callable[[str, Any], None]:
        """Return a function `save(module_name, output)` that stores the output of the last frozen module.

        `save` ignores all other modules, an output of another shape than in `recording`, and samples whose output is already
        stored. `keys`: those of the batch's samples. If the file of outputs cannot be written, `note` is called with a
        message, and nothing more is stored.
        """
        assert self.prefix is not None
        boundary, (expected,) = self.prefix.boundary, tensors_in(recording.last)

        def save(name: str, output: Any) -> None:
            if name != boundary or not self.storing or [each.shape for each in tensors_in(output)] != [expected.shape]:
                return
            new = {key: position for position, key in enumerate(keys) if key not in self.store}
            (rows,) = tensors_in(output)
            assert self.dim_order is not None
            try:
                if new:
                    self.store.put(list(new), rows.detach()[list(new.values())].permute(*self.dim_order))
            except OSError as error:
                self.storing = False
                note(f"the frozen prefix's outputs cannot all be cached ({error}): missing ones are computed again")

        return save

    def cached_rows(self, keys: list[bytes], note: Note) -> Tensor | None:
        """Return the stored outputs of the last frozen module for N samples as one tensor (N, ...).

        Returns None if the output of any sample is missing or damaged. `keys`: those of the N samples. If the file of
        outputs is damaged, `note` is called with a message, and the outputs in the file are computed again when they are
        needed.
        """
        if not all(key in self.store for key in keys):
            return None
        try:
            return self.store.get(keys)
        except (DamagedError, OSError) as error:
            self.store.forget_file()
            self.storing = False
            note(f"the file of the frozen prefix's outputs is damaged ({error}): what was in it is computed again")
            return None

    def output_loader(self, keys: list[bytes], rows: Tensor) -> Callable[[], Tensor]:
        """Return a function without arguments that returns the stored output of the last frozen module for some samples.

        `keys`: those of the samples. `rows`: the stored output for these samples, already loaded. The function's first
        call returns `rows`. Each later call loads a new copy from the store, because the model may have written to the
        earlier one.
        """
        unused = [rows]
        dim_order = self.dim_order
        assert dim_order is not None
        return lambda: restore_dim_order(unused.pop() if unused else self.store.get(keys), dim_order)


def why_not_reusable(example: Example) -> str:
    """Return why no stored output could be used for a sample that is read again, or "" if the samples stay the same."""
    if reason := why_no_samples(example.batch):
        return f"a batch cannot be divided into samples: {reason}"
    if example.reread is None or (name := first_difference(example.batch, example.reread())) is None:
        return ""
    return f"a batch has other bits when it is read again: {part_named(name)}, as with a random transform or collate"
