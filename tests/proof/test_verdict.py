"""Every verdict of the contract's table, and the causes of idle parameters."""

from __future__ import annotations

import math

import pytest
import torch

from runner.contract import VERDICTS
from runner.proof.verdict import (
    Evidence,
    count_verdicts,
    first_not_finite,
    idle_cause,
    loss_rose,
    outcome_of,
    run_verdict,
    strict_problems,
    verdict,
)
from tests.in_memory import run_experiment

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
        ({"present"}, {0.1}, False, True, "unknown"),  # there may have been no step at all
        ({"none"}, {0.1}, False, True, "no_gradient"),
    ],
)
def test_the_cause_of_an_idle_parameter_follows_from_its_evidence(gradients, lrs, known, in_optimizer, cause):
    assert idle_cause(Evidence(gradients=gradients, lrs=lrs), known, in_optimizer) == cause


def test_a_tensor_that_differed_at_a_comparison_is_never_idle_or_held_or_still():
    assert all(verdict(kind, frozen, False, True) not in ("held", "idle", "still") for kind, frozen in COLUMNS)


def record(**more):
    """The entries of `run.json` that strict reads, of a run without a problem; `more` overrides them and the counts."""
    counts = {"leaked": 0, "idle": 0, "trained": 2, "held": 1}
    losses = {"loss_first": 1.0, "loss_last": 0.5, "loss_not_finite_at": None}
    entries = {"status": "finished", "verdict": "held", "counts": counts, "looks": [1, 2], **losses}
    counts.update({key: value for key, value in more.items() if key in counts})
    return entries | {key: value for key, value in more.items() if key not in counts}


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({}, []),
        ({"leaked": 1}, ["1 frozen tensor leaked"]),
        ({"idle": 1}, ["1 trainable parameter did not change"]),
        ({"idle": 2, "trained": 0}, ["2 trainable parameters did not change", "no parameter was trained"]),
        ({"trained": 0}, ["no parameter was trained"]),  # everything is frozen
        ({"loss_not_finite_at": 7}, ["the loss became NaN or infinite at step 7"]),  # and it was finite again at the end
        ({"loss_last": None}, ["the loss became NaN or infinite"]),
        ({"loss_first": None}, ["the loss became NaN or infinite"]),
    ],
)
def test_strict_names_leaks_idle_parameters_a_training_of_nothing_and_a_loss_that_is_not_finite(change, problems):
    assert strict_problems(record(**change)) == problems


def test_strict_names_the_tensors_where_it_has_the_rows():
    rows = [{"name": f"layer{n}", "verdict": "leaked"} for n in range(6)] + [{"name": "head", "verdict": "trained"}]
    assert strict_problems(record(leaked=6), rows) == ["6 frozen tensors leaked (layer0, layer1, layer2 and 3 more)"]


def test_strict_has_nothing_to_say_about_a_run_that_was_skipped_or_recorded_nothing():
    assert strict_problems({"counts": {}, "looks": [], "loss_first": None, "loss_last": None}) == []
    assert strict_problems({"counts": {}}) == []


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({}, "held"),
        ({"idle": 1}, "held"),  # something else trained
        ({"trained": 0}, "held"),  # everything is frozen
        ({"idle": 1, "trained": 0}, "nothing trained"),
        ({"loss_not_finite_at": 7}, "loss not finite"),
        ({"loss_last": None}, "loss not finite"),
        ({"looks": [], "loss_first": None, "loss_last": None}, "no step"),
        ({"looks": []}, "held"),  # steps were made by an optimizer whose steps the audit does not see
        ({"looks": [], "idle": 1, "trained": 0}, "nothing trained"),
        ({"looks": [], "loss_not_finite_at": 3, "loss_last": None}, "loss not finite"),
        ({"looks": [], "loss_not_finite_at": 1, "loss_first": None, "loss_last": None}, "loss not finite"),
        ({"leaked": 1, "verdict": "leaked", "idle": 1, "trained": 0, "loss_last": None}, "leaked"),
        ({"status": "interrupted"}, "interrupted"),
        ({"verdict": None}, "finished"),
    ],
)
def test_a_run_is_held_only_if_it_finished_made_a_step_trained_something_and_kept_its_loss_finite(change, outcome):
    assert outcome_of(record(**change)) == outcome


class Unseen(torch.optim.Optimizer):
    """SGD that does not call `Optimizer.__init__`, so that the audit sees none of its steps."""

    def __init__(self, params, lr):
        self.param_groups, self.defaults, self.state, self.lr = list(params), {"lr": lr}, {}, lr

    def zero_grad(self, set_to_none=True):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self):
        for parameter in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            parameter.add_(parameter.grad, alpha=-self.lr)


@pytest.mark.parametrize(
    ("lr", "outcome", "problem"),
    [
        (0.0, "nothing trained", "no parameter was trained"),
        (1e30, "loss not finite", "the loss became NaN or infinite at step 2"),
        (0.1, "held", None),
    ],
)
def test_a_run_whose_steps_the_audit_does_not_see_is_judged_by_what_moved_and_by_its_losses(lr, outcome, problem):
    target = f"optimizer._target_={__name__}.{Unseen.__name__}"
    record = run_experiment(
        "optimizer=custom", target, f"optimizer.lr={lr:.1e}", "method=requires_grad", "freeze=head"
    ).record
    assert record["looks"] == []
    assert outcome_of({"status": "finished", **record}) == outcome
    assert strict_problems(record)[-1:] == ([problem] if problem else [])


def test_the_first_loss_that_is_nan_or_infinite_is_found_also_if_later_ones_are_finite():
    assert first_not_finite([1.0, 2.0]) is None
    assert first_not_finite([1.0, math.inf, math.nan, 3.0]) == 2


@pytest.mark.parametrize(
    ("losses", "rose"),
    [
        ([2.3, 2.4, 2.2, 2.5], False),  # so few differ by chance
        ([2.3, 9.9], True),
        ([2.3] * 6 + [2.4] * 6, True),
        ([2.3, 2.5, 2.3] * 2 + [2.4] * 6, False),  # batches differ as much
        ([2.3, 2.2, 2.1, 2.0] * 3 + [9.0], False),  # the last batch alone
        ([math.nan] * 12, False),
        ([2.3], False),
        ([], False),
        ([-1.0] * 6 + [-0.5] * 6, True),
    ],
)
def test_a_loss_rose_if_the_last_quarter_lies_above_the_first_beyond_the_differences_between_batches(losses, rose):
    assert loss_rose(losses) == rose
