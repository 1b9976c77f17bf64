"""The hash of a run's config, and the names of its folder, method and patterns. No torch."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from omegaconf import DictConfig, OmegaConf

from runner.config.files import values_in
from runner.contract import NOT_HASHED, method_name

CUSTOM = "custom"  # the name of patterns that are not those of a file in conf/freeze


def config_hash(composed: DictConfig) -> str:
    """Return 8 hex digits that are equal for equal configs: the start of a SHA-256 of the config as JSON.

    Keys in NOT_HASHED, such as `launch` and `timeout`, are left out, because they do not change a run's results.
    """
    return _hash(_hashed(composed))


def config_and_setting_hash(composed: DictConfig) -> tuple[str, str]:
    """Return `config_hash`, and such a hash that also leaves out the method and `freeze.buffers`.

    Runs with the same setting hash may differ only in their freezing method, in `freeze.buffers` and in keys in NOT_HASHED.
    Their results can therefore be compared.
    """
    hashed = _hashed(composed)
    setting = {key: value for key, value in hashed.items() if key != "method"}
    return _hash(hashed), _hash({**setting, "freeze": {**setting["freeze"], "buffers": None}})


def _hashed(composed: DictConfig) -> dict[str, Any]:
    """Return the config as plain values without the keys in NOT_HASHED."""
    plain = {key: value for key, value in _plain(composed).items() if key not in NOT_HASHED}
    for node, _, key in (dotted.partition(".") for dotted in NOT_HASHED):
        if key and isinstance(plain.get(node), dict):
            plain[node] = {name: value for name, value in plain[node].items() if name != key}
    return plain


def _hash(plain: dict[str, Any]) -> str:
    """Return the first 8 hex digits of the SHA-256 of a dict, written as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


def run_name(composed: DictConfig) -> str:
    """Return the name of a run's folder in a sweep, `METHOD__FREEZE__sSEED__HASH8`.

    METHOD is the result of `method_choice`, FREEZE that of `freeze_name`, SEED the value of `seed`, and HASH8 the result of
    `config_hash`. The config must have its node `hydra`, which contains the chosen file of each config group.
    """
    if "method" not in composed:  # for `--cfg hydra --resolve`, which shows only that node
        return "METHOD__FREEZE__sSEED__HASH8"
    method = method_choice(composed.method, composed.hydra.runtime.choices.method)
    freeze = freeze_name(composed.freeze, composed.hydra.runtime.choices.freeze)
    return f"{method}__{freeze}__s{composed.seed}__{config_hash(composed)}"


def method_choice(method: DictConfig, choice: str) -> str:
    """Return a short name for the method of a run, such as `zero_lr`.

    `choice` is the name of the chosen file in `conf/method`, and `method` is the config node. If the node has the same
    `_target_` as the file, the result is `choice`. If the user gave another `_target_`, the result is `method_name`
    of this `_target_`.
    """
    from_file, target = values_in("method", choice), str(method.get("_target_"))
    if from_file and from_file.get("_target_") != target:
        return method_name(target)
    return choice.replace("/", "-")


def freeze_name(freeze: DictConfig, choice: str) -> str:
    """Return a short name for what a run freezes, such as `backbone`.

    `choice` is the name of the chosen file in `conf/freeze`, and `freeze` is the config node. If the node has the same
    `patterns` and `keep` as the file, the result is `choice`; otherwise it is `custom`.
    """
    from_file = values_in("freeze", choice)
    if from_file and any(list(from_file.get(key) or []) != list(freeze.get(key) or []) for key in ("patterns", "keep")):
        return CUSTOM
    return choice.replace("/", "-")


def _plain(composed: DictConfig) -> dict[str, Any]:
    """Return the config as plain dicts, lists and values, interpolations resolved, without the node `hydra`."""
    return {
        str(key): OmegaConf.to_container(composed[key], resolve=True)
        if OmegaConf.is_config(composed[key])
        else composed[key]
        for key in composed
        if key != "hydra"
    }
