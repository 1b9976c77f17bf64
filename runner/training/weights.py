"""Weights that a library publishes for its models: the transforms that a picture needs for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from runner.errors import ConfigError

BUILDERS = "runner.training.pretrained."  # each module there that builds a library's models has a function `transforms`


def transforms_of(build: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Return the transforms of the weights that a config node `model.build` names, which make an input of a picture.

    `build`: a node whose `_target_` is a builder of torchvision, or ours for a library, and whose `weights` names weights,
    such as DEFAULT. Raises ConfigError if there are no such weights.
    Source: https://docs.pytorch.org/vision/stable/models.html#using-the-pre-trained-models
    """
    path, weights = str(build.get("_target_")), build.get("weights")
    if weights in (None, False):
        key = "model.weights" if path.startswith(BUILDERS) else "model.build.weights"
        raise ConfigError(f"data.transform=weights needs weights; give {key}=DEFAULT, or another transform")
    if path.startswith(BUILDERS):
        return import_module(path.rpartition(".")[0]).transforms(build.get("name"), weights)
    from torchvision.models import list_models

    from runner.training.pretrained import torchvision_models

    name = path.rpartition(".")[2]
    if not path.startswith("torchvision.") or name not in list_models():
        raise ConfigError(f"data.transform=weights knows torchvision's weights, and {path} is none of its builders")
    return torchvision_models.transforms(name, weights)
