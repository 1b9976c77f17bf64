"""Find out why a parameter gets no gradient: its flag, a module that is not called, no_grad, or an unused output."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from runner.errors import line_in_user_code
from runner.freezing.patterns import with_parents
from runner.freezing.resolver import owner_of
from runner.tensors import TensorEntry, is_compiled
from runner.tracing import tracing
from runner.training.loop import backward


@dataclass
class ForwardCalls:
    """The modules that one forward pass has called.

    Attributes:
        are_known: whether the calls were watched; those of a compiled model are not, for it would be compiled again.
        lines: {module name: the user's line that called the module first; "" if it is not known}.
        without_grad: the names of the modules that were called while torch computed no gradients.
    """

    are_known: bool = False
    lines: dict[str, str] = field(default_factory=dict)
    without_grad: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Unreached:
    """Why a parameter gets no gradient: a clause, and the user's line to change ("" if it is not known)."""

    reason: str
    line: str = ""


@contextmanager
def watching_calls(model: nn.Module) -> Iterator[ForwardCalls]:
    """Yield the modules that are called in the block."""
    calls = ForwardCalls(are_known=not is_compiled(model))

    def begin(name: str, *_: Any) -> None:
        if name not in calls.lines:
            calls.lines[name] = line_in_user_code(until=backward.__code__)
            if not torch.is_grad_enabled():
                calls.without_grad.add(name)

    if calls.are_known:
        with tracing(model, begin=begin):
            yield calls
    else:
        yield calls


def why_unreached(
    names: Collection[str], model: nn.Module, entries: Mapping[str, TensorEntry], calls: ForwardCalls
) -> dict[str, Unreached]:
    """Return {name: why this parameter gets no gradient}, as far as it is known.

    `names`: those of all parameters that need a gradient and get none, by a pass in which `calls` were made.
    """
    ids = {id(entries[name].tensor) for name in names}
    unreached_modules = {
        name for name, module in model.named_modules() if all(id(p) in ids for p in module.parameters() if p.requires_grad)
    }
    found = {}
    for name in names:
        owners = [owner for each in entries[name].names if (owner := owner_of(each)) in calls.lines]
        if not entries[name].tensor.requires_grad:
            found[name] = Unreached("requires_grad is False, though it is not declared frozen")
        elif not owners and calls.are_known:
            found[name] = Unreached("the forward pass does not call its module")
        elif owners:
            found[name] = _why_unreached(owners[0], unreached_modules, calls)
    return found


def _why_unreached(owner: str, unreached_modules: Collection[str], calls: ForwardCalls) -> Unreached:
    """Return why no gradient reaches the parameters of a module that was called."""
    around = with_parents(owner)
    if owner in calls.without_grad:
        outermost = next(name for name in around if name in calls.without_grad)
        return Unreached("its module is called under no_grad", calls.lines[outermost])
    outermost = next((name for name in around if name in unreached_modules and name in calls.lines), owner)
    return Unreached(
        "what its module returns is detached, there or later, or the loss does not use it", calls.lines[outermost]
    )
