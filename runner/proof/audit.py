"""The audit: watches anyone's training loop, changes nothing, and says of every tensor what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from runner.contract import Cause, Row
from runner.errors import ConfigError
from runner.freezing.groups import placed, rate
from runner.freezing.selection import Selection, from_flags, select
from runner.proof.audit_report import Report, needs
from runner.proof.changes import Snapshot, change, snapshot, with_added
from runner.proof.replay import gradient, within_a_step
from runner.proof.verdict import Evidence, idle_cause, verdict
from runner.proof.witness import Witness, try_causes
from runner.tensors import Entry, entries, is_compiled, now, refuse_unless_dense, same_bits


@contextmanager
def audit(
    model: nn.Module,
    frozen: Selection | Sequence[str] | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    every: int | None = None,
    *,
    before: Snapshot | None = None,
) -> Iterator[Report]:
    """Watch the training inside the `with` block; the report is complete when the block is left.

    `frozen`: patterns, a Selection, or None for whatever has `requires_grad` False on entry. `optimizer`: one, several,
    or None; their steps are counted, and bits are compared after steps 1, 2, 4, 8, ... or each `every` steps, and on
    leaving. The step that follows a look which found a leak is replayed on copies for its cause; a rate that a scheduler
    set before the block was entered passes for the declared one. `every=1` watches every step for who writes, at the price
    of comparing all that is frozen around each module. A replay copies the optimizer's parameters, gradients and state,
    for as long as it takes. `before`: a snapshot to compare with, where one was taken earlier. Raises ConfigError, a
    ValueError, for bad patterns and for tensors that are not dense.
    """
    optimizers = _checked(model, frozen, optimizer, every)
    if isinstance(frozen, Selection):
        selection = frozen
    else:
        selection = from_flags(model) if frozen is None else select(model, _patterns(frozen))
    start = with_added(before, model) if before else snapshot(model)
    watch = _Watch(model=model, selection=selection, optimizers=optimizers, every=every, before=start)
    hooks = [one.register_step_post_hook(partial(watch.after_step, index)) for index, one in enumerate(optimizers)]
    try:
        yield watch.report
    except BaseException:
        with suppress(Exception):  # what the block raised matters more
            watch.finish()
        raise
    else:
        watch.finish()
        if frozen is None and not watch.frozen_names:
            watch.report.notes.append("nothing had requires_grad False when the audit began, so nothing was held")
    finally:
        watch.dismiss()
        watch.report.declare = None  # which holds the copy of the model
        for hook in hooks:
            hook.remove()


def _checked(model: nn.Module, frozen: Any, optimizer: Any, every: Any) -> list[Optimizer]:
    """The optimizers as a list, where all arguments are of their kind."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    refuse_unless_dense(model)
    if every is not None and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
        raise ConfigError(f"every is {every!r}; give the number of steps between looks, 1 or more")
    given: Any = [] if optimizer is None else optimizer
    optimizers = list(given) if isinstance(given, (list, tuple)) else [given]
    for one in optimizers:
        if not isinstance(one, Optimizer):
            raise ConfigError(f"optimizer holds a {type(one).__name__}; give torch optimizers")
        if not hasattr(one, "_optimizer_step_post_hooks"):
            raise ConfigError(
                f"optimizer holds a {type(one).__name__} that has not called torch's Optimizer.__init__; "
                "give the optimizer that it wraps"
            )
    return optimizers


def _patterns(frozen: Any) -> list[str]:
    if not isinstance(frozen, (list, tuple, set)) or not all(isinstance(pattern, str) for pattern in frozen):
        given = repr(frozen) if isinstance(frozen, (str, list, tuple)) else f"a {type(frozen).__name__}"
        raise ConfigError(f"frozen is {given}; give a list of patterns, a Selection or None")
    return list(frozen)


