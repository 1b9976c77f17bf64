"""Hydra's own errors, in one line that says what to do."""

from __future__ import annotations

import re

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from runner.config.check import config_groups, no_such_key, unknown_resolver
from runner.errors import ConfigError, did_you_mean

LAUNCHERS = {  # of Hydra's plugins: the package that brings each, and our extra
    "joblib": ("hydra-joblib-launcher", "joblib"),
    "ray": ("hydra-ray-launcher", "ray"),
    "submitit_slurm": ("hydra-submitit-launcher", "slurm"),
    "submitit_local": ("hydra-submitit-launcher", "slurm"),
}


def short_message(error: Exception) -> str:
    """One line for an error of composing: what was given, what there is, what to do."""
    if isinstance(error, ConfigError):
        return str(error)
    chain = [error]
    while isinstance(chain[-1].__cause__, Exception):
        chain.append(chain[-1].__cause__)
    text = "\n".join(str(link) for link in chain)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if found := re.search(r"Could not find '([\w/]+)/([^/'\s]+)'", text):
        return _no_choice(found[1], found[2], re.findall(r"^\t(\S+)$", text, re.M))
    if found := re.search(r"Unsupported interpolation type (\S+)", text):
        return unknown_resolver(found[1])
    if found := re.search(r"full_key: (\S+)", text) or re.search(r"Could not override '([^']+)'", text):
        return no_such_key(found[1])
    if found := re.search(r"Ambiguous value for argument '(.+)'", text):
        is_noun = found[1].split("=")[0] in config_groups()
        return f"{found[1]} names several values; add -m for a sweep over them{'' if is_noun else ', or [...] for a list'}"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return " ".join(text.split("\n")[0].split())
    return str(error)


def _unreadable(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override!r} is no argument; write key=value, or see --help"
    inside = value.strip("[]\"'") or "..."
    if key.startswith(("freeze.", "groups.", "model.head")):
        quoted, what = f'["{inside}"]', "pattern"
    else:
        quoted, what = f'"{inside}"', "text"
    return f"cannot read the argument {override}; quote the {what}, once for the shell and once for Hydra: '{key}={quoted}'"


def _no_choice(group: str, choice: str, choices: list[str]) -> str:
    if group == "hydra/launcher" and choice in LAUNCHERS:
        plugin, extra = LAUNCHERS[choice]
        return f"launch={extra} needs {plugin}; install it with: pip install 'freeze-runner[{extra}]'"
    if not choices:
        return f"{group}={choice}: there is no group {group}{did_you_mean(group, config_groups())}"
    return f"{group}={choice}: no such choice{did_you_mean(choice, choices) or ';'} there are {', '.join(choices)}"
