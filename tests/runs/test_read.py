"""A run folder is read with care: whatever its record lacks, the record that is handed on is whole."""

from __future__ import annotations

from runner.contract import Record
from runner.runs.read import checked_record


def test_a_record_that_is_not_there_is_read_as_one_with_every_key():
    assert set(checked_record(None, [])) == set(Record.__annotations__)
    assert set(checked_record({"status": "finished"}, [])) == set(Record.__annotations__)
