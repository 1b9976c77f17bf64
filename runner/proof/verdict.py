"""Turn what was observed of a tensor into its verdict and cause. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from runner.contract import VERDICTS, IdleCause, LeakCause, Row, RunVerdict, TensorKind, Verdict


@dataclass
class Evidence:
    """What the audit has observed of one tensor.

    Attributes:
        differed: whether its bits differed from the initial ones after at least one of the steps that were compared.
        gradients: the kinds of its gradient (`none`, `zero`, `present`) after those steps, until it first differed.
        lrs: the learning rates of its parameter group after the same steps.
        cause: why it leaked, found by watching the step that changed it; empty if that is not known.
        fallback_cause: why it leaked, found by replaying a step after the change was noticed; used if `cause` is empty.
        why_unknown: why no cause could be found; empty if nothing failed.
    """

    differed: bool = False
    gradients: set[str] = field(default_factory=set)
    lrs: set[float] = field(default_factory=set)
    cause: LeakCause | Literal[""] = ""
    fallback_cause: LeakCause | Literal[""] = ""
    why_unknown: str = ""


def verdict(kind: TensorKind, frozen: bool, moved: bool, differed: bool) -> Verdict:
    """Return the verdict of one parameter or buffer.

    `frozen`: it was declared frozen. `moved`: its bits differ at the end. `differed`: they differed after an earlier step.
    """
    if kind == "buffer" and not frozen:
        return "drifted" if moved or differed else "still"
    if moved:
        return "leaked" if frozen else "trained"
    if differed:
        return "returned"
    return "held" if frozen else "idle"


def idle_cause(evidence: Evidence, optimizer_known: bool, in_optimizer: bool) -> IdleCause:
    """Return why no bit of a trainable parameter changed.

    `optimizer_known`: the audit was given an optimizer. `in_optimizer`: one of its groups has the parameter.
    """
    if optimizer_known and not in_optimizer:
        return "not_in_optimizer"
    if not evidence.gradients:
        return "unknown"  # no step was compared while gradients were there
    if evidence.gradients == {"none"}:
        return "no_gradient"
    if "present" not in evidence.gradients:
        return "zero_gradient"
    if evidence.lrs == {0.0}:
        return "lr_zero"
    return "rounded_away"


def run_verdict(rows: Iterable[Row]) -> RunVerdict:
    """Return `leaked` if any tensor that was declared frozen leaked, otherwise `held`."""
    return "leaked" if any(row["verdict"] == "leaked" for row in rows) else "held"


def violates_strict(verdict_counts: Mapping[str, int]) -> bool:
    """Whether `strict=true` fails a run with these counts: a frozen tensor leaked, or a trainable one stayed idle."""
    return verdict_counts["leaked"] + verdict_counts["idle"] > 0


def count_verdicts(rows: Iterable[Row]) -> dict[str, int]:
    """Return how many rows have each verdict; verdicts that no row has count 0."""
    count: dict[str, int] = dict.fromkeys(VERDICTS, 0)
    for row in rows:
        count[row["verdict"]] += 1
    return count


def finite_or_none(value: float | None) -> float | None:
    """Return the value, or None if it is NaN, infinite, or an integer too large for a float."""
    try:
        return value if value is not None and math.isfinite(value) else None
    except OverflowError:
        return None
