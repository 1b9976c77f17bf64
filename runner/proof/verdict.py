"""Turn what was observed of a tensor into its verdict (one word for how it changed) and its cause. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from runner.contract import VERDICTS, IdleCause, LeakCause, Row, RunVerdict, TensorKind, Verdict


@dataclass
class Evidence:
    """What the audit has observed of one tensor so far; the audit compares bits after some of the steps only.

    Attributes:
        differed: whether its bits differed from the initial ones in at least one comparison.
        seen_at: the number of the step after which other bits were first seen; None if they never were.
        gradients: the kinds of gradient (`none`, `zero`, `present`) that were seen after some of the steps. They are
            recorded only for a parameter that is not frozen, until its bits first differ.
        lrs: the learning rates of its parameter group that were seen together with these gradients.
        replaced: `replaced` or `dtype_changed` if a tensor with other bits was put at its name; it is the cause unless a
            forward pass did that.
        cause: why it changed although it is frozen, found by watching a step in which it changed; empty if not known.
        fallback_cause: why it changed although it is frozen, found by repeating on copies a step that had already ended. It
            is used if `cause` is empty; empty if not known.
        why_unknown: why no cause could be found; empty if nothing failed.
    """

    differed: bool = False
    seen_at: int | None = None
    gradients: set[str] = field(default_factory=set)
    lrs: set[float] = field(default_factory=set)
    replaced: Literal["replaced", "dtype_changed", ""] = ""
    cause: LeakCause | Literal[""] = ""
    fallback_cause: LeakCause | Literal[""] = ""
    why_unknown: str = ""

    def merge(self, other: Evidence) -> None:
        """Add what was observed of the same tensor under other names."""
        self.differed |= other.differed
        self.seen_at = other.seen_at if self.seen_at is None else self.seen_at
        self.cause, self.why_unknown = self.cause or other.cause, self.why_unknown or other.why_unknown


def verdict(kind: TensorKind, frozen: bool, moved: bool, differed: bool) -> Verdict:
    """Return one word for how a parameter or buffer changed.

    `frozen`: it was declared frozen. `moved`: a bit differs from the initial value at the end. `differed`: a bit differed
    after an earlier step.
    A frozen tensor is `leaked` if it moved, `returned` if it only differed after an earlier step, and otherwise `held`. A
    parameter that is not frozen is `trained`, `returned` or `idle` in the same three cases. A buffer that is not frozen is
    `drifted` if it moved or differed, and otherwise `still`.
    """
    if kind == "buffer" and not frozen:
        return "drifted" if moved or differed else "still"
    if moved:
        return "leaked" if frozen else "trained"
    if differed:
        return "returned"
    return "held" if frozen else "idle"


def idle_cause(evidence: Evidence, optimizer_known: bool, in_optimizer: bool) -> IdleCause:
    """Return why no bit of a parameter changed although it was not frozen, such as `no_gradient` or `lr_zero`.

    `evidence`: the gradients and learning rates of the parameter. `optimizer_known`: whether the audit was given an
    optimizer. `in_optimizer`: whether one of the given optimizers has the parameter. The result `rounded_away` means that
    the updates were too small for the parameter's dtype.
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
    """Return the verdict of a whole run: `leaked` if any tensor has the verdict `leaked`, otherwise `held`.

    `rows`: the rows of the report, one for each tensor.
    """
    return "leaked" if any(row["verdict"] == "leaked" for row in rows) else "held"


def violates_strict(verdict_counts: Mapping[str, int]) -> bool:
    """Return whether a run fails under `strict=true`: a frozen tensor leaked, or a trainable parameter did not change.

    `verdict_counts`: {verdict: number of tensors that have it}.
    """
    return verdict_counts["leaked"] + verdict_counts["idle"] > 0


def count_verdicts(rows: Iterable[Row]) -> dict[str, int]:
    """Return {verdict: number of rows with that verdict} for all verdicts; the number is 0 if no row has the verdict."""
    count: dict[str, int] = dict.fromkeys(VERDICTS, 0)
    for row in rows:
        count[row["verdict"]] += 1
    return count


def finite_or_none(value: float | None) -> float | None:
    """Return the value if it is a finite number; None if it is None, NaN, infinite, or an integer too large for a float."""
    try:
        return value if value is not None and math.isfinite(value) else None
    except OverflowError:
        return None
