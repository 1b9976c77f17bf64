"""Say what is wrong with an argument `key=value` of the command line. Does not import torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import get_origin

from runner.config.files import choices_of, config_groups
from runner.config.messages import expected_value, type_of
from runner.errors import ConfigError
from runner.freezing.patterns import TYPOGRAPHIC_QUOTES

# Nodes that are null or a word in the files of `conf`, to which Hydra adds a key only where `++` asks for it.
WITHOUT_TARGET = ("data.transform", "data.test_transform", "data.collate", "data.test", "task.loss")
PAIRS = {"(": ")", "[": "]", "{": "}"}
WITH_PATTERNS = ("freeze.", "groups.", "model.head")


def with_added_targets(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `++` before one that gives a node in WITHOUT_TARGET a `_target_`."""
    added = tuple(f"{node}._target_=" for node in WITHOUT_TARGET)
    return [f"++{text}" if text.startswith(added) else text for text in arguments]


def unreadable_message(argument: str) -> str:
    """Return the message for an argument that Hydra cannot read: what is wrong with it, and how to write it."""
    key, equals, value = argument.partition("=")
    if not argument.isprintable():
        return f"{argument!a} has a character that cannot be seen, or that is not UTF-8; type the argument again"
    if found := next((quote for quote in TYPOGRAPHIC_QUOTES if quote in argument), None):
        return f"{argument!r} has the typographic quote {found}; write the straight quotes \" or '"
    if not equals:
        return f"{argument!r} is not an argument; write key=value without spaces, or see --help"
    if key != key.strip():
        return f"{argument!r} has a space around its key; write {key.strip()}={value.strip()}"
    if value.startswith("="):
        return f"{argument!r} has = twice; write {key}={value.lstrip('=')}"
    if re.search(r"^[^\s\[({\"']+\s+[\w.+~/@]+=", value):
        return f"{argument!r} holds several arguments; quote each one on its own"
    if problem := _unbalanced(value):
        return f"cannot read the argument {argument}: {problem}"
    if re.search(r"(^|[,\[({])\s*,|,\s*$", value):
        return f"cannot read the argument {argument}: a value is missing beside a comma"
    return _advice_on_quotes(argument, key.lstrip("+~"), value)


def _advice_on_quotes(argument: str, key: str, value: str) -> str:
    """Return the message for an argument whose value has characters that Hydra reads only within quotes."""
    start = f"cannot read the argument {argument}"
    if key == "groups.lr":
        return f"{start}; write '{key}=[{{pattern: fc, lr: 0.1}}]'"
    if key in config_groups():
        return f"{start}; there are {', '.join(choices_of(key))}"
    expected = expected_value(key)
    if expected and type_of(key) is not str and not key.startswith(WITH_PATTERNS):
        return f"{start}; expected {expected}"
    if value.startswith("(") and value.endswith(")"):
        return f"{start}; a list has square brackets: '{key}=[{value[1:-1]}]'"
    text = value.strip("[]\"'") or "..."
    quoted, kind = (f'["{text}"]', "pattern") if key.startswith(WITH_PATTERNS) else (f'"{text}"', "text")
    return f"{start}; quote the {kind}, once for the shell and once for Hydra: '{key}={quoted}'"


def _unbalanced(value: str) -> str:
    """Return which bracket or quote of a value has no partner, such as `the bracket [ is not closed`; "" if none."""
    opened, quote, position = [], "", 0
    while position < len(value):
        character = value[position]
        if character == "\\":
            position += 1
        elif quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in PAIRS:
            opened.append(character)
        elif character in PAIRS.values():
            if not opened:
                return f"the bracket {character} is never opened"
            if PAIRS[opened[-1]] != character:
                return f"the bracket {opened[-1]} is not closed before {character}"
            opened.pop()
        position += 1
    if quote:
        return f"the quote {quote} is not closed"
    return f"the bracket {opened[-1]} is not closed" if opened else ""


def refuse_key_within_a_value(argument: str) -> None:
    """Raise ConfigError if the key of an argument is within the value of another key, such as `++groups.lr.nope=0.1`."""
    parts = argument.lstrip("+~").partition("=")[0].split(".")
    for count in range(1, len(parts)):
        prefix = ".".join(parts[:count])
        kind = type_of(prefix)
        if kind is not None and not is_dataclass(kind) and get_origin(kind) is not dict:
            example = "groups.lr=[{pattern: fc, lr: 0.1}]" if prefix == "groups.lr" else f"{prefix}=..."
            raise ConfigError(f"cannot read the argument {argument}: {prefix} has no keys; write {example}")
