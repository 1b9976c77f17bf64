"""`did_you_mean` names the nearest existing names; `ConfigError` is a `ValueError`; lines of the user are found."""

from __future__ import annotations

import re

import pytest

from runner.errors import ConfigError, SkippedError, did_you_mean, line_in_user_code


def test_config_error_is_a_value_error_and_skipped_error_is_not():
    assert issubclass(ConfigError, ValueError)
    assert not issubclass(SkippedError, ValueError)


@pytest.mark.parametrize(
    ("name", "existing", "message"),
    [
        ("bacthes", ["batches", "seed"], "; did you mean batches?"),
        ("batchnorm1d", ["BatchNorm1d", "Linear"], "; did you mean BatchNorm1d?"),
        ("BATCHNORM", ["batchnorm", "linear"], "; did you mean batchnorm?"),
        ("layer9", ["layer1", "layer2"], "; did you mean layer1 or layer2?"),
        ("xyzzy", ["batches", "seed"], ""),
        ("batches", [], ""),
        ("", ["batches"], ""),
    ],
)
def test_near_names_are_suggested_in_any_case_and_distant_ones_are_not(name, existing, message):
    assert sorted(did_you_mean(name, existing)) == sorted(message)  # near names may be in any order
    assert did_you_mean(name, existing).startswith(message[:15])


def test_the_nearest_name_comes_first_and_at_most_three_are_suggested():
    message = did_you_mean("layer1.bn1", ["layer1.bn2", "layer2.bn2", "layer1.bn1s", "layer3.bn9", "layer4.bn4"])
    assert message.startswith("; did you mean layer1.bn1s or ")
    assert message.count(" or ") == 2


def test_the_existing_names_may_be_any_iterable():
    assert did_you_mean("see", (name for name in ["seed"])) == "; did you mean seed?"


def test_the_line_of_the_user_that_runs_now_is_the_innermost_one_within_a_function():
    def outer():
        return inner()

    def inner():
        return line_in_user_code(until=outer.__code__)  # this one

    assert re.fullmatch(r"test_errors\.py, line \d+: return line_in_user_code\(.*\)  # this one", outer())
