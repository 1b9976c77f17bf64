"""The keys `evaluate` and `metrics`: what they take, and what is refused before a run has a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.config.checks import metrics
from runner.errors import ConfigError
from tests.in_memory import config_with


@pytest.mark.parametrize("value", ["false", "true", "epoch"])
def test_evaluate_is_false_true_or_epoch(value):
    assert config_with(f"evaluate={value}", "data=digits", "data.holdout=0.2").evaluate in (False, True, "epoch")


@pytest.mark.parametrize("value", ["1", "epochs", "null", "[true]", "yes please"])
def test_any_other_value_of_evaluate_is_refused(value):
    with pytest.raises(ConfigError, match=r"^evaluate is .*; give false, true, or epoch \(after each pass too\)$"):
        config_with(f"evaluate={value}")


def test_metrics_without_evaluate_are_refused_for_nothing_would_be_measured():
    with pytest.raises(
        ConfigError, match=r"^metrics are measured on held-out data; give evaluate=true too, or metrics=\[\]$"
    ):
        config_with("metrics=[F1Score]")


def test_without_torchmetrics_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as refused:
        config_with("evaluate=true", "data=digits", "data.holdout=0.2", "metrics=[F1Score]")
    wanted = "metrics=F1Score needs torchmetrics; install it with: pip install 'freeze-runner[metrics]'"
    assert str(refused.value) == wanted


def test_a_typo_in_a_metric_ends_with_2_and_leaves_no_folder(cli):
    code, _, err = cli("model=mlp", "evaluate=true", "data=digits", "data.holdout=0.2", "metrics=[F1scor]")
    assert (code, err.count("\n")) == (2, 1)
    assert "metrics[0]: torchmetrics has no metric F1scor; did you mean F1Score" in err
    assert not Path("outputs").exists()


def test_metrics_that_are_no_list_are_refused(cli):
    code, _, err = cli("model=mlp", "evaluate=true", "data=digits", "data.holdout=0.2", "metrics=F1Score")
    assert (code, err.count("\n")) == (2, 1)
    assert "metrics is 'F1Score'; expected a list" in err
