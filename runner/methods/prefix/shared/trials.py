"""Trials of frozen first layers, each carried out by one run of a sweep for all runs of which the result is the same."""

from __future__ import annotations

import base64
import io
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from runner.freezing.selection import Selection
from runner.methods.base import Example, Task
from runner.methods.prefix.bypass import Recording, original_forward
from runner.methods.prefix.check import Prefix, verified_recording
from runner.methods.prefix.find import FoundPrefix, find_prefix
from runner.methods.prefix.output_cache import RowFormat
from runner.methods.prefix.shared.purity import why_not_shared
from runner.sharing.fingerprint import Fingerprint, NotComparableError
from runner.sharing.folder import SharedFolder, Sharing, digest_of
from runner.sharing.settings import process_settings
from runner.tensors import tensor_entries

T = TypeVar("T")
WHAT = "trials"  # the name of their folder


@dataclass(frozen=True)
class Trials:
    """Carries out trials on a model, or reads the results of another run of the sweep with the same model.

    Attributes:
        model, selection, task: the model, what is frozen in it, and the task.
        shared: what the runs of a sweep compute once; None if every trial is carried out.
        state: a digest of the model, the task and the settings on which results depend, without the bits of parameters that
            are trained; "" without `shared`.
        reason: why it cannot be told whether another run has the same; "" if it can.
    """

    model: nn.Module
    selection: Selection
    task: Task
    shared: SharedFolder | None = None
    state: str = ""
    reason: str = ""

    @classmethod
    def of(cls, sharing: Sharing, model: nn.Module, selection: Selection, task: Task) -> Trials:
        """Return what carries out trials on a model with a task; `selection` is what is frozen."""
        if sharing.folder is None:
            return cls(model, selection, task, reason="it is no run of a sweep")
        parameters = list(model.parameters())
        trained = {id(each) for each in parameters if each.requires_grad and each not in selection}
        names = list(selection.parameters), list(selection.modules)
        device = next((each.device for each in (*parameters, *model.buffers())), torch.device("cpu"))
        settings = json.dumps(process_settings(device), sort_keys=True, default=str)
        try:
            with original_forward(model):
                fingerprint = Fingerprint(lambda part: id(part) in trained).add(model).add(task).add(names).add(settings)
        except NotComparableError as error:
            reason = f"it cannot be told whether another run has the same model and task: {error}"
            return cls(model, selection, task, reason=reason)
        state = digest_of(fingerprint.hexdigest(), sharing.settings)
        return cls(model, selection, task, shared=sharing.folder, state=state)

    def attributes(self) -> str:
        """Return a digest of the model and the task without the bits of parameters and buffers: of all else."""
        own = {id(entry.tensor) for entry in tensor_entries(self.model).values()}
        with original_forward(self.model):
            return Fingerprint(lambda part: id(part) in own).add(self.model).add(self.task).hexdigest()

    def find(self, example: Example) -> FoundPrefix:
        """Return what `find_prefix` returns."""
        return FoundPrefix(**self._once("find", example, lambda: asdict(find_prefix(self.model, self.selection, example))))

    def why_not_shared(self, prefix: Prefix, example: Example) -> str:
        """Return what `why_not_shared` in `purity` returns."""
        where = prefix.boundary, prefix.modules
        compute = lambda: why_not_shared(self.model, self.selection, *where, example=example)  # noqa: E731
        return self._once("share", example, compute, prefix)

    def recording(
        self, prefix: Prefix, example: Example, dim_orders: Mapping[RowFormat, Sequence[int]]
    ) -> tuple[Recording, float]:
        """Return what `verified_recording` returns; raises what it raises."""
        own: list[tuple[Recording, float]] = []

        def compute() -> list[Any]:
            own.append(verified_recording(self.model, prefix, example, dim_orders))
            return [_as_text(own[0][0]) if self.shared else "", own[0][1]]

        text, difference = self._once("recording", example, compute, (prefix, dict(dim_orders)))
        recording = own[0][0] if own else _from_text(text)
        return (recording, difference) if recording else verified_recording(self.model, prefix, example, dim_orders)

    def _once(self, what: str, example: Example, compute: Callable[[], T], given: object = None) -> T:
        """Return `compute()`, called by one run of the sweep for each state, batch and `given`."""
        if self.shared is None:
            return compute()
        batch = Fingerprint().add(example.batch).hexdigest()
        return self.shared.once(WHAT, digest_of(what, self.state, batch, repr(given)), compute)


def _as_text(recording: Recording) -> str:
    """Return a recording as text; "" if its placeholders stand in objects that only the library that made them can read."""
    buffer = io.BytesIO()
    try:
        torch.save({"outputs": recording.outputs, "last": recording.last, "dim_order": list(recording.dim_order)}, buffer)
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    except Exception:  # of the user's classes
        return ""
    return base64.b64encode(buffer.getvalue()).decode()


def _from_text(text: str) -> Recording | None:
    """Return the recording that `_as_text` wrote; None for "", or if it cannot be read."""
    try:
        return Recording(**torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)) if text else None
    except (pickle.UnpicklingError, RuntimeError, TypeError, ValueError):
        return None
