"""Check a composed config as far as possible without a model. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config.build import LIBRARY_BUILDERS, check_node, offered, refuse_malformed_path
from runner.config.checks.machine import (
    LAUNCHERS_HERE,
    check_checkpoint,
    check_data_folder,
    check_device,
    check_input_of_images,
    check_launcher,
    check_packages,
    is_file,
)
from runner.config.checks.metrics import check_evaluation
from runner.config.checks.numbers import check_numbers
from runner.config.files import choices_of, values_in
from runner.config.messages import omegaconf_message, wrong_value_message
from runner.config.schema import MISSING, RUNNERS_DATA_KEYS, STEPS, Config, Model, values_by_key
from runner.errors import ConfigError, did_you_mean
from runner.freezing.patterns import parse, parse_all, refuse_patterns_in_both

UNSUPPORTED_DIRECTIVES = {"_convert_", "_recursive_"}  # Hydra has them, this project does not
# How many positional arguments a run passes to the targets of these nodes, such as the parameter groups to an optimizer.
GIVEN = {"model.build": 0, "method": 0, "groups.cut": 2, "optimizer": 1, "scheduler": 1, "schedule": 1, "task": 0, "data": 0}
DEFAULTS = "defaults: [config, _self_]"  # the first line of a user's own primary config
_SCHEMA = OmegaConf.structured(Config)
OmegaConf.set_struct(_SCHEMA.model, False)  # any other key in it is an argument of the builder


def check(composed: DictConfig, method: str | None = None) -> Config:
    """Check a config that Hydra composed, and return it as a `Config` object.

    `method` is the choice of the config group `method`, such as `zero_lr`. If the config has a node `hydra`, the choice is
    read from there and the argument is ignored. Raises ConfigError for unknown keys, wrong types, missing values, numbers
    out of range, malformed patterns, and a package, device, file or folder that the config needs and this machine lacks.
    """
    if "hydra" in composed:
        _check_hydra(composed)
        method = composed.hydra.runtime.choices.get("method")
    typed = _typed(composed)
    if method is not None:
        _drop_options_of_another_method(typed, method)
    _check_values(dict(values_by_key(OmegaConf.to_container(typed))))
    try:
        config = OmegaConf.to_object(typed)
    except OmegaConfBaseException as error:
        raise ConfigError(omegaconf_message(error, typed)) from error
    assert isinstance(config, Config)
    config = replace(config, model=_with_builder_arguments(config.model))
    check_numbers(config)
    check_evaluation(config)
    if "hydra" in composed:
        _check_options(config, composed.hydra.runtime.choices)
    _check_patterns(config)
    _check_machine(config, composed.hydra.runtime.choices["hydra/launcher"] if "hydra" in composed else "basic")
    if "hydra" in composed:
        _check_signatures(config, composed.hydra.runtime.choices)
    return config


def _typed(composed: DictConfig) -> DictConfig:
    """Return the config merged into the typed schema `Config`, without the node `hydra`.

    Raises ConfigError for unknown keys, for keys that were deleted, and for values of a wrong type. Hydra itself accepts
    `+typo=1`; this merge does not.
    """
    nodes: dict[str, Any] = {str(key): composed._get_node(key) for key in composed if key != "hydra"}
    if OmegaConf.is_config(composed) and composed.get("cost") is False:
        nodes["cost"] = "off"  # which YAML reads as False
    for each in fields(Config):
        if is_dataclass(each.default_factory) and not OmegaConf.is_dict(nodes.get(each.name, OmegaConf.create())):
            raise ConfigError(wrong_value_message(each.name, nodes[each.name]))
    try:
        _check_lr_items(nodes.get("groups", {}))
        typed = OmegaConf.merge(_SCHEMA, OmegaConf.create(nodes))
    except OmegaConfBaseException as error:
        raise ConfigError(omegaconf_message(error, composed)) from error
    for each in fields(Config):
        if each.name not in nodes:
            raise ConfigError(f"{each.name} is missing; give {each.name}=..., or begin your config with {DEFAULTS}")
    return typed  # type: ignore[return-value]


def _check_values(values: Mapping[str, Any]) -> None:
    """Raise ConfigError if a value is missing, a `_target_` is malformed, or a directive of Hydra is used that is not ours.

    `values`: {dotted key: value} of the whole config, interpolations not resolved.
    """
    for key in sorted(key for key, value in values.items() if value == MISSING):  # before another key refers to it
        raise ConfigError(f"{key} is missing; give {key}=...")
    for key, value in values.items():
        if key.endswith("._target_"):
            refuse_malformed_path(value, key)
        if key.rpartition(".")[2] in UNSUPPORTED_DIRECTIVES:
            raise ConfigError(
                f"{key} is not supported; remove it (nested `_target_`s are always built, "
                "lists and dicts are passed as plain Python objects)"
            )


def _with_builder_arguments(model: Model) -> Model:
    """Return the node `model` in which the keys that the schema does not have, such as `name`, are moved into `build`.

    Interpolations are resolved before, so each refers to a key where the user wrote it. For a library's builder of ours,
    `weights` may be a file: it is the checkpoint of the model without weights, which then are false: so messages can say
    with which key the file was given.
    """
    known = {each.name for each in fields(Model)}
    checkpoint, moved = model.checkpoint, {key: value for key, value in vars(model).items() if key not in known}
    if str(model.build.get("_target_")).startswith(LIBRARY_BUILDERS) and is_file(moved.get("weights")):
        if checkpoint is not None:
            raise ConfigError(
                f"model.weights is the file {moved['weights']} and model.checkpoint is {checkpoint}; give one of them"
            )
        checkpoint, moved["weights"] = moved["weights"], False
    return replace(model, build={**model.build, **moved}, checkpoint=checkpoint)


def _check_lr_items(groups: DictConfig) -> None:
    """Raise ConfigError if an item of `groups.lr` is not `{pattern: NAME, lr: NUMBER}`.

    OmegaConf would refuse it too, without the key of the list in its message.
    """
    example = "groups.lr=[{pattern: fc, lr: 0.1}]"
    items = OmegaConf.to_container(OmegaConf.create({"lr": groups.get("lr", [])}), resolve=False)["lr"]  # type: ignore[index,call-overload]
    if not isinstance(items, list):
        raise ConfigError(f"groups.lr is {items!r}; expected a list, such as {example}")
    for index, item in enumerate(items):
        key = f"groups.lr[{index}]"
        if not isinstance(item, dict):
            raise ConfigError(f"{key} is {item!r}; expected a pattern and a learning rate, such as {example}")
        for name in item:
            if name not in ("pattern", "lr"):
                raise ConfigError(
                    f"{key}: no such key {name!r}{did_you_mean(str(name), ('pattern', 'lr'))}; write {example}"
                )
        for name in ("pattern", "lr"):
            if item.get(name, MISSING) == MISSING:
                raise ConfigError(f"{key}.{name} is missing; write {example}")
        if isinstance(item["pattern"], list):
            raise ConfigError(f"{key}.pattern is {item['pattern']!r}; give one pattern, and an item of groups.lr for each")
        parse(item["pattern"], f"{key}.pattern")
        is_text = isinstance(item["lr"], str) and "${" not in item["lr"]
        if is_text or isinstance(item["lr"], (bool, dict, list, type(None))):
            raise ConfigError(f"{key}.lr is {item['lr']!r}; expected a number")


def _drop_options_of_another_method(typed: DictConfig, choice: str) -> None:
    """Remove the options of the chosen method from `typed.method` if the user replaced the method's `_target_`.

    `choice` is the name of the chosen file in `conf/method`, which sets a `_target_` and its options. If `typed.method` has
    another `_target_` than the file, each option that still has the file's value is removed, because the new target need not
    accept it. Changes `typed` in place.
    """
    from_file, method = values_in("method", choice), OmegaConf.to_container(typed.method)
    assert isinstance(method, dict)
    if from_file.get("_target_") != method.get("_target_"):
        for key in from_file.keys() & method.keys() - {"_target_"}:
            if from_file[key] == method[key]:
                del typed.method[key]


def _check_options(config: Config, choices: Mapping[str, Any]) -> None:
    """Raise ConfigError if an option that is a number in its file in `conf` was given a text, a list or true/false.

    `choices`: {config group: chosen file}, such as {"optimizer": "sgd"}. Nothing is known about the options of a target that
    the user put in place of the file's.
    """
    for group in ("optimizer", "scheduler", "schedule", "data", "method"):
        defaults, node = values_in(group, choices.get(group)), getattr(config, group)
        for name, default in defaults.items() if defaults.get("_target_") == node.get("_target_") else ():
            value = node.get(name)
            if _is_number(default) and value is not None and not _is_number(value):
                raise ConfigError(f"{group}.{name} is {value!r}; expected a number, such as {default}")


def _check_signatures(config: Config, choices: Mapping[str, Any]) -> None:
    """Raise ConfigError if a target of ours or of torch's does not take the arguments of its node, by its signature.

    `choices`: {config group: chosen file}. Reading a signature imports
    torch, which takes seconds; so a node that has the same target and keys as its file in `conf` is not looked at.
    """
    values = dict(values_by_key(config))
    for key, given in GIVEN.items():
        group, _, inner = key.partition(".")
        node, from_file = values[key], values_in(group, choices.get(group))
        from_file = from_file.get(inner, {}) if inner else from_file
        is_as_in_file = node.keys() == from_file.keys() and node.get("_target_") == from_file.get("_target_")
        if node and not is_as_in_file and str(node.get("_target_")).split(".")[0] in ("runner", "torch"):
            taken = RUNNERS_DATA_KEYS if key == "data" else ()
            arguments = {name: 1 if value == STEPS else value for name, value in node.items() if name not in taken}
            arguments |= offered(node, key, run=None) if key == "schedule" else {}  # which the run itself gives
            check_node(arguments, key, given)


def _is_number(value: object) -> bool:
    """Return whether a value is an int or a float, and not true or false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_hydra(composed: DictConfig) -> None:
    """Raise ConfigError if a config group has no choice or a list of choices, or if a folder of Hydra's is wrong.

    `composed` is the config with its node `hydra`. There `hydra.sweep.subdir` gives the names of the folders of a sweep's
    runs, so it must not be changed.
    """
    hydra = composed.hydra
    for group in ("model", "method", "freeze", "groups", "optimizer", "scheduler", "schedule", "task", "data", "launch"):
        if not isinstance(hydra.runtime.choices.get(group), str):
            if group not in composed:
                raise ConfigError(f"{group} has no choice; give {group}=..., there are {', '.join(choices_of(group))}")
            more = "; for several patterns give freeze.patterns=[A,B]" if group == "freeze" else ""
            raise ConfigError(
                f"{group} takes one choice, not a list; add -m and write {group}=A,B for a sweep over two{more}"
            )
    check_folders(hydra)
    if OmegaConf.to_container(hydra.sweep)["subdir"] != "${runner.run_name:}":  # type: ignore[call-overload,index]
        raise ConfigError("hydra.sweep.subdir names each run's folder and cannot be set; give hydra.sweep.dir")
    check_launcher(hydra.launcher)


