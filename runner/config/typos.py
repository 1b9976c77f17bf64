"""Refuse a mistyped key or choice of the command line before Hydra is imported, which takes longer than all the rest.

Only what composing would certainly refuse is refused here, with the same message. Whatever is not certain goes on to Hydra:
a line that has more than plain values, an option other than -m, a key that some choice has and another has not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from runner.config.arguments import refuse_key_within_a_value
from runner.config.files import (
    choices_of,
    config_groups,
    defaults_of_config,
    only_recipes_set_keys_of_other_groups,
    texts_in,
    words_in_files,
)
from runner.config.messages import unknown_choice_message, unknown_key_message
from runner.config.schema import Sweep
from runner.errors import ConfigError

PLAIN = r"[A-Za-z0-9_./-]+"
ARGUMENT = re.compile(rf"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)=({PLAIN}(?:,{PLAIN})*|\[(?:{PLAIN}(?:,{PLAIN})*)?\])", re.ASCII)
CHOICE = re.compile(r"(?!(?:null|true|false|nan|inf)$)[a-z_][\w-]*", re.ASCII | re.IGNORECASE)
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")  # keys of Hydra's that change no other key
FILES_OF_KEYS = ("experiment", "launch")  # groups whose files set keys of other groups
PLUGINS = {"freeze_sweeper", "hydra_joblib_launcher", "hydra_ray_launcher", "hydra_submitit_launcher", "__pycache__"}


def refuse_typos(arguments: Sequence[str]) -> None:
    """Raise ConfigError if an argument has a key or a choice that does not exist, whatever else is composed.

    `arguments`: the command line without the program's name.
    """
    is_sweep = list(arguments[:1]) in (["-m"], ["--multirun"])
    texts = arguments[is_sweep:]
    found = [ARGUMENT.fullmatch(text) for text in texts]
    given = {match[1]: match[2] for match in found if match}
    if len(given) < len(texts) or not given or (is_sweep and _ends_otherwise(given)) or _has_other_plugins():
        return
    if any(key.split(".")[0] == "hydra" and not _is_folder(key, value) for key, value in given.items()):
        return
    if not is_sweep and any(_is_swept(value) for value in given.values()):
        return
    groups = config_groups()
    choices = {key: value.split(",") for key, value in given.items() if key in groups}
    others = {key: value for key, value in given.items() if key not in groups and key not in FOLDERS}
    if not all(_are_understood(group, names) for group, names in choices.items()):
        return
    for text in texts:
        refuse_key_within_a_value(text)
    _refuse_wrong_choice(choices, others, is_sweep)
    _refuse_unknown_key(choices, others, is_sweep)


def _is_folder(key: str, value: str) -> bool:
    return key in FOLDERS and value.lower() != "null" and "," not in value and "[" not in value


def _is_swept(value: str) -> bool:
    return "," in value and not value.startswith("[")


def _ends_otherwise(given: Mapping[str, str]) -> bool:
    """Return whether a sweep with these arguments may be refused before the config of its first run is composed."""
    runs = prod(len(value.split(",")) for value in given.values() if _is_swept(value))
    return runs > Sweep.max_runs or any(key.split(".")[0] in ("resume", "sweep") for key in given)


def _has_other_plugins() -> bool:
    """Return whether a plugin of Hydra is installed that may bring config files of its own."""
    spec = find_spec("hydra_plugins")
    folders = map(Path, spec.submodule_search_locations or ()) if spec else ()
    return not {path.stem for folder in folders if folder.is_dir() for path in folder.iterdir()} <= PLUGINS


def _are_understood(group: str, names: Sequence[str]) -> bool:
    """Return whether it is known what the choices of a group do: which files are read, and that they can be."""
    if group == "experiment" and names == ["null"]:
        return True
    needs_plugin = group == "launch" and any(name != "local" and name in choices_of(group) for name in names)
    return all(map(CHOICE.fullmatch, names)) and not needs_plugin


def _refuse_wrong_choice(choices: Mapping[str, list[str]], others: Mapping[str, str], is_sweep: bool) -> None:
    """Raise ConfigError if one choice is none of its group's. Of several, Hydra's defaults list decides which comes first.

    In a sweep, the first run must have the wrong choice, and nothing else may be wrong: all keys are looked at before.
    """
    wrong = [(group, name) for group, names in choices.items() for name in names if not _is_choice(group, name)]
    if len(wrong) != 1:
        return
    ((group, name),) = wrong
    if not is_sweep or (choices[group][0] == name and all(None not in _nodes(key, choices) for key in others)):
        raise ConfigError(unknown_choice_message(group, name, choices_of(group)))


def _is_choice(group: str, name: str) -> bool:
    return name in choices_of(group) or (group, name) == ("experiment", "null")


def _refuse_unknown_key(choices: Mapping[str, list[str]], others: Mapping[str, str], is_sweep: bool) -> None:
    """Raise ConfigError if the first key that may not exist certainly does not; a sweep looks at swept ones last."""
    if not all(_is_choice(group, name) for group, names in choices.items() for name in names):
        return
    ordered = sorted(others, key=lambda key: is_sweep and _is_swept(others[key]))
    key = next((key for key in ordered if None in _nodes(key, choices)), "")
    if not key:
        return
    parts = key.split(".")
    for count in range(1, len(parts) + 1):
        path = ".".join(parts[:count])
        if path in others and count < len(parts):
            return
        if _is_absent(path, choices):
            raise ConfigError(unknown_key_message(path))
        if not all(isinstance(node, dict) for node in _nodes(path, choices)):
            return


def _is_absent(path: str, choices: Mapping[str, list[str]]) -> bool:
    """Return whether no config has a key, whichever choice of the command line it is composed from.

    A recipe may set any key; then the last part of the key must be in no file at all.
    """
    if _has_recipe(choices) or not only_recipes_set_keys_of_other_groups(FILES_OF_KEYS):
        return path.rpartition(".")[2] not in words_in_files()
    return not any(node is not None for node in _nodes(path, choices))


def _has_recipe(choices: Mapping[str, list[str]]) -> bool:
    """Return whether a file that sets keys of other groups is chosen, or may be."""
    defaults, _ = defaults_of_config()
    recipe = choices.get("experiment", [defaults["experiment"]])
    return recipe != ["null"] or defaults["launch"] != "local"


def _nodes(key: str, choices: Mapping[str, list[str]]) -> list[Any]:
    """Return what a key is, as texts, with each of the files of its group that may be chosen; None where it is not set.

    `choices`: {config group: its choices} of the command line.
    """
    group, _, inner = key.partition(".")
    defaults, values = defaults_of_config()
    of_config = _select(values, key)
    if group not in config_groups() or group in FILES_OF_KEYS:
        return [of_config]
    names = choices.get(group, [defaults[group]])
    if len(names) > 1:  # a sweep over them begins with a config that has the default
        names = [*names, defaults[group]]
    if _has_recipe(choices):
        names = choices_of(group)
    found = [_select(texts_in(group, name), inner) if inner else {} for name in names if _is_choice(group, name)]
    return [node if of_config is None else of_config for node in found] or [None]


def _select(values: Any, key: str) -> Any:
    """Return the value of a dotted key in nested dicts, or None."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
