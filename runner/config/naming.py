"""What tells a run apart: the hash of its config, and the names of its folder, method and patterns. Knows no torch."""

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

CUSTOM = "custom"  # what a run's patterns are called when no file of conf/freeze names them


def config_hash(composed: DictConfig) -> str:
    """The first 8 hex digits of sha256 over the config as JSON, without what only says where and how it runs."""
    return _hash({key: value for key, value in _plain(composed).items() if key not in NOT_HASHED})


def setting_hash(composed: DictConfig) -> str:
    """The same without the method and `freeze.buffers`: runs that differ in these alone can be held against each other."""
    hashed = {key: value for key, value in _plain(composed).items() if key not in (*NOT_HASHED, "method")}
    return _hash({**hashed, "freeze": {**hashed["freeze"], "buffers": None}})


def _hash(plain: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


def run_name(composed: DictConfig) -> str:
    """The folder of one run in a sweep, `METHOD__FREEZE__sSEED__HASH8`; needs the `hydra` node."""
    if "method" not in composed:  # `--cfg hydra --resolve` shows that node alone
        return "METHOD__FREEZE__sSEED__HASH8"
    method = method_choice(composed.method, composed.hydra.runtime.choices.method)
    freeze = freeze_name(composed.freeze, composed.hydra.runtime.choices.freeze)
    return f"{method}__{freeze}__s{composed.seed}__{config_hash(composed)}"


def method_choice(method: DictConfig, choice: str) -> str:
    """The choice of `method` that a run was made with, or what its target is called where that is not that file's."""
    file = CONF / "method" / f"{choice}.yaml"
    target = str(method.get("_target_"))
    if file.is_file() and OmegaConf.select(OmegaConf.load(file), "_target_") != target:
        return method_name(target)
    return choice.replace("/", "-")


def freeze_name(freeze: DictConfig, choice: str) -> str:
    """The choice of `freeze` that a run was made with, or `custom` where its patterns are not that file's."""
    file = CONF / "freeze" / f"{choice}.yaml"
    if file.is_file():
        was = OmegaConf.load(file)
        assert isinstance(was, DictConfig)
        if any(list(was.get(key) or []) != list(freeze[key]) for key in ("patterns", "keep")):
            return CUSTOM
    return choice.replace("/", "-")


def register_resolvers() -> None:
    """Make the `${runner.NAME:}` of `conf` known to OmegaConf, in this process.

    `${runner.steps:}` is what `${batches}` would be if every run made one pass. Called by the doors alone: importing
    this project registers nothing.
    """
    renamed = tuple(map(int, omegaconf.__version__.split(".")[:2])) >= (2, 4)
    register: Any = OmegaConf.register_resolver if renamed else OmegaConf.register_new_resolver
    resolvers = {"steps": steps_of, "epochs": epochs_of, "config_hash": config_hash, "run_name": run_name}
    for name, resolve in resolvers.items():
        register(f"runner.{name}", partial(_of_root, resolve), replace=True)


def _of_root(resolve: Callable[[DictConfig], Any], *, _root_: DictConfig) -> Any:
    return resolve(_root_)


def _plain(composed: DictConfig) -> dict[str, Any]:
    """The config without Hydra's own node, as plain values, interpolations resolved."""
    return {
        str(key): OmegaConf.to_container(composed[key], resolve=True)
        if OmegaConf.is_config(composed[key])
        else composed[key]
        for key in composed
        if key != "hydra"
    }
