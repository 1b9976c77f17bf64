"""Assert in a test that a training loop holds what is frozen, and trains what is not: `with assert_frozen(...): train()`."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runner.contract import Row, names_in
from runner.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from runner.freezing.selection import Selection
    from runner.proof.audit_report import Report

MAX_NAMES = 10  # of the tensors in a message


@contextmanager
def assert_frozen(
    model: nn.Module | Mapping[str, nn.Module], patterns: Selection | Sequence[str] | None, *, buffers: str = "live"
) -> Iterator[Report]:
    """Assert that the tensors that the patterns match have the same bits after the training in the `with` block as before.

    The block must train: without an optimizer step, or if nothing else changes, the assertion fails, for it proves nothing.
    The block is given the report of the audit, for `report.freeze` and `report.unfreeze`.
    Raises LeakError with names, distances and causes if a tensor changed, UnsoundError if nothing was trained or frozen
    (both are AssertionErrors), and ConfigError (a ValueError) for patterns that match nothing, before the block.

    Args:
        model: a module, or a mapping of several, `{"teacher": a, "student": b}`; names then begin with the key.
        patterns: patterns of names, or what `select` returns. None: all parameters with `requires_grad` False on entry.
        buffers: with "frozen", the buffers of the frozen modules, such as BatchNorm's statistics, must not change either.
    """
    from runner.proof.audit import audit
    from runner.proof.audit_report import LeakError, UnsoundError

    _refuse_nothing("assert_frozen", patterns)
    frozen = None if patterns is None else _as_selection(model, patterns, buffers)
    with audit(model, frozen, buffers=buffers) as report:
        report.notes += () if frozen is None or frozen is patterns else frozen.notes
        yield report
    if leaked := [row for row in report.rows if row["verdict"] == "leaked"]:
        number = sum(row["frozen"] for row in report.rows)
        raise LeakError(
            f"{len(leaked)} of {number} tensors that {_told(patterns)} declares frozen changed{_during(report)}:\n"
            + _lines(f"{row['name']} changed by {_distance(row)}: {row['cause']}" for row in leaked)
            + "".join(f"\n{note}" for note in report.notes)
        )
    if not any(row["frozen"] for row in report.rows):
        raise UnsoundError(f"nothing was frozen: {_told(patterns)} declares no tensor of the model frozen")
    if reason := _why_nothing_trained(report):
        raise UnsoundError(f"nothing was trained in the block, so it does not prove what is frozen: {reason}")


@contextmanager
def assert_trains(model: nn.Module | Mapping[str, nn.Module], patterns: Selection | Sequence[str]) -> Iterator[Report]:
    """Assert that the training in the `with` block changes every parameter that the patterns match, and none to NaN.

    Raises UnsoundError (an AssertionError) with names and causes if a parameter has its initial bits at the end or is not
    finite, and ConfigError (a ValueError) for patterns that match no parameter, before the block.

    Args:
        model: a module, or a mapping of several, `{"teacher": a, "student": b}`; names then begin with the key.
        patterns: patterns of names, or what `select` returns.
    """
    from runner.proof.audit import audit
    from runner.proof.audit_report import UnsoundError

    _refuse_nothing("assert_trains", patterns)
    names = _as_selection(model, patterns).parameters
    if not names:
        raise ConfigError(f"assert_trains: {_told(patterns)} matches no parameter, only buffers or modules without any")
    with audit(model, []) as report:
        yield report
    rows = _rows_named(report.rows, names)
    missing = set(names).difference(*map(names_in, rows))
    failures = [f"{row['name']} {fault}" for row in rows if (fault := _fault_of_trained(row))]
    if failures := [*failures, *(f"{name} is no parameter of the model" for name in sorted(missing))]:
        number = f"{len(failures)} of {len(rows) + len(missing)} parameters"
        raise UnsoundError(f"{number} that {_told(patterns)} matches did not train{_during(report)}:\n{_lines(failures)}")


def _as_selection(
    model: nn.Module | Mapping[str, nn.Module], patterns: Selection | Sequence[str], buffers: str = "live"
) -> Selection:
    """Return the Selection that was given, or what the patterns match in the model. Raises ConfigError for bad patterns."""
    from runner.freezing.selection import Selection, select
    from runner.proof.audit import as_module

    return patterns if isinstance(patterns, Selection) else select(as_module(model), patterns, buffers=buffers)


def _rows_named(rows: Sequence[Row], names: Collection[str]) -> list[Row]:
    """Return the rows of the parameters that have one of these names."""
    return [row for row in rows if row["kind"] == "parameter" and not names_in(row).isdisjoint(names)]


def _refuse_nothing(caller: str, patterns: object) -> None:
    """Raise ConfigError for an empty list of patterns: nothing would be watched."""
    if isinstance(patterns, (list, tuple, set)) and not patterns:
        raise ConfigError(f'{caller}: patterns is empty, so that nothing would be watched; give names, such as ["backbone"]')


def _told(patterns: object) -> str:
    """Return how a message calls what was given."""
    if patterns is None:
        return "requires_grad=False on entry"
    return f"patterns={list(patterns)!r}" if isinstance(patterns, (list, tuple, set)) else "the given Selection"


def _during(report: Report) -> str:
    """Return how long was trained, for a message."""
    steps = max(report.looks, default=0)
    return f" in {steps} step{'s' * (steps != 1)}" if steps else ", and no optimizer step of the model was seen"


def _distance(row: Row) -> str:
    """Return how far an element moved at most, for a message."""
    largest = row["change_max"]
    return "an unknown distance" if largest is None else f"up to {largest:.3g}"


def _lines(texts: Iterator[str] | Sequence[str]) -> str:
    """Return one indented line for each text, and a last line that counts those beyond MAX_NAMES."""
    lines = [f"  {text}" for text in texts]
    more = [f"  and {len(lines) - MAX_NAMES} more"] if len(lines) > MAX_NAMES else []
    return "\n".join([*lines[:MAX_NAMES], *more])


def _fault_of_trained(row: Row) -> str:
    """Return why the row of a parameter is not that of one that was trained; empty if it is."""
    if row["verdict"] == "idle":
        return f"did not change: {row['cause']}"
    if row["verdict"] == "returned":
        return f"has its initial bits again: it differed after step {row['seen_at']}"
    is_finite = row["change_l2"] is None or math.isfinite(row["change_l2"])
    return "" if is_finite else "became NaN or infinite"


def _why_nothing_trained(report: Report) -> str:
    """Return why the report does not show a training; empty if it does.

    A parameter that changed shows one. If all parameters are declared frozen, an optimizer step does.
    """
    parameters = [row for row in report.rows if row["kind"] == "parameter"]
    if any(row["moved"] or row["verdict"] == "returned" for row in parameters):
        return ""
    if not report.looks:
        return (
            "no optimizer step of this model was seen. If the block trains another model, give both: "
            'assert_frozen({"teacher": teacher, "student": student}, ["teacher"])'
        )
    idle = [f"{row['name']} did not change: {row['cause']}" for row in parameters if row["verdict"] == "idle"]
    return f"no parameter changed{_during(report)}:\n{_lines(idle)}" if idle else ""
