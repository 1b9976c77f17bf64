"""Find the frozen first layers (the prefix) whose outputs can be used again, by trials on copies of the model."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from runner.errors import SkippedError
from runner.freezing.selection import Selection
from runner.methods.base import Example
from runner.methods.prefix.boundary import frozen_prefixes
from runner.methods.prefix.bypass import find_prefix_modules
from runner.methods.prefix.repeatable import why_not_repeatable
from runner.methods.prefix.trial import trial_copy


@dataclass(frozen=True)
class FoundPrefix:
    """Where the frozen first layers end whose outputs can be used again.

    Attributes:
        boundary: name of the last frozen module, "" for the model itself; only if `modules` is not None.
        modules: the names that `find_prefix_modules` returns; None if there are no such layers.
        reason: why there are none, or why the outputs of frozen layers after `boundary` cannot be used again; "" if there
            are no such layers.
    """

    boundary: str = ""
    modules: list[str] | None = field(default=None)
    reason: str = ""


def find_prefix(model: nn.Module, selection: Selection, example: Example) -> FoundPrefix:
    """Find the frozen first layers whose outputs can be used again; the model and its random state do not change.

    `selection`: what is frozen, at least one parameter. `example`: the training step.
    """
    reasons: list[str] = []
    try:
        for boundary in frozen_prefixes(model, selection, example, may_use_again=True):
            modules, reason = _modules_or_reason(model, selection, boundary, example)
            if modules is not None:
                return FoundPrefix(boundary, modules, reasons[0] if reasons else "")
            if reason in reasons:  # it lies further ahead in the model: earlier boundaries will have it too
                break
            reasons.append(reason)
    except SkippedError as error:
        return FoundPrefix(reason=str(error))
    return FoundPrefix(reason=reasons[0])


def _modules_or_reason(
    model: nn.Module, selection: Selection, boundary: str, example: Example
) -> tuple[list[str] | None, str]:
    """Return (the modules up to `boundary`, ""), or (None, why its output cannot be used again)."""
    copied, example = trial_copy(model, selection, example)
    try:
        modules = find_prefix_modules(copied, boundary, example)
        if reason := why_not_repeatable(copied, selection, boundary, example):
            return None, reason
    except SkippedError as error:
        return None, str(error)
    except TimeoutError:  # of the run, which may end any line
        raise
    except Exception as error:  # the user's modules may not be callable by themselves
        return None, f"the frozen prefix cannot be tried: {type(error).__name__}: {error}"
    return modules, ""
