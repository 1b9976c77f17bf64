"""A record that is missing or incomplete is read as one with every key."""

from __future__ import annotations

from runner.contract import Record
from runner.runs.read import checked_record


def test_a_missing_or_incomplete_record_is_read_with_every_key():
    assert set(checked_record(None, [])) == set(Record.__annotations__)
    assert set(checked_record({"status": "finished"}, [])) == set(Record.__annotations__)
