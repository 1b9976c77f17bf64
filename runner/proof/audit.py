"""Audit a training loop: watch it without changing it, and report for every tensor whether and why it changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import nn
from torch.optim import Optimizer

from runner.errors import ConfigError, is_integer
from runner.freezing.selection import Selection, select, select_by_flags
from runner.freezing.words import FOR_AUDIT
from runner.proof.audit_report import Report
from runner.proof.auditor import Auditor
from runner.proof.causes.optimizer_copy import with_inner_optimizers
from runner.proof.changes import Snapshot, add_new_tensors, snapshot
from runner.proof.steps import StepHooks, before_compiling, has_compiled_a_step
from runner.tensors import refuse_unless_dense


@contextmanager
def audit(
    model: nn.Module,
    frozen: Selection | Sequence[str] | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    every: int | None = None,
    *,
    before: Snapshot | None = None,
    watch_forward: bool = False,
) -> Iterator[Report]:
    """Watch the training in the `with` block without changing it; at its end the report says which tensors changed and why.

    Raises ConfigError (a ValueError) for bad arguments and for tensors that are not dense.

    Args:
        frozen: patterns of names, or what `select` returns. None: all parameters with `requires_grad` False on entry.
        optimizer: one optimizer, a list of several, or None. Each torch optimizer that steps a tensor of the model is found,
            whether given or not; those given come first in the columns `group` and `lr`. Bits are compared after steps 1, 2,
            4, 8, ... of each optimizer and on leaving the block. If a frozen tensor changed, the next step is also done on
            copies, to find the cause. If a frozen tensor had the learning rate 0 on entry and the rate was raised later, the
            cause is `scheduler`.
        every: compare bits after every `every` steps, instead of after steps 1, 2, 4, 8, ... With `every=1`, frozen tensors
            are also compared before and after each forward pass of a module that contains them, to see what writes to them.
        before: copies of the tensors that `snapshot` made earlier. If given, tensors are compared with these copies instead
            of with their values on entry.
        watch_forward: compare frozen tensors before and after each forward pass from the first step on, not only after
            something was found to write to them between two steps. A layer that writes to its weight once, such as an
            embedding with `max_norm`, is then found as the cause. `torch.compile` warns of the hooks that this takes, if
            called in the block, and they are removed.
    """
    optimizers = _check_arguments(model, frozen, optimizer, every)
    selection = select_by_flags(model) if frozen is None else _as_selection(model, frozen)
    initial = add_new_tensors(before, model) if before else snapshot(model)
    auditor = Auditor(model, selection, optimizers, every=every, initial=initial, watch_forward=watch_forward)
    auditor.report.on_freeze = lambda more: auditor.freeze_more(_as_selection(model, more))
    with _watching(auditor, optimizers):
        try:
            yield auditor.report
        except BaseException:
            with suppress(Exception):  # the exception from the block is the one to raise
                auditor.finish()
            raise
        auditor.finish()
    if frozen is None and not auditor.declared_any:
        auditor.report.notes.append("no parameter was frozen (requires_grad=False) on entry: give patterns")


@contextmanager
def _watching(auditor: Auditor, optimizers: Sequence[Optimizer]) -> Iterator[None]:
    """Set the hooks of an audit, and remove them on leaving; none are set on optimizers if torch.compile would notice."""
    with ExitStack() as undo:
        undo.callback(setattr, auditor.report, "on_freeze", None)  # it refers to the model and to the copy of its tensors
        undo.callback(auditor.tracer.close)
        if not has_compiled_a_step():
            auditor.hooks = StepHooks(optimizers, auditor.on_step_begin, auditor.on_step_end)
            undo.callback(auditor.hooks.remove)
            undo.enter_context(before_compiling(auditor.tracer.remove_module_hooks))
        yield


def _check_arguments(model: nn.Module, frozen: Any, optimizer: Any, every: Any) -> list[Optimizer]:
    """Check the arguments of `audit`, and return the optimizers as a list. Raises ConfigError for a wrong type or value."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    refuse_unless_dense(model)
    if every is not None and (not is_integer(every) or every < 1):
        raise ConfigError(f"every is {every!r}; compare bits every 1 or more steps")
    given: Any = [] if optimizer is None else optimizer
    optimizers: list[Optimizer] = []
    for each in list(given) if isinstance(given, (list, tuple)) else [given]:
        hooked = [inner for inner in with_inner_optimizers(each) if hasattr(inner, "_optimizer_step_post_hooks")]
        if not isinstance(each, Optimizer) and not (hooked and hasattr(each, "param_groups")):
            raise ConfigError(f"optimizer is a {type(each).__name__}; give torch optimizers")
        optimizers += [each] if each in hooked else hooked or [each]
    return optimizers


def _as_selection(model: nn.Module, frozen: Any) -> Selection:
    """Return `frozen`, or, if that is a list, tuple or set of name patterns, what they match in the model, as a Selection.

    Raises ConfigError if it is neither, and for bad patterns.
    """
    if isinstance(frozen, Selection):
        return frozen
    if not isinstance(frozen, (list, tuple, set)) or not all(isinstance(pattern, str) for pattern in frozen):
        given = repr(frozen) if isinstance(frozen, (str, list, tuple)) else f"a {type(frozen).__name__}"
        raise ConfigError(f"frozen is {given}; give a list of patterns, a Selection or None")
    return select(model, list(frozen), words=FOR_AUDIT)
