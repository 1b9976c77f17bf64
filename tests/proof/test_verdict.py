"""Every verdict of the contract's table, and the causes of idle parameters."""

from __future__ import annotations

import pytest

from runner.contract import VERDICTS
from runner.proof.verdict import Evidence, count_verdicts, idle_cause, run_verdict, verdict, violates_strict

COLUMNS = [("parameter", True), ("parameter", False), ("buffer", False), ("buffer", True)]
TABLE = {
    "equal at every comparison": ["held", "idle", "still", "held"],
    "equal at the end, different before": ["returned", "returned", "drifted", "returned"],
    "different at the end": ["leaked", "trained", "drifted", "leaked"],
}
MOVED_AND_DIFFERED = {  # (moved, differed): a change at the end may not have been there at any comparison
    "equal at every comparison": [(False, False)],
    "equal at the end, different before": [(False, True)],
    "different at the end": [(True, True), (True, False)],
}
CASES = [
    (kind, frozen, moved, differed, word)
    for row, words in TABLE.items()
    for (kind, frozen), word in zip(COLUMNS, words, strict=True)
    for moved, differed in MOVED_AND_DIFFERED[row]
]


@pytest.mark.parametrize(("kind", "frozen", "moved", "differed", "word"), CASES)
def test_every_case_of_the_table_has_its_verdict(kind, frozen, moved, differed, word):
    assert verdict(kind, frozen, moved, differed) == word


def test_the_table_has_exactly_the_verdicts_of_the_contract():
    assert {word for words in TABLE.values() for word in words} == set(VERDICTS)
    assert len(VERDICTS) == len(set(VERDICTS)) == 7


@pytest.mark.parametrize("word", VERDICTS)
def test_a_run_leaked_if_and_only_if_a_row_leaked(word):
    rows = [{"verdict": "held"}, {"verdict": "trained"}, {"verdict": word}, {"verdict": "drifted"}]
    assert run_verdict(rows) == ("leaked" if word == "leaked" else "held")


def test_a_run_without_rows_held():
    assert run_verdict([]) == "held"


def test_counts_have_every_verdict_and_add_up_to_the_number_of_rows():
    rows = [{"verdict": word} for number, word in enumerate(VERDICTS) for _ in range(number)]
    assert count_verdicts(rows) == {word: number for number, word in enumerate(VERDICTS)}
    assert list(count_verdicts([])) == list(VERDICTS)
    assert not any(count_verdicts([]).values())


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
def test_the_cause_of_an_idle_parameter_follows_from_its_evidence(gradients, lrs, known, in_optimizer, cause):
    assert idle_cause(Evidence(gradients=gradients, lrs=lrs), known, in_optimizer) == cause


def test_a_tensor_that_differed_at_a_comparison_is_never_idle_or_held_or_still():
    assert all(verdict(kind, frozen, False, True) not in ("held", "idle", "still") for kind, frozen in COLUMNS)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, False),
        ({"leaked": 1}, True),
        ({"idle": 1}, True),
        ({"trained": 0}, True),
        ({"loss_last": None}, True),
        ({"loss_first": None}, True),
    ],
)
def test_strict_refuses_leaks_idle_parameters_a_run_that_trained_nothing_and_a_loss_that_is_not_finite(change, expected):
    counts = {"leaked": 0, "idle": 0, "trained": 2, "held": 1} | {k: v for k, v in change.items() if "loss" not in k}
    record = {"counts": counts, "looks": [1, 2], "loss_first": 1.0, "loss_last": 0.5} | {
        key: value for key, value in change.items() if "loss" in key
    }
    assert violates_strict(record) is expected


def test_strict_has_nothing_to_say_about_a_run_that_was_skipped_or_recorded_nothing():
    assert not violates_strict({"counts": {}, "looks": [], "loss_first": None, "loss_last": None})
    assert not violates_strict({"counts": {}})
