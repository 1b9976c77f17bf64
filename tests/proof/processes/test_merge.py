"""The reports of several processes are merged to one by verdict, cause, shard and note."""

from __future__ import annotations

from math import isnan, nan
from typing import get_args

import pytest

from runner.contract import IdleCause, LeakCause, Row, Verdict
from runner.proof.processes.merge import CAUSE_ORDER, NO_PHASES, VERDICT_ORDER, Part, merged
from runner.proof.results.phases import PhaseRows


def row(verdict: str = "held", cause: str = "", **values) -> Row:
    """Return a row of a tensor `w` of 8 elements; each of two processes holds 4 of them."""
    moved = verdict in ("leaked", "trained", "drifted")
    found: Row = {
        "name": "w",
        "aliases": "",
        "kind": "parameter",
        "module_type": "Linear",
        "shape": "8",
        "numel": 8,
        "dtype": "float32",
        "frozen": verdict in ("held", "leaked"),
        "group": "0",
        "lr": 0.1,
        "requires_grad": True,
        "initial_l2": 3.0,
        "change_l2": 3.0 if moved else 0.0,
        "change_rel": 1.0 if moved else 0.0,
        "change_max": 2.0 if moved else 0.0,
        "moved": moved,
        "moved_elements": 4 if moved else 0,
        "seen_at": 2 if moved else None,
        "verdict": verdict,
        "cause": cause,
    }
    return {**found, **values}


def merge(*rows: Row, shards: tuple[tuple[int, ...], ...] = ((0,), (1,)), sums: frozenset[str] = frozenset()) -> Row:
    """Return the one row of a tensor, from the rows of the processes that hold these shards of it."""
    parts = [
        Part(rank=rank, rows=[each], shards={each["name"]: shard}, sums=sums)
        for rank, (each, shard) in enumerate(zip(rows, shards, strict=True))
    ]
    (found,) = merged(parts).rows
    return found


def test_every_verdict_and_every_cause_has_a_place_in_the_order():
    assert set(VERDICT_ORDER) == set(get_args(Verdict))
    assert set(CAUSE_ORDER) == {*get_args(LeakCause), *get_args(IdleCause), ""}


@pytest.mark.parametrize(
    ("one", "other", "whole"),
    [
        ("held", "leaked", "leaked"),
        ("returned", "held", "returned"),
        ("returned", "leaked", "leaked"),
        ("idle", "trained", "trained"),
        ("idle", "returned", "returned"),
        ("idle", "idle", "idle"),
        ("still", "drifted", "drifted"),
        ("held", "held", "held"),
    ],
)
def test_a_tensor_has_the_worst_verdict_of_its_shards_whatever_their_order(one, other, whole):
    assert merge(row(one), row(other))["verdict"] == merge(row(other), row(one))["verdict"] == whole


@pytest.mark.parametrize(
    ("one", "other", "whole"),
    [
        ("weight_decay", "gradient", "gradient"),
        ("gradient", "scheduler", "scheduler"),
        ("unknown", "optimizer_state", "optimizer_state"),
        ("weight_decay", "optimizer_state", "weight_decay|optimizer_state"),
        ("weight_decay", "optimizer_rule", "optimizer_rule"),
        ("gradient", "outside_write", "outside_write"),
        ("unknown", "unknown", "unknown"),
    ],
)
def test_the_cause_of_a_leak_is_the_one_that_the_whole_tensor_would_have(one, other, whole):
    assert merge(row("leaked", one), row("leaked", other))["cause"] == whole
    assert merge(row("leaked", other), row("leaked", one))["cause"] == whole


@pytest.mark.parametrize(
    ("one", "other", "whole"),
    [
        ("zero_gradient", "rounded_away", "rounded_away"),
        ("no_gradient", "zero_gradient", "zero_gradient"),
        ("zero_gradient", "lr_zero", "lr_zero"),
        ("zero_gradient", "unknown", "unknown"),
    ],
)
def test_the_cause_of_an_idle_tensor_is_the_one_that_the_whole_tensor_would_have(one, other, whole):
    assert merge(row("idle", one), row("idle", other))["cause"] == whole
    assert merge(row("idle", other), row("idle", one))["cause"] == whole


def test_the_cause_is_that_of_the_shards_with_the_verdict():
    assert merge(row("idle", "zero_gradient"), row("trained"))["cause"] == ""


