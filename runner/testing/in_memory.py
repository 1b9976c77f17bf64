"""Configs for experiments in memory: as the command line composes them, but without composing them anew for each."""

from __future__ import annotations

from functools import lru_cache

import yaml
from omegaconf import DictConfig, OmegaConf

from runner.config.check import check
from runner.config.compose import compose_config
from runner.config.schema import CONF, Config


@lru_cache(maxsize=1)
def default_config() -> DictConfig:
    """Return the config of `model=mlp batches=3`; cached, because composing takes longer than most small runs."""
    return compose_config("model=mlp", "batches=3")


def config_with(*overrides: str, **nodes: object) -> Config:
    """Return `default_config` with `GROUP=CHOICE` and `KEY=VALUE` overrides, then with nodes such as `method`, checked."""
    config = OmegaConf.create(OmegaConf.to_container(default_config()))  # takes new keys, which a composed one refuses
    assert isinstance(config, DictConfig)
    for override in overrides:
        key, value = override.split("=", 1)
        file = CONF / key / f"{value}.yaml"
        OmegaConf.update(config, key, OmegaConf.load(file) if file.is_file() else yaml.safe_load(value), merge=False)
    for key, node in nodes.items():
        OmegaConf.update(config, key, node, merge=False)
    return check(config)