class _Watch:
    """Looks at one model after its optimizers' steps, and writes the report at the end."""

    def __init__(
        self, model: nn.Module, selection: Selection, optimizers: list[Optimizer], every: int | None, before: Snapshot
    ) -> None:
        self.model, self.optimizers, self.every = model, optimizers, every
        self.before = Snapshot(before.entries, dict(before.values))
        self.evidence = {name: Evidence() for name in before.entries}
        self.lrs: dict[int, float] = {}  # of each group, by identity: the rate of its last step
        self.steps = [0] * len(optimizers)
        self.witness: Witness | None = None
        self.report = Report(declare=self.declare)
        self.frozen_names, self.frozen_ids = set[str](), set[int]()
        self.name_frozen(selection)
        if every == 1 or (optimizers and not is_compiled(model)):
            self.call_witness(self.frozen())  # who writes in the first forward pass may have no reason to write again

    def name_frozen(self, selection: Selection) -> None:
        declared = {**selection.parameters, **selection.buffers}
        self.frozen_names |= set(declared)
        self.frozen_ids |= {id(tensor) for tensor in declared.values()}
        self.rates = [[rate(group) for group in one.param_groups] for one in self.optimizers]  # as declared

    def declare(self, frozen: Selection | Sequence[str]) -> None:
        """Hold what is newly frozen against what it is now, and what was declared before against what it was."""
        known = set(self.frozen())
        self.name_frozen(frozen if isinstance(frozen, Selection) else select(self.model, _patterns(frozen)))
        for name, (_, tensor) in self.frozen().items():
            if name not in known:
                self.before.values[name] = tensor.detach().clone()
                self.evidence[name] = Evidence()
        if self.optimizers:  # what state is left from before may move it just once
            self.call_witness(self.frozen(), wary=True)

    def after_step(self, index: int, *_: Any) -> None:
        if within_a_step(self.optimizers[index]):
            return
        self.steps[index] += 1
        self.lrs.update((id(group), rate(group)) for group in self.optimizers[index].param_groups)
        step = self.steps[index]
        doubled = step & (step - 1) == 0
        due = step % self.every == 0 if self.every else doubled
        if due:
            self.look(step)
        if due or doubled:  # while the step's gradients and rates are still there
            self.ask_why_idle([index])
        if self.witness:
            self.hear(self.witness, index)
        if due and (leaked := self.leaked()):
            self.guess(index, leaked)
            if not self.witness:
                self.call_witness(leaked)

    def call_witness(self, suspects: dict[str, tuple[Entry, Tensor]], wary: bool = False) -> None:
        self.dismiss()
        self.witness = Witness(
            model=self.model,
            optimizers=self.optimizers,
            suspects=suspects,
            start=self.before.values,
            declared=self.rates,
            wary=wary,
        )

    def hear(self, witness: Witness, index: int) -> None:
        witness.step_ended(index)
        for name, cause in witness.causes.items():
            self.evidence[name].cause = cause
        for name, reason in witness.reasons.items():
            self.evidence[name].reason = reason
        if witness.done and self.every != 1:
            self.dismiss()

    def dismiss(self) -> None:
        if self.witness:
            self.witness.close()
        self.witness = None

    def frozen(self) -> dict[str, tuple[Entry, Tensor]]:
        """The tensors declared frozen, as they were and as they are."""
        resolve = now(entries(self.model))
        found = {name: (was, resolve(was)) for name, was in self.before.entries.items() if self.declared(was)}
        return {name: (was, tensor) for name, (was, tensor) in found.items() if tensor is not None}

    def leaked(self) -> dict[str, tuple[Entry, Tensor]]:
        """Those declared frozen that had moved at a look, and whose cause is not known."""
        seen = self.evidence
        return {name: pair for name, pair in self.frozen().items() if seen[name].differed and not seen[name].cause}

    def look(self, step: int) -> None:
        if step not in self.report.looks:
            self.report.looks.append(step)
        for was, tensor, seen in self.unmoved():
            seen.differed = not same_bits(self.before.values[was.name], tensor)

    def ask_why_idle(self, stepped: Sequence[int]) -> None:
        """Of what one of these optimizers might have moved, the gradient and the rate."""
        group_of = placed([self.optimizers[index] for index in stepped])
        for was, tensor, seen in self.unmoved():
            held = id(tensor) in group_of
            if was.kind == "parameter" and not self.declared(was) and (held or not self.optimizers):
                seen.gradients.add(gradient(tensor))
                seen.lrs.update([rate(group_of[id(tensor)][1])] if held else ())

    def unmoved(self) -> Iterator[tuple[Entry, Tensor, Evidence]]:
        resolve = now(entries(self.model))
        for name, was in self.before.entries.items():
            tensor, seen = resolve(was), self.evidence[name]
            if tensor is not None and not seen.differed:
                yield was, tensor, seen

    def declared(self, entry: Entry) -> bool:
        """Whether it is declared frozen: by identity, or by name, since `model.double()` makes new buffers."""
        return id(entry.tensor) in self.frozen_ids or entry.name in self.frozen_names

    def finish(self) -> None:
        last = max(self.steps, default=0)
        if last and last not in self.report.looks:
            self.look(last)
        if not self.optimizers:  # the gradients that are still there are all there is to tell why
            self.ask_why_idle([])
        for index in range(len(self.optimizers)):
            self.guess(index, self.leaked())
        resolve, group_of = now(entries(self.model)), placed(self.optimizers)
        for was in self.before.entries.values():
            name, group = group_of.get(id(was.tensor), ("", None))
            lr = None if group is None else self.lrs.get(id(group), rate(group))
            self.report.rows.append(self.row(was, resolve(was), name, lr))
        if not self.optimizers:
            for seen in self.evidence.values():
                seen.reason = "it needs the optimizer, whose steps would tell: audit(model, frozen, optimizer)"
        elif not last:
            for seen in self.evidence.values():
                seen.reason = "it needs a step of the optimizer that was given, which made none"
        self.report.notes = needs(self.report.rows, {name: seen.reason for name, seen in self.evidence.items()})
        self.report.ended = True

    def guess(self, index: int, leaked: dict[str, tuple[Entry, Tensor]]) -> None:
        """Replay a step from the gradients that are still there: what counts where no later step tells more."""
        tensors = {name: tensor for name, (_, tensor) in leaked.items() if not self.evidence[name].guess}
        if not tensors:
            return
        found, reason = try_causes(self.optimizers[index], tensors, self.rates[index])
        for name in tensors:
            seen = self.evidence[name]
            seen.guess, seen.reason = seen.guess or found.get(name, ""), reason or seen.reason

    def row(self, was: Entry, after: Tensor | None, group: str, lr: float | None) -> Row:
        moved_by = change(self.before.values[was.name], after)
        seen, frozen = self.evidence[was.name], self.declared(was)
        word = verdict(was.kind, frozen, moved_by.moved, seen.differed)
        cause: Cause = (seen.cause or seen.guess or "unknown") if word == "leaked" else ""
        if word == "idle":
            cause = idle_cause(seen, bool(self.optimizers), group != "")
        return {
            "name": was.name,
            "aliases": "|".join(was.aliases),
            "kind": was.kind,
            "module_type": was.module_type,
            "shape": "x".join(map(str, was.tensor.shape)),
            "numel": was.tensor.numel(),
            "dtype": str(was.tensor.dtype).removeprefix("torch."),
            "frozen": frozen,
            "group": group,
            "lr": lr,
            "requires_grad": bool(after is not None and after.requires_grad),
            "initial_l2": moved_by.initial_l2,
            "change_l2": moved_by.change_l2,
            "change_rel": moved_by.change_rel,
            "change_max": moved_by.change_max,
            "moved": moved_by.moved,
            "verdict": word,
            "cause": cause,
        }
