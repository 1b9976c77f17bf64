"""Turn Hydra's errors into one line that says what to do."""

from __future__ import annotations

import re

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from runner.config.check import config_groups, unknown_key_message, unknown_resolver_message
from runner.errors import ConfigError, did_you_mean

LAUNCHERS = {  # by Hydra's name of the launcher: the package that provides it, and the extra that installs it
    "joblib": ("hydra-joblib-launcher", "joblib"),
    "ray": ("hydra-ray-launcher", "ray"),
    "submitit_slurm": ("hydra-submitit-launcher", "slurm"),
    "submitit_local": ("hydra-submitit-launcher", "slurm"),
}


def short_message(error: Exception) -> str:
    """Return a one-line message that says what to do about an error that Hydra, OmegaConf or `check` raised.

    The message of a ConfigError, which is written for the user already, is returned unchanged.
    """
    if isinstance(error, ConfigError):
        return str(error)
    chain = [error]
    while isinstance(chain[-1].__cause__, Exception):
        chain.append(chain[-1].__cause__)
    text = "\n".join(str(each) for each in chain)
    if isinstance(error, OverrideParseException):
        return _unparsable_message(error.override)
    if found := re.search(r"Could not find '([\w/]+)/([^/'\s]+)'", text):
        return _unknown_choice_message(found[1], found[2], re.findall(r"^\t(\S+)$", text, re.M))
    if found := re.search(r"Unsupported interpolation type (\S+)", text):
        return unknown_resolver_message(found[1])
    if found := re.search(r"full_key: (\S+)", text) or re.search(r"Could not override '([^']+)'", text):
        return unknown_key_message(found[1])
    if found := re.search(r"Ambiguous value for argument '(.+)'", text):
        is_group = found[1].split("=")[0] in config_groups()
        return f"{found[1]} has several values; add -m for a sweep over them{'' if is_group else ', or [...] for a list'}"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return " ".join(text.split("\n")[0].split())
    return str(error)


def _unparsable_message(override: str) -> str:
    """Return the message for a command-line argument that Hydra cannot parse: it lacks `=`, or its value needs quotes."""
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override!r} is not an argument; write key=value, or see --help"
    text = value.strip("[]\"'") or "..."
    if key.startswith(("freeze.", "groups.", "model.head")):
        quoted, kind = f'["{text}"]', "pattern"
    else:
        quoted, kind = f'"{text}"', "text"
    return f"cannot read the argument {override}; quote the {kind}, once for the shell and once for Hydra: '{key}={quoted}'"


def _unknown_choice_message(group: str, choice: str, choices: list[str]) -> str:
    """Return the message for an argument `group=choice` for which Hydra finds no config file.

    `choices` are the choices that exist in this group; empty if there is no such group.
    """
    if group == "hydra/launcher" and choice in LAUNCHERS:
        plugin, extra = LAUNCHERS[choice]
        return f"launch={extra} needs {plugin}; install it with: pip install 'freeze-runner[{extra}]'"
    if not choices:
        return f"{group}={choice}: there is no group {group}{did_you_mean(group, config_groups())}"
    return f"{group}={choice}: no such choice{did_you_mean(choice, choices) or ';'} there are {', '.join(choices)}"
