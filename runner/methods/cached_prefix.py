"""Freezing with `requires_grad`, and keeping the outputs of the frozen first layers to use them again in later epochs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from torch import nn

from runner.errors import SkippedError
from runner.freezing.selection import Selection
from runner.methods.base import Example, PhaseContext
from runner.methods.prefix.boundary import NO_EXAMPLE
from runner.methods.prefix.bypass import Bypass, Recording
from runner.methods.prefix.check import Prefix
from runner.methods.prefix.output_cache import OutputCache, row_format
from runner.methods.prefix.samples import Format, batch_format, first_difference, part_named, sample_keys, why_no_samples
from runner.methods.prefix.shared.trials import Trials
from runner.methods.prefix.unchanged import UnchangedTensors, tensors_of
from runner.methods.requires_grad import RequiresGrad
from runner.tensors import is_compiled


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
        self.not_reusable: str | None = None  # why the samples' outputs cannot be used again; None while that was not asked
        self.checked_selection: Selection | None = None  # the selection that `prefix` is for
        self.bypass: Bypass | None = None
        self.weights = UnchangedTensors([])  # those of the prefix
        self.cache = OutputCache(self.limit, folder)
        self.recordings: dict[Format, Recording] = {}

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
        if self.not_reusable is None:  # asked once, before the training reads on
            self.not_reusable = why_not_reusable(self.example)
        if self.not_reusable:
            return self.not_reusable
        found = Trials.of(self.sharing, model, selection, self.example.task).find(self.example)
        if found.modules is None:
            return found.reason
        self.prefix, self.not_cached = Prefix(found.boundary, found.modules), found.reason
        return None

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        if self.epochs > 1 and selection.parameters:
            if selection is not self.checked_selection and (reason := self.skip(model, selection)):
                raise SkippedError(reason)
            assert self.prefix is not None
            self.cache, self.recordings = OutputCache(self.limit, self.folder), {}
            self.bypass = Bypass(model, self.prefix.boundary, self.prefix.modules)
            self.weights = UnchangedTensors(tensors_of(model, [*self.prefix.modules, self.prefix.boundary]))
            undo.callback(self.forget)
        return super().prepare(model, selection, undo)

    def forget(self) -> None:
        """Let the frozen layers run again, and empty the memory of their outputs."""
        if self.bypass is not None:
            self.bypass.undo()
            self.cache.close()
            self.bypass, self.weights = None, UnchangedTensors([])

    def usable_bypass(self, context: PhaseContext) -> Bypass | None:
        """Return what skips the frozen layers; None, for the rest of the phase, once their weights changed all the same."""
        if self.bypass is not None and not self.weights.are_unchanged():
            self.forget()
            context.note("frozen layers changed, so their stored outputs are no longer used: they run in each step again")
        return self.bypass

    def feed(self, batches: Iterable[Any], context: PhaseContext) -> Iterator[Any]:
        if self.epochs == 1:
            context.note("data.epochs is 1: each sample is used once, so the frozen prefix's outputs are not cached")
        if self.bypass is None:
            yield from super().feed(batches, context)
            return
        if self.not_cached:
            context.note(f"the outputs of {self.bypass.boundary} are cached, and what follows it runs: {self.not_cached}")
        for batch in batches:
            if (bypass := self.usable_bypass(context)) is None:
                yield batch
                continue
            if reason := why_no_samples(batch):
                raise SkippedError(f"a batch cannot be divided into samples: {reason}")
            keys, shapes = sample_keys(batch), batch_format(batch)
            recording = self.recordings.get(shapes)
            load = self.cache.loader(keys, recording, context.note) if recording else None
            if recording and load:
                with bypass.replay(recording, load):
                    yield batch
                context.not_run.update([*recording.outputs, bypass.boundary])
            else:
                recording = recording or self.checked_recording(batch, shapes, context)
                with bypass.record(self.cache.saver(bypass.boundary, keys, recording, context.note)):
                    yield batch

    def checked_recording(self, batch: Any, shapes: Format, context: PhaseContext) -> Recording:
        """Check on a copy of the model that a step with a batch of these shapes can skip the frozen first layers.

        Keeps and returns the placeholders that later steps with such batches need to skip the layers. Raises SkippedError,
        which ends the run as skipped, if a step without the layers gives other bits than a full step.
        """
        assert self.prefix is not None
        assert self.checked_selection is not None
        known = {row_format(each.last_tensor): each.dim_order for each in reversed(self.recordings.values())}
        trials = Trials.of(self.sharing, context.model, self.checked_selection, context.task)
        recording, difference = trials.recording(self.prefix, Example(context.task, batch), known)
        size, sizes = len(recording.last_tensor), {len(each.last_tensor) for each in self.recordings.values()}
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
        return recording


def why_not_reusable(example: Example) -> str:
    """Return why no stored output could be used for a sample that is read again, or "" if the samples stay the same."""
    if reason := why_no_samples(example.batch):
        return f"a batch cannot be divided into samples: {reason}"
    again = example.reread() if example.reread else None
    if again is None or (name := first_difference(example.batch, again)) is None:
        return ""
    return f"a batch has other bits when it is read again: {part_named(name)}, as with a random transform or collate"
