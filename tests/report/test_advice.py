"""What each cause means and what to do about it: for every cause, true for the methods, and possible to paste."""

from __future__ import annotations

import csv
from typing import get_args

import pytest

from runner.config.check import check
from runner.config.compose import compose_config
from runner.contract import IdleCause, LeakCause
from runner.report.advice import ADVICE, IDLE_ADVICE, advice_on_idle, advice_on_leak
from tests.conftest import ROOT

ALL = [*ADVICE.values(), *IDLE_ADVICE.values()]


def record(method: str, buffers: str = "live", **options):
    return {"method": {"_target_": f"runner.methods.{method}.Class", **options}, "buffers": buffers}


def test_every_cause_has_advice():
    assert set(ADVICE) == set(get_args(LeakCause))
    assert set(IDLE_ADVICE) == set(get_args(IdleCause))


def test_a_meaning_and_a_fix_are_one_sentence_each():
    for advice in ALL:
        for text in (advice.meaning, advice.fix):
            assert text.endswith(".")
            assert ". " not in text
            assert len(text) <= 125


@pytest.mark.parametrize("override", sorted({override for advice in ALL for override in advice.overrides}))
def test_every_override_can_be_pasted(override):
    check(compose_config("model=mlp", *override.split()))


def test_no_advised_method_leaks_for_the_same_cause_in_the_truth_table():
    with (ROOT / "docs" / "truth_table.csv").open(newline="") as file:
        found = {(row["method"], row["causes"]) for row in csv.DictReader(file)}
    assert ("requires_grad", "optimizer_state") in found
    checked = 0
    for cause, advice in ADVICE.items():
        for override in advice.overrides:
            if override.startswith("method="):
                method = override.removeprefix("method=").replace("method.", "").replace("=true", "")
                assert (method, cause) not in found, override
                checked += 1
    assert checked >= 10


def test_a_run_is_not_told_to_do_what_it_does_already():
    assert advice_on_leak("scheduler", "parameter", record("zero_lr", guard=False)).overrides == (
        "method=zero_lr method.guard=true",
    )
    assert advice_on_leak("scheduler", "parameter", record("zero_lr", guard=True)).overrides == ("method=requires_grad",)
    assert advice_on_leak("gradient", "parameter", record("requires_grad", clean=False)).overrides == ("method=exclude",)
    assert advice_on_leak("optimizer_state", "parameter", record("requires_grad", clean=False)).overrides == (
        "method=requires_grad method.clean=true",
    )
    assert advice_on_leak("forward_write", "buffer", record("zero_lr", "frozen")).overrides == ()


def test_a_buffer_that_the_forward_pass_writes_is_held_by_eval_mode_and_a_parameter_by_nothing():
    assert advice_on_leak("forward_write", "buffer", record("zero_lr")).overrides == ("freeze.buffers=frozen",)
    parameter = advice_on_leak("forward_write", "parameter", record("zero_lr"))
    assert parameter.overrides == ()
    assert "max_norm" in parameter.meaning


def test_a_cause_of_another_version_gets_the_advice_on_unknown_causes():
    assert advice_on_leak("moonlight", "parameter", record("zero_lr")) == ADVICE["unknown"]
    assert advice_on_idle("moonlight", {"overrides": []}) == IDLE_ADVICE["unknown"]
