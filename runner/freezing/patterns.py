"""The pattern language: text -> a predicate over dotted names, without a model and without torch.

| written | means |
|---|---|
| `fc`, `layer1.0`, `fc.weight` | that module or parameter and all below it |
| `layer*.*.bn?` | `*` and `?` stay within one dotted part; `**` crosses zero or more parts |
| `re:layer[12]\\..*bias` | a regular expression that must match the whole name |
| `type:BatchNorm2d` | modules of that class or a subclass, and all below them |
| `@head` | the model's classifier |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from runner.errors import ConfigError

HEAD = "@head"
_BELOW = r"(?:[^.]+\.)*"  # zero or more dotted parts, each with its dot


@dataclass(frozen=True)
class Pattern:
    """One parsed pattern; `regex` is compiled for names (kinds `name` and `regex`)."""

    text: str
    kind: Literal["name", "regex", "type", "head"]
    regex: re.Pattern[str] | None = None

    def matches(self, name: str) -> bool:
        """Whether a dotted name of a module or tensor matches; for kinds `name` and `regex` only."""
        assert self.regex is not None, f"{self.text} needs a model to be matched"
        if self.kind == "regex":
            return self.regex.fullmatch(name) is not None
        return self.regex.fullmatch(f"{name}." if name else "") is not None


def parse(text: object, key: str) -> Pattern:
    """Parse one pattern; `key` names where it was written, for the message.

    Raises ConfigError for an empty or malformed pattern.
    """
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{key}: {text!r} is not a pattern; give a name such as fc, layer*.bn1, re:..., type:... or @head")
    if text != text.strip():
        raise ConfigError(f"{key}: {text!r} begins or ends with a space; write {text.strip()!r}")
    if text.startswith("re:"):
        return Pattern(text, "regex", _regex(text, key))
    if text.startswith("type:"):
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", text[5:]):
            raise ConfigError(f"{key}: {text!r} is malformed; write type:ClassName, e.g. type:BatchNorm2d")
        return Pattern(text, "type")
    if text.startswith("@"):
        if text != HEAD:
            raise ConfigError(f"{key}: {text!r} is unknown; the only name with an @ is {HEAD}, the model's classifier")
        return Pattern(text, "head")
    return Pattern(text, "name", _glob(text, key))


def parse_all(texts: Sequence[object], key: str) -> tuple[Pattern, ...]:
    """Parse a list of patterns; a single text in place of the list is refused, since it is a list of letters."""
    if isinstance(texts, str):
        raise ConfigError(f"{key}: {texts!r} is one pattern where a list is expected; write [{texts}]")
    return tuple(parse(text, key) for text in texts)


def refuse_entries_in_both(patterns: Sequence[str], keep: Sequence[str]) -> None:
    """Raise ConfigError for an entry that is to be frozen and exempt."""
    for text in patterns:
        if text in keep:
            raise ConfigError(f"{text!r} stands in freeze.patterns and in freeze.keep; take it out of one of them")


def _regex(text: str, key: str) -> re.Pattern[str]:
    if text == "re:":
        raise ConfigError(f"{key}: 're:' is empty; a regular expression must match a parameter's whole name, e.g. re:.*bias")
    try:
        return re.compile(text[3:])
    except re.error as error:
        raise ConfigError(f"{key}: {text!r} is not a regular expression: {error}") from error


def _glob(text: str, key: str) -> re.Pattern[str]:
    parts = text.split(".")
    if "" in parts:
        raise ConfigError(f"{key}: {text!r} has an empty part between its dots; write names such as layer1.0.conv1")
    compiled = ""
    for part in parts:
        if part == "**":
            compiled += _BELOW
        elif "**" in part:
            raise ConfigError(f"{key}: {text!r} is malformed; ** stands alone between dots, e.g. **.bias")
        else:
            compiled += re.escape(part).replace(r"\*", "[^.]*").replace(r"\?", "[^.]") + r"\."
    return re.compile(compiled + _BELOW)
