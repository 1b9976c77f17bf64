"""What a shell asks on the tab key, in a form that Hydra's completion can read. Does not import torch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def is_query(arguments: Sequence[str]) -> bool:
    """Return whether a shell asks how a typed line can go on, as it does with `-sc query=bash`."""
    is_completion = "-sc" in arguments or "--shell-completion" in arguments
    return is_completion and any(text.startswith("query=") for text in arguments)


def readable_line(line: str) -> str:
    """Return a typed line without its quotes, and without finished arguments that Hydra cannot read or that have a space.

    Hydra splits a line at its spaces and knows no quotes. Within an open quote nothing can be completed: the result is "".
    """
    try:
        words = shlex.split(line)
    except ValueError:
        return ""
    finished, last = (words, "") if line.endswith(" ") else (words[:-1], "".join(words[-1:]))
    return " ".join([*(word for word in finished if _is_readable(word)), last])


def _is_readable(word: str) -> bool:
    """Return whether a word of the line is an option, the name of a program, or an argument that Hydra can read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_overrides([word] if "=" in word else [])
    except HydraException:
        return False
    return " " not in word
