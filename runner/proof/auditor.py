"""The work of an audit: compare tensors after optimizer steps, and make a row for each tensor at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.contract import LeakCause
from runner.freezing.groups import group_lr, groups_by_tensor
from runner.freezing.selection import Selection
from runner.proof.audit_report import Report, make_row, unknown_cause_notes
from runner.proof.causes.leak_tracer import LeakTracer
from runner.proof.causes.replay import gradient_kind, shares_memory, try_find_causes
from runner.proof.changes import Snapshot
from runner.proof.following import Followed, Following
from runner.proof.marks import WatchList, Window, marks_of
from runner.proof.optimizers import KnownOptimizers
from runner.proof.steps import StepHooks, closure_of_step, has_compiled, with_closure
from runner.proof.verdict import Evidence
from runner.tensors import copy_of, is_compiled, same_bits


class Auditor:
    """Compares the tensors of one model after steps of its optimizers, and fills the report at the end.

    Args:
        model: the model that is trained.
        selection: the parameters and buffers that are declared frozen.
        optimizers: the optimizers that were given; others are found when they step.
        every: compare bits after every `every` steps; None for steps 1, 2, 4, 8, ...
        initial: copies of all parameters and buffers. Later values are compared with these copies.
        watch_forward: watch the forward passes from the beginning, as with `every=1`.
    """

    def __init__(
        self,
        model: nn.Module,
        selection: Selection,
        optimizers: list[Optimizer],
        *,
        every: int | None,
        initial: Snapshot,
        watch_forward: bool,
    ) -> None:
        self.every = every
        self.report = Report()
        self.following = Following(model, initial)
        self.optimizers = KnownOptimizers(optimizers, self.following)
        self.tracer = LeakTracer(model, self.replay_step, lambda: not has_compiled() and not is_compiled(model))
        self.hooks: StepHooks | None = None
        self.watch_lists: dict[int, WatchList] = {}  # by id of an optimizer
        self.assignment = 0  # the one of `optimizers` for which the watch lists were made
        self.declared_any = False
        self.in_forward = watch_forward or every == 1
        self.watch_for_a_step(self.declare(selection))  # the first step may be the only one that moves a tensor

    def declare(self, selection: Selection) -> list[Followed]:
        """Declare the tensors in `selection` frozen, and return their rows, if they were not frozen before."""
        names = _declared_names(selection, self.following)
        self.declared_any |= bool(names)
        newly = self.following.declare(names)
        self.optimizers.store_lrs()
        self.optimizers.forget_rows()
        return newly

    def watch_for_a_step(self, rows: Iterable[Followed], replays: bool = False) -> None:
        """Watch what writes to the tensors of these rows in the next step, or, with `every=1`, to the end."""
        self.tracer.watch(rows, replays=replays, is_kept=self.every == 1, in_forward=self.in_forward)

    def freeze_more(self, selection: Selection) -> None:
        """Declare the tensors of `selection` frozen too, and compare the new ones from now on with their current values.

        Tensors that were already declared frozen are still compared with their earlier values.
        """
        newly = self.declare(selection)
        for row in newly:
            row.reference = copy_of(row.tensor)
            row.evidence, row.window = Evidence(), Window(self.optimizers.last_step)
        self.watch_lists.clear()
        # Optimizer state from before the freeze may move a tensor in the next step only.
        self.watch_for_a_step([row for row in self.following.rows if row.frozen], replays=True)

    def on_step_begin(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a step: read the marks of the frozen tensors, and replay the step for those that the tracer watches.

        Returns None, or the (args, kwargs) of the step with its closure wrapped.
        """
        if _is_capturing() or not self.optimizers.on_step_begin(optimizer):
            return None
        number = self.optimizers.step
        self.read_marks(optimizer, before_step=number)
        closure = closure_of_step(optimizer, args, kwargs)
        if self.tracer.watched:
            self.tracer.on_step_begin(optimizer, self.optimizers.rows(optimizer), has_closure=closure is not None)
        if closure is None:
            return None

        @wraps(closure)
        def watched_closure(*closure_args: Any, **closure_kwargs: Any) -> Any:
            rows, has_raised = self.optimizers.rows(optimizer), True
            self.read_marks(optimizer)
            self.tracer.on_closure_begin(rows)
            try:
                loss = closure(*closure_args, **closure_kwargs)
                has_raised = False
                return loss
            finally:
                self.read_marks(optimizer, before_step=number)
                self.tracer.on_closure_end(optimizer, rows, has_raised)

        return with_closure(args, kwargs, watched_closure)

    def on_step_end(self, optimizer: Optimizer) -> None:
        """After a step: count it, and after some of the steps compare bits and look for causes of changes."""
        if _is_capturing() or not self.optimizers.knows(optimizer):
            return
        count = self.optimizers.on_step_end(optimizer)
        is_power_of_two = count & (count - 1) == 0
        compares = count % self.every == 0 if self.every else is_power_of_two
        if compares and optimizer is self.optimizers.first:
            self.optimizers.update()
        self.read_marks(optimizer)
        found = self.compare_bits(self.optimizers.rows(optimizer), self.optimizers.last_step) if compares else []
        if compares or is_power_of_two:  # while the gradients and learning rates of the step are still there
            self.record_gradients(self.optimizers.own_rows(optimizer), optimizer)
        if self.tracer.watched:
            self.tracer.on_step_end(self.optimizers.rows(optimizer))
        unexplained = [row for row in found if not row.evidence.cause]
        if unexplained:
            self.explain_by_last_step(optimizer, [row for row in unexplained if row.may_be_stepped])
            for row in unexplained:
                row.window.written_between |= not row.may_be_stepped
            self.tracer.watch([row for row in unexplained if row not in self.tracer.watched])

    def read_marks(self, optimizer: Optimizer, before_step: int | None = None) -> None:
        """Read the marks of the frozen tensors that `optimizer` answers for.

        `before_step`: the number of the step, if it begins now or its closure has just returned, so that a change of a mark
        was made by other code. None if the step ends now or calls its closure, so that it was made by the step.
        """
        if self.assignment != self.optimizers.assignment:
            self.watch_lists.clear()
            self.assignment = self.optimizers.assignment
        if id(optimizer) not in self.watch_lists:
            own, other = (
                [(row.tensor, row.window) for row in rows if row.frozen and not row.evidence.differed]
                for rows in (self.optimizers.own_rows(optimizer), self.optimizers.other_rows(optimizer))
            )
            self.watch_lists[id(optimizer)] = WatchList(own, other)
        self.watch_lists[id(optimizer)].read(before_step)

    def replay_step(
        self, optimizer: Optimizer, tensors: Mapping[str, Tensor], with_closure: bool = False
    ) -> tuple[dict[str, LeakCause], str]:
        """Do a step of the optimizer on copies; return ({name: why it moves the tensor}, why it could not be replayed)."""
        with self.hooks.pause() if self.hooks else nullcontext():
            return try_find_causes(optimizer, tensors, self.optimizers.declared_lrs[id(optimizer)], with_closure)

    def compare_bits(self, rows: Iterable[Followed], step: int) -> list[Followed]:
        """Compare the tensors of these rows, and return those rows of frozen tensors that are newly found changed.

        `step`: the number of the step that has just ended. A tensor that has differed before is not compared again.
        """
        if step and step not in self.report.looks:
            self.report.looks.append(step)
        found = []
        self.watch_lists.clear()
        for row in rows:
            if row.evidence.differed:
                continue
            if same_bits(row.reference, row.tensor):
                row.window = Window(step, marks_of([row.tensor])[0]) if row.frozen else row.window
                continue
            row.evidence.differed, row.evidence.seen_at = True, step
            row.window.steps = step - row.window.begin
            if row.frozen:
                found.append(row)
                if row.reference.dtype != row.tensor.dtype and not row.evidence.replaced:
                    row.evidence.cause = "dtype_changed"
        return found

    def record_gradients(self, rows: Iterable[Followed], optimizer: Optimizer | None) -> None:
        """Record the kind of gradient and the learning rate of parameters that are not frozen and were never found changed.

        When the audit ends, these two explain why such a parameter has not changed. The kind is `none`, `zero` or `present`;
        the learning rate is that of the parameter's group in `optimizer`.
        """
        group_of = groups_by_tensor([optimizer] if optimizer else [])
        for row in rows:
            if row.kind == "parameter" and not row.frozen and not row.evidence.differed:
                row.evidence.gradients.add(gradient_kind(row.tensor))
                if id(row.tensor) in group_of:
                    row.evidence.lrs.add(group_lr(group_of[id(row.tensor)][1]))

    def explain_by_last_step(self, optimizer: Optimizer, rows: Iterable[Followed]) -> None:
        """Repeat the last step of an optimizer on copies, and store why it moves the tensors of these rows.

        A cause found here is used only if watching the training finds none.
        """
        tensors = {row.name: row.tensor for row in rows if not row.evidence.fallback_cause}
        if tensors:
            causes, error = self.replay_step(optimizer, tensors)
            for row in rows:
                row.evidence.fallback_cause = row.evidence.fallback_cause or causes.get(row.name, "")
                row.evidence.why_unknown = error or row.evidence.why_unknown

    def finish(self) -> None:
        """Compare bits on leaving, look for the causes that are still unknown, and fill the report."""
        self.optimizers.update()
        last = self.optimizers.last_step
        for row in self.following.rows:
            if row.frozen and not row.evidence.differed and row.window.mark not in (None, *marks_of([row.tensor])):
                row.window.written_before.append(last + 1)
        self.compare_bits(self.following.rows, last)
        if not last:  # only the gradients that are still there can explain idle parameters
            self.record_gradients(self.following.rows, None)
        self.following.merge_split_rows()
        self.optimizers.forget_rows()
        leaked = [row for row in self.following.rows if row.frozen and row.evidence.differed and not row.evidence.cause]
        for optimizer, rows in self.optimizers.holding(leaked).values():
            self.explain_by_last_step(optimizer, [row for row in rows if row.may_be_stepped])
        for row in leaked:
            self.explain_by_marks(row)
        group_of = self.optimizers.groups()
        for row in self.following.rows:
            group_name, group = group_of.get(id(row.tensor), ("", None))
            lr = None if group is None else self.optimizers.last_lrs.get(id(group), group_lr(group))
            self.report.rows.append(
                make_row(row, aliases=self.following.aliases(row), group=group_name, lr=lr, steps_seen=last > 0)
            )
        why_unknown = {row.name: row.evidence.why_unknown for row in self.following.rows}
        gone = [row.name for row in self.following.rows if row.is_gone]
        self.report.notes = [
            *unknown_cause_notes(self.report.rows, why_unknown),
            *self.optimizers.notes(),
            *(["bits were compared on leaving only: torch.compile has compiled a step"] if self.hooks is None else []),
            *([f"no longer in the model: {', '.join(gone)}"] if gone else []),
        ]
        self.report.ended = True

    def explain_by_marks(self, row: Followed) -> None:
        """Store the cause of a change that no replay explains, as far as the marks of the tensor show who wrote it."""
        evidence, window = row.evidence, row.window
        if evidence.fallback_cause or evidence.cause:
            return
        if evidence.replaced:
            evidence.cause = evidence.replaced
        elif any(shares_memory(row.tensor, each) for each in self.optimizers.known):
            evidence.cause = "shared_tensor"
        elif not self.optimizers.last_step and (row.kind == "buffer" or row.tensor.grad is not None):
            evidence.why_unknown = "no optimizer step was seen in the block"
        elif window.reached and not window.written_before:
            between = f"between steps {window.begin} and {evidence.seen_at}"
            evidence.why_unknown = evidence.why_unknown or f"it was written through .data {between}"
        elif window.steps and (window.is_before_first_step or row.kind == "buffer"):
            evidence.why_unknown = evidence.why_unknown or "it was written by a forward pass or by other code: use every=1"
        else:
            evidence.cause = "outside_write"


def _declared_names(selection: Selection, following: Following) -> set[str]:
    """Return the names of the model at which the tensors of a selection stand, or stood when it was made."""
    tensors = {**selection.parameters, **selection.buffers}
    ids = {id(tensor) for tensor in tensors.values()}
    names = set[str]()
    for row in following.rows:
        if id(row.tensor) in ids or not tensors.keys().isdisjoint(row.names):
            names |= selection.names.intersection(row.names) or set(row.names)
    return names


def _is_capturing() -> bool:
    """Return whether a CUDA graph is being captured; nothing may be compared then."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
