"""The work of an audit: compare tensors after optimizer steps, and make a row for each tensor at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from runner.contract import Cause, Row
from runner.freezing.groups import group_lr, groups_by_tensor
from runner.freezing.selection import Selection
from runner.proof.audit_report import Report, unknown_cause_notes
from runner.proof.changes import Snapshot, measure_change
from runner.proof.leak_tracer import LeakTracer, try_find_causes
from runner.proof.replay import gradient_kind, is_nested_step
from runner.proof.verdict import Evidence, idle_cause, verdict
from runner.tensors import TensorEntry, is_compiled, same_bits, tensor_entries, tensor_resolver


class Auditor:
    """Compares the tensors of one model after steps of its optimizers, and fills the report at the end.

    Args:
        model: the model that is trained.
        selection: the parameters and buffers that are declared frozen.
        optimizers: the optimizers that train the model. Methods refer to one of them by its index in this list.
        every: compare bits after every `every` steps; None for steps 1, 2, 4, 8, ...
        initial: copies of all parameters and buffers. Later values are compared with these copies.
    """

    def __init__(
        self, model: nn.Module, selection: Selection, optimizers: list[Optimizer], every: int | None, initial: Snapshot
    ) -> None:
        self.model, self.optimizers, self.every = model, optimizers, every
        self.initial = Snapshot(initial.entries, dict(initial.values))
        self.evidence = {name: Evidence() for name in initial.entries}
        self.last_lrs: dict[int, float] = {}  # by id of a parameter group: its learning rate at its last step
        self.step_counts = [0] * len(optimizers)
        self.tracer: LeakTracer | None = None
        self.report = Report()
        self.frozen_names, self.frozen_ids = set[str](), set[int]()
        self.declare_frozen(selection)
        if every == 1 or (optimizers and not is_compiled(model)):
            self.start_tracer(self.frozen_tensors())  # a tensor may be written in the first forward pass only

    def declare_frozen(self, selection: Selection) -> None:
        """Add the tensors in `selection` to those declared frozen, and store the current learning rates of all groups.

        The stored learning rates are needed to tell later whether a scheduler has changed them.
        """
        selected = {**selection.parameters, **selection.buffers}
        self.frozen_names |= set(selected)
        self.frozen_ids |= {id(tensor) for tensor in selected.values()}
        self.declared_lrs = [[group_lr(group) for group in each.param_groups] for each in self.optimizers]

    def freeze_more(self, selection: Selection) -> None:
        """Declare the tensors of `selection` frozen too, and compare the new ones from now on with their current values.

        Tensors that were already declared frozen are still compared with their earlier values.
        """
        frozen_before = set(self.frozen_tensors())
        self.declare_frozen(selection)
        for name, (_, tensor) in self.frozen_tensors().items():
            if name not in frozen_before:
                self.initial.values[name] = tensor.detach().clone()
                self.evidence[name] = Evidence()
        if self.optimizers:  # optimizer state from before the freeze may move a tensor in the next step only
            self.start_tracer(self.frozen_tensors(), replay_all=True)

    def after_step(self, index: int, *_: Any) -> None:
        """Count a step of `self.optimizers[index]`; after some of the steps, compare bits and look for causes of changes.

        This is the step post-hook of that optimizer.
        """
        if is_nested_step(self.optimizers[index]):
            return
        self.step_counts[index] += 1
        self.last_lrs.update((id(group), group_lr(group)) for group in self.optimizers[index].param_groups)
        step = self.step_counts[index]
        is_power_of_two = step & (step - 1) == 0
        compares = step % self.every == 0 if self.every else is_power_of_two
        if compares:
            self.compare_bits(step)
        if compares or is_power_of_two:  # while the gradients and learning rates of the step are still there
            self.record_gradients([index])
        if self.tracer:
            self.collect_causes(self.tracer, index)
        if compares and (leaked := self.leaked_without_cause()):
            self.find_fallback_causes(index, leaked)
            if not self.tracer:
                self.start_tracer(leaked)

    def start_tracer(self, tensors: dict[str, tuple[TensorEntry, Tensor]], replay_all: bool = False) -> None:
        """From now on, watch what writes to `tensors`; tensors that were watched before are no longer watched.

        `tensors`: {name: (entry when the audit began, current tensor)}. `replay_all`: whether the next step of each
        optimizer is also done on copies for all of `tensors`. If False, this is done only for those that have already
        changed.
        """
        self.stop_tracer()
        self.tracer = LeakTracer(
            model=self.model,
            optimizers=self.optimizers,
            tensors=tensors,
            initial_values=self.initial.values,
            declared_lrs=self.declared_lrs,
            replay_all=replay_all,
        )

    def collect_causes(self, tracer: LeakTracer, index: int) -> None:
        """Store the causes of changes that `tracer` has found when a step of `self.optimizers[index]` has ended.

        Stops the tracer if it has seen enough steps, except with `every=1`.
        """
        tracer.on_step_end(index)
        for name, cause in tracer.causes.items():
            self.evidence[name].cause = cause
        for name, error in tracer.errors.items():
            self.evidence[name].why_unknown = error
        if tracer.is_done and self.every != 1:
            self.stop_tracer()

    def stop_tracer(self) -> None:
        """Stop watching what writes to tensors: remove the tracer and its hooks, if there is one."""
        if self.tracer:
            self.tracer.close()
        self.tracer = None

    def frozen_tensors(self) -> dict[str, tuple[TensorEntry, Tensor]]:
        """Return {name: (entry when the audit began, current tensor)} for the tensors that are declared frozen.

        If a tensor was replaced, the current tensor is the new one. A tensor that the model no longer has is left out.
        """
        resolve = tensor_resolver(tensor_entries(self.model))
        found = {name: (entry, resolve(entry)) for name, entry in self.initial.entries.items() if self.is_frozen(entry)}
        return {name: (entry, tensor) for name, (entry, tensor) in found.items() if tensor is not None}

    def leaked_without_cause(self) -> dict[str, tuple[TensorEntry, Tensor]]:
        """Return the frozen tensors that were found changed, and whose cause of change is not yet known.

        The result is {name: (entry when the audit began, current tensor)}.
        """
        leaked = {name for name, evidence in self.evidence.items() if evidence.differed and not evidence.cause}
        return {name: pair for name, pair in self.frozen_tensors().items() if name in leaked}

    def compare_bits(self, step: int) -> None:
        """Compare all tensors with their initial values, and record which tensors differ.

        `step`: the number of the step that has just ended. A tensor that has differed before is not compared again.
        """
        if step not in self.report.looks:
            self.report.looks.append(step)
        for entry, tensor, evidence in self.unchanged_tensors():
            evidence.differed = not same_bits(self.initial.values[entry.name], tensor)

    def record_gradients(self, stepped: Sequence[int]) -> None:
        """Record the kind of gradient and the learning rate of parameters that are not frozen and were never found changed.

        When the audit ends, these two explain why such a parameter has not changed. The kind is `none`, `zero` or `present`;
        the learning rate is that of the parameter's group.

        `stepped`: indices into `self.optimizers`. Only parameters that one of these optimizers has are recorded. If the
        audit was given no optimizer, the kind of gradient is recorded for every such parameter, and no learning rate.
        """
        group_of = groups_by_tensor([self.optimizers[index] for index in stepped])
        for entry, tensor, evidence in self.unchanged_tensors():
            in_group = id(tensor) in group_of
            if entry.kind == "parameter" and not self.is_frozen(entry) and (in_group or not self.optimizers):
                evidence.gradients.add(gradient_kind(tensor))
                evidence.lrs.update([group_lr(group_of[id(tensor)][1])] if in_group else ())

    def unchanged_tensors(self) -> Iterator[tuple[TensorEntry, Tensor, Evidence]]:
        """Yield (entry when the audit began, current tensor, evidence) for each tensor that was never found changed.

        A tensor that the model no longer has is left out.
        """
        resolve = tensor_resolver(tensor_entries(self.model))
        for name, entry in self.initial.entries.items():
            tensor, evidence = resolve(entry), self.evidence[name]
            if tensor is not None and not evidence.differed:
                yield entry, tensor, evidence

    def is_frozen(self, entry: TensorEntry) -> bool:
        """Return whether a tensor is declared frozen; it is recognised by identity or by name.

        Identity alone is not enough, because a tensor can be replaced: `model.double()` makes new buffers.
        """
        return id(entry.tensor) in self.frozen_ids or entry.name in self.frozen_names

    def finish(self) -> None:
        """Compare bits after the last step, look for the causes that are still unknown, and fill the report."""
        last = max(self.step_counts, default=0)
        if last and last not in self.report.looks:
            self.compare_bits(last)
        if not self.optimizers:  # only the gradients that are still there can explain idle parameters
            self.record_gradients([])
        for index in range(len(self.optimizers)):
            self.find_fallback_causes(index, self.leaked_without_cause())
        resolve, group_of = tensor_resolver(tensor_entries(self.model)), groups_by_tensor(self.optimizers)
        for entry in self.initial.entries.values():
            group_name, group = group_of.get(id(entry.tensor), ("", None))
            lr = None if group is None else self.last_lrs.get(id(group), group_lr(group))
            self.report.rows.append(self.make_row(entry, resolve(entry), group_name, lr))
        if not self.optimizers:
            for evidence in self.evidence.values():
                evidence.why_unknown = "give the optimizer, audit(model, frozen, optimizer)"
        elif not last:
            for evidence in self.evidence.values():
                evidence.why_unknown = "the given optimizer made no step; give the one that trains"
        why_unknown = {name: evidence.why_unknown for name, evidence in self.evidence.items()}
        self.report.notes = unknown_cause_notes(self.report.rows, why_unknown)
        self.report.ended = True

    def find_fallback_causes(self, index: int, leaked: dict[str, tuple[TensorEntry, Tensor]]) -> None:
        """Repeat the last step of `self.optimizers[index]` on copies, and store why it moves the tensors in `leaked`.

        `leaked`: {name: (entry when the audit began, current tensor)}. A cause found here is used only if watching the
        training finds none.
        """
        tensors = {name: tensor for name, (_, tensor) in leaked.items() if not self.evidence[name].fallback_cause}
        if not tensors:
            return
        causes, error = try_find_causes(self.optimizers[index], tensors, self.declared_lrs[index])
        for name in tensors:
            evidence = self.evidence[name]
            evidence.fallback_cause = evidence.fallback_cause or causes.get(name, "")
            evidence.why_unknown = error or evidence.why_unknown

    def make_row(self, entry: TensorEntry, after: Tensor | None, group: str, lr: float | None) -> Row:
        """Return the row of one tensor in the report: a dict with the columns of `changes.csv`.

        `entry`: the tensor's entry when the audit began. `after`: the tensor at the end, or None if the model no longer has
        it. `group`, `lr`: the name and learning rate of its parameter group, or "" and None if it is in none.
        """
        change = measure_change(self.initial.values[entry.name], after)
        evidence, frozen = self.evidence[entry.name], self.is_frozen(entry)
        word = verdict(entry.kind, frozen, change.moved, evidence.differed)
        cause: Cause = (evidence.cause or evidence.fallback_cause or "unknown") if word == "leaked" else ""
        if word == "idle":
            cause = idle_cause(evidence, bool(self.optimizers), group != "")
        return {
            "name": entry.name,
            "aliases": "|".join(entry.aliases),
            "kind": entry.kind,
            "module_type": entry.module_type,
            "shape": "x".join(map(str, entry.tensor.shape)),
            "numel": entry.tensor.numel(),
            "dtype": str(entry.tensor.dtype).removeprefix("torch."),
            "frozen": frozen,
            "group": group,
            "lr": lr,
            "requires_grad": bool(after is not None and after.requires_grad),
            "initial_l2": change.initial_l2,
            "change_l2": change.change_l2,
            "change_rel": change.change_rel,
            "change_max": change.change_max,
            "moved": change.moved,
            "verdict": word,
            "cause": cause,
        }
