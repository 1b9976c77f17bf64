"""The pattern language: parses a text into a Pattern that matches dotted names, without a model and without torch.

| written | means |
|---|---|
| `fc`, `layer1.0`, `fc.weight` | that module or parameter and all below it |
| `layer*.*.bn?` | `*` and `?` stay within one dotted part; `**` crosses zero or more parts |
| `re:layer[12]\\..*bias` | a regular expression that must match the whole name |
| `type:BatchNorm2d` | modules of that class or a subclass, and all below them |
| `@head`, `@norms`, ... | parts that are found in the model |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from runner.errors import ConfigError, did_you_mean, listed, short_repr
from runner.freezing.words import FOR_CONFIG, Words

HEAD, AS_BUILT = "@head", "@as_built"
BY_TRIAL = (HEAD, "@vision", "@adapters")  # found best by a forward pass on a real batch
PART_NAMES = (HEAD, "@embeddings", "@norms", "@adapters", "@router", "@vision", AS_BUILT)
TYPOGRAPHIC_QUOTES = "“”„‟‘’‚‛«»"
_ANY_PARTS = r"(?:[^.]+\.)*"  # zero or more dotted parts, each with its dot


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern, which matches names of modules and parameters.

    `text` is the pattern as written. `kind` is "name" (`layer*.bn1`), "regex" (`re:...`), "type" (`type:BatchNorm2d`) or
    "part" (`@head`). `regex` is set for the first two kinds, which match by name alone; it is None for the others, which
    need a model.
    """

    text: str
    kind: Literal["name", "regex", "type", "part"]
    regex: re.Pattern[str] | None = None

    def matches(self, name: str) -> bool:
        """Return True if a dotted name of a module, parameter or buffer matches; only for the kinds `name` and `regex`."""
        assert self.regex is not None, f"{self.text} needs a model to be matched"
        if self.kind == "regex":
            return self.regex.fullmatch(name) is not None
        return self.regex.fullmatch(f"{name}." if name else "") is not None

    def is_name_of(self, name: str) -> bool:
        """Return True if this is the whole name itself, without wildcards, or a regular expression that matches it.

        Unlike `matches`, it is False if the pattern only names a module above.
        """
        return self.matches(name) if self.kind == "regex" else self.kind == "name" and self.text == name


def parse(text: object, key: str) -> Pattern:
    """Turn the text of one pattern into a Pattern.

    `key` is what messages call the place of the pattern, such as a config key. Raises ConfigError if the text is empty or
    malformed.
    """
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(
            f"{key}: {short_repr(text)} is not a pattern; give a name such as fc, layer*.bn1, re:..., type:... or @head"
        )
    if text != text.strip():
        raise ConfigError(f"{key}: {text!r} begins or ends with a space; write {text.strip()!r}")
    if text.strip(TYPOGRAPHIC_QUOTES) != text:
        raise ConfigError(f"{key}: {text!r} stands in typographic quotes; write {text.strip(TYPOGRAPHIC_QUOTES)!r}")
    if text.startswith("re:"):
        return Pattern(text, "regex", _compile_regex(text, key))
    if text.startswith("type:"):
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", text[5:]):
            raise ConfigError(f"{key}: {text!r} is malformed; write type:ClassName, e.g. type:BatchNorm2d")
        return Pattern(text, "type")
    if text.startswith("@"):
        if text not in PART_NAMES:
            hint = did_you_mean(text, PART_NAMES) or f"; there are {listed(PART_NAMES)}"
            raise ConfigError(f"{key}: {text!r} is no part of a model that is known{hint}")
        return Pattern(text, "part")
    return Pattern(text, "name", _compile_name(text, key))


def parse_all(texts: object, key: str) -> tuple[Pattern, ...]:
    """Turn a list of texts into Patterns.

    `key` is what messages call the list, such as its config key. Raises ConfigError if a text is malformed, or if something
    else is given than a list, such as a single string.
    """
    if isinstance(texts, str):
        raise ConfigError(f"{key}: {texts!r} is one pattern where a list is expected; write [{texts!r}]")
    if not isinstance(texts, Iterable) or isinstance(texts, (bytes, Mapping)):
        raise ConfigError(f"{key} is {short_repr(texts)}; give a list of patterns, such as ['fc']")
    return tuple(parse(text, key) for text in texts)


def needs_trial(patterns: Iterable[Pattern], head: object) -> bool:
    """Return whether a forward pass is needed to find what a pattern names; not for a `head` that the user names."""
    return any(pattern.text == "@vision" or (pattern.text in BY_TRIAL and head is None) for pattern in patterns)


def parse_both(patterns: object, keep: object, words: Words) -> tuple[tuple[Pattern, ...], tuple[Pattern, ...]]:
    """Return the parsed patterns of what to freeze, and of exceptions. Raises ConfigError if a pattern is in both."""
    freeze, exempt = parse_all(patterns, words.patterns), parse_all(keep, words.keep)
    refuse_patterns_in_both([each.text for each in freeze], [each.text for each in exempt], words)
    return freeze, exempt


def with_parents(name: str) -> list[str]:
    """Return a dotted name and the names of all modules around it: "a.b" gives ["", "a", "a.b"]; "" is the model itself."""
    parts = name.split(".") if name else []
    return [".".join(parts[:count]) for count in range(len(parts) + 1)]


def refuse_patterns_in_both(patterns: Sequence[str], keep: Sequence[str], words: Words = FOR_CONFIG) -> None:
    """Raise ConfigError if the same pattern is in `patterns` (what to freeze) and in `keep` (exceptions).

    `words`: what the message calls the two lists.
    """
    for text in patterns:
        if text in keep:
            raise ConfigError(f"{text!r} is in {words.patterns} and in {words.keep}; remove it from one of them")


def _compile_regex(text: str, key: str) -> re.Pattern[str]:
    """Compile the regular expression of a pattern `re:...`. Raises ConfigError if it is empty or has an error.

    `key` is what messages call the place of the pattern, such as a config key.
    """
    if text == "re:":
        raise ConfigError(f"{key}: 're:' is empty; a regular expression must match a parameter's whole name, e.g. re:.*bias")
    try:
        return re.compile(text[3:])
    except re.error as error:
        raise ConfigError(f"{key}: {text!r} is not a regular expression: {error}") from error


def _compile_name(text: str, key: str) -> re.Pattern[str]:
    """Turn a dotted name with wildcards, such as `layer*.bn1`, into a regular expression.

    The regular expression matches every dotted name that the pattern `text` describes, and all names below it. A name must
    be given to it with a dot at the end (`layer1.bn1.`). `key` is what messages call the place of the pattern. Raises
    ConfigError if the pattern is malformed.
    """
    parts = text.split(".")
    if "" in parts:
        raise ConfigError(f"{key}: {text!r} has an empty part between its dots; write names such as layer1.0.conv1")
    compiled = ""
    for part in parts:
        if part == "**":
            compiled += _ANY_PARTS
        elif "**" in part:
            raise ConfigError(f"{key}: {text!r} is malformed; write ** alone between dots, e.g. **.bias")
        else:
            compiled += re.escape(part).replace(r"\*", "[^.]*").replace(r"\?", "[^.]") + r"\."
    return re.compile(compiled + _ANY_PARTS)
