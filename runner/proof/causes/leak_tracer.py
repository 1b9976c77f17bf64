"""Find out what writes to frozen tensors during a training step: a forward pass, the optimizer step, or other code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from runner.contract import LeakCause
from runner.proof.causes.forward_hooks import ForwardHooks
from runner.proof.causes.optimizer_copy import requires_closure, skips
from runner.proof.causes.places import owners_of, places_of
from runner.proof.causes.watched_tensor import WatchedTensor
from runner.proof.following import Followed
from runner.proof.marks import marks_of
from runner.tensors import copy_of, same_bits

FindCauses = Callable[[Optimizer, Mapping[str, Tensor], bool], tuple[dict[str, LeakCause], str]]

WRITTEN_BEFORE_EVERY_STEP = "something writes to it before every step; torch.compile is in use, and hooks would recompile"
WRITTEN_ONCE_BEFORE_FIRST_STEP = "it was written once, before the first step: by a forward pass or by other code"
STEP_WITH_CLOSURE = "the step calls its closure several times, and replaying the first call does not move it"
STEP_NOT_REPLAYED = "the step moves it, but a replay of the step on copies does not"


class LeakTracer:
    """Watches frozen tensors for some steps, and stores in the evidence of their rows what changes them.

    The training is not changed. To replay a step is to do it on copies first, with one thing changed at a time.

    Args:
        model: the model that is trained.
        find_causes: called with (optimizer, {name: tensor}, whether the step has a closure). It replays the step that begins
            now and returns ({name: why it moves the tensor}, why it could not be replayed).
        may_hook_modules: returns whether hooks may be set on all modules; they would make dynamo compile again.
    """

    def __init__(self, model: nn.Module, find_causes: FindCauses, may_hook_modules: Callable[[], bool]) -> None:
        self.model, self.find_causes, self.may_hook_modules = model, find_causes, may_hook_modules
        self.watched: dict[Followed, WatchedTensor] = {}
        self.module_hooks: ForwardHooks | None = None
        self.watched_in: dict[int, list[WatchedTensor]] = {}  # by id of a module: the watched tensors in it and below it
        self.in_step = self.has_closure = False  # of the current or last optimizer step
        self.closure_has_returned = False  # at least once in that step
        self.replayed: set[Followed] = set()  # the rows for which the current step has been replayed
        self.replay_causes: dict[Followed, LeakCause] = {}  # what that replay has found

    def watch(
        self,
        rows: Iterable[Followed],
        *,
        replays: bool = False,
        is_kept: bool = False,
        in_forward: bool = False,
        by_marks: bool = False,
    ) -> None:
        """Watch the tensors of these rows from now on, each until its optimizer has made a step or two.

        `replays`: replay the next step for all of them, not only for those that have already changed. `is_kept`: watch them
        to the end. `in_forward`: set hooks on all modules now, not only when something was found to write between steps.
        `by_marks`: compare the bits of parameters only when their marks have changed; BatchNorm does not mark its buffers.
        """
        for row in rows:
            mark = marks_of([row.tensor])[0] if by_marks and row.kind == "parameter" else None
            has_held = mark is not None and mark == row.window.mark and not row.evidence.differed
            value = row.reference if has_held or same_bits(row.reference, row.tensor) else copy_of(row.tensor)
            self.watched[row] = WatchedTensor(
                row=row,
                registrations=places_of(self.model, row.names),
                tensor=row.tensor,
                value_after_step=value,
                last_value=value,
                replays=replays,
                is_kept=is_kept,
                by_marks=mark is not None,
                in_forward=in_forward,
                mark=mark,
            )
        self._update_module_hooks()

    def sees_every_write(self, row: Followed) -> bool:
        """Return whether the tensor of a row is watched, and compared whatever its mark says."""
        return row in self.watched and not self.watched[row].by_marks

    def close(self) -> None:
        """Stop watching: remove all hooks."""
        self.watched.clear()
        self.remove_module_hooks()

    def on_step_begin(self, optimizer: Optimizer, rows: Iterable[Followed], has_closure: bool) -> None:
        """Compare the tensors of these rows, and replay the step that begins (do it on copies) for those that have changed.

        With a closure, the replay is done after the closure's first call: see `on_closure_end`.
        """
        self.has_closure, self.closure_has_returned = has_closure, False
        self.replayed.clear()
        self.replay_causes.clear()
        watched = self._watched(rows)
        for each in watched:
            each.steps += 1
        self._record_writers(watched)  # `in_step` is still set if the last step has raised
        self.in_step = False
        for each in watched:
            if each.writers and each.current is not None and same_bits(each.value_after_step, each.current):
                each.writers.clear()  # it was written, and put back before the step (SAM)
        self.in_step = True
        if not has_closure:
            self._replay(optimizer, watched)

    def on_closure_begin(self, rows: Iterable[Followed]) -> None:
        """Compare tensors before a step calls its closure: what has changed in the step was written by the optimizer."""
        self._record_writers(self._watched(rows))
        self.in_step = False

    def on_closure_end(self, optimizer: Optimizer, rows: Iterable[Followed], has_raised: bool) -> None:
        """Compare tensors when the closure has returned or raised; replay the step if that was its first call."""
        watched = self._watched(rows)
        self._record_writers(watched)
        self.in_step = True
        if (
            not self.closure_has_returned and not has_raised
        ):  # the gradients are those of the step, and nothing has moved yet
            self.closure_has_returned = True
            self._replay(optimizer, watched)

    def on_step_end(self, rows: Iterable[Followed]) -> None:
        """Store what changed the tensors of these rows since their last step, and stop watching those that are done."""
        watched = self._watched(rows)
        self._record_writers(watched)
        self.in_step = False
        for each in watched:
            row = each.row
            if row.evidence.cause == "" and each.current is not None and each.differs:
                self._conclude(each)
            each.value_after_step = each.last_value
            each.writers.clear()
        self.replayed.clear()
        self.replay_causes.clear()
        for each in watched:
            if not each.is_kept and (each.steps >= 2 or not each.is_open):
                del self.watched[each.row]
        self._update_module_hooks()

    def on_leaving(self, rows: Iterable[Followed]) -> None:
        """Store what changed the tensors of these rows since the last step, if forward passes were watched too."""
        if not self.module_hooks:
            return
        watched = self._watched(rows)
        self._record_writers(watched)
        for each in watched:
            if each.writers and not each.row.evidence.cause and each.row.evidence.differed:
                self._conclude(each)

    def _watched(self, rows: Iterable[Followed]) -> list[WatchedTensor]:
        """Return what is watched of these rows."""
        return [self.watched[row] for row in rows if row in self.watched] if self.watched else []

    def _conclude(self, watched: WatchedTensor) -> None:
        """Store why a tensor has changed that differs from its reference, or why that is not known yet."""
        row, evidence, writers = watched.row, watched.row.evidence, watched.writers
        if "forward_write" in writers:
            evidence.cause = "forward_write"
        elif "outside_write" in writers:
            evidence.cause = evidence.replaced or "outside_write"
        elif "between_steps" in writers:
            evidence.why_unknown = WRITTEN_BEFORE_EVERY_STEP if row.window.written_between and not evidence.replaced else ""
            row.window.written_between = True
        elif "step" in writers:
            evidence.cause = evidence.replaced or self.replay_causes.get(row, "")
            if row in self.replayed and not evidence.cause and not evidence.why_unknown:
                evidence.why_unknown = STEP_WITH_CLOSURE if self.has_closure else STEP_NOT_REPLAYED
        elif row.window.written_between:  # before an earlier step, and not again: the forward pass does not write it
            if evidence.replaced:
                evidence.cause = evidence.replaced
            elif row.window.is_before_first_step:
                evidence.why_unknown = WRITTEN_ONCE_BEFORE_FIRST_STEP
            else:
                evidence.cause = "outside_write"

    def _replay(self, optimizer: Optimizer, watched: Sequence[WatchedTensor]) -> None:
        """Repeat the step that begins now on copies, and record why it moves those tensors that are not explained yet.

        That is why it moves those that have changed, or are to be replayed and not skipped by it. With an optimizer that
        requires a closure it is the first step for all: its gradients are gone at its end, and a later step may move
        nothing. If the step cannot be repeated on copies, the reason is recorded instead.
        """
        replays_all = requires_closure(optimizer)
        to_explain = {
            each.row: each.current
            for each in watched
            if each.current is not None
            and not each.row.evidence.cause
            and ((each.replays and not skips(optimizer, each.current)) or each.differs or (replays_all and each.steps == 1))
        }
        if to_explain:
            self.replayed.update(to_explain)
            tensors = {row.name: tensor for row, tensor in to_explain.items() if tensor is not None}
            causes, error = self.find_causes(optimizer, tensors, self.has_closure)
            for row in to_explain:
                if row.name in causes:
                    self.replay_causes[row] = causes[row.name]
                row.evidence.why_unknown = error or row.evidence.why_unknown

    def _update_module_hooks(self) -> None:
        """Set hooks on all modules if a watched tensor needs them, otherwise remove them."""
        if not any(watched.in_forward or watched.is_open for watched in self.watched.values()):
            self.remove_module_hooks()
            return
        if not self.may_hook_modules():
            return
        self.watched_in.clear()
        for watched in self.watched.values():
            owners = {id(module) for name in watched.row.names for module in owners_of(self.model, name)}
            for module_id in owners:
                self.watched_in.setdefault(module_id, []).append(watched)
        if self.module_hooks is None:
            self.module_hooks = ForwardHooks(self._on_forward_begin, self._on_forward_end)

    def remove_module_hooks(self) -> None:
        """Remove the hooks on all modules."""
        if self.module_hooks is not None:
            self.module_hooks.remove()
            self.module_hooks = None
        self.watched_in.clear()
        for watched in self.watched.values():
            watched.forward_depth = 0  # torch.compile may begin in a forward pass, whose end is then not seen

    def _on_forward_begin(self, module: nn.Module) -> bool:
        """Compare the module's tensors before its forward pass: what has changed was written by other code.

        Those of a module around it whose forward pass runs have been compared before that, and are again after it. Returns
        whether it has any.
        """
        within = self._watched_within(module)
        for watched in within:
            if not watched.forward_depth:
                watched.is_substituted = watched.current is not watched.tensor
        self._record_writers(each for each in within if not each.forward_depth and not each.is_substituted)
        for watched in within:
            watched.forward_depth += 1
        return bool(within)

    def _on_forward_end(self, module: nn.Module) -> None:
        """Compare the module's tensors after its forward pass: what has changed was written by that pass."""
        within = self._watched_within(module)
        self._record_writers(each for each in within if each.forward_depth <= 1 and not each.is_substituted)
        for watched in within:
            watched.forward_depth = max(0, watched.forward_depth - 1)

    def _watched_within(self, module: nn.Module) -> list[WatchedTensor]:
        """Return the watched tensors that are registered in a module or its submodules."""
        module = getattr(module, "_orig_mod", module)  # a compiled module does not call the module that it was made from
        return self.watched_in.get(id(module), [])

    def _record_writers(self, tensors: Iterable[WatchedTensor]) -> None:
        """Compare tensors with their last values; if one differs, record what runs now (step, forward) as its writer."""
        for watched in tensors:
            tensor = watched.current
            if tensor is not None and watched.has_new_mark(tensor) and not same_bits(watched.last_value, tensor):
                if watched.forward_depth:
                    watched.writers.add("forward_write")
                elif self.in_step:
                    watched.writers.add("step")
                else:
                    watched.writers.add("outside_write" if self.module_hooks else "between_steps")
                watched.last_value = copy_of(tensor)
            watched.tensor = watched.tensor if tensor is None else tensor
