"""How far tensors moved, in words."""

from __future__ import annotations

import math

import pytest

from runner.report.compare.changes import change_words, largest
from runner.runs.tables import tensor_row
from tests.run_folders import change_row


def row(change, **columns):
    texts = {key: str(value) for key, value in change_row("a.weight", "trained", 0.0, **columns).items()}
    return tensor_row(texts | {"change_rel": str(change), "moved": str(columns.get("moved", change != 0))})


@pytest.mark.parametrize(
    ("changes", "norms", "text"),
    [
        ([0.321, 0.1], [1.0, 1.0], "32.1%"),
        ([1e-9], [1e-9], "<0.001%"),
        ([0.0], [0.0], "0%"),
        ([""], [3.0], "from 0"),
        ([""], [""], "?"),
        (["nan", 0.5], ["nan", 1.0], "NaN"),
        (["inf"], ["inf"], "infinite"),
    ],
)
def test_a_change_is_the_largest_and_never_0_where_it_is_not_known(changes, norms, text):
    rows = [row(change, change_l2=norm) for change, norm in zip(changes, norms, strict=True)]
    assert change_words(rows) == text


def test_nan_is_larger_than_any_number_and_unknown_numbers_do_not_count():
    assert largest([None, 1.0, 2.0]) == 2.0
    assert math.isnan(largest([1.0, math.nan, 2.0]))
    assert largest([None]) is None
