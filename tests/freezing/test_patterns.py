"""The pattern language by itself: each row of its table, each malformed entry, and a slow matcher that agrees."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.errors import ConfigError
from runner.freezing.patterns import parse, parse_all

CHECKED = settings(max_examples=200, deadline=None, database=None, derandomize=True)


def part_fits(pattern: str, part: str) -> bool:
    """One dotted part, letter by letter: `*` is any number of letters, `?` is one."""
    if not pattern:
        return not part
    if pattern[0] == "*":
        return part_fits(pattern[1:], part) or (part != "" and part_fits(pattern, part[1:]))
    return part != "" and pattern[0] in ("?", part[0]) and part_fits(pattern[1:], part[1:])


def reaches(pattern: list[str], name: list[str]) -> bool:
    """Part by part: `**` is any number of parts, and a pattern that is used up matches all below it."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return reaches(pattern[1:], name) or (name != [] and reaches(pattern, name[1:]))
    return name != [] and part_fits(pattern[0], name[0]) and reaches(pattern[1:], name[1:])


LETTERS = "ab+"  # few, so that many pairs match; the + means something to a regular expression
NAMES = st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=4)
PARTS = st.text(LETTERS + "*?", min_size=1, max_size=4).filter(lambda part: part == "**" or "**" not in part)
GLOBS = st.lists(PARTS | st.just("**"), min_size=1, max_size=4)


@CHECKED
@given(GLOBS, NAMES)
def test_a_glob_matches_what_a_part_by_part_recursion_matches(pattern, name):
    assert parse(".".join(pattern), "freeze.patterns").matches(".".join(name)) == reaches(pattern, name)


@pytest.mark.parametrize(
    ("pattern", "matched", "missed"),
    [
        ("fc", ["fc", "fc.weight", "fc.0.bias"], ["fc2", "fc2.weight", "fcc", "a.fc", "f", ""]),
        ("layer1.0", ["layer1.0", "layer1.0.conv1.weight"], ["layer1", "layer1.00", "layer1.01.weight", "layer1.1"]),
        ("fc.weight", ["fc.weight"], ["fc", "fc.bias", "fc.weights", "fc.weight_g"]),
        ("layer*.*.bn?", ["layer1.0.bn1", "layer.x.bn2.weight"], ["layer1.0.bn", "layer1.0.bn10", "layer1.bn1", "x.0.bn1"]),
        ("*", ["fc", "layer1.0.bn1.weight"], [""]),
        ("?", ["a", "a.weight"], ["", "ab", "ab.weight"]),
        ("*.bias", ["fc.bias"], ["bias", "layer1.0.bias"]),
        ("**.bias", ["bias", "fc.bias", "layer1.0.bn1.bias"], ["fc.weight", "biased", "fc.bias2", ""]),
        ("layer1.**.weight", ["layer1.weight", "layer1.0.bn1.weight"], ["layer1.0.bn1.bias", "layer12.weight"]),
        ("layer1.**", ["layer1", "layer1.0.bn1.weight"], ["layer12", "layer12.weight", ""]),
        ("**", ["", "fc", "layer1.0.bn1.weight"], []),
        (r"re:layer[12]\..*bias", ["layer1.0.bn1.bias", "layer2.bias"], ["layer3.bias", "layer1.bias.x", "a.layer1.bias"]),
        ("re:fc|conv", ["fc", "conv"], ["fc.weight", "conv1", ""]),
        ("a+b", ["a+b", "a+b.weight"], ["aab", "ab"]),
        ("a[b]", ["a[b]"], ["ab"]),
    ],
)
def test_every_row_of_the_table_matches_what_it_says_and_nothing_else(pattern, matched, missed):
    found = parse(pattern, "freeze.patterns").matches
    assert [name for name in [*matched, *missed] if found(name)] == matched


def test_a_name_matches_all_below_it_but_never_a_longer_name():
    matches = parse("layer1", "freeze.patterns").matches
    assert matches("layer1")
    assert matches("layer1.0.conv1.weight")
    assert not matches("layer10")
    assert not matches("layer10.weight")
    assert not matches("layer")


@pytest.mark.parametrize("pattern", ["FC", "Fc.weight", "re:FC.*", "F*"])
def test_case_matters(pattern):
    assert not parse(pattern, "freeze.patterns").matches("fc.weight")


@pytest.mark.parametrize(
    ("text", "kind"),
    [("fc", "name"), ("**.bias", "name"), ("re:.*", "regex"), ("type:torch.nn.Linear", "type"), ("@head", "head")],
)
def test_each_way_to_write_a_pattern_is_told_by_how_it_begins(text, kind):
    assert parse(text, "freeze.patterns").kind == kind


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a pattern"),
        ("   ", "not a pattern"),
        (None, "not a pattern"),
        (3, "not a pattern"),
        (["fc"], "not a pattern"),
        (" fc", "write 'fc'"),
        ("fc\n", "write 'fc'"),
        ("fc.", "empty part"),
        (".fc", "empty part"),
        ("layer1..0", "empty part"),
        (".", "empty part"),
        ("layer**", "** stands alone"),
        ("***", "** stands alone"),
        ("re:", "is empty"),
        ("re:layer(", "not a regular expression"),
        ("re:*", "not a regular expression"),
        ("type:", "type:ClassName"),
        ("type:Batch*", "type:ClassName"),
        ("type:torch..Linear", "type:ClassName"),
        ("type:1d", "type:ClassName"),
        ("@tail", "@head"),
        ("@", "@head"),
        ("@head.weight", "@head"),
    ],
)
def test_an_empty_or_malformed_pattern_is_refused_in_one_line_that_names_its_key_and_says_what_to_write(text, said):
    with pytest.raises(ConfigError) as caught:
        parse(text, "freeze.keep")
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert message.startswith("freeze.keep: ")
    assert said in message
    assert "\n" not in message


def test_a_list_of_patterns_keeps_its_order():
    assert [pattern.text for pattern in parse_all(["fc", "**", "@head"], "freeze.patterns")] == ["fc", "**", "@head"]


def test_one_text_where_a_list_is_expected_is_refused_for_it_would_be_read_as_letters():
    with pytest.raises(ConfigError, match=r"write \[fc\]"):
        parse_all("fc", "freeze.patterns")


def test_many_double_stars_take_no_time_that_grows_without_bound():
    assert not parse(".".join(["**", "a*a*c"] * 6), "freeze.patterns").matches(".".join(["aaaab"] * 12))
