"""Errors that teach: what was given, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class ConfigError(ValueError):
    """The user's mistake, said in one short message; a command that meets it exits with 2."""


class SkippedError(Exception):
    """A method cannot serve this model or optimizer; the message is the reason."""


class Refused(SystemExit):
    """The user's mistake, found before anything was written; `code` is the message. Hydra lets no other error through."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The known names nearest to what was given, as the end of a message; empty where none is near."""
    by_folded = {name.lower(): name for name in known}
    near = [by_folded[name] for name in get_close_matches(given.lower(), by_folded, n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def listed(words: Sequence[str], most: int = 12) -> str:
    """Words as a sentence lists them: `a`, `a and b`, `a, b and c`, and how many more where they are too many."""
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""
