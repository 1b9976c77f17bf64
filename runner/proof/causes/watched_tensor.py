"""A frozen tensor whose writers are looked for, with what has written to it since the last step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from runner.proof.following import Followed
from runner.proof.marks import Mark, marks_of
from runner.shards import is_gathered
from runner.tensors import same_bits

Writer = Literal["forward_write", "outside_write", "between_steps", "step"]


@dataclass
class WatchedTensor:
    """A frozen tensor that is watched, and what was seen to write to it since the last step.

    Attributes:
        row: the row of the report that is about it.
        registrations: (module, key) for each place where the tensor is registered, such as (layer, "weight").
        tensor: the tensor that was registered there when bits were last compared.
        value_after_step: a copy of its value after the last step, or, before the first one, when watching began.
        last_value: a copy of its value when bits were last compared.
        replays: whether its next step is replayed although it has not changed so far.
        is_kept: whether it is watched to the end.
        by_marks: whether its bits are compared only when its mark has changed. What the marks hide, such as a write through
            `.data`, the comparison after the step finds.
        in_forward: whether it is also watched during forward passes, from the beginning.
        steps: the number of steps that have begun since it is watched.
        writers: what has changed it since the last step: `forward_write` (code inside a forward pass), `step` (the
            optimizer's step), `outside_write` (any other code), `between_steps` (one of the first and the third).
        mark: its mark when bits were last compared, if they are compared only when that changes.
        forward_depth: how many forward passes of modules that contain it are running now, one inside another.
        is_substituted: whether another tensor is in its place during a forward pass, as by `torch.func.functional_call`.
    """

    row: Followed
    registrations: list[tuple[nn.Module, str]]
    tensor: Tensor
    value_after_step: Tensor
    last_value: Tensor
    replays: bool
    is_kept: bool
    by_marks: bool
    in_forward: bool
    steps: int = 0
    writers: set[Writer] = field(default_factory=set)
    mark: Mark | None = None
    forward_depth: int = 0
    is_substituted: bool = False

    @property
    def differs(self) -> bool:
        """Whether its value at the last comparison was not the reference of its row."""
        return self.last_value is not self.row.reference and not same_bits(self.row.reference, self.last_value)

    def has_new_mark(self, tensor: Tensor) -> bool:
        """Return whether the tensor in its place may have changed since the last comparison, as far as marks show."""
        if not self.by_marks:
            return True
        before, self.mark = self.mark, marks_of([tensor])[0]
        return self.mark != before or tensor is not self.tensor

    @property
    def is_open(self) -> bool:
        """Whether something writes to it between steps, and it is not known whether that is a forward pass."""
        evidence = self.row.evidence
        return self.row.window.written_between and not evidence.cause and not evidence.why_unknown

    @property
    def current(self) -> Tensor | None:
        """The tensor that is registered in its place now, which may be a new one; None if there is none.

        What FSDP gathers in the place of a shard is not the tensor that is trained: it is dropped after the forward pass.
        """
        for module, key in self.registrations:
            for registry in (module._parameters, module._buffers):
                found = registry[key] if key in registry else None  # noqa: SIM401 - a ScriptModule's have no `get`
                if found is not None:
                    return self.tensor if is_gathered(found, self.tensor) else found
        return None