def check_folders(hydra: DictConfig) -> None:
    """Raise ConfigError if the folder of a run or of a sweep is empty, in the node `hydra` of a config."""
    for key, node in (("hydra.run.dir", hydra.run), ("hydra.sweep.dir", hydra.sweep)):
        if OmegaConf.to_container(node)["dir"] == "":  # type: ignore[call-overload,index]
            raise ConfigError(f"{key} is empty; give a folder, {key}=DIR")


def _check_machine(config: Config, launcher: str) -> None:
    """Raise ConfigError if this machine lacks what the config needs: a package, the device, a file or folder.

    `launcher`: Hydra's name of the launcher. With one that carries out the runs elsewhere, only packages are checked.
    """
    check_packages(config)
    check_input_of_images(config)
    if launcher in LAUNCHERS_HERE:
        check_checkpoint(config.model.checkpoint)
        check_data_folder(config.data)
        check_device(config.device.value)


def _check_patterns(config: Config) -> None:
    """Raise ConfigError if a pattern in the config is malformed, or if a list of patterns is wrong.

    Wrong are a pattern that is in both `freeze.patterns` and `freeze.keep`, no `groups.names` with `groups=module`, and a
    `model.head` that is neither a pattern, a list of patterns, `auto`, nor `new`.
    """
    parse_all(config.freeze.patterns, "freeze.patterns")
    parse_all(config.freeze.keep, "freeze.keep")
    refuse_patterns_in_both(config.freeze.patterns, config.freeze.keep)
    parse_all(config.groups.names, "groups.names")
    if config.groups.cut.get("_target_") == "runner.freezing.groups.by_module" and not config.groups.names:
        raise ConfigError("groups=module needs the modules' names, e.g. 'groups.names=[conv1,fc]'")
    if config.model.head != "auto":
        heads = [config.model.head] if isinstance(config.model.head, str) else config.model.head
        if not heads or not isinstance(heads, list):
            raise ConfigError(f"model.head is {config.model.head!r}; give a pattern, a list of patterns, auto, or new")
        parse_all(heads, "model.head")