def test_norms_of_shards_add_up_and_the_largest_change_is_kept():
    found = merge(row("leaked"), row("leaked", initial_l2=4.0, change_l2=4.0, change_max=7.0, moved_elements=1, seen_at=1))
    assert (found["initial_l2"], found["change_l2"], found["change_rel"], found["change_max"]) == (5.0, 5.0, 1.0, 7.0)
    assert (found["moved_elements"], found["seen_at"], found["moved"], found["numel"]) == (5, 1, True, 8)


def test_a_nan_or_an_unknown_norm_of_a_shard_makes_that_of_the_tensor_nan_or_unknown():
    infinite, not_a_number = (
        row("leaked", change_l2=float("inf"), change_max=1.0),
        row("leaked", change_l2=nan, change_max=nan),
    )
    for rows in ((infinite, not_a_number), (not_a_number, infinite)):
        assert isnan(merge(*rows)["change_l2"])
        assert isnan(merge(*rows)["change_max"])
    unknown = merge(row("leaked"), row("leaked", change_l2=None, change_max=None, moved_elements=None))
    assert [unknown[key] for key in ("change_l2", "change_rel", "change_max", "moved_elements")] == [None] * 4


def test_a_shard_that_two_processes_hold_is_counted_once_as_in_the_one_where_it_leaked():
    found = merge(row("held"), row("leaked", "gradient"), row("leaked", "gradient"), shards=((), (), ()))
    assert (found["verdict"], found["moved_elements"], found["change_l2"], found["seen_at"]) == ("leaked", 4, 3.0, 2)


def test_sums_over_processes_have_a_verdict_and_no_norms():
    found = merge(row("held"), row("leaked"), sums=frozenset({"w"}))
    assert (found["verdict"], found["moved"]) == ("leaked", True)
    assert [found[key] for key in ("initial_l2", "change_l2", "change_max", "moved_elements")] == [None] * 4


def test_a_tensor_that_one_process_alone_has_keeps_its_row():
    parts = [Part(rank=0, rows=[row()]), Part(rank=1, rows=[row(), row("leaked", "gradient", name="v")])]
    assert [(each["name"], each["verdict"]) for each in merged(parts).rows] == [("w", "held"), ("v", "leaked")]


def test_notes_that_not_every_process_has_say_which_has_them():
    parts = [
        Part(rank=0, rows=[row("leaked", "unknown")], notes=["all", "the cause is unknown for w: old"], looks=[1]),
        Part(rank=1, rows=[row()], notes=["one", "all"], looks=[1, 2], why_unknown={"w": "why"}),
    ]
    assert merged(parts).notes == ["the cause is unknown for w: why", "all", "rank 1: one"]
    assert merged(parts).looks == [1, 2]


def test_the_note_about_an_unknown_cause_goes_if_another_process_knows_it():
    parts = [
        Part(rank=0, rows=[row("leaked", "unknown")], notes=["the cause is unknown for w: why"], why_unknown={"w": "why"}),
        Part(rank=1, rows=[row("leaked", "gradient")], shards={"w": (1,)}),
    ]
    assert merged(parts).notes == []


def part_with_phases(rank: int, *phases: tuple[int, int, Row]) -> Part:
    """Return what one of two processes has observed: its half of `w`, and its row in each phase."""
    shard = ((rank * 4, rank * 4 + 4),)
    found = [PhaseRows(first, last, [each]) for first, last, each in phases]
    return Part(rank, [row()], shards={"w": shard}, phases=found)


def test_phases_are_merged_like_the_rows_of_the_whole_report():
    one = part_with_phases(0, (1, 2, row("held")), (3, 4, row("trained", initial_l2=3.0, change_l2=3.0)))
    other = part_with_phases(1, (1, 2, row("leaked", "gradient")), (3, 4, row("trained", initial_l2=4.0, change_l2=4.0)))
    whole = merged([one, other])
    assert [(phase.first_step, phase.last_step) for phase in whole.phases] == [(1, 2), (3, 4)]
    (first,), (second,) = (phase.rows for phase in whole.phases)
    assert (first["verdict"], first["cause"], first["moved_elements"]) == ("leaked", "gradient", 4)
    assert (second["verdict"], second["initial_l2"], second["change_l2"], second["moved_elements"]) == (
        "trained",
        5.0,
        5.0,
        8,
    )
    assert whole.notes == []


def test_if_the_phases_of_the_processes_have_other_steps_the_report_has_none_and_says_so():
    one, other = part_with_phases(0, (1, 2, row())), part_with_phases(1, (1, 3, row()))
    for parts in ([one, other], [one, part_with_phases(1)], [part_with_phases(0), other]):
        whole = merged(parts)
        assert (whole.phases, whole.notes) == ([], [NO_PHASES])
