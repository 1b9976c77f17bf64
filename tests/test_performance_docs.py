"""The page on performance has the table that benchmarks/where_time_goes.py writes, which times functions that exist."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from types import ModuleType

import pytest

from benchmarks import timed_parts, where_time_goes
from benchmarks.timed_parts import LOOP, MARKED, OTHERS, OURS, PARTS, REST, TIMED, TORCH, Clock, find, timed

PAGE = where_time_goes.PAGE.read_text()


class Now:
    """A clock that is set by hand."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def cells_of(line: str) -> list[str]:
    """Return the cells of a row of a Markdown table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_has_the_table_with_the_rows_and_columns_that_the_command_writes():
    written = PAGE.partition(where_time_goes.BEGIN)[2].partition(where_time_goes.END)[0]
    head, _, *rows = [cells_of(line) for line in written.strip().splitlines()]
    assert head == ["part", *where_time_goes.COLUMNS]
    assert [name for name, *_ in rows] == list(PARTS)
    assert all(re.fullmatch(r"(<1%|\d+%)?", share) for _, *shares in rows for share in shares)
    assert {len(row) for row in rows} == {len(head)}


def test_a_new_table_replaces_the_old_one_alone():
    seconds = {column: dict.fromkeys(PARTS, 0.0) | {REST: 1.0} for column in where_time_goes.COLUMNS}
    first = where_time_goes.with_table(PAGE, where_time_goes.table(seconds))
    assert first.partition(where_time_goes.BEGIN)[0] == PAGE.partition(where_time_goes.BEGIN)[0]
    assert first.partition(where_time_goes.END)[2] == PAGE.partition(where_time_goes.END)[2]
    assert first.count("100%") == len(seconds)
    with pytest.raises(ValueError, match=re.escape(where_time_goes.END)):
        where_time_goes.with_table(where_time_goes.BEGIN, "")


@pytest.mark.parametrize("name", dict.fromkeys([*(name for names in TIMED.values() for name in names), *MARKED]))
def test_every_function_that_is_timed_exists(name):
    owner, attribute = find(name, import_module(name.partition(":")[0]))
    assert callable(getattr(owner, attribute))


def test_a_function_that_is_gone_is_named():
    with pytest.raises(LookupError, match=r"runner:Gone\.step is gone"):
        find("runner:Gone.step", sys.modules["runner"])


def test_time_within_a_part_is_that_of_the_innermost_part_alone():
    now = Now()
    clock = Clock(now)

    def spend(seconds):
        now.seconds += seconds

    def forward():
        spend(4)

    def steps():
        for _ in range(2):
            timed(forward, "forward", clock)()
            spend(1)
            yield

    for _ in timed(steps, LOOP, clock)():
        spend(10)
    clock.mark("end")
    assert clock.seconds == {REST: 20, LOOP: 2, "forward": 8}
    assert clock.marks == [("end", clock.seconds)]


def test_within_a_part_that_is_closed_only_imports_count_apart():
    clock = Clock(Now())
    clock.begin("metering")
    assert not clock.is_counted("step: forward")
    assert clock.is_counted(TORCH, is_import=True)
    clock.begin(TORCH)
    assert not clock.is_counted(OTHERS, is_import=True)
    clock.end()
    clock.begin(OURS)
    assert clock.is_counted(TORCH, is_import=True)


def test_functions_are_replaced_in_their_module_with_class_methods_among_them(monkeypatch):
    class Trials:
        @classmethod
        def of(cls):
            return cls

    module = ModuleType("module")
    module.Trials = Trials
    monkeypatch.setattr(timed_parts, "TIMED", {"trials": ("module:Trials.of",)})
    monkeypatch.setattr(timed_parts, "MARKED", ("module:Trials.of",))
    clock = Clock(Now())
    timed_parts.replace_functions(module, clock)
    assert Trials.of() is Trials
    assert [name for name, _ in clock.marks] == ["module:Trials.of", "after module:Trials.of"]
