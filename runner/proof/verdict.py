"""Evidence -> a word, and a cause. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from runner.contract import VERDICTS, IdleCause, Kind, LeakCause, Row, RunVerdict, Verdict


@dataclass
class Evidence:
    """What was seen of one tensor at the looks.

    `differed`: its bits were not those of the start at one look or more. `gradients`: of each look while it had not
    moved, `none`, `zero` or `present`. `lrs`: its group's rates at those looks. `cause`: who moved it, once a step has
    told; `guess`: who would have, by the gradients after the step at which the leak was found; `reason`: why one could not.
    """

    differed: bool = False
    gradients: set[str] = field(default_factory=set)
    lrs: set[float] = field(default_factory=set)
    cause: LeakCause | Literal[""] = ""
    guess: LeakCause | Literal[""] = ""
    reason: str = ""


def verdict(kind: Kind, frozen: bool, moved: bool, differed: bool) -> Verdict:
    """The word of the contract for a parameter or buffer, declared frozen or not."""
    if kind == "buffer" and not frozen:
        return "drifted" if moved or differed else "still"
    if moved:
        return "leaked" if frozen else "trained"
    if differed:
        return "returned"
    return "held" if frozen else "idle"


def idle_cause(evidence: Evidence, optimizer_known: bool, in_optimizer: bool) -> IdleCause:
    """Why a trainable parameter did not move by a bit."""
    if optimizer_known and not in_optimizer:
        return "not_in_optimizer"
    if not evidence.gradients:
        return "unknown"  # nothing was looked at while gradients were there
    if evidence.gradients == {"none"}:
        return "no_gradient"
    if "present" not in evidence.gradients:
        return "zero_gradient"
    if evidence.lrs == {0.0}:
        return "lr_zero"
    return "rounded_away"


def run_verdict(rows: Iterable[Row]) -> RunVerdict:
    """`leaked` where anything declared frozen leaked, otherwise `held`."""
    return "leaked" if any(row["verdict"] == "leaked" for row in rows) else "held"


def strayed(count: Mapping[str, int]) -> bool:
    """Whether anything declared frozen leaked or anything trainable stayed idle: what `strict=true` does not let pass."""
    return count["leaked"] + count["idle"] > 0


def counts(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows have each verdict."""
    count: dict[str, int] = dict.fromkeys(VERDICTS, 0)
    for row in rows:
        count[row["verdict"]] += 1
    return count


def finite(value: float | None) -> float | None:
    """The value, or None where it is NaN or infinite, or larger than a float can be."""
    try:
        return value if value is not None and math.isfinite(value) else None
    except OverflowError:
        return None
