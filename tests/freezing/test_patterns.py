"""The pattern language without a model: each kind of pattern, malformed patterns, and agreement with a slow matcher."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.errors import ConfigError
from runner.freezing.patterns import parse, parse_all

CHECKED = settings(max_examples=200, deadline=None, database=None, derandomize=True)


def part_matches(pattern: str, part: str) -> bool:
    """Return whether a pattern matches one dotted part, letter by letter: `*` is any number of letters, `?` is one."""
    if not pattern:
        return not part
    if pattern[0] == "*":
        return part_matches(pattern[1:], part) or (part != "" and part_matches(pattern, part[1:]))
    return part != "" and pattern[0] in ("?", part[0]) and part_matches(pattern[1:], part[1:])


def matches_by_recursion(pattern: list[str], name: list[str]) -> bool:
    """Return whether a pattern matches a name, part by part: `**` is any number of parts; names below match, too."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return matches_by_recursion(pattern[1:], name) or (name != [] and matches_by_recursion(pattern, name[1:]))
    return name != [] and part_matches(pattern[0], name[0]) and matches_by_recursion(pattern[1:], name[1:])


LETTERS = "ab+"  # few, so that many pairs match; + is a special character in regular expressions
NAMES = st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=4)
PARTS = st.text(LETTERS + "*?", min_size=1, max_size=4).filter(lambda part: part == "**" or "**" not in part)
GLOBS = st.lists(PARTS | st.just("**"), min_size=1, max_size=4)


@CHECKED
@given(GLOBS, NAMES)
def test_a_glob_matches_what_a_part_by_part_recursion_matches(pattern, name):
    assert parse(".".join(pattern), "freeze.patterns").matches(".".join(name)) == matches_by_recursion(pattern, name)


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
def test_every_kind_of_pattern_matches_the_names_that_it_should_and_no_others(pattern, matched, missed):
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
    [("fc", "name"), ("**.bias", "name"), ("re:.*", "regex"), ("type:torch.nn.Linear", "type"), ("@head", "part")],
)
def test_the_kind_of_a_pattern_follows_from_how_it_begins(text, kind):
    assert parse(text, "freeze.patterns").kind == kind


@pytest.mark.parametrize(
    ("text", "expected_text"),
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
        ("layer**", "write ** alone"),
        ("***", "write ** alone"),
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
def test_the_message_for_an_empty_or_malformed_pattern_is_one_line_with_the_key_and_a_correction(text, expected_text):
    with pytest.raises(ConfigError) as caught:
        parse(text, "freeze.keep")
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert message.startswith("freeze.keep: ")
    assert expected_text in message
    assert "\n" not in message


def test_a_list_of_patterns_keeps_its_order():
    assert [pattern.text for pattern in parse_all(["fc", "**", "@head"], "freeze.patterns")] == ["fc", "**", "@head"]


def test_a_single_string_instead_of_a_list_is_an_error():
    with pytest.raises(ConfigError, match=r"write \['fc'\]"):
        parse_all("fc", "freeze.patterns")


def test_many_double_stars_are_matched_in_a_short_time():
    assert not parse(".".join(["**", "a*a*c"] * 6), "freeze.patterns").matches(".".join(["aaaab"] * 12))


@pytest.mark.parametrize(
    ("pattern", "whole", "not_whole"),
    [
        ("bn.mean", ["bn.mean"], ["bn", "bn.mean.x", "a.bn.mean"]),
        ("bn", ["bn"], ["bn.mean"]),
        ("bn.*", [], ["bn", "bn.mean"]),
        ("**", [], ["", "bn"]),
        ("re:bn.*", ["bn", "bn.mean"], ["a.bn"]),
        ("type:BatchNorm1d", [], ["bn", "BatchNorm1d"]),
        ("@head", [], ["head", "@head"]),
    ],
)
def test_a_pattern_is_a_whole_name_if_it_has_no_wildcard_or_is_a_regular_expression_that_matches(pattern, whole, not_whole):
    is_name_of = parse(pattern, "freeze.patterns").is_name_of
    assert [name for name in [*whole, *not_whole] if is_name_of(name)] == whole
