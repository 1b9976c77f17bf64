"""Turn what was observed of a tensor into its verdict (one word for how it changed) and its cause. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from runner.contract import (
    VERDICTS,
    Defect,
    IdleCause,
    LeakCause,
    Record,
    Row,
    RunVerdict,
    TensorKind,
    TrainingRecord,
    Verdict,
)
from runner.errors import listed

NOTHING_FROZEN = "nothing was frozen"


@dataclass
class Evidence:
    """What the audit has observed of one tensor so far; the audit compares bits after some of the steps only.

    Attributes:
        differed: whether its bits differed from the initial ones in at least one comparison.
        seen_at: the number of the step after which other bits were first seen; None if they never were.
        gradients: the kinds of gradient (`none`, `zero`, `present`, `not_finite`) that were seen after some of the steps.
            They are recorded only for a parameter that is not frozen, until its bits first differ.
        lrs: the learning rates of its parameter group that were seen together with these gradients.
        replaced: `replaced` or `dtype_changed` if a tensor with other bits was put at its name; it is the cause unless a
            forward pass did that.
        cause: why it changed although it is frozen, found by watching a step in which it changed; empty if not known.
        fallback_cause: why it changed although it is frozen, found by repeating on copies a step that had already ended. It
            is used if `cause` is empty; empty if not known.
        why_unknown: why no cause could be found; empty if nothing failed.
        is_rounded_copy: whether an optimizer steps a copy of higher precision in its place, whose change rounding removes.
    """

    differed: bool = False
    seen_at: int | None = None
    gradients: set[str] = field(default_factory=set)
    lrs: set[float] = field(default_factory=set)
    replaced: Literal["replaced", "dtype_changed", ""] = ""
    cause: LeakCause | Literal[""] = ""
    fallback_cause: LeakCause | Literal[""] = ""
    why_unknown: str = ""
    is_rounded_copy: bool = False

    def merge(self, other: Evidence) -> None:
        """Add what was observed of the same tensor under other names."""
        self.differed |= other.differed
        self.seen_at = other.seen_at if self.seen_at is None else self.seen_at
        self.cause, self.why_unknown = self.cause or other.cause, self.why_unknown or other.why_unknown


@dataclass(frozen=True)
class FrozenSpan:
    """A span of steps in which a tensor was declared frozen; the last one ends with the block.

    Attributes:
        moved: whether a bit differed, at the end of the span, from the value at its beginning.
        evidence: what the audit has observed of the tensor in the span.
    """

    moved: bool
    evidence: Evidence


def worst(spans: Sequence[FrozenSpan]) -> FrozenSpan:
    """Return the span that decides the verdict: the first at whose end a bit differed, or else in which a bit differed."""
    return min(spans, key=lambda span: (not span.moved, not span.evidence.differed))


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


def idle_cause(evidence: Evidence, steps_seen: bool, in_optimizer: bool) -> IdleCause:
    """Return why no bit of a parameter changed although it was not frozen, such as `no_gradient` or `lr_zero`.

    `evidence`: the gradients and learning rates of the parameter. `steps_seen`: whether a step of an optimizer was seen.
    `in_optimizer`: whether one of the optimizers has the parameter. The result `rounded_away` means that
    the updates were too small for the parameter's dtype.
    """
    if evidence.is_rounded_copy:
        return "rounded_away"
    if steps_seen and not in_optimizer:
        return "not_in_optimizer"
    if not evidence.gradients:
        return "unknown"  # no step was compared while gradients were there
    if evidence.gradients == {"none"}:
        return "no_gradient"
    if "present" not in evidence.gradients:
        return "unknown" if "not_finite" in evidence.gradients else "zero_gradient"
    if evidence.lrs == {0.0}:
        return "lr_zero"
    return "rounded_away" if steps_seen else "unknown"


def run_verdict(rows: Iterable[Row]) -> RunVerdict:
    """Return the verdict of a whole run: `leaked` if any tensor has the verdict `leaked`, otherwise `held`.

    `rows`: the rows of the report, one for each tensor.
    """
    return "leaked" if any(row["verdict"] == "leaked" for row in rows) else "held"


def problems_of(verdict_counts: Mapping[str, int], nothing_declared: bool = False) -> dict[str, str]:
    """Return {verdict: what is wrong}, for a training that did not do what was declared; empty if nothing is wrong.

    A frozen tensor leaked, a trainable parameter did not change, no parameter was trained, or nothing was frozen.
    `verdict_counts`: {verdict: number of tensors that have it}. `nothing_declared`: whether nothing was frozen although the
    flags of the parameters were to say what is.
    """
    problems = {}
    if leaked := verdict_counts.get("leaked"):
        problems["leaked"] = f"{leaked} frozen tensor{'' if leaked == 1 else 's'} leaked"
    if idle := verdict_counts.get("idle"):
        problems["idle"] = f"{idle} trainable parameter{'' if idle == 1 else 's'} did not change"
    if any(verdict_counts.values()) and not verdict_counts.get("trained"):
        problems["trained"] = "no parameter was trained"
    if nothing_declared:
        problems["held"] = NOTHING_FROZEN
    return problems


def strict_problems(record: TrainingRecord, rows: Iterable[Row] = ()) -> list[str]:
    """Return why a run fails under `strict=true`: see `problems_of`; or its loss became NaN or infinite. Empty if it passes.

    `record`: the entries of `run.json`. `rows`: the rows of `changes.csv`; if given, tensors are named.
    """
    names: dict[str, list[str]] = {"leaked": [], "idle": []}
    for row in rows:
        names.get(row["verdict"], []).append(row["name"])
    found = problems_of(record["counts"], bool(record.get("nothing_frozen")))
    if record.get("trained_in_phases"):
        found.pop("trained", None)
    problems = [f"{text} ({listed(names[word], most=4)})" if names.get(word) else text for word, text in found.items()]
    if record.get("verdict") == "leaked" and "leaked" not in found:
        problems.append("a frozen tensor leaked in a phase (see phases.csv)")
    if idle := record.get("idle_in_phases"):
        number = f"{len(idle)} parameter{'' if len(idle) == 1 else 's'}"
        problems.append(f"{number} did not move in the phases that train them ({listed(idle, most=4)})")
    not_finite = defects_of(record).get("loss not finite")
    return [*problems, f"the loss became {not_finite}"] if not_finite else problems


def defects_of(record: TrainingRecord) -> dict[Defect, str]:
    """Return {word: text} for what makes a training worthless as evidence, even if every frozen bit held; mostly empty.

    No step was made; no trainable parameter changed; or the loss became NaN or infinite. A training in which every parameter
    is declared frozen has nothing to train, which is no defect. A step is known by its loss too: the audit does not see the
    steps of every optimizer. `record`: the entries of `run.json`.
    """
    counts, losses = record["counts"], [record.get("loss_first"), record.get("loss_last")]
    step = record.get("loss_not_finite_at")
    if not record.get("looks") and losses == [None, None] and step is None:
        return {"no step": "no training step was made"} if any(counts.values()) else {}
    defects: dict[Defect, str] = {}
    if counts.get("idle") and not counts.get("trained") and not record.get("trained_in_phases"):
        defects["nothing trained"] = "no trainable parameter changed"
    if step is not None:
        defects["loss not finite"] = f"NaN or infinite at step {step}"
    elif None in losses:  # the record of an older version
        defects["loss not finite"] = "NaN or infinite"
    return defects


def outcome_of(record: Record) -> str:
    """Return how a run ended: `leaked`, a defect such as `nothing trained`, or `held`; if it did not finish, its status.

    `record`: the content of `run.json`. A finished run whose verdict is not known has the outcome `finished`.
    """
    if record["status"] != "finished" or record["verdict"] is None:
        return record["status"]
    return "leaked" if record["verdict"] == "leaked" else next(iter(defects_of(record)), record["verdict"])


def first_not_finite(losses: Iterable[float]) -> int | None:
    """Return the number of the first step whose loss is NaN or infinite, counted from 1; None if all are finite."""
    return next((number for number, loss in enumerate(losses, 1) if not math.isfinite(loss)), None)


def loss_rose(losses: Sequence[float]) -> bool:
    """Return whether a loss rose in a training, beyond the differences between its batches.

    The last quarter of the losses is compared with the first. It rose if each of its losses is above each of the first
    quarter; where a quarter has fewer than three, if each is above twice as much.
    """
    size = max(1, len(losses) // 4)
    first, last = losses[:size], losses[-size:]
    is_above = len(losses) > 1 and min(last) > max(first)
    return is_above and (size >= 3 or min(last) > 2 * max(first) > 0)


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
