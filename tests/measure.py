"""The straight line on its own: a run as from the command line, without Hydra's composing and without files."""

from __future__ import annotations

from functools import lru_cache

import yaml
from omegaconf import DictConfig, OmegaConf

from runner.config.check import check
from runner.config.compose import compose_config
from runner.config.schema import CONF, Config
from runner.experiment import Outcome, experiment


@lru_cache(maxsize=1)
def defaults() -> DictConfig:
    """The config of `model=mlp batches=3`."""
    return compose_config("model=mlp", "batches=3")


def configured(*overrides: str) -> Config:
    """The default config with `group=choice` and `key=value` overrides."""
    config = OmegaConf.create(OmegaConf.to_container(defaults()))
    for override in overrides:
        key, value = override.split("=", 1)
        file = CONF / key / f"{value}.yaml"
        OmegaConf.update(config, key, OmegaConf.load(file) if file.is_file() else yaml.safe_load(value), merge=False)
    return check(config)


def measure(*overrides: str, on_step=lambda step: None) -> Outcome:
    """Run that config, and keep its notes; composing is what most of a small run costs."""
    notes: list[str] = []
    outcome = experiment(configured(*overrides), on_step, on_note=lambda text, *, urgent=False: notes.append(text))
    outcome.notes = notes
    return outcome
