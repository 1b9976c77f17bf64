"""Models of torchvision, by the names of its builders and of their weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from inspect import signature
from typing import Any
from urllib.error import URLError

from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum

from runner.errors import ConfigError, did_you_mean, listed
from runner.training.pretrained.loaded import Loaded
from runner.training.pretrained.take_over import take_over_layers
from runner.training.pretrained.wording import (
    FILE_OR_NULL,
    is_default,
    not_downloaded,
    note_of_new,
    refuse_other_names,
)

KEY_OF = {"num_classes": "model.classes", "pretrained": "model.weights"}


def torchvision_model(name: str, weights: str | bool | None = None, classes: int | None = None, **arguments: Any) -> Loaded:
    """Return a model of torchvision with the weights of that name; other classes than the weights' have new layers.

    `name`: one of `torchvision.models.list_models()`. `weights`: None for random values, also in a backbone that the builder
    would load. `classes`: None for as many as the builder gives. `arguments`: what the builder takes besides.
    Raises ConfigError if there is no such model or no such weights, if they cannot be downloaded, or if one of KEY_OF is
    given.
    """
    refuse_other_names(arguments, KEY_OF)
    builder = builder_of(name)
    chosen = weights_of(name, weights)
    taken = signature(builder).parameters
    wanted = {"num_classes": classes} if classes is not None else {}
    of_parts: dict[str, Any] = {key: None for key in taken if key.startswith("weights")} | {"progress": False}
    if chosen is None:
        return Loaded(_built(builder, **of_parts | wanted | arguments))
    if "aux_loss" in taken:  # the weights of a segmentation model have its auxiliary classifier
        arguments = {"aux_loss": True, **arguments}
    model = _built(builder, **of_parts | arguments | {"weights": chosen})
    if classes is None or classes == len(chosen.meta["categories"]):
        return Loaded(model, frozenset())
    new = take_over_layers(model, _without_warnings(builder, **of_parts | wanted | arguments))
    return Loaded(model, new, note_of_new(new))


def builder_of(name: str) -> Callable[..., nn.Module]:
    """Return torchvision's builder of the model. Raises ConfigError with the nearest names if there is none."""
    names = models.list_models()
    if str(name).lower() not in names:
        raise ConfigError(f"model.name is {name!r}: torchvision has no such model{did_you_mean(str(name), names)}")
    return models.get_model_builder(name)


def weights_of(name: str, weights: str | bool | None) -> WeightsEnum | None:
    """Return the weights of that name of torchvision's model `name`; None for None or False.

    `weights` may be written as torchvision does, `ResNet18_Weights.DEFAULT`, or without the class; True is DEFAULT.
    Raises ConfigError with the names of the model's weights if there are no such weights.
    """
    if weights in (None, False):
        return None
    known: Any = models.get_model_weights(name.lower())
    choices: dict[str, WeightsEnum] = {"DEFAULT": known.DEFAULT} if len(known) else {}
    choices |= {each.name: each for each in known}
    class_name, _, key = str(weights).rpartition(".")
    if is_default(weights):
        key = "DEFAULT"
    if key not in choices or class_name not in ("", known.__name__):
        there = f"it has {', '.join(choices)}" if choices else "torchvision has none for it"
        raise ConfigError(
            f"model.weights is {weights!r}, no file and no weights of {name}; {there}, or null for random values"
        )
    return choices[key]


def _built(builder: Callable[..., nn.Module], **arguments: Any) -> nn.Module:
    """Return what the builder returns. Raises ConfigError if weights among its arguments cannot be downloaded."""
    try:
        return builder(**arguments)
    except URLError as error:
        given = [f"{key}={value}" for key, value in arguments.items() if key.startswith("weights") and value]
        raise ConfigError(not_downloaded(f"model.{listed(given)}", error.reason, FILE_OR_NULL)) from error


def _without_warnings(builder: Callable[..., nn.Module], **arguments: Any) -> nn.Module:
    """Return what the builder returns; its warnings, about values that are not used, are dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return builder(**arguments)


def transforms(name: str, weights: str | bool) -> Callable[[Any], Any]:
    """Return the function that makes an input of the model `name` of a picture, as its weights need it.

    Raises ConfigError if there is no such model, or no such weights.
    """
    builder_of(name)
    chosen = weights_of(name, weights)
    assert chosen is not None
    return chosen.transforms()
