"""What can be checked of the composed config without a model. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from runner.config.schema import CONF, Config, is_whole, known_keys
from runner.errors import ConfigError, did_you_mean
from runner.freezing.patterns import parse_all, refuse_entries_in_both

UNKNOWN_RESOLVER = "Unsupported interpolation type "  # as OmegaConf says it
LONGEST = 1e6  # seconds, which every clock and timer can count
_SCHEMA = OmegaConf.structured(Config)


def check(composed: DictConfig, method: str | None = None) -> Config:
    """The composed config as typed data, refused where composing alone can tell that it is wrong.

    `method` is the choice of that name, where the `hydra` node is cut off. Raises ConfigError for unknown keys, wrong types,
    missing values, numbers out of range, malformed patterns and extras that are not installed.
    """
    if "hydra" in composed:
        _check_choices(composed.hydra)
        method = composed.hydra.runtime.choices.method
    typed = _typed(composed)
    if method is not None:
        _drop_options_of_another_method(typed, method)
    for key in sorted(_missing(OmegaConf.to_container(typed))):  # another key may refer to it
        raise ConfigError(f"{key} is missing; give {key}=...")
    try:
        config = OmegaConf.to_object(typed)
    except OmegaConfBaseException as error:
        raise ConfigError(_said(error)) from error
    assert isinstance(config, Config)
    _check_numbers(config)
    _check_patterns(config)
    _check_extras(config)
    return config


def _typed(composed: DictConfig) -> DictConfig:
    # Hydra lets `+typo=1` through even where a schema is declared; merging into the schema again does not.
    own: dict[str, Any] = {str(key): composed._get_node(key) for key in composed if key != "hydra"}
    if OmegaConf.is_config(composed) and composed.get("cost") is False:
        own["cost"] = "off"  # as YAML reads the word
    try:
        return OmegaConf.merge(_SCHEMA, OmegaConf.create(own))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(_said(error, own)) from error


def _drop_options_of_another_method(typed: DictConfig, choice: str) -> None:
    """Where `method._target_` was given, the options of the file that it stood in are not its own."""
    file, given = CONF / "method" / f"{choice}.yaml", OmegaConf.to_container(typed.method)
    was: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    assert isinstance(given, dict)
    if was.get("_target_") != given.get("_target_"):
        for key in was.keys() & given.keys() - {"_target_"}:
            if was[key] == given[key]:
                del typed.method[key]


def _missing(value: Any, key: str = "") -> Iterator[str]:
    if value == MISSING:
        yield key
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _missing(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _missing(inner, f"{key}[{place}]")


def _said(error: OmegaConfBaseException, own: dict[str, Any] | None = None) -> str:
    key = error.full_key or str(error.key or "")
    if own and key.split(".")[0] not in own:  # inside a list, where OmegaConf knows no more than the item's key
        key = next((f"{where}: {key}" for where, part in _parts(own) if _is_refused(part)), key)
    if isinstance(error, ConfigKeyError):
        return no_such_key(key)
    said = (error.msg or str(error)).splitlines()[0]
    if said.startswith(UNKNOWN_RESOLVER):
        said = unknown_resolver(said.removeprefix(UNKNOWN_RESOLVER))
    if "ListConfig" in said:
        said = f"expected a list, e.g. {key}=[...]"
    return f"{key}: {said}"


def _parts(own: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, node in own.items():
        for inner in node if OmegaConf.is_dict(node) else ():
            yield f"{key}.{inner}", {key: {inner: node._get_node(inner)}}


def _is_refused(part: dict[str, Any]) -> bool:
    try:
        OmegaConf.merge(_SCHEMA, part)
    except OmegaConfBaseException:
        return True
    return False


def _check_choices(hydra: DictConfig) -> None:
    for noun in ("model", "method", "freeze", "groups", "optimizer", "scheduler", "schedule", "task", "data", "launch"):
        if not isinstance(hydra.runtime.choices.get(noun), str):
            more = "; for several patterns give freeze.patterns=[A,B]" if noun == "freeze" else ""
            raise ConfigError(f"{noun} takes one choice, not a list; add -m and write {noun}=A,B for a sweep over two{more}")
    if OmegaConf.to_container(hydra.sweep)["subdir"] != "${runner.run_name:}":  # type: ignore[call-overload,index]
        raise ConfigError("hydra.sweep.subdir names each run's folder and is not to be set; give hydra.sweep.dir")


def _check_extras(config: Config) -> None:
    asked = {"save=true": config.save, "data=digits": config.data.get("_target_") == "runner.training.data.Digits"}
    needs = {"save=true": ("safetensors", "save"), "data=digits": ("sklearn", "data")}
    for key, (module, extra) in needs.items():
        if asked[key] and find_spec(module) is None:
            raise ConfigError(f"{key} needs {module}; install it with: pip install 'freeze-runner[{extra}]'")


def _check_numbers(config: Config) -> None:
    batch_size = config.data.get("batch_size", 1)
    counts = {"batches": config.batches, "data.batch_size": batch_size, "data.epochs": config.epochs}
    counts["model.classes"] = config.model.classes
    for key, value in counts.items():
        if not is_whole(value) or value < 1:
            raise ConfigError(f"{key} is {value!r}; it must be a whole number of 1 or more")
    if not config.model.input or not all(is_whole(size) and size >= 1 for size in config.model.input):
        raise ConfigError(f"model.input is {config.model.input}; give the shape of one sample, e.g. [3,224,224]")
    if config.threads != "auto" and (not is_whole(config.threads) or not 1 <= config.threads <= 1024):
        raise ConfigError(f"threads is {config.threads!r}; give auto or a whole number from 1 to 1024")
    if not 0 <= config.seed < 2**63:
        raise ConfigError(f"seed is {config.seed}; it must lie between 0 and 2**63 - 1")
    first = config.schedule.get("step", 1)
    if config.schedule.get("_target_") == "runner.freezing.schedule.after" and (not is_whole(first) or first < 1):
        raise ConfigError(f"schedule.step is {first!r}; give the first step that is frozen, a whole number of 1 or more")
    if is_whole(first) and first > config.steps:
        passes = f" and data.epochs is {config.epochs}" if config.epochs > 1 else ""
        raise ConfigError(f"schedule.step is {first} and batches is {config.batches}{passes}: nothing would ever be frozen")
    if config.timeout is not None and not 0 < config.timeout <= LONGEST:
        raise ConfigError(
            f"timeout is {config.timeout}; give the seconds that a run may take, above 0 and at most {LONGEST:g}, or null"
        )
    if config.clip is not None and not config.clip > 0:
        raise ConfigError(f"clip is {config.clip}; give the largest norm of all gradients together, above 0, or null")


def _check_patterns(config: Config) -> None:
    parse_all(config.freeze.patterns, "freeze.patterns")
    parse_all(config.freeze.keep, "freeze.keep")
    refuse_entries_in_both(config.freeze.patterns, config.freeze.keep)
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


def no_such_key(key: str) -> str:
    """What to say of a key that is not there: which other choices of its group have it, else the nearest keys."""
    keys = _all_keys()
    if key in keys:  # of another choice
        group, _, option = key.partition(".")
        have = sorted(path.stem for path in (CONF / group).glob("*.yaml") if option in OmegaConf.load(path))
        return f"{key}: no such key{f' of this {group}; it is one of ' + ', '.join(have) if have else ''}"
    return f"{key}: no such key{did_you_mean(key, keys)}"


def unknown_resolver(name: str) -> str:
    """What to say of `${name:}`, which nobody has registered; ours begin with `runner.`."""
    ours = f"; did you mean ${{runner.{name}:}}?" if name in ("steps", "epochs", "config_hash", "run_name") else ""
    return f"there is no resolver ${{{name}:}}{ours}"


def config_groups() -> list[str]:
    """The groups of `conf`."""
    return [path.name for path in CONF.iterdir() if path.is_dir()]


def _all_keys() -> list[str]:
    files = [(path.parent.name, OmegaConf.load(path)) for path in CONF.glob("*/*.yaml")]
    options = {f"{group}.{key!s}" for group, node in files if group != "experiment" for key in node}
    return [*known_keys(), *config_groups(), *sorted(options)]
