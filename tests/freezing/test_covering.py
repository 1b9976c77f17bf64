"""Names of modules that cover a set of parameters."""

from __future__ import annotations

from runner.freezing.covering import covering_names


def test_a_module_is_named_where_all_of_it_is_covered_and_a_parameter_where_its_module_is_not():
    names = ["a.0.weight", "a.0.bias", "a.1.weight", "b.weight", "b.bias", "c"]
    assert list(covering_names(names, {"a.0.weight", "a.0.bias", "a.1.weight", "c"})) == ["a", "c"]
    assert list(covering_names(names, {"a.0.weight", "a.0.bias", "b.bias"})) == ["a.0", "b.bias"]
    assert list(covering_names(names, set())) == []
