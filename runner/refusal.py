"""Hydra's own errors, in one line that says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from runner.config import CONF, known_keys
from runner.errors import did_you_mean


def short_message(error: Exception) -> str:
    """One line for an error of composing: what was given, what there is, what to do."""
    chain = [error]
    while isinstance(chain[-1].__cause__, Exception):
        chain.append(chain[-1].__cause__)
    text = "\n".join(str(link) for link in chain)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if found := re.search(r"Could not find '([\w/]+)/([^/'\s]+)'", text):
        return _no_choice(found[1], found[2])
    if found := re.search(r"full_key: (\S+)", text) or re.search(r"Could not override '([^']+)'", text):
        return f"{found[1]}: no such key{did_you_mean(found[1], _all_keys())}"
    if found := re.search(r"Ambiguous value for argument '(.+)'", text):
        return f"{found[1]} names several values; add -m for a sweep over them, or [...] for a list"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return " ".join(text.split("\n")[0].split())
    return str(error)


def _unreadable(override: str) -> str:
    key, _, value = override.partition("=")
    inside = value.strip("[]\"'") or "..."
    return (
        f"cannot read the argument {override}; quote the pattern (or text), once for the shell and once for Hydra: "
        f"'{key}=[\"{inside}\"]'"
    )


def _no_choice(group: str, choice: str) -> str:
    choices = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    if not choices:
        return f"{group}={choice}: there is no group {group}{did_you_mean(group, _groups())}"
    return f"{group}={choice}: no such choice{did_you_mean(choice, choices) or ';'} there are {', '.join(choices)}"


def _groups() -> Iterable[str]:
    return [path.name for path in CONF.iterdir() if path.is_dir()]


def _all_keys() -> list[str]:
    return [*known_keys(), *_groups(), "data.batch_size", "optimizer.lr"]
