"""Texts and numbers made fit to be shown: those of anyone's files, and figures with their units."""

from __future__ import annotations

import re
from typing import Any

# Controls, marks that turn the direction of writing, halves of characters, and what XML does not allow.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """A text that any terminal, page and picture can show: what controls them, or is no character, becomes `\ufffd`."""
    return text if text.isprintable() else UNPRINTABLE.sub("\ufffd", text)


def cleaned(value: Any) -> Any:
    """Nested mappings and lists with every text clean."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): cleaned(inner) for key, inner in value.items()}
    return [cleaned(inner) for inner in value] if isinstance(value, list) else value


def number(text: str) -> float | None:
    """The number that a CSV field holds, or None."""
    try:
        return float(text)
    except ValueError:
        return None


def in_digits(value: float | None, unit: float = 1.0) -> str:
    """A number in four digits; nothing where there is none."""
    return "" if value is None or value != value else f"{value / unit:.4g}"


def in_gflop(flops: float | None) -> str:
    """Floating-point operations in billions, without the unit."""
    return in_digits(flops, 1e9)


def in_mib(size: float | None) -> str:
    """Bytes in MiB, without the unit."""
    return in_digits(size, 2**20)


def in_percent(share: float | None) -> str:
    """A share as a whole percentage."""
    return "" if share is None or share != share else f"{share:.0%}"


def counted(number: int, noun: str) -> str:
    """`1 run`, `2 runs`, `1,000 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
