"""Audit a training loop: watch it without changing it, and report for every tensor whether and why it changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import nn
from torch.optim import Optimizer

from runner.errors import ConfigError, is_integer
from runner.freezing.flags import Flags
from runner.freezing.selection import Selection, select, select_by_flags
from runner.freezing.words import FOR_AUDIT
from runner.proof.audit_report import Frozen, Report
from runner.proof.auditor import Auditor
from runner.proof.causes.optimizer_copy import with_inner_optimizers
from runner.proof.changes import Snapshot, add_new_tensors, snapshot
from runner.proof.options import AuditOptions
from runner.proof.processes.exchange import Ranks, ranks_of, single_process_notes
from runner.proof.steps import StepHooks, before_compiling, has_compiled_a_step
from runner.tensors import refuse_unreadable


@contextmanager
def audit(
    model: nn.Module | Mapping[str, nn.Module],
    frozen: Selection | Sequence[str] | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    every: int | None = None,
    until: int | None = None,
    buffers: str = "live",
    raise_at_look: bool = False,
    *,
    before: Snapshot | None = None,
    watch_forward: bool = False,
) -> Iterator[Report]:
    """Watch the training in the `with` block without changing it; at its end the report says which tensors changed and why.

    With copies of the model in several processes (DDP), each has its own report. With shards, enter it in each, after
    `fully_shard`; leaving it is a collective, and all get the same report. Raises ConfigError (a ValueError) for bad
    arguments, for tensors whose bits cannot be read, and if processes with shards do not declare the same tensors frozen.

    Args:
        model: a module, or a mapping of several, `{"policy": a, "reference": b}`; names then begin with the key.
        frozen: patterns of names, or what `select` returns. None: all parameters with `requires_grad` False on entry.
        optimizer: one or several, or None. Every torch optimizer that steps a tensor of the model is found, whether given or
            not; those given come first in the columns `group` and `lr`.
        every: compare bits after every `every` steps, instead of after steps 1, 2, 4, 8, ... of each optimizer. They are
            also compared on leaving. With `every=1`, forward passes are watched too, by the versions of the parameters.
        until: the number of the last step that is watched. After it the hooks and the copies go; of each frozen tensor and
            each idle parameter a digest stays, which is compared on leaving. All other rows are as of that step.
        buffers: with "frozen", the buffers of the frozen modules are declared frozen too; see `select`.
        raise_at_look: raise LeakError, in the step or on leaving, at the comparison that finds a frozen tensor changed; with
            shards on leaving only.
        before: what `snapshot` returned earlier, to compare with it instead of with the values on entry.
        watch_forward: compare bits around the forward passes of the first step (of all with `every=1`) too, not only once
            something was found to write to frozen tensors between two steps. `torch.compile` warns of the hooks.
    """
    optimizers = _check_arguments(optimizer, {"every": every, "until": until})
    ranks = ranks_of(module := as_module(model))
    options = AuditOptions(every=every, until=until, raise_at_look=raise_at_look and not ranks, watch_forward=watch_forward)
    auditor = _begin(module, frozen, optimizers, options, buffers=buffers, before=before)
    report = auditor.report
    del before  # with `until`, the copies go after that step
    with _watching(auditor, optimizers, ranks):
        del auditor
        yield report
    if raise_at_look:
        report.raise_if_leaked()


def _begin(
    module: nn.Module,
    frozen: Frozen | None,
    optimizers: list[Optimizer],
    options: AuditOptions,
    *,
    buffers: str,
    before: Snapshot | None,
) -> Auditor:
    """Copy all tensors of the model, and return the auditor that compares them. Raises ConfigError for bad patterns."""
    refuse_unreadable(module)
    report = Report(is_empty=frozen is None, by_flags=frozen is None, flags=Flags(module, buffers))

    def as_selection(frozen: Frozen | None) -> Selection:
        selection = selection_of(module, frozen, buffers)
        report.notes += selection.notes if selection is not frozen else ()
        return selection

    selection = as_selection(frozen)
    initial = add_new_tensors(before, module) if before is not None else snapshot(module)
    auditor = Auditor(module, report, optimizers, options, initial=initial, as_selection=as_selection)
    auditor.watch_for_a_step(auditor.declare(selection))  # the first step may be the only one that moves a tensor
    return auditor


@contextmanager
def _watching(auditor: Auditor, optimizers: list[Optimizer], ranks: Ranks | None) -> Iterator[None]:
    """Set the hooks of an audit, and fill its report at the end; none on optimizers if torch.compile would notice.

    `ranks`: the processes that hold the shards of the model, if there are several. After an exception from the block nothing
    is exchanged, for the others may still be in it.
    """
    report = auditor.report
    report.watcher = auditor
    with ExitStack() as undo:
        undo.callback(setattr, report, "watcher", None)  # it refers to the model and to copies of its tensors
        undo.callback(setattr, report, "flags", None)
        undo.callback(auditor.close)
        if not has_compiled_a_step():
            auditor.hooks = StepHooks(optimizers, auditor.on_step_begin, auditor.on_step_end)
            undo.enter_context(before_compiling(auditor.tracer.remove_module_hooks))
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the exception from the block is the one to raise
                report.notes += single_process_notes()
                report.watcher.finish()
            raise
        if ranks is None:
            report.notes += single_process_notes()
            report.watcher.finish()
        else:
            ranks.complete(report, report.watcher.finish)


def as_module(model: Any) -> nn.Module:
    """Return `model`, or, if it is a mapping of modules, one module that contains them. Raises ConfigError for others."""
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, Mapping) and not model:
        raise ConfigError("model is an empty mapping; give a module for each name")
    if not isinstance(model, Mapping) or not all(isinstance(each, nn.Module) for each in model.values()):
        raise ConfigError(f"model is a {type(model).__name__}; give a torch.nn.Module, or a mapping of names to modules")
    together = nn.Module()
    for name, each in model.items():
        if not isinstance(name, str) or not name or "." in name or hasattr(together, name):
            raise ConfigError(
                f"model: {name!r} cannot be the name of a model; give a word like policy, which nn.Module does not have"
            )
        together.add_module(name, each)
    return together


def _check_arguments(optimizer: Any, numbers: Mapping[str, Any]) -> list[Optimizer]:
    """Check the arguments of `audit`, and return the optimizers as a list. Raises ConfigError for a wrong type or value."""
    for name, number in numbers.items():
        if number is not None and (not is_integer(number) or number < 1):
            raise ConfigError(f"{name} is {number!r}; give a number of steps, 1 or more")
    given: Any = [] if optimizer is None else optimizer
    optimizers: list[Optimizer] = []
    for each in list(given) if isinstance(given, (list, tuple)) else [given]:
        inner_ones = with_inner_optimizers(each) if hasattr(each, "__dict__") else []
        hooked = [inner for inner in inner_ones if hasattr(inner, "_optimizer_step_post_hooks")]
        if not isinstance(each, Optimizer) and not (hooked and hasattr(each, "param_groups")):
            raise ConfigError(f"optimizer is a {type(each).__name__}; give torch optimizers")
        optimizers += [each] if each in hooked else hooked or [each]
    return optimizers


def selection_of(model: nn.Module, frozen: Any, buffers: str, **trial: Any) -> Selection:
    """Return `frozen`, or what its patterns match in the model, or, if it is None, what the flags say, as a Selection.

    `trial`: the `batch` and the `task` by which `select` finds the head, if they are known. Raises ConfigError
    if `frozen` is none of these, and for bad patterns.
    """
    if frozen is None:
        return select_by_flags(model, buffers)
    if isinstance(frozen, Selection):
        return frozen
    if not isinstance(frozen, (list, tuple, set)) or not all(isinstance(pattern, str) for pattern in frozen):
        given = repr(frozen) if isinstance(frozen, (str, list, tuple)) else f"a {type(frozen).__name__}"
        raise ConfigError(f"frozen is {given}; give a list of patterns, a Selection or None")
    return select(model, list(frozen), buffers=buffers, words=FOR_AUDIT, **trial)
