"""The work of an audit: compare tensors after optimizer steps, and make a row for each tensor at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from runner.contract import LeakCause
from runner.errors import ConfigError, listed
from runner.freezing.selection import Selection
from runner.proof.audit_report import Frozen, LeakError, Report
from runner.proof.causes.by_marks import explain_by_marks
from runner.proof.causes.idle import record_gradients
from runner.proof.causes.leak_tracer import LeakTracer
from runner.proof.causes.replay import try_find_causes
from runner.proof.changes import Snapshot
from runner.proof.digests import DigestWatcher
from runner.proof.following import Followed, Following
from runner.proof.marks import Window, marks_of, writes_ignored
from runner.proof.optimizers import KnownOptimizers
from runner.proof.options import AuditOptions
from runner.proof.results.notes import COMPARED_ON_LEAVING, model_notes, train_mode_notes, unfrozen_and_unchanged
from runner.proof.results.phases import PhaseLog
from runner.proof.results.rows import found_changed, make_rows, unknown_cause_notes
from runner.proof.steps import StepHooks, closure_of_step, has_compiled, is_capturing, with_closure
from runner.proof.watch_lists import WatchLists
from runner.tensors import is_compiled, same_bits


class Auditor:
    """Compares the tensors of one model after steps of its optimizers, and fills the report at the end.

    Args:
        model: the model that is trained.
        report: the report to fill.
        optimizers: the optimizers that were given; others are found when they step.
        options: when bits are compared, and what is watched.
        initial: copies of all parameters and buffers. Later values are compared with these copies.
        as_selection: turns patterns into a Selection.
    """

    def __init__(
        self,
        model: nn.Module,
        report: Report,
        optimizers: list[Optimizer],
        options: AuditOptions,
        *,
        initial: Snapshot,
        as_selection: Callable[[Frozen], Selection],
    ) -> None:
        self.report, self.options, self.as_selection = report, options, as_selection
        self.following = Following(model, initial)
        self.optimizers = KnownOptimizers(optimizers, self.following)
        self.tracer = LeakTracer(model, self.replay_step, lambda: not has_compiled() and not is_compiled(model))
        self.hooks: StepHooks | None = None
        self.watch_lists = WatchLists(self.optimizers)
        self.phase_log = PhaseLog()
        self.mode_notes: list[str] | None = None  # about train mode at the first step
        self.in_forward = options.watch_forward or options.every == 1

    def declare(self, selection: Selection) -> list[Followed]:
        """Declare the tensors in `selection` frozen, and return their rows, if they were not frozen before."""
        names = self.following.declared_names(selection)
        if not names and (selection.parameters or selection.buffers):
            raise ConfigError("frozen: no tensor of this Selection is in the model")
        self.report.is_empty &= not names
        newly = self.following.declare(names)
        self.optimizers.store_lrs()
        self.optimizers.forget_rows()
        return newly

    def watch_for_a_step(self, rows: Iterable[Followed], *, replays: bool = False, by_marks: bool = False) -> None:
        """Watch what writes to the tensors of these rows in the next step, or, with `every=1`, to the end."""
        is_kept = self.options.every == 1
        by_marks = not self.options.watch_forward if is_kept else by_marks
        self.tracer.watch(rows, replays=replays, is_kept=is_kept, in_forward=self.in_forward, by_marks=by_marks)

    def end_phase(self) -> None:
        """If a step was made since the present phase began, end the phase: note its rows, and begin another."""
        if self.optimizers.last_step >= self.phase_log.first:
            self.optimizers.update()
            self.conclude([row for row in self.following.rows if row.frozen])
            self.report.phases.append(self.phase_log.end(self.following, self.optimizers))
            self.phase_log.begin(self.following, self.optimizers.last_step + 1)

    def freeze(self, frozen: Frozen) -> None:
        """Declare more tensors frozen, to be compared with their current values; the others still are with earlier ones."""
        frozen_before = [row for row in self.following.rows if row.frozen]
        newly = self.declare(self.as_selection(frozen))
        for row in newly:
            self.phase_log.begin_span(row, self.following, self.optimizers)
        self.watch_lists.clear()
        # Optimizer state from before the freeze may move a tensor in the next step only.
        self.watch_for_a_step(newly, replays=True)
        self.watch_for_a_step(frozen_before, replays=True, by_marks=True)

    def unfreeze(self, frozen: Frozen) -> None:
        """Declare tensors trainable again; raise ConfigError if none of them is declared frozen."""
        self.optimizers.update()
        selection = self.as_selection(frozen)
        names = self.following.declared_names(selection)
        if names.isdisjoint(self.following.declared):
            given = listed([*selection.parameters, *selection.buffers], most=4)
            raise ConfigError(f"unfreeze: not declared frozen: {given}")
        rows = self.following.undeclare(names)
        self.conclude(rows)
        for row in rows:
            self.following.end_span(row, self.optimizers.last_step, self.optimizers.made)
            self.tracer.watched.pop(row, None)
        self.watch_lists.clear()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Watch neither forward passes nor steps in the block; writes to frozen tensors that it puts back do not count."""
        frozen = [row for row in self.following.rows if row.frozen and not row.evidence.differed]
        with ExitStack() as undo:
            for hooks in (self.hooks, self.tracer.module_hooks):
                undo.enter_context(hooks.pause() if hooks else nullcontext())
            undo.enter_context(writes_ignored([(row.tensor, row.reference, row.window) for row in frozen]))
            yield
        self.watch_lists.clear()

    def on_step_begin(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a step: read the marks of the frozen tensors, and replay the step for those that the tracer watches.

        Returns None, or the (args, kwargs) of the step with its closure wrapped.
        """
        if is_capturing() or not self.optimizers.on_step_begin(optimizer):
            return None
        if (until := self.options.until) is not None and self.optimizers.step > until:
            self.stop()
            return None
        if self.optimizers.has_raised:  # its last step may have written before it raised
            self.watch_lists.read(optimizer)
        self.watch_lists.read(optimizer, before_step=(number := self.optimizers.step))
        closure = closure_of_step(optimizer, args, kwargs)
        if self.tracer.watched:
            self.tracer.on_step_begin(optimizer, self.optimizers.rows(optimizer), has_closure=closure is not None)
        if closure is None:
            return None

        @wraps(closure)
        def watched_closure(*closure_args: Any, **closure_kwargs: Any) -> Any:
            rows, has_raised = self.optimizers.rows(optimizer), True
            self.watch_lists.read(optimizer)
            self.tracer.on_closure_begin(rows)
            try:
                loss = closure(*closure_args, **closure_kwargs)
                has_raised = False
                return loss
            finally:
                self.watch_lists.read(optimizer, before_step=number)
                self.tracer.on_closure_end(optimizer, rows, has_raised)

        return with_closure(args, kwargs, watched_closure)

    def on_step_end(self, optimizer: Optimizer) -> None:
        """After a step: count it, and after some of the steps compare bits and look for causes of changes."""
        if is_capturing() or not self.optimizers.knows(optimizer):
            return
        count = self.optimizers.on_step_end(optimizer)
        self.report.steps = self.optimizers.last_step
        if self.mode_notes is None:
            self.mode_notes = train_mode_notes(self.following.model, self.following.frozen_ids())
        is_power_of_two = count & (count - 1) == 0
        is_last = (until := self.options.until) is not None and self.optimizers.step_is_complete(until)
        compares = is_last or (count % self.options.every == 0 if self.options.every else is_power_of_two)
        if compares and optimizer is self.optimizers.first:
            self.optimizers.update()
        self.watch_lists.read(optimizer)
        if compares:
            self.add_look()
        found = self.compare_bits(self.optimizers.rows(optimizer), self.optimizers.last_step) if compares else []
        if compares or is_power_of_two:  # while the gradients and learning rates of the step are still there
            record_gradients(self.optimizers.own_rows(optimizer), optimizer)
        self.phase_log.on_step_end(optimizer, self.optimizers, compares)
        if self.tracer.watched:
            self.tracer.on_step_end(self.optimizers.rows(optimizer))
        unexplained = [row for row in found if not row.evidence.cause]
        if unexplained:
            self.explain_by_last_step(optimizer, [row for row in unexplained if row.may_be_stepped])
            for row in unexplained:
                row.window.written_between |= not row.may_be_stepped
            self.tracer.watch([row for row in unexplained if not self.tracer.sees_every_write(row)])
        if is_last:
            self.stop()
        if found and self.options.raise_at_look:
            raise LeakError(found_changed(found, self.optimizers.last_step))

    def add_look(self) -> None:
        """Note in the report that bits are compared after the last step."""
        if (step := self.optimizers.last_step) and step not in self.report.looks:
            self.report.looks.append(step)

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

    def conclude(self, rows: Sequence[Followed]) -> None:
        """Compare the bits of these rows now, and look for the causes of changes that are still unknown."""
        last = self.optimizers.last_step
        for row in rows:
            if row.frozen and not row.evidence.differed and row.window.mark not in (None, *marks_of([row.tensor])):
                row.window.written_before.append(last + 1)
        self.compare_bits(rows, last)
        self.tracer.on_leaving(rows)
        leaked = [row for row in rows if row.frozen and row.evidence.differed and not row.evidence.cause]
        for optimizer, held in self.optimizers.holding(leaked).values():
            self.explain_by_last_step(optimizer, [row for row in held if row.may_be_stepped])
        for row in leaked:
            explain_by_marks(row, self.optimizers, steps_are_seen=self.hooks is not None, advice=self.options.advice)

    def finish(self) -> None:
        """Compare bits on leaving, look for the causes that are still unknown, and fill the report."""
        self.following.leave()
        self.optimizers.update()
        if not self.optimizers.last_step:  # only the gradients that are still there can explain idle parameters
            record_gradients(self.following.rows, None)
        self.following.merge_split_rows()
        self.optimizers.forget_rows()
        self.add_look()
        self.conclude(self.following.rows)
        if self.report.phases and self.optimizers.last_step >= self.phase_log.first:
            self.report.phases.append(self.phase_log.end(self.following, self.optimizers))
        rows, self.report.why_unknown = make_rows(self.following, self.optimizers)
        self.report.rows, self.report.appeared = rows, {row.name for row in self.following.rows if row.appeared}
        self.report.not_training += unfrozen_and_unchanged(self.following.rows, self.report.steps, self.report.phases)
        self.report.notes += [
            *unknown_cause_notes(rows, self.report.why_unknown),
            *(["no parameter was frozen (requires_grad=False) on entry: give patterns"] if self.report.is_empty else []),
            *model_notes(self.following, rows, self.mode_notes),
            *(self.optimizers.notes(self.options.until) if self.hooks else [COMPARED_ON_LEAVING]),
        ]
        self.report.ended = True

    def stop(self) -> None:
        """Fill the report as of the last step, and keep only digests: of the frozen tensors, and of the idle ones."""
        self.finish()
        watcher = DigestWatcher(self.following.model, self.report, self.optimizers.last_step, as_selection=self.as_selection)
        watcher.watch(self.declared_tensors(), self.following.rows)
        self.close()
        self.report.ended, self.report.watcher = False, watcher

    def close(self) -> None:
        """Remove all hooks, and drop all copies of tensors."""
        self.tracer.close()
        if self.hooks is not None:
            self.hooks.remove()
        self.watch_lists.clear()
        self.phase_log = PhaseLog()
        self.following.forget()
        self.optimizers.forget()

    def declared_tensors(self) -> dict[str, Tensor]:
        """Return {name declared frozen: the tensor that its row is about}."""
        declared = self.following.declared
        return {name: row.tensor for row in self.following.rows if row.frozen for name in row.names if name in declared}
