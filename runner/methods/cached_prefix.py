"""Freezing by the flag, and a memory of what the frozen prefix said."""

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
from runner.methods.prefix.bypass import Bypass, Recording, outermost
from runner.methods.prefix.check import in_memory_order, tried, why_not_repeatable
from runner.methods.prefix.row_store import DamagedError, RowStore
from runner.methods.requires_grad import RequiresGrad
from runner.tensors import is_compiled
from runner.training.epochs import LazyBatch


class CachedPrefix(RequiresGrad):
    """Freezes as `requires_grad` does, and runs the frozen prefix once for each sample: later passes begin behind it.

    Serves a prefix that is held in eval mode (`freeze.buffers=frozen`) and says the same again, to the bit, tried on
    copies; whatever else is skipped, with the reason. The weights have the bits that `requires_grad` gives them where all
    batches are of one size and a sample's place in a batch makes no difference to the prefix; where it does, a note says
    by how much. With one pass nothing is asked twice, and this is `requires_grad`. Does not hold where that does not.
    `input`: shape of one sample; `epochs`: passes; `memory_mb`: MiB of rows in memory, behind which a file in a temporary
    folder below `folder` takes them.
    Source: https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html (ConvNet as fixed feature extractor)
    """

    def __init__(self, input: Sequence[int], epochs: int = 1, memory_mb: float = 1024, folder: str | None = None) -> None:
        super().__init__()
        self.input, self.epochs, self.limit, self.folder = input, epochs, int(memory_mb * 2**20), folder
        self.end: str | None = None
        self.within: list[str] = []
        self.found_for: Selection | None = None
        self.splice: Bypass | None = None
        self.memory = RowStore(self.limit, folder)
        self.scripts: dict[int, Recording] = {}  # by the number of samples
        self.order: Sequence[int] | None = None
        self.stores = True

    def skip(self, model: nn.Module, selection: Selection) -> str | None:
        if self.epochs == 1:
            return None
        self.found_for, self.end = selection, None
        if not selection.parameters:
            return "nothing is frozen, so there is no prefix whose output could be remembered"
        if is_compiled(model):
            return "a part of the model is compiled, and would be compiled again for the passes that leave it out"
        device = next(model.parameters()).device
        sample = torch.randn(4, *self.input, generator=torch.Generator().manual_seed(0)).to(device)
        try:
            end, reason = frozen_prefix(model, selection, self.input)
            reason = reason or why_not_repeatable(model, selection, end or "", sample)
            self.within = outermost(model, end or "", sample) if not reason else []
        except Exception as error:  # of anyone's model, given samples that are not its own
            return f"the model does not run on a batch of shape [4, *model.input]: {type(error).__name__}: {error}"
        self.end = None if reason else end
        return reason or None

    def prepare(self, model: nn.Module, selection: Selection, undo: ExitStack) -> nn.Module:
        if self.splice is not None:  # of an earlier phase, whose prefix was shorter
            self.splice.undo()
            self.memory.close()
            self.splice = None
        if self.epochs > 1 and selection.parameters:
            if selection is not self.found_for and (reason := self.skip(model, selection)):
                raise SkippedError(reason)
            assert self.end is not None
            self.memory, self.scripts, self.order, self.stores = RowStore(self.limit, self.folder), {}, None, True
            self.splice = Bypass(model, self.end, self.within)
            undo.callback(self.memory.close)
            undo.callback(self.splice.undo)
        return super().prepare(model, selection, undo)

    def feed(self, batches: Iterable[LazyBatch], context: PhaseContext) -> Iterator[Any]:
        note = context.note
        if self.epochs == 1:
            note("data.epochs is 1: nothing that the frozen prefix says would be asked for again, so it is not remembered")
        if self.splice is None:
            yield from super().feed(batches, context)
            return
        for drawn in batches:
            if not drawn.is_a_row_of_tensors or drawn.ids is None:
                raise SkippedError("data gives batches that are not (tensor, ...) with a row for each sample")
            rows = self.recalled(drawn.ids, note)
            if rows is not None:
                script = self.scripts[len(drawn.ids)]
                with self.splice.playing(script, self.giver(drawn.ids, rows)):
                    yield drawn.behind(script.x)
                context.not_run.update([*self.within, self.end or ""])
            else:
                batch = drawn.batch
                self.try_once(batch, context)
                with self.splice.recording(batch[0], self.teller(drawn.ids, note)):
                    yield batch

    def try_once(self, batch: Any, context: PhaseContext) -> None:
        """With the first batch of its size, make sure that the prefix can be left out, before anything is trained on it."""
        assert self.end is not None
        size = len(batch[0])
        if size in self.scripts:
            return
        self.scripts[size], self.order, moved = tried(
            model=context.model, end=self.end, within=self.within, task=context.task, batch=batch, order=self.order
        )
        if moved:
            context.note(
                f"the frozen prefix gives a sample other bits at another place in a batch of {size} (by {moved:.2g} at "
                "most): the weights come near those of requires_grad and need not have their bits"
            )
        if len(self.scripts) == 2:
            context.note(
                "batches are of more than one size, and the frozen prefix may give a sample other bits in each: "
                "the weights come near those of requires_grad and need not have their bits"
            )

    def teller(self, ids: list[int], note: Note) -> Callable[[str, Any], None]:
        """What keeps the prefix's output for samples that are not yet remembered."""

        def told(name: str, output: Any) -> None:
            fresh = [place for place, number in enumerate(ids) if number not in self.memory]
            if name != self.end or not fresh or not self.stores:
                return
            assert self.order is not None
            try:
                self.memory.put([ids[place] for place in fresh], output.detach()[fresh].permute(*self.order))
            except OSError as error:
                self.stores = False
                note(f"what the frozen prefix says cannot all be remembered ({error}): what is missing is computed again")

        return told

    def recalled(self, ids: list[int], note: Note) -> Tensor | None:
        """What the prefix said of these samples, or None where it has to say it again."""
        if not all(number in self.memory for number in ids):
            return None
        try:
            return self.memory.get(ids)
        except (DamagedError, OSError) as error:
            self.memory.forget_file()
            self.stores = False
            note(f"the file of what the frozen prefix said is damaged ({error}): what was in it is computed again")
            return None

    def giver(self, ids: list[int], rows: Tensor) -> Callable[[], Tensor]:
        """What gives the rows, new ones at each call of a task that makes several."""
        ready = [rows]
        order = self.order
        assert order is not None
        return lambda: in_memory_order(ready.pop() if ready else self.memory.get(ids), order)
