"""The public names of the package."""

from __future__ import annotations

import sys

import pytest

import runner

MODULE_OF = {
    "audit": "runner.proof.audit",
    "foresee": "runner.foresight.foresee",
    "diff": "runner.proof.checkpoints.difference",
    "select": "runner.freezing.selection",
    "price": "runner.cost.price",
    "run": "runner.runs.job",
    "FreezingMethod": "runner.methods.base",
}


def test_there_are_exactly_these_public_names():
    assert set(runner.__all__) == set(MODULE_OF)


@pytest.mark.parametrize(("name", "module"), MODULE_OF.items())
def test_a_public_name_is_the_object_of_its_module_and_has_a_docstring(name, module):
    found = getattr(runner, name)
    assert found is getattr(sys.modules[module], name)
    assert found.__module__ == module
    assert found.__doc__


def test_the_public_names_can_be_imported_together():
    from runner import FreezingMethod, audit, diff, foresee, price, run, select

    together = FreezingMethod, audit, diff, foresee, price, run, select
    assert [each.__name__ for each in together] == ["FreezingMethod", "audit", "diff", "foresee", "price", "run", "select"]


def test_the_error_for_an_unknown_attribute_lists_the_public_names():
    with pytest.raises(AttributeError, match=r"module 'runner' has no attribute 'audits'") as caught:
        runner.audits  # noqa: B018
    assert all(name in str(caught.value) for name in MODULE_OF)


def test_an_unknown_name_cannot_be_imported():
    with pytest.raises(ImportError, match="audits"):
        from runner import audits  # noqa: F401


def test_dir_is_sorted_and_lists_the_public_names_before_they_are_imported(monkeypatch):
    for name in MODULE_OF:
        monkeypatch.delitem(vars(runner), name, raising=False)
    assert {*MODULE_OF, "__version__"} <= set(dir(runner))
    assert dir(runner) == sorted(dir(runner))
    assert runner.__version__.count(".") == 2
