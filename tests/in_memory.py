"""Run experiments in memory: as the command line does, but without composing the config anew and without files."""

from __future__ import annotations

from functools import lru_cache

import yaml
from omegaconf import DictConfig, OmegaConf

from runner.config.check import check
from runner.config.compose import compose_config
from runner.config.schema import CONF, Config
from runner.experiment import Outcome, experiment


@lru_cache(maxsize=1)
def default_config() -> DictConfig:
    """Return the config of `model=mlp batches=3`; cached, because composing takes longer than most runs of the tests."""
    return compose_config("model=mlp", "batches=3")


def config_with(*overrides: str) -> Config:
    """Return `default_config` with `GROUP=CHOICE` and `KEY=VALUE` overrides, checked."""
    config = OmegaConf.create(OmegaConf.to_container(default_config()))
    for override in overrides:
        key, value = override.split("=", 1)
        file = CONF / key / f"{value}.yaml"
        OmegaConf.update(config, key, OmegaConf.load(file) if file.is_file() else yaml.safe_load(value), merge=False)
    return check(config)


def run_experiment(*overrides: str, on_step=lambda step: None) -> Outcome:
    """Run the config with these overrides and return its outcome, with its notes in the attribute `notes`."""
    notes: list[str] = []
    outcome = experiment(config_with(*overrides), on_step, on_note=lambda text, *, urgent=False: notes.append(text))
    outcome.notes = notes
    return outcome
