"""Errors teach: they name the nearest of what there is."""

from __future__ import annotations

import pytest

from runner.errors import ConfigError, SkippedError, did_you_mean


def test_a_config_error_is_a_value_error_and_a_skip_is_not():
    assert issubclass(ConfigError, ValueError)
    assert not issubclass(SkippedError, ValueError)


@pytest.mark.parametrize(
    ("given", "known", "said"),
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
def test_the_nearest_names_are_named_whatever_their_case_and_far_ones_are_not(given, known, said):
    assert sorted(did_you_mean(given, known)) == sorted(said)
    assert did_you_mean(given, known).startswith(said[:15])


def test_the_nearest_name_comes_first_and_at_most_three_are_named():
    said = did_you_mean("layer1.bn1", ["layer1.bn2", "layer2.bn2", "layer1.bn1s", "layer3.bn9", "layer4.bn4"])
    assert said.startswith("; did you mean layer1.bn1s or ")
    assert said.count(" or ") == 2


def test_names_may_come_from_any_iterable():
    assert did_you_mean("see", (name for name in ["seed"])) == "; did you mean seed?"
