"""Check a composed config as far as possible without a model. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from runner.config.naming import RESOLVERS
from runner.config.schema import CONF, Config, known_keys
from runner.errors import ConfigError, did_you_mean, is_integer, listed
from runner.freezing.patterns import parse_all, refuse_patterns_in_both

UNKNOWN_RESOLVER = "Unsupported interpolation type "  # the beginning of OmegaConf's message
MAX_TIMEOUT = 1e6  # seconds; no clock or timer overflows at this value
UNSUPPORTED_DIRECTIVES = {"_convert_", "_recursive_"}  # Hydra has them, this project does not
_SCHEMA = OmegaConf.structured(Config)


def check(composed: DictConfig, method: str | None = None) -> Config:
    """Check a config that Hydra composed, and return it as a `Config` object.

    `method` is the choice of the config group `method`, such as `zero_lr`. If the config has a node `hydra`, the choice is
    read from there and the argument is ignored. Raises ConfigError for unknown keys, wrong types, missing values, numbers
    out of range, malformed patterns, and packages that the config needs but that are not installed.
    """
    if "hydra" in composed:
        _check_choices(composed.hydra)
        method = composed.hydra.runtime.choices.method
    typed = _typed(composed)
    if method is not None:
        _drop_options_of_another_method(typed, method)
    values = dict(_values_by_key(OmegaConf.to_container(typed)))
    for key in sorted(key for key, value in values.items() if value == MISSING):  # before another key refers to it
        raise ConfigError(f"{key} is missing; give {key}=...")
    for key in values:
        if key.rpartition(".")[2] in UNSUPPORTED_DIRECTIVES:
            raise ConfigError(
                f"{key} is not supported; remove it (nested `_target_`s are always built, "
                "lists and dicts are passed as plain Python objects)"
            )
    try:
        config = OmegaConf.to_object(typed)
    except OmegaConfBaseException as error:
        raise ConfigError(_error_message(error)) from error
    assert isinstance(config, Config)
    _check_numbers(config)
    _check_patterns(config)
    _check_extras(config)
    return config


def _typed(composed: DictConfig) -> DictConfig:
    """Return the config merged into the typed schema `Config`, without the node `hydra`.

    Raises ConfigError for unknown keys and for values of a wrong type. Hydra itself accepts `+typo=1`; this merge does not.
    """
    nodes: dict[str, Any] = {str(key): composed._get_node(key) for key in composed if key != "hydra"}
    if OmegaConf.is_config(composed) and composed.get("cost") is False:
        nodes["cost"] = "off"  # which YAML reads as False
    try:
        return OmegaConf.merge(_SCHEMA, OmegaConf.create(nodes))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(_error_message(error, nodes)) from error


def _drop_options_of_another_method(typed: DictConfig, choice: str) -> None:
    """Remove the options of the chosen method from `typed.method` if the user replaced the method's `_target_`.

    `choice` is the name of the chosen file in `conf/method`, which sets a `_target_` and its options. If `typed.method` has
    another `_target_` than the file, each option that still has the file's value is removed, because the new target need not
    accept it. Changes `typed` in place.
    """
    file, method = CONF / "method" / f"{choice}.yaml", OmegaConf.to_container(typed.method)
    from_file: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    assert isinstance(method, dict)
    if from_file.get("_target_") != method.get("_target_"):
        for key in from_file.keys() & method.keys() - {"_target_"}:
            if from_file[key] == method[key]:
                del typed.method[key]


def _values_by_key(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for each value in nested dicts and lists; inner dicts and lists are yielded too.

    `key` is the dotted key of the argument `value`; "" for the whole config. The key of a list item ends in its index, such
    as `groups.lr[0]`.
    """
    if key:
        yield key, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _values_by_key(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _values_by_key(inner, f"{key}[{index}]")


def _error_message(error: OmegaConfBaseException, nodes: dict[str, Any] | None = None) -> str:
    """Turn an error of OmegaConf into a message `KEY: what is wrong`.

    `nodes` is the config that was merged into the schema: {top-level key: value}. For an error inside a list, OmegaConf
    gives only the key within the list's item; `nodes` is then searched for the key of the list.
    """
    key = error.full_key or str(error.key or "")
    if nodes and key.split(".")[0] not in nodes:  # the error is in a list: OmegaConf gives only the key within the item
        key = next((f"{parent}: {key}" for parent, part in _second_level(nodes) if _is_refused(part)), key)
    if isinstance(error, ConfigKeyError):
        return unknown_key_message(key)
    problem = (error.msg or str(error)).splitlines()[0]
    if problem.startswith(UNKNOWN_RESOLVER):
        problem = unknown_resolver_message(problem.removeprefix(UNKNOWN_RESOLVER))
    if "ListConfig" in problem:
        problem = f"expected a list, e.g. {key}=[...]"
    return f"{key}: {problem}"


def _second_level(nodes: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (dotted key, config with only this key) for each key of the second level, such as `groups.lr`.

    `nodes` is the config, {top-level key: value}. For `groups.lr` the pair is (`groups.lr`, {`groups`: {`lr`: value}}).
    """
    for key, node in nodes.items():
        for inner in node if OmegaConf.is_dict(node) else ():
            yield f"{key}.{inner}", {key: {inner: node._get_node(inner)}}


def _is_refused(part: dict[str, Any]) -> bool:
    """Return True if OmegaConf cannot merge `part`, a part of a config, into the schema."""
    try:
        OmegaConf.merge(_SCHEMA, part)
    except OmegaConfBaseException:
        return True
    return False


def _check_choices(hydra: DictConfig) -> None:
    """Raise ConfigError if a config group was given a list of choices, or if `hydra.sweep.subdir` was changed.

    `hydra` is the node `hydra` of the config. `hydra.sweep.subdir` gives the names of the folders of a sweep's runs.
    """
    for group in ("model", "method", "freeze", "groups", "optimizer", "scheduler", "schedule", "task", "data", "launch"):
        if not isinstance(hydra.runtime.choices.get(group), str):
            more = "; for several patterns give freeze.patterns=[A,B]" if group == "freeze" else ""
            raise ConfigError(
                f"{group} takes one choice, not a list; add -m and write {group}=A,B for a sweep over two{more}"
            )
    if OmegaConf.to_container(hydra.sweep)["subdir"] != "${runner.run_name:}":  # type: ignore[call-overload,index]
        raise ConfigError("hydra.sweep.subdir names each run's folder and cannot be set; give hydra.sweep.dir")


def _check_extras(config: Config) -> None:
    """Raise ConfigError if the config needs a package that is not installed, such as safetensors for `save=true`."""
    is_needed = {"save=true": config.save, "data=digits": config.data.get("_target_") == "runner.training.data.Digits"}
    packages = {"save=true": ("safetensors", "save"), "data=digits": ("sklearn", "data")}
    for key, (module, extra) in packages.items():
        if is_needed[key] and find_spec(module) is None:
            raise ConfigError(f"{key} needs {module}; install it with: pip install 'freeze-runner[{extra}]'")


def _check_numbers(config: Config) -> None:
    """Raise ConfigError if a number in the config is out of range, such as `batches=0`."""
    batch_size = config.data.get("batch_size", 1)
    counts = {"batches": config.batches, "data.batch_size": batch_size, "data.epochs": config.epochs}
    counts |= {"model.classes": config.model.classes, "sweep.max_runs": config.sweep.max_runs}
    for key, value in counts.items():
        if not is_integer(value) or value < 1:
            raise ConfigError(f"{key} is {value!r}; it must be a whole number of 1 or more")
    if not config.model.input or not all(is_integer(size) and size >= 1 for size in config.model.input):
        raise ConfigError(f"model.input is {config.model.input}; give the shape of one sample, e.g. [3,224,224]")
    if config.threads != "auto" and (not is_integer(config.threads) or not 1 <= config.threads <= 1024):
        raise ConfigError(f"threads is {config.threads!r}; give auto or a whole number from 1 to 1024")
    if not 0 <= config.seed < 2**63:
        raise ConfigError(f"seed is {config.seed}; it must be between 0 and 2**63 - 1")
    step = config.schedule.get("step", 1)
    if config.schedule.get("_target_") == "runner.freezing.schedule.after" and (not is_integer(step) or step < 1):
        raise ConfigError(
            f"schedule.step is {step!r}; give the number of the first step at which the layers are frozen, 1 or more"
        )
    if is_integer(step) and step > config.steps:
        epochs = f" and data.epochs is {config.epochs}" if config.epochs > 1 else ""
        raise ConfigError(f"schedule.step is {step} and batches is {config.batches}{epochs}: nothing would ever be frozen")
    if config.timeout is not None and not 0 < config.timeout <= MAX_TIMEOUT:
        raise ConfigError(
            f"timeout is {config.timeout}; give the most seconds of a run, above 0 and at most {MAX_TIMEOUT:g}, or null"
        )
    if config.clip is not None and not config.clip > 0:
        raise ConfigError(
            f"clip is {config.clip}; give the maximum total norm of the gradients, above 0, or null for no clipping"
        )


def _check_patterns(config: Config) -> None:
    """Raise ConfigError if a pattern in the config is malformed, or if a value beside a pattern is wrong.

    Wrong are a pattern that is in both `freeze.patterns` and `freeze.keep`, a negative learning rate in `groups.lr`, and a
    `model.head` that is neither a pattern, a list of patterns, nor `auto`.
    """
    parse_all(config.freeze.patterns, "freeze.patterns")
    parse_all(config.freeze.keep, "freeze.keep")
    refuse_patterns_in_both(config.freeze.patterns, config.freeze.keep)
    parse_all(config.groups.names, "groups.names")
    parse_all([entry.pattern for entry in config.groups.lr], "groups.lr")
    for entry in config.groups.lr:
        if not entry.lr >= 0:
            raise ConfigError(f"groups.lr: the learning rate of {entry.pattern!r} is {entry.lr}; it must be 0 or more")
    if config.model.head != "auto":
        heads = [config.model.head] if isinstance(config.model.head, str) else config.model.head
        if not heads or not isinstance(heads, list):
            raise ConfigError(f"model.head is {config.model.head!r}; give a pattern, a list of patterns, or auto")
        parse_all(heads, "model.head")


def unknown_key_message(key: str) -> str:
    """Return the error message for a config key that does not exist.

    Some keys exist only with some choices of a config group: `optimizer.momentum` exists with `optimizer=sgd`. For such a
    key the message lists these choices. For any other key it suggests existing keys with similar names.
    """
    keys = _all_keys()
    if key in keys:  # a key of another choice of its group
        group, _, option = key.partition(".")
        choices = sorted(path.stem for path in (CONF / group).glob("*.yaml") if option in OmegaConf.load(path))
        if not choices:
            return f"{key}: no such key"
        verb = "has" if len(choices) == 1 else "have"
        return f"{key}: no such key of the chosen {group}; {listed([f'{group}={c}' for c in choices])} {verb} it"
    return f"{key}: no such key{did_you_mean(key, keys)}"


def unknown_resolver_message(name: str) -> str:
    """Return the error message for a config value `${name:}` if OmegaConf has no resolver (function) called `name`.

    If this project registers a resolver `runner.name`, the message suggests it.
    """
    return f"there is no resolver ${{{name}:}}{f'; did you mean ${{runner.{name}:}}?' if name in RESOLVERS else ''}"


def config_groups() -> list[str]:
    """Return the names of the config groups, such as `model` and `optimizer`: the subfolders of the folder `conf`."""
    return [path.name for path in CONF.iterdir() if path.is_dir()]


def _all_keys() -> list[str]:
    """Return all dotted config keys that exist in any config.

    These are the keys of the schema, the names of the config groups, and the keys in the files of the groups, such as
    `optimizer.momentum`.
    """
    files = [(path.parent.name, OmegaConf.load(path)) for path in CONF.glob("*/*.yaml")]
    options = {f"{group}.{key!s}" for group, node in files if group != "experiment" for key in node}
    return [*known_keys(), *config_groups(), *sorted(options)]
