"""The errors for a user's mistakes, and helpers for their messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class ConfigError(ValueError):
    """A mistake of the user: the message says what was given, what was expected and what to do. Exit code 2."""


class SkippedError(Exception):
    """A method does not work with this model or optimizer; the message is the reason."""


class Refused(SystemExit):
    """A mistake of the user, found before any file was written; `code` is the message.

    It is a SystemExit because Hydra only prints a warning for other exceptions of a callback.
    """


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return `; did you mean A or B?` with up to three known names similar to `given`, or "" if none is similar."""
    by_lowercase = {name.lower(): name for name in known}
    similar = [by_lowercase[name] for name in get_close_matches(given.lower(), by_lowercase, n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(similar)}?" if similar else ""


def listed(words: Sequence[str], most: int = 12) -> str:
    """Join words for a sentence: `a`, `a and b`, `a, b and c`. Of more than `most` words, the last ones become `N more`."""
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""
