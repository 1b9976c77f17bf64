"""Find and check what `evaluate` and `metrics` ask for. Imports torchmetrics, and torch with it, inside a function only."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from inspect import isclass, ismodule
from typing import Any

from runner.config.build import build, locate
from runner.config.schema import Config
from runner.errors import ConfigError, did_you_mean

EVALUATED = ("loss", "accuracy")  # the keys that an evaluation has without metrics


def check_evaluation(config: Config) -> None:
    """Raise ConfigError if `evaluate` has a wrong value, or if `metrics` has a metric that does not exist."""
    if config.evaluate != "epoch" and not isinstance(config.evaluate, bool):
        raise ConfigError(f"evaluate is {config.evaluate!r}; give false, true, or epoch (after each pass too)")
    if config.evaluate is not False and config.data.get("holdout") is None and config.data.get("test") is None:
        raise ConfigError(
            f"evaluate={str(config.evaluate).lower()} needs held-out data; give data.holdout=0.2, the share of samples to "
            "hold out, or 'data.test={_target_: ...}', a dataset; synthetic data can teach nothing"
        )
    if config.metrics and config.evaluate is False:
        raise ConfigError("metrics are measured on held-out data; give evaluate=true too, or metrics=[]")
    metric_factories(config.metrics)


def metric_factories(metrics: Sequence[Any]) -> dict[str, tuple[str, Callable[..., Any]]]:
    """Return {key in the results: (name, class or function that makes the metric)} for the config's list `metrics`.

    An item is the name of a class of torchmetrics, the dotted path of any class, or a node with a `_target_`. The key is the
    name of the class in snake case, such as `f1_score`; where it is taken, a number follows. Raises ConfigError if an item
    is none of these, does not exist, or needs torchmetrics where that is not installed.
    """
    factories: dict[str, tuple[str, Callable[..., Any]]] = {}
    for index, item in enumerate(metrics):
        key = f"metrics[{index}]"
        if isinstance(item, str) and item:
            make = locate(item, key) if "." in item else _class_of_torchmetrics(item, key)
            name = item.rpartition(".")[2]
        elif isinstance(item, Mapping) and "_target_" in item:
            locate(item["_target_"], f"{key}._target_")
            make, name = partial(_built, item, key), item["_target_"].rpartition(".")[2]
        else:
            raise ConfigError(
                f"{key} is {item!r}; give the name of a metric of torchmetrics, such as F1Score, or a node with a _target_"
            )
        short, number = snake_case(name), 1
        while short in (*EVALUATED, *factories):
            number += 1
            short = f"{snake_case(name)}_{number}"
        factories[short] = name, make
    return factories


def snake_case(name: str) -> str:
    """Return the name of a class in snake case: `F1Score` gives `f1_score`, `BinaryAUROC` gives `binary_auroc`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _built(node: Mapping[str, Any], key: str) -> Any:
    """Return the object that a node describes; unlike `build`, it takes no argument that could be filled in."""
    return build(node, key)


def _class_of_torchmetrics(name: str, key: str) -> Callable[..., Any]:
    """Return the metric of torchmetrics with this name. Raises ConfigError if there is none, or no torchmetrics."""
    if find_spec("torchmetrics") is None:
        raise ConfigError(f"metrics={name} needs torchmetrics; install it with: pip install 'freeze-runner[metrics]'")
    import torchmetrics

    modules = [module for module in vars(torchmetrics).values() if ismodule(module)]
    found = {
        each: value
        for module in (*(module for module in modules if module.__name__.startswith("torchmetrics.")), torchmetrics)
        for each, value in vars(module).items()
        if isclass(value) and issubclass(value, torchmetrics.Metric)
    }
    if name not in found:
        raise ConfigError(f"{key}: torchmetrics has no metric {name}{did_you_mean(name, found)}")
    return found[name]
