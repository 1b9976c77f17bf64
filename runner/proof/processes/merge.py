"""Merge the reports of several processes, each about its own shards, to one. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import hypot, isnan, nan

from runner.contract import Cause, Row, Verdict
from runner.errors import ConfigError, listed
from runner.proof.results.phases import PhaseRows
from runner.proof.results.rows import CAUSE_UNKNOWN, unknown_cause_notes
from runner.shards import Shard

# The verdict of a tensor is the first of those that its shards have: a trainable one is idle only if every shard is.
VERDICT_ORDER: tuple[Verdict, ...] = ("leaked", "trained", "drifted", "returned", "idle", "held", "still")
# The cause is the first of those that the shards with this verdict have: what a gradient moved on one rank was moved by a
# gradient, although the gradient of another shard was zero.
CAUSE_ORDER: tuple[Cause, ...] = (
    *("forward_write", "outside_write", "dtype_changed", "replaced", "shared_tensor"),
    *("scheduler", "optimizer_ignores_lr", "gradient"),
    *("optimizer_rule", "weight_decay|optimizer_state", "weight_decay", "optimizer_state"),
    *("not_in_optimizer", "rounded_away", "lr_zero"),
    *("unknown", "zero_gradient", "no_gradient", ""),
)

NO_PHASES = "the phases of the processes have other steps on some ranks, so that this report has none"


@dataclass(frozen=True)
class Part:
    """What one process has observed of its shards.

    Attributes:
        rank: the rank of the process.
        rows: its rows; norms and `moved_elements` are those of its shards.
        looks: the steps after which bits were compared.
        notes: its sentences for the user.
        why_unknown: {tensor name: why the cause of its change is not known}.
        shards: {tensor name: which shard it holds}; processes with equal shards hold the same elements.
        sums: the names of tensors whose elements are sums over processes; they have no norms.
        is_empty: whether nothing was declared frozen, although flags were to say it.
        declarations: the number of calls of `report.freeze` and `report.unfreeze`.
        phases: its phases, whose rows are like `rows`.
    """

    rank: int
    rows: list[Row]
    looks: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    why_unknown: dict[str, str] = field(default_factory=dict)
    shards: dict[str, Shard] = field(default_factory=dict)
    sums: frozenset[str] = frozenset()
    is_empty: bool = False
    declarations: int = 0
    phases: list[PhaseRows] = field(default_factory=list)


def refuse_other_declarations(parts: Sequence[Part]) -> None:
    """Raise ConfigError if a tensor is declared frozen in some of the processes only, or again trainable in some only.

    A shard that was not declared frozen may move, so that the report of the whole tensor would be wrong.
    """
    ranks_of: dict[str, tuple[list[str], list[str]]] = {}  # by name: (ranks where it is not declared, ranks where it is)
    for part in parts:
        for row in part.rows:
            ranks_of.setdefault(row["name"], ([], []))[row["frozen"]].append(str(part.rank))
    disputed = [name for name, (without, having) in ranks_of.items() if without and having]
    if disputed:
        without, having = (listed(ranks, most=4) for ranks in ranks_of[disputed[0]])
        raise ConfigError(
            f"frozen: {listed(disputed, most=4)}: declared frozen on rank {having}, but not on rank {without}; "
            "declare the same on each rank"
        )
    if len({part.declarations for part in parts}) > 1:
        counts = listed([f"{part.declarations} on rank {part.rank}" for part in parts], most=4)
        raise ConfigError(f"frozen: calls of report.freeze and report.unfreeze: {counts}; declare the same on each rank")


def merged(parts: Sequence[Part]) -> Part:
    """Return the report of all processes as one part, whose rank is that of the first; it is the same in each process."""
    why_unknown: dict[str, str] = {}
    for part in parts:
        for row in part.rows:
            why_unknown[row["name"]] = why_unknown.get(row["name"]) or part.why_unknown.get(row["name"], "")
    rows, phases = merge_tables(parts, [part.rows for part in parts]), merge_phases(parts)
    return Part(
        rank=parts[0].rank,
        rows=rows,
        looks=sorted({look for part in parts for look in part.looks}),
        notes=[
            *unknown_cause_notes(rows, why_unknown),
            *_merge_notes(parts),
            *([NO_PHASES] if not phases and any(part.phases for part in parts) else []),
        ],
        why_unknown=why_unknown,
        is_empty=all(part.is_empty for part in parts),
        phases=phases,
    )


def merge_tables(parts: Sequence[Part], tables: Sequence[Sequence[Row]]) -> list[Row]:
    """Return the rows of the whole tensors; `tables`: the rows of each part, all of them about the same steps."""
    rows_of: dict[str, list[tuple[Shard, Row]]] = {}
    for part, table in zip(parts, tables, strict=True):
        for row in table:
            rows_of.setdefault(row["name"], []).append((part.shards.get(row["name"], ()), row))
    sums = frozenset[str]().union(*(part.sums for part in parts))
    return [merge_rows(found, has_norms=name not in sums) for name, found in rows_of.items()]


def merge_phases(parts: Sequence[Part]) -> list[PhaseRows]:
    """Return the phases of all processes; none if they do not have the same steps in each."""
    spans = [[(phase.first_step, phase.last_step) for phase in part.phases] for part in parts]
    if any(each != spans[0] for each in spans):
        return []
    return [
        PhaseRows(first, last, merge_tables(parts, [part.phases[number].rows for part in parts]))
        for number, (first, last) in enumerate(spans[0])
    ]


def merge_rows(found: Sequence[tuple[Shard, Row]], has_norms: bool) -> Row:
    """Return the row of a whole tensor.

    `found`: (which shard, its row) of each process. A shard that several processes hold is counted once: as it is in the
    first of those in which it has the worst verdict. `has_norms`: False if norms of shards do not add up.
    """
    of_shard: dict[Shard, Row] = {}
    for shard, row in found:
        if shard not in of_shard or _severity(row) < _severity(of_shard[shard]):
            of_shard[shard] = row
    rows = list(of_shard.values())
    worst = min(rows, key=_severity)
    initial, change = (_norm(row[key] for row in rows) if has_norms else None for key in ("initial_l2", "change_l2"))
    counts = [row["moved_elements"] for row in rows] if has_norms else [None]
    return {
        **worst,
        "frozen": any(row["frozen"] for _, row in found),
        "initial_l2": initial,
        "change_l2": change,
        "change_rel": change / initial if initial and change is not None else None,
        "change_max": _largest(row["change_max"] for row in rows) if has_norms else None,
        "moved": any(row["moved"] for _, row in found),
        "moved_elements": None if None in counts else sum(count or 0 for count in counts),
        "seen_at": min((row["seen_at"] for _, row in found if row["seen_at"] is not None), default=None),
        "cause": _merge_causes({row["cause"] for _, row in found if row["verdict"] == worst["verdict"]}),
    }


def _severity(row: Row) -> int:
    return VERDICT_ORDER.index(row["verdict"])


def _merge_causes(causes: set[Cause]) -> Cause:
    """Return the cause of the change of a tensor, or of its idleness; `causes`: those of its shards."""
    if {"weight_decay", "optimizer_state"} <= causes:  # the whole tensor would only have held without both
        causes = {*causes, "weight_decay|optimizer_state"}
    return min(causes, key=CAUSE_ORDER.index)


def _norm(norms: Iterable[float | None]) -> float | None:
    """Return the Euclidean norm of a tensor from those of its shards: NaN if one is NaN, None if one is None."""
    known, is_known = _known(norms)
    if not is_known:
        return None
    return nan if any(map(isnan, known)) else hypot(*known)


def _largest(values: Iterable[float | None]) -> float | None:
    """Return the largest value: NaN if one is NaN, None if one is None."""
    known, is_known = _known(values)
    if not is_known:
        return None
    return nan if any(map(isnan, known)) else max(known)


def _known(values: Iterable[float | None]) -> tuple[list[float], bool]:
    """Return (the values that are not None, whether all are)."""
    given = list(values)
    known = [value for value in given if value is not None]
    return known, len(known) == len(given)


def _merge_notes(parts: Sequence[Part]) -> list[str]:
    """Return the notes of all processes, without those about unknown causes; one that is not on each rank begins with it."""
    ranks_of: dict[str, list[int]] = {}
    for part in parts:
        for note in dict.fromkeys(part.notes):
            if not note.startswith(CAUSE_UNKNOWN):
                ranks_of.setdefault(note, []).append(part.rank)
    everywhere = len(parts)
    return [
        note if len(ranks) == everywhere else f"rank {', '.join(map(str, ranks))}: {note}"
        for note, ranks in ranks_of.items()
    ]
