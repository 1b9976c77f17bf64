"""The words of the contract, cell by cell, and the causes of an idle parameter."""

from __future__ import annotations

import pytest

from runner.contract import VERDICTS
from runner.proof.verdict import Evidence, counts, idle_cause, run_verdict, verdict

COLUMNS = [("parameter", True), ("parameter", False), ("buffer", False), ("buffer", True)]
TABLE = {
    "equal at every look": ["held", "idle", "still", "held"],
    "equal at the end, different at a look": ["returned", "returned", "drifted", "returned"],
    "different at the end": ["leaked", "trained", "drifted", "leaked"],
}
SEEN = {  # moved, differed at a look; what differs at the end may have been missed by every look
    "equal at every look": [(False, False)],
    "equal at the end, different at a look": [(False, True)],
    "different at the end": [(True, True), (True, False)],
}
CELLS = [
    (kind, frozen, moved, differed, word)
    for row, words in TABLE.items()
    for (kind, frozen), word in zip(COLUMNS, words, strict=True)
    for moved, differed in SEEN[row]
]


@pytest.mark.parametrize(("kind", "frozen", "moved", "differed", "word"), CELLS)
def test_every_cell_of_the_table_has_its_word(kind, frozen, moved, differed, word):
    assert verdict(kind, frozen, moved, differed) == word


def test_the_table_speaks_every_word_and_no_other():
    assert {word for words in TABLE.values() for word in words} == set(VERDICTS)
    assert len(VERDICTS) == len(set(VERDICTS)) == 7


@pytest.mark.parametrize("word", VERDICTS)
def test_a_run_leaked_only_where_something_declared_frozen_leaked(word):
    rows = [{"verdict": "held"}, {"verdict": "trained"}, {"verdict": word}, {"verdict": "drifted"}]
    assert run_verdict(rows) == ("leaked" if word == "leaked" else "held")


def test_a_run_of_no_rows_held():
    assert run_verdict([]) == "held"


def test_counts_name_every_verdict_and_add_up_to_the_rows():
    rows = [{"verdict": word} for number, word in enumerate(VERDICTS) for _ in range(number)]
    assert counts(rows) == {word: number for number, word in enumerate(VERDICTS)}
    assert list(counts([])) == list(VERDICTS)
    assert not any(counts([]).values())


@pytest.mark.parametrize(
    ("gradients", "lrs", "known", "in_optimizer", "cause"),
    [
        ({"present"}, {0.1}, True, False, "not_in_optimizer"),
        ({"none"}, {0.1}, True, False, "not_in_optimizer"),
        ({"none"}, {0.1}, True, True, "no_gradient"),
        ({"none"}, {0.0}, True, True, "no_gradient"),
        ({"zero"}, {0.1}, True, True, "zero_gradient"),
        ({"none", "zero"}, {0.1}, True, True, "zero_gradient"),
        ({"present"}, {0.0}, True, True, "lr_zero"),
        ({"present", "zero"}, {0.0}, True, True, "lr_zero"),
        ({"present"}, {0.1}, True, True, "rounded_away"),
        ({"present", "none"}, {0.0, 0.1}, True, True, "rounded_away"),
        (set(), set(), True, True, "unknown"),
        (set(), set(), False, False, "unknown"),
    ],
)
def test_every_idle_parameter_has_the_cause_that_its_evidence_gives(gradients, lrs, known, in_optimizer, cause):
    assert idle_cause(Evidence(gradients=gradients, lrs=lrs), known, in_optimizer) == cause


def test_what_differs_at_a_look_is_never_idle_nor_held():
    assert all(verdict(kind, frozen, False, True) not in ("held", "idle", "still") for kind, frozen in COLUMNS)
