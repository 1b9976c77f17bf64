"""Texts that are cut: between words, and nothing is lost."""

from __future__ import annotations

import pytest

from runner.runs.text import cut


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two", ("one two", "")),
        ("one two three", ("one two", "three")),
        ("onetwothreefour", ("onetwoth", "reefour")),
        ("a bcdefghijk", ("a bcdefg", "hijk")),  # not after the first word alone
        ("", ("", "")),
    ],
)
def test_a_text_is_cut_after_a_word_where_one_ends_in_the_second_half(text, expected):
    assert cut(text, 8) == expected
    assert "".join(cut(text, 8)).replace(" ", "") == text.replace(" ", "")
