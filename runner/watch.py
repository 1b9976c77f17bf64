"""The audit: watches anyone's training loop, changes nothing, and says of every tensor what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from runner.changes import Snapshot, change, snapshot, with_added
from runner.errors import ConfigError
from runner.groups import placed, rate
from runner.rows import COLUMNS, Row
from runner.selection import Selection, from_flags, select
from runner.tensors import Entry, entries, now, refuse_unless_dense, same_bits
from runner.verdict import Evidence, idle_cause, verdict

if TYPE_CHECKING:
    from pandas import DataFrame


class LeakError(AssertionError):
    """A tensor declared frozen changed."""


@dataclass
class Report:
    """What an audit saw; filled when it ends. `looks` are the numbers of the steps after which bits were compared."""

    rows: list[Row] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)
    ended: bool = False

    @property
    def frame(self) -> DataFrame:
        """The rows as a pandas DataFrame with the columns of `changes.csv`."""
        from pandas import DataFrame

        self._must_have_ended()
        return DataFrame(self.rows, columns=list(COLUMNS))

    @property
    def leaks(self) -> list[str]:
        """The names of what was declared frozen and moved."""
        self._must_have_ended()
        return [row["name"] for row in self.rows if row["verdict"] == "leaked"]

    def raise_if_leaked(self) -> None:
        """Raise LeakError with the names and causes of all leaks, if there are any."""
        self._must_have_ended()
        leaks = [f"{row['name']} ({row['cause']})" for row in self.rows if row["verdict"] == "leaked"]
        if leaks:
            raise LeakError(f"{len(leaks)} frozen tensors changed: {', '.join(leaks)}")

    def _must_have_ended(self) -> None:
        if not self.ended:
            raise RuntimeError("the audit has not ended: read its report after the with block, not in it")


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
    leaving. `before`: a snapshot to compare with, where one was taken earlier. Raises ConfigError, a ValueError, for bad
    patterns and for tensors that are not dense.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    refuse_unless_dense(model)
    if every is not None and (not isinstance(every, int) or every < 1):
        raise ConfigError(f"every is {every!r}; give the number of steps between looks, 1 or more")
    if isinstance(frozen, (str, Optimizer)):
        raise ConfigError(f"frozen is {frozen!r}; give a list of patterns, a Selection or None")
    if frozen is None:
        frozen = from_flags(model)
    elif not isinstance(frozen, Selection):
        frozen = select(model, frozen)
    given: Any = [] if optimizer is None else optimizer
    optimizers = list(given) if isinstance(given, (list, tuple)) else [given]
    for one in optimizers:
        if not isinstance(one, Optimizer):
            raise ConfigError(f"optimizer holds a {type(one).__name__}; give torch optimizers")
    watch = _Watch(model, frozen, optimizers, every, with_added(before, model) if before else snapshot(model))
    hooks = [one.register_step_post_hook(partial(watch.after_step, index)) for index, one in enumerate(optimizers)]
    try:
        yield watch.report
    except BaseException:
        with suppress(Exception):  # what the block raised matters more
            watch.finish()
        raise
    else:
        watch.finish()
    finally:
        for hook in hooks:
            hook.remove()


class _Watch:
    """Looks at one model after its optimizers' steps, and writes the report at the end."""

    def __init__(
        self, model: nn.Module, selection: Selection, optimizers: list[Optimizer], every: int | None, before: Snapshot
    ) -> None:
        self.model, self.optimizers, self.every, self.before = model, optimizers, every, before
        declared = {**selection.parameters, **selection.buffers}
        self.frozen_names, self.frozen_ids = set(declared), {id(tensor) for tensor in declared.values()}
        self.evidence = {name: Evidence() for name in before.entries}
        self.lrs: dict[int, float] = {}  # of each group, by identity: the rate of its last step
        self.steps = [0] * len(optimizers)
        self.report = Report()

    def after_step(self, index: int, *_: Any) -> None:
        self.steps[index] += 1
        self.lrs.update((id(group), rate(group)) for group in self.optimizers[index].param_groups)
        step = self.steps[index]
        doubled = step & (step - 1) == 0
        due = step % self.every == 0 if self.every else doubled
        if due:
            self.look(step)
        if due or doubled:  # while the step's gradients and rates are still there
            self.ask_why_idle()

    def look(self, step: int) -> None:
        if step not in self.report.looks:
            self.report.looks.append(step)
        for was, tensor, seen in self.unmoved():
            seen.differed = not same_bits(self.before.values[was.name], tensor)

    def ask_why_idle(self) -> None:
        group_of = placed(self.optimizers)
        for was, tensor, seen in self.unmoved():
            if was.kind == "parameter" and not self.declared(was):
                seen.gradients.add(_gradient(tensor))
                if id(tensor) in group_of:
                    seen.lrs.add(rate(group_of[id(tensor)][1]))

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
        if not last:  # no step was seen: the gradients that are still there are all there is to tell why
            self.ask_why_idle()
        resolve, group_of = now(entries(self.model)), placed(self.optimizers)
        for was in self.before.entries.values():
            name, group = group_of.get(id(was.tensor), ("", None))
            lr = None if group is None else self.lrs.get(id(group), rate(group))
            self.report.rows.append(self.row(was, resolve(was), name, lr))
        self.report.ended = True

    def row(self, was: Entry, after: Tensor | None, group: str, lr: float | None) -> Row:
        moved_by = change(self.before.values[was.name], after)
        seen, frozen = self.evidence[was.name], self.declared(was)
        word = verdict(was.kind, frozen, moved_by.moved, seen.differed)
        cause = "unknown" if word == "leaked" else ""
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


def _gradient(parameter: Tensor) -> str:
    gradient = parameter.grad
    if gradient is None:
        return "none"
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return "present" if bool(values.any()) else "zero"
