"""Weights that a library publishes for its models: the transforms that a picture needs for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from runner.errors import ConfigError


def transforms_of(build: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Return the transforms of the weights that a config node `model.build` names, which make an input of a picture.

    `build`: a node whose `_target_` is a builder of torchvision, and whose `weights` names weights, such as DEFAULT.
    Raises ConfigError if the builder has no such weights.
    Source: https://docs.pytorch.org/vision/stable/models.html#using-the-pre-trained-models
    """
    from torchvision import models

    path, name = str(build.get("_target_")), build.get("weights")
    if name is None:
        raise ConfigError("data.transform=weights needs weights; give model.build.weights=DEFAULT, or another transform")
    try:
        weights = models.get_model_weights(path.rpartition(".")[2])
    except ValueError as error:
        raise ConfigError(
            f"data.transform=weights knows torchvision's weights, and {path} is none of its builders"
        ) from error
    choices = {each.name: each for each in weights} | {"DEFAULT": weights.DEFAULT}
    key = str(name).rpartition(".")[2]
    if key not in choices:
        raise ConfigError(f"model.build.weights is {name!r}; {path} has {', '.join(choices)}")
    return choices[key].transforms()
