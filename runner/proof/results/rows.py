"""Make the rows of a report, and the sentences about causes that are unknown. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from runner.contract import Cause, Row, Verdict
from runner.errors import listed
from runner.freezing.groups import Group
from runner.proof.causes.idle import is_rounded_copy
from runner.proof.changes import Change, measure_change
from runner.proof.following import Followed, Following
from runner.proof.optimizers import KnownOptimizers
from runner.proof.verdict import Evidence, FrozenSpan, idle_cause, verdict, worst
from runner.tensors import same_bits

CAUSE_UNKNOWN = "the cause is unknown for"
HOW_TO_FIND_CAUSE = "use audit(every=1), or train until it changes again after the change was found"


def make_rows(following: Following, optimizers: KnownOptimizers) -> tuple[list[Row], dict[str, str]]:
    """Return (the rows of the report, {tensor name: why the cause of its change is unknown})."""
    group_of, orphans, rows, why_unknown = optimizers.groups(), optimizers.orphan_tensors(), [], {}
    for followed in following.rows:
        name, group = group_of.get(id(followed.tensor), ("", None))
        followed.evidence.is_rounded_copy = _may_be_idle(followed, group) and is_rounded_copy(followed.tensor, orphans)
        row, why_unknown[followed.name] = make_row(
            followed,
            following.initial_value(followed),
            aliases=following.aliases(followed),
            group=name,
            lr=optimizers.lr_of(group),
            steps_seen=optimizers.last_step > 0,
        )
        rows.append(row)
    return rows, why_unknown


def _may_be_idle(row: Followed, group: Group | None) -> bool:
    """Return whether a row is that of a trainable parameter that was never found changed and that no optimizer has."""
    return group is None and row.kind == "parameter" and not row.was_frozen and not row.evidence.differed


def make_row(
    row: Followed, initial: Tensor, *, aliases: Sequence[str], group: str, lr: float | None, steps_seen: bool
) -> tuple[Row, str]:
    """Return (the row of one tensor in the report, why the cause of its change is unknown).

    The row is a dict with the columns of `changes.csv`. `initial`: the value from which its norms are measured. `aliases`:
    the other names that its tensor has at the end. `group`, `lr`: the name and learning rate of its parameter group, or ""
    and None if it is in none. `steps_seen`: whether the audit has seen a step of an optimizer.
    """
    spans = list(row.ended_spans)
    is_unchanged = not spans and not row.evidence.differed  # its bits have just been compared with `initial`
    change = measure_change(initial, initial if is_unchanged else row.tensor)
    if row.frozen or not spans:
        moved = not same_bits(row.reference, row.tensor) if spans else change.moved
        spans.append(FrozenSpan(moved, row.evidence))
    span = worst(spans)
    evidence = span.evidence
    word = verdict(row.kind, row.was_frozen, span.moved, evidence.differed)
    found = as_row(
        row,
        change,
        frozen=row.was_frozen,
        word=word,
        cause=cause_of(word, evidence, evidence, steps_seen=steps_seen, in_optimizer=group != ""),
        seen_at=evidence.seen_at,
        aliases=aliases,
        group=group,
        lr=lr,
    )
    return found, evidence.why_unknown


def cause_of(word: Verdict, leak: Evidence, idle: Evidence, *, steps_seen: bool, in_optimizer: bool) -> Cause:
    """Return the cause that belongs to a verdict, "" for most verdicts.

    `leak`: what was observed of a tensor that leaked. `idle`: what was observed of a parameter that stayed idle.
    """
    if word == "leaked":
        return leak.cause or leak.fallback_cause or "unknown"
    return idle_cause(idle, steps_seen, in_optimizer) if word == "idle" else ""


def as_row(
    row: Followed,
    change: Change,
    *,
    frozen: bool,
    word: Verdict,
    cause: Cause,
    seen_at: int | None,
    aliases: Sequence[str],
    group: str,
    lr: float | None,
) -> Row:
    """Return the row of one tensor as a dict with the columns of `changes.csv`."""
    tensor = row.tensor
    return {
        "name": row.name,
        "aliases": "|".join(aliases),
        "kind": row.kind,
        "module_type": row.entry.module_type,
        "shape": "x".join(map(str, tensor.shape)),
        "numel": tensor.numel(),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "frozen": frozen,
        "group": group,
        "lr": lr,
        "requires_grad": tensor.requires_grad,
        "initial_l2": change.initial_l2,
        "change_l2": change.change_l2,
        "change_rel": change.change_rel,
        "change_max": change.change_max,
        "moved": change.moved,
        "moved_elements": change.moved_elements,
        "seen_at": seen_at,
        "verdict": word,
        "cause": cause,
    }


def unknown_cause_notes(rows: Sequence[Row], why_unknown: Mapping[str, str]) -> list[str]:
    """Return sentences for the user about the frozen tensors that changed for an unknown cause.

    `rows`: the rows of the report. `why_unknown`: {tensor name: the reason why no cause could be found}. There is one
    sentence for each distinct reason; it names the tensors and the reason. If the reason is empty, the sentence says instead
    how to find the cause.
    """
    names_of: dict[str, list[str]] = {}
    for row in rows:
        if row["verdict"] == "leaked" and row["cause"] == "unknown":
            names_of.setdefault(why_unknown[row["name"]] or HOW_TO_FIND_CAUSE, []).append(row["name"])
    return [f"{CAUSE_UNKNOWN} {listed(names, most=2)}: {reason}" for reason, names in names_of.items()]


def found_changed(rows: Sequence[Followed], step: int) -> str:
    """Return a sentence that names the frozen tensors that were found changed after a step, and the causes known so far."""
    names = [f"{row.name} ({row.evidence.cause or row.evidence.fallback_cause or 'not known yet'})" for row in rows]
    return f"{len(rows)} frozen tensor{'s' * (len(rows) > 1)} found changed after step {step}: {', '.join(names)}"


def as_unknown_leak(row: Row) -> Row:
    """Return the row of a frozen tensor whose digest says that it has changed after it was last watched.

    Only the digest of its old value is there, so that neither the cause nor a norm can be had.
    """
    return {**as_changed_unwatched(row), "verdict": "leaked", "cause": "unknown"}


def as_trained_late(row: Row) -> Row:
    """Return the row of an idle parameter whose digest says that it has changed after it was last watched."""
    return {**as_changed_unwatched(row), "verdict": "trained", "cause": ""}


def as_changed_unwatched(row: Row) -> Row:
    """Return the row of a tensor that changed while only a digest was kept: without norms, and without a step."""
    empty: Row = {**row, "initial_l2": None, "change_l2": None, "change_rel": None, "change_max": None}
    return {**empty, "moved": True, "moved_elements": None, "seen_at": None}
