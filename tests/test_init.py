"""The public words."""

from __future__ import annotations

import sys

import pytest

import runner

WORDS = {
    "audit": "runner.proof.audit",
    "select": "runner.freezing.selection",
    "run": "runner.runs.job",
    "FreezingMethod": "runner.methods.base",
}


def test_the_public_words_are_these_four():
    assert set(runner.__all__) == set(WORDS)


@pytest.mark.parametrize(("word", "home"), WORDS.items())
def test_a_public_word_is_the_object_of_its_module(word, home):
    found = getattr(runner, word)
    assert found is getattr(sys.modules[home], word)
    assert found.__module__ == home
    assert found.__doc__


def test_the_words_can_be_imported_together():
    from runner import FreezingMethod, audit, run, select

    assert [word.__name__ for word in (FreezingMethod, audit, run, select)] == ["FreezingMethod", "audit", "run", "select"]


def test_an_unknown_word_is_answered_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"module 'runner' has no attribute 'audits'") as caught:
        runner.audits  # noqa: B018
    assert all(word in str(caught.value) for word in WORDS)


def test_an_unknown_word_cannot_be_imported():
    with pytest.raises(ImportError, match="audits"):
        from runner import audits  # noqa: F401


def test_dir_lists_the_version_and_the_words_sorted_and_before_they_are_imported(monkeypatch):
    for word in WORDS:
        monkeypatch.delitem(vars(runner), word, raising=False)
    assert {*WORDS, "__version__"} <= set(dir(runner))
    assert dir(runner) == sorted(dir(runner))
    assert runner.__version__.count(".") == 2
