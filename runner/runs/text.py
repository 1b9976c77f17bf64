"""Texts for display: texts from files of any origin made printable, and phrases that several places use."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import islice
from typing import Any

from runner.contract import MAX_ERROR_LINE

# Control characters, marks that change the writing direction, lone surrogates, and what XML does not allow.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
# The most that is taken from a file of any origin: characters of a text, items of a list or dict, nested levels.
MAX_TEXT, MAX_ITEMS, MAX_DEPTH = 1000, 200, 20
MAX_CELL = 200  # characters of a config value in a table
MAX_LONG_LIST = 2000  # items of a list that grows with the steps or the phases of a run
MAX_BLOCK_RECORDS = 20_000  # of all phases of a run together


def printable(text: str, most: int = MAX_TEXT) -> str:
    """Return the text with unprintable characters replaced by `\ufffd`, and shortened to at most `most` characters.

    It is then safe in a terminal, page or picture. The regular expression UNPRINTABLE says which characters these are, for
    example control characters.
    """
    text = shortened(text, most)
    return text if text.isprintable() else UNPRINTABLE.sub("\ufffd", text)


def shortened(text: str, most: int) -> str:
    """Return the text with at most `most` characters; if it is longer, its middle is replaced by `…`."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"


def cut(text: str, most: int) -> tuple[str, str]:
    """Return (start, rest) of a text whose start has at most `most` characters and ends between words, if it can."""
    if len(text) <= most:
        return text, ""
    place = text.rfind(" ", most // 2, most + 1)
    return (text[:most], text[most:]) if place < 0 else (text[:place], text[place + 1 :])


def is_too_long(value: Any, most: int = MAX_TEXT, items: int = MAX_ITEMS, depth: int = MAX_DEPTH) -> bool:
    """Return whether a text has more than `most` characters, or dicts and lists have such a text or more than `items` items.

    At most `depth` dicts and lists may be nested.
    """
    if isinstance(value, str):
        return len(value) > most
    if not isinstance(value, (dict, list)) or not value:
        return False
    inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    return depth == 0 or len(value) > items or any(is_too_long(item, most, items, depth - 1) for item in inner)


def printable_values(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Return a copy of nested dicts and lists, of MAX_ITEMS items each, with `printable` applied to every text and key.

    Of what is nested, at most `depth` levels are copied.
    """
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, (dict, list)) and depth == 0:
        return "..."
    if isinstance(value, dict):
        items = islice(value.items(), MAX_ITEMS)
        return {printable(str(key)): printable_values(inner, depth - 1) for key, inner in items}
    return [printable_values(inner, depth - 1) for inner in value[:MAX_ITEMS]] if isinstance(value, list) else value


def parse_number(text: str) -> float | None:
    """Return the text of a CSV field as a float; None if the text is not a number."""
    try:
        return float(text)
    except ValueError:
        return None


def error_line(message: str, end: str = "") -> str:
    """Return a message as one line for stderr, `freeze-runner: MESSAGE`, followed by `end`.

    Unprintable characters, such as the bytes of a file name that are no text, are replaced by U+FFFD. If the line would have
    more than MAX_ERROR_LINE characters, the message is shortened; `end` never is.
    """
    message = UNPRINTABLE.sub("\ufffd", " ".join(message.split()))
    line, limit = f"freeze-runner: {message}", MAX_ERROR_LINE - len(end)
    return (line if len(line) <= limit else f"{line[: limit - 3]}...") + end


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural if needed: `1 run`, `2 runs`, `1,000 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def changed_buffers(count: int, module_types: Collection[str] = ()) -> str:
    """Return a text that says how many buffers changed, such as `60 buffers changed (normal; ...)`.

    `count`: the number of buffers. `module_types`: the class names of the modules that have the buffers; empty if they are
    not known. If all these names contain BatchNorm, the text says `BatchNorm buffers`.
    """
    batch_norm = bool(module_types) and all("BatchNorm" in module_type for module_type in module_types)
    kind = "BatchNorm buffer" if batch_norm else "buffer"
    return f"{counted(count, kind)} changed (normal; `freeze.buffers=frozen` stops it)"
