"""Word the errors about config keys and their values. Does not import torch, and OmegaConf only where it has raised."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from enum import EnumMeta
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from runner.config.files import choices_of, config_groups, texts_in
from runner.config.help.keys import is_passed_on, known_keys
from runner.config.schema import Config
from runner.errors import did_you_mean, listed

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

LAUNCHERS = {  # by Hydra's name of the launcher: the package that provides it, and the extra that installs it
    "joblib": ("hydra-joblib-launcher", "joblib"),
    "ray": ("hydra-ray-launcher", "ray"),
    "submitit_slurm": ("hydra-submitit-launcher", "slurm"),
    "submitit_local": ("hydra-submitit-launcher", "slurm"),
}
UNKNOWN_RESOLVER = "Unsupported interpolation type "  # the beginning of OmegaConf's message


def omegaconf_message(error: OmegaConfBaseException, composed: DictConfig | None = None) -> str:
    """Return an error of OmegaConf as a message `KEY: what is wrong`, or `KEY is VALUE; expected ...` for a wrong value.

    `composed`: the config that has the value, if there is one.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationResolutionError

    key, problem = error.full_key or str(error.key or ""), (error.msg or str(error)).splitlines()[0]
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        return unknown_key_message(key)
    if problem.startswith(UNKNOWN_RESOLVER):
        return f"{key}: {unknown_resolver_message(problem.removeprefix(UNKNOWN_RESOLVER))}"
    if isinstance(error, InterpolationResolutionError):
        return f"{key}: {interpolation_problem(problem)}"
    if expected := expected_value(key):
        return wrong_value_message(key, OmegaConf.select(composed, key)) if composed else f"{key}: expected {expected}"
    return f"{key} is null; give a value" if problem.endswith("is not Optional") else f"{key}: {problem}"


def interpolation_problem(problem: str) -> str:
    """Return what is wrong with a value `${...}`; `problem` is OmegaConf's message, reworded for a missing variable."""
    if found := re.search(r"Environment variable '(.+?)' not found", problem):
        return f"the environment variable {found[1]} is not set; set it, or give ${{oc.env:{found[1]},DEFAULT}}"
    return problem


def wrong_value_message(key: str, value: Any) -> str:
    """Return the message for a value of a wrong type: what was given for the key, and what the schema expects."""
    from omegaconf import OmegaConf

    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    expected = expected_value(key)
    if expected.startswith("a list") and value not in ("", None) and isinstance(value, (str, int, float)):
        expected = f"a list, such as {key}=[{value}]"
    return f"{key} is {value!r}; expected {expected}"


def expected_value(key: str) -> str:
    """Return what the schema expects as the value of a dotted key, such as `a whole number`; "" if it accepts anything.

    For a key that does not exist, or one inside a node with a `_target_`, it is "" too.
    """
    kind = type_of(key)
    if isinstance(kind, EnumMeta):
        return f"one of [{', '.join(kind.__members__)}]"
    if get_origin(kind) is list:
        return f"a list, such as {key}=[...]"
    if is_dataclass(kind):
        return f"the keys {listed([f'{key}.{each.name}' for each in fields(kind)])}"
    if get_origin(kind) is dict:
        return f"keys and values, such as {key}._target_=..."
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(kind, "")


def type_of(key: str) -> Any:
    """Return the type that the schema gives to a dotted key, without `| None`; `model.input[0]` is an item of a list.

    Returns None for a key that the schema does not have.
    """
    kind: Any = Config
    for part in re.sub(r"\[\d+\]", ".[]", key).split("."):
        if part == "[]":
            kind = get_args(kind)[0] if get_origin(kind) is list else None
        else:
            kind = get_type_hints(kind).get(part) if is_dataclass(kind) else None
        if type(None) in get_args(kind):
            (kind,) = (each for each in get_args(kind) if each is not type(None))
    return kind


def unknown_key_message(key: str) -> str:
    """Return the error message for a config key that does not exist.

    Some keys exist only with some choices of a config group: `optimizer.momentum` exists with `optimizer=sgd`. For such a
    key the message lists these choices. A key within a node of a group can be added. For any other key the message suggests
    existing keys that end in it, such as `optimizer.lr` for `lr`, or that have similar names.
    """
    keys = _all_keys()
    if key in keys:  # a key of another choice of its group
        group, _, option = key.partition(".")
        choices = [choice for choice in choices_of(group) if option in texts_in(group, choice)]
        if not choices:
            return f"{key}: no such key"
        verb = "has" if len(choices) == 1 else "have"
        return f"{key}: no such key of the chosen {group}; {listed([f'{group}={c}' for c in choices])} {verb} it"
    if key.strip() != key:
        return f"{key!r}: no such key; write {key.strip()!r}, without a space around it"
    if key.count(".") > 1 and key.rpartition(".")[0] in keys:  # a node of a user's own, or one that is null as yet
        return f"{key}: no such key; to add it, write ++{key}=..."
    advice = f"; an argument of the model's builder is given as ++{key}=..." if key.startswith("model.") else ""
    at_the_end = list(dict.fromkeys(known for known in keys if known.endswith(f".{key}")))[:3]
    suggestion = f"; did you mean {' or '.join(at_the_end)}?" if at_the_end else did_you_mean(key, keys)
    return f"{key}: no such key{suggestion}{advice}"


def unknown_choice_message(group: str, choice: str, choices: list[str]) -> str:
    """Return the message for an argument `group=choice` for which there is no config file.

    `choices` are the choices that exist in this group; empty if they are those of `conf`, or there is no such group.
    """
    if group == "hydra/launcher" and choice in LAUNCHERS:
        plugin, extra = LAUNCHERS[choice]
        return f"launch={extra} needs {plugin}; install it with: pip install 'freeze-runner[{extra}]'"
    choices = choices or choices_of(group)
    if not choices:
        return f"{group}={choice}: there is no group {group}{did_you_mean(group, config_groups())}"
    return f"{group}={choice}: no such choice{did_you_mean(choice, choices) or ';'} there are {', '.join(choices)}"


def unknown_resolver_message(name: str) -> str:
    """Return the error message for a config value `${name:}` if OmegaConf has no resolver (function) called `name`.

    If this project registers a resolver `runner.name`, the message suggests it.
    """
    from runner.config.resolvers import RESOLVERS

    return f"there is no resolver ${{{name}:}}{f'; did you mean ${{runner.{name}:}}?' if name in RESOLVERS else ''}"


def _all_keys() -> list[str]:
    """Return all dotted config keys that a user can give in any config.

    These are the keys of the schema, the names of the config groups, and the keys in the files of the groups, such as
    `optimizer.momentum`. A key such as `input: ${model.input}`, which passes the value of a key of the same name on, is
    left out.
    """
    groups = [group for group in config_groups() if group not in ("experiment", "launch")]
    files = [(group, texts_in(group, choice)) for group in groups for choice in choices_of(group)]
    options = {f"{group}.{key}" for group, file in files for key, value in file.items() if not is_passed_on(key, value)}
    return [*known_keys(), *config_groups(), *sorted(options)]
