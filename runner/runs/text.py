"""Texts and numbers for display: texts from files of any origin made printable, and numbers with units."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import islice
from typing import Any

from runner.contract import MAX_ERROR_LINE

# The most that is taken from a file of any origin: characters of a text, items of a list or dict, nested levels.
MAX_TEXT, MAX_ITEMS, MAX_DEPTH = 4000, 1000, 20
# Control characters, marks that change the writing direction, lone surrogates, and what XML does not allow.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """Return the text with unprintable characters replaced by `\ufffd`, so that it is safe in a terminal, page or picture.

    The regular expression UNPRINTABLE says which characters these are, for example control characters. A text of more than
    MAX_TEXT characters is cut, and then ends in `...`.
    """
    text = text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."
    return text if text.isprintable() else UNPRINTABLE.sub("\ufffd", text)


def printable_values(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Return a copy of nested dicts and lists in which `printable` was applied to every text and every key.

    Of each dict and list at most MAX_ITEMS items are copied, and of what is nested at most `depth` levels.
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

    If the line would have more than MAX_ERROR_LINE characters, the message is shortened; `end` never is.
    """
    line, limit = f"freeze-runner: {' '.join(message.split())}", MAX_ERROR_LINE - len(end)
    return (line if len(line) <= limit else f"{line[: limit - 3]}...") + end


def in_digits(value: float | None, unit: float = 1.0) -> str:
    """Return `value / unit` as text with four significant digits; "" for None and NaN."""
    return "" if value is None or value != value else f"{value / unit:.4g}"


def in_gflop(flops: float | None) -> str:
    """Return a number of floating-point operations in GFLOP (10**9), as text without the unit; "" for None and NaN."""
    return in_digits(flops, 1e9)


def in_mib(size: float | None) -> str:
    """Return a number of bytes in MiB (2**20 bytes), as text without the unit; "" for None and NaN."""
    return in_digits(size, 2**20)


def in_percent(share: float | None) -> str:
    """Return a share as text in whole percent: 0.25 gives `25%`; "" for None and NaN."""
    return "" if share is None or share != share else f"{share:.0%}"


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


def outcome_of(status: str, verdict: str | None) -> str:
    """Return how a run ended: its verdict (`held` or `leaked`) if it finished, otherwise its status, such as `failed`."""
    return verdict if status == "finished" and verdict else status
