"""The resolvers of `conf`: what its files get by `${runner.NAME:}`, computed from the whole config. No torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import omegaconf
from omegaconf import DictConfig, OmegaConf

from runner.config.help.text import help_text
from runner.config.naming import config_hash, run_name
from runner.config.schema import ENDLESS_BATCHES, STEPS, SYNTHETIC
from runner.errors import is_integer

VOCAB_SIZE = 32  # of synthetic tokens, where the model does not say it
CLASSES = 2  # of synthetic labels, where the model does not say it


def epochs_of(composed: DictConfig) -> Any:
    """Return the number of epochs of a config that is not checked yet; what is returned may have a wrong type."""
    return composed.get("data", {}).get("epochs", 1)


def batches_of(composed: DictConfig) -> Any:
    """Return the number of batches a pass of a config that is not checked yet; STEPS if only the opened data can tell."""
    is_endless = str(OmegaConf.select(composed, "data._target_")).startswith(SYNTHETIC)
    if composed.batches == "auto" and is_endless:
        return ENDLESS_BATCHES
    return STEPS if composed.batches in ("auto", "all") else composed.batches


def steps_of(composed: DictConfig) -> Any:
    """Return the number of training steps of a config that is not checked yet; STEPS if only the opened data can tell.

    If a number is wrong, which `check` refuses later, the number of batches is returned.
    """
    batches, epochs, accumulate = batches_of(composed), epochs_of(composed), composed.get("accumulate", 1)
    if not all(is_integer(number) and number > 0 for number in (batches, epochs, accumulate)):
        return batches
    return -(-batches // accumulate) * epochs


def vocab_size_of(composed: DictConfig) -> Any:
    """Return the number of tokens of the model: `model.config.vocab_size` where it is set, else VOCAB_SIZE."""
    return OmegaConf.select(composed, "model.config.vocab_size") or VOCAB_SIZE


def classes_of(composed: DictConfig) -> Any:
    """Return the number of classes of the model: `model.classes`, or that of its config, where it is set, else CLASSES."""
    keys = ("model.classes", "model.config.num_labels")
    return next(filter(None, (OmegaConf.select(composed, key) for key in keys)), CLASSES)


RESOLVERS: dict[str, Callable[[DictConfig], Any]] = {
    "steps": steps_of,
    "epochs": epochs_of,
    "vocab_size": vocab_size_of,
    "classes": classes_of,
    "config_hash": config_hash,
    "run_name": run_name,
    "help": help_text,
}


def register_resolvers() -> None:
    """Register the functions in RESOLVERS with OmegaConf; the files in `conf` call them as `${runner.NAME:}`.

    The registration holds for the whole process. It is done by the program's entry points, not by `import runner`.
    """
    is_renamed = tuple(map(int, omegaconf.__version__.split(".")[:2])) >= (2, 4)
    register: Any = OmegaConf.register_resolver if is_renamed else OmegaConf.register_new_resolver
    for name, resolve in RESOLVERS.items():
        register(f"runner.{name}", partial(_call_with_root, resolve), replace=True)


def _call_with_root(resolve: Callable[[DictConfig], Any], *, _root_: DictConfig) -> Any:
    """Call `resolve` with the whole config and return the result. OmegaConf passes the config as `_root_`."""
    return resolve(_root_)
