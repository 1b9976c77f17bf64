"""The errors for a user's mistakes, and helpers to find and word them."""

from __future__ import annotations

import os
import reprlib
import sysconfig
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from inspect import currentframe
from linecache import getline
from traceback import walk_stack, walk_tb
from types import CodeType
from typing import Any

_OWN_FOLDERS = (os.path.dirname(os.path.abspath(__file__)) + os.sep, sysconfig.get_path("stdlib") + os.sep)
_LIBRARY_FOLDERS = {"site-packages", "dist-packages"}


class ConfigError(ValueError):
    """Raised for a mistake of the user. The message says what was given, what was expected and what to do.

    The command line then ends with exit code 2.
    """


class SkippedError(Exception):
    """Raised if a freezing method does not work with this model or optimizer; the message is the reason.

    A run that raises it counts as skipped, not as failed.
    """


class Refused(SystemExit):
    """Raised in a Hydra callback for a mistake of the user, found before any file was written; `code` is the message.

    It is a SystemExit because Hydra only prints a warning for any other exception that a callback raises.
    """


def place_in_user_code(error: BaseException) -> str:
    """Return where the user's own code raised an error, such as `mine.py, line 3`; "" if no line of the user's took part.

    It is the innermost line that is neither in this package nor in an installed library. For a file that is no Python, it is
    the line with the syntax error.
    """
    frames = reversed(list(walk_tb(error.__traceback__)))
    places = [(frame.f_code.co_filename, line) for frame, line in frames]
    if isinstance(error, SyntaxError) and error.filename:
        places.insert(0, (error.filename, error.lineno or 1))
    return next((f"{os.path.basename(file)}, line {line}" for file, line in places if is_users(file)), "")


def line_in_user_code(until: CodeType) -> str:
    """Return the line of the user's own code that runs now, such as `mine.py, line 3: y = self.body(x)`; "" without one.

    It is the innermost line that is neither in this package nor in an installed library. `until`: the code of a running
    function; the lines outside of it are not looked at.
    """
    for frame, line in walk_stack(currentframe()):
        if frame.f_code is until:
            break
        if is_users(file := frame.f_code.co_filename):
            return f"{os.path.basename(file)}, line {line}: {getline(file, line).strip()}"
    return ""


def is_installed(file: str) -> bool:
    """Return whether a file's path is in this package or in an installed library."""
    path = os.path.abspath(file)
    return path.startswith(_OWN_FOLDERS) or bool(_LIBRARY_FOLDERS & set(path.split(os.sep)))


def is_users(file: str) -> bool:
    """Return whether a file exists that is neither in this package nor in an installed library."""
    return not is_installed(file) and os.path.isfile(file)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return the end of an error message, `; did you mean A or B?`, with up to three names from `known` similar to `given`.

    Returns "" if no name is similar.
    """
    by_lowercase = {name.lower(): name for name in known}
    similar = [by_lowercase[name] for name in get_close_matches(given.lower(), by_lowercase, n=3, cutoff=0.6)]
    return f"; did you mean {' or '.join(similar)}?" if similar else ""


def listed(words: Sequence[str], most: int = 12) -> str:
    """Return the words joined for a sentence: `a`, `a and b`, `a, b and c`.

    If there are more than `most` words, `N more` stands in place of the last ones: `a, b and 7 more`.
    """
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def short_repr(value: object) -> str:
    """Return the repr of a value for a message, in one line and cut in its middle if it is long."""
    return " ".join(reprlib.repr(value).split())


def is_integer(value: Any) -> bool:
    """Return True if the value is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)
