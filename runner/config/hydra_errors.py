"""Refuse wrong arguments before Hydra reads them, and turn Hydra's errors into one line that says what to do."""

from __future__ import annotations

import os
import re
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from traceback import walk_tb

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from runner.config.arguments import refuse_key_within_a_value, unreadable_message
from runner.config.files import choices_of, config_groups
from runner.config.help.keys import known_keys
from runner.config.messages import (
    interpolation_problem,
    omegaconf_message,
    unknown_choice_message,
    unknown_key_message,
    unknown_resolver_message,
)
from runner.errors import ConfigError, did_you_mean

CONFIG_LIBRARIES = ("hydra", "omegaconf", "yaml")


def refuse_wrong_arguments(arguments: Sequence[str]) -> None:
    """Raise ConfigError if the command line has an option that does not exist, such as `--method`, or a wrong override.

    `arguments`: the command line without the program's name. Hydra itself would print its whole usage.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        known, unknown = parser.parse_known_args(list(arguments))
    except ArgumentError as error:
        raise ConfigError(f"{error}; see --hydra-help") from error
    for option in unknown:
        if not option.startswith("-"):
            raise ConfigError(f"{option!r} stands after an option; put options such as -m before all key=value")
        name, equals, value = option.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if name in (*known_keys(), *config_groups()):
            following = arguments[list(arguments).index(option) + 1 :]
            value = value if equals else following[0] if following and "=" not in following[0] else "..."
            raise ConfigError(f"{option} is not an option; write {name}={value}")
        options = re.findall(r"(?<!\S)--?\w[\w-]*", parser.format_usage().replace("[", " ").replace("]", " "))
        raise ConfigError(f"{option} is not an option{did_you_mean(option, options) or '; write key=value, or see --help'}")
    refuse_wrong_overrides(known.overrides)


def refuse_wrong_overrides(overrides: Sequence[str]) -> None:
    """Raise ConfigError if an argument such as `method=zero_lr` cannot be applied to any config, whatever its value.

    Its key is empty or within the value of another key, or it gives a config group a number or null.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        text, group = override.input_line or "", override.key_or_group
        if not group:
            raise ConfigError(f"{text!r} has no key; write key=value")
        refuse_key_within_a_value(text)
        if group in config_groups() and not _names_a_choice(override):
            raise ConfigError(f"{text}: no such choice; there are {', '.join(choices_of(group))}")


def _names_a_choice(override: Override) -> bool:
    """Return whether an override of a config group has a text as its value, or several values, or deletes the group."""
    if override.is_delete() or override.is_sweep_override():
        return True
    return isinstance(override.value(), (str, list)) or (override.key_or_group == "experiment" and override.value() is None)


def raised_by_hydra(error: BaseException) -> bool:
    """Return whether Hydra, OmegaConf or the reader of YAML raised the error: then something in the config is wrong.

    They raise errors of many types, and have no common class for them.
    """
    packages = [str(frame.f_globals.get("__name__")).split(".")[0] for frame, _ in walk_tb(error.__traceback__)]
    ours_and_theirs = [name for name in packages if name in ("runner", "hydra_plugins", *CONFIG_LIBRARIES)]
    return bool(ours_and_theirs) and ours_and_theirs[-1] in CONFIG_LIBRARIES


def short_message(error: Exception, arguments: Sequence[str] = ()) -> str:
    """Return a one-line message that says what to do about an error that Hydra, OmegaConf or `check` raised.

    The message of a ConfigError, which is written for the user already, is returned unchanged. `arguments`: the command
    line, to find the folder of a config file that cannot be read.
    """
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, OverrideParseException):
        return unreadable_message(error.override)
    if isinstance(error, (yaml.YAMLError, UnicodeDecodeError)):
        return _unreadable_file_message(error, arguments)
    if "maximum recursion depth exceeded" in str(error):
        return "a config file has a YAML alias (*NAME) inside the value that it stands for (&NAME); write the value itself"
    chain = [error]
    while isinstance(chain[-1].__cause__, Exception):
        chain.append(chain[-1].__cause__)
    text = "\n".join(str(each) for each in chain)
    if found := re.search(r"Could not (?:find|load) '([\w/]+)/([^/'\s]*)'", text):
        return unknown_choice_message(found[1], found[2], re.findall(r"^\t(\S+)$", text, re.M))
    if found := re.search(r"Unsupported interpolation type (\S+)", text):
        return unknown_resolver_message(found[1])
    if isinstance(chain[-1], OmegaConfBaseException) and chain[-1].full_key:
        return omegaconf_message(chain[-1])
    if found := re.search(r"Could not (?:override|delete from config\.) '([^']+)'", text):
        return unknown_key_message(found[1])
    if found := re.search(r"An item is already at '([^']+)'|^(\w+) appears more than once", text):
        return f"{found[1] or found[2]} is in the config already; write {found[1] or found[2]}=... without +"
    if re.search(r"Primary config (module|directory)|primary config '", text):
        problem = " ".join(text.split("\n")[0].split()).rstrip(".")
        return f"{problem}; --config-path and --config-name replace this project's config, --config-dir DIR adds to it"
    if found := re.search(r"Ambiguous value for argument '(.+)'", text):
        is_group = found[1].split("=")[0] in config_groups()
        return f"{found[1]} has several values; add -m for a sweep over them{'' if is_group else ', or [...] for a list'}"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return interpolation_problem(" ".join(text.split("\n")[0].split()))
    return " ".join(str(error).split())


def _unreadable_file_message(error: yaml.YAMLError | UnicodeDecodeError, arguments: Sequence[str]) -> str:
    """Return the message for a config file that is no YAML or no UTF-8: the file, the line, and what is wrong there.

    `arguments`: the command line, whose `--config-dir` may have the file.
    """
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        place = f"{_shown(error.problem_mark.name)}, line {error.problem_mark.line + 1}"
        advice = "; indent with spaces" if "cannot start any token" in str(error.problem) else ""  # mostly a tab
        return f"{place}: {error.problem}{advice}"
    if isinstance(error, yaml.YAMLError):
        name, reason = getattr(error, "name", "a config file"), getattr(error, "reason", error)
        return f"{_shown(name)}: {reason}; remove the character"
    folder = get_args_parser().parse_known_args(list(arguments))[0].config_dir
    for path in sorted(Path(folder).rglob("*.yaml")) if folder else ():
        content = path.read_bytes() if path.is_file() else b""
        if error.object in content:
            line = content[: content.index(error.object) + error.start].count(b"\n") + 1
            return f"{_shown(str(path))}, line {line}: not UTF-8; save the file as UTF-8"
    return f"a config file is not UTF-8 ({error.reason}); save it as UTF-8"


def _shown(path: str) -> str:
    """Return a path relative to the current folder if it is below it, otherwise unchanged."""
    return os.path.relpath(path) if os.path.abspath(path).startswith(os.getcwd() + os.sep) else path
