"""Numbers and lists in words."""

from __future__ import annotations


def shown(value: float | None) -> str:
    """A number in four digits; nothing where there is none."""
    return "" if value is None else f"{value:.4g}"


def listed(words: list[str], most: int = 12) -> str:
    """Words as a sentence lists them: `a`, `a and b`, `a, b and c`, and how many more where they are too many."""
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def counted(number: int, noun: str) -> str:
    """`1 run`, `2 runs`, `1,000 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
