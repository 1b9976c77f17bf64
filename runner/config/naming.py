"""The hash of a run's config, and the names of its folder, method and patterns. Does not import torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import omegaconf
from omegaconf import DictConfig, OmegaConf

from runner.config.schema import CONF, epochs_of, steps_of
from runner.contract import NOT_HASHED, method_name

CUSTOM = "custom"  # the name of patterns that are not those of a file in conf/freeze


def config_hash(composed: DictConfig) -> str:
    """Return 8 hex digits of the SHA-256 of the config as JSON, without the keys of NOT_HASHED."""
    return _hash({key: value for key, value in _plain(composed).items() if key not in NOT_HASHED})


def setting_hash(composed: DictConfig) -> str:
    """Return the `config_hash` without the method and `freeze.buffers`: runs with the same one can be compared."""
    hashed = {key: value for key, value in _plain(composed).items() if key not in (*NOT_HASHED, "method")}
    return _hash({**hashed, "freeze": {**hashed["freeze"], "buffers": None}})


def _hash(plain: dict[str, Any]) -> str:
    """Return 8 hex digits of the SHA-256 of a dict as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


def run_name(composed: DictConfig) -> str:
    """Return the name of a run's folder in a sweep, `METHOD__FREEZE__sSEED__HASH8`; the config needs its node `hydra`."""
    if "method" not in composed:  # for `--cfg hydra --resolve`, which shows only that node
        return "METHOD__FREEZE__sSEED__HASH8"
    method = method_choice(composed.method, composed.hydra.runtime.choices.method)
    freeze = freeze_name(composed.freeze, composed.hydra.runtime.choices.freeze)
    return f"{method}__{freeze}__s{composed.seed}__{config_hash(composed)}"


def method_choice(method: DictConfig, choice: str) -> str:
    """Return the name of a run's method: its choice of `method`, or the name of its `_target_` if that was overridden."""
    file = CONF / "method" / f"{choice}.yaml"
    target = str(method.get("_target_"))
    if file.is_file() and OmegaConf.select(OmegaConf.load(file), "_target_") != target:
        return method_name(target)
    return choice.replace("/", "-")


def freeze_name(freeze: DictConfig, choice: str) -> str:
    """Return the name of a run's patterns: its choice of `freeze`, or `custom` if the patterns were overridden."""
    file = CONF / "freeze" / f"{choice}.yaml"
    if file.is_file():
        from_file = OmegaConf.load(file)
        assert isinstance(from_file, DictConfig)
        if any(list(from_file.get(key) or []) != list(freeze[key]) for key in ("patterns", "keep")):
            return CUSTOM
    return choice.replace("/", "-")


def register_resolvers() -> None:
    """Register the resolvers that `conf` uses in OmegaConf: steps, epochs, config_hash and run_name, as `${runner.steps:}`.

    Only the entry points call it: importing the public names registers nothing.
    """
    is_renamed = tuple(map(int, omegaconf.__version__.split(".")[:2])) >= (2, 4)
    register: Any = OmegaConf.register_resolver if is_renamed else OmegaConf.register_new_resolver
    resolvers = {"steps": steps_of, "epochs": epochs_of, "config_hash": config_hash, "run_name": run_name}
    for name, resolve in resolvers.items():
        register(f"runner.{name}", partial(_of_root, resolve), replace=True)


def _of_root(resolve: Callable[[DictConfig], Any], *, _root_: DictConfig) -> Any:
    """Call a resolver with the whole config, which OmegaConf passes as `_root_`."""
    return resolve(_root_)


def _plain(composed: DictConfig) -> dict[str, Any]:
    """Return the config as plain dicts, lists and values, interpolations resolved, without the node `hydra`."""
    return {
        str(key): OmegaConf.to_container(composed[key], resolve=True)
        if OmegaConf.is_config(composed[key])
        else composed[key]
        for key in composed
        if key != "hydra"
    }
