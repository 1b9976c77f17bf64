"""Turn what was observed of a tensor into its verdict (one word for how it changed) and its cause. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from runner.contract import VERDICTS, IdleCause, LeakCause, Row, RunVerdict, TensorKind, Verdict


@dataclass
class Evidence:
    """What the audit has observed of one tensor, so far. Bits are compared after some of the steps only.

    Attributes:
        differed: whether its bits differed from the initial ones after at least one of these steps.
        gradients: the kinds of gradient (`none`, `zero`, `present`) that it had after these steps, until it first differed.
        lrs: the learning rates that its parameter group had at the same times.
        cause: why it changed although it is frozen, found by watching a step in which it changed; empty if not known.
        fallback_cause: the same, found by repeating on copies a step that had already ended; used if `cause` is empty.
        why_unknown: why no cause could be found; empty if nothing failed.
    """

    differed: bool = False
    gradients: set[str] = field(default_factory=set)
    lrs: set[float] = field(default_factory=set)
    cause: LeakCause | Literal[""] = ""
    fallback_cause: LeakCause | Literal[""] = ""
    why_unknown: str = ""


def verdict(kind: TensorKind, frozen: bool, moved: bool, differed: bool) -> Verdict:
    """Return one word for how a parameter or buffer changed.

    `frozen`: it was declared frozen. `moved`: a bit differs from the initial value at the end. `differed`: a bit differed
    after an earlier step. Frozen tensors: `leaked` if moved, otherwise `held`. Other parameters: `trained` or `idle`; other
    buffers: `drifted` or `still`. Frozen tensors and parameters that only differed in between: `returned`.
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

    `evidence`: its gradients and learning rates. `optimizer_known`: whether the audit was given an optimizer.
    `in_optimizer`: whether such an optimizer has the parameter. `rounded_away`: the updates were too small for the dtype.
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
    """Return the verdict of a whole run: `leaked` if any frozen tensor differs at the end, otherwise `held`."""
    return "leaked" if any(row["verdict"] == "leaked" for row in rows) else "held"


def violates_strict(verdict_counts: Mapping[str, int]) -> bool:
    """Return whether a run fails under `strict=true`: a frozen tensor changed, or a trainable parameter did not.

    `verdict_counts`: {verdict: number of tensors that have it}.
    """
    return verdict_counts["leaked"] + verdict_counts["idle"] > 0


def count_verdicts(rows: Iterable[Row]) -> dict[str, int]:
    """Return {verdict: number of rows with it} for all verdicts; those that no row has count 0."""
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
