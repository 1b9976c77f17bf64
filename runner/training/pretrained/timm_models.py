"""Models of timm, by the names of its architectures and of their pretrained tags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import timm.data
from torch import nn

from runner.errors import ConfigError, did_you_mean, listed
from runner.training.pretrained.hub import reading_from_hub
from runner.training.pretrained.loaded import Loaded
from runner.training.pretrained.wording import FILE_OR_NULL, is_default, note_of_new, refuse_other_names

KEY_OF = {
    "num_classes": "model.classes",
    "pretrained": "model.weights",
    "checkpoint_path": "model.checkpoint",
    "model_name": "model.name",
}
SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")  # with which a name begins that timm does not list


def timm_model(name: str, weights: str | bool | None = None, classes: int | None = None, **arguments: Any) -> Loaded:
    """Return a model of timm with its pretrained weights; for other classes than theirs timm makes a new head.

    `name`: an architecture, with or without a tag. `weights`: a tag; True or `default` for that of the name, else the first
    of the architecture; None or False for random values. `classes`: None for as many as timm gives. `arguments`: what
    `timm.create_model` takes besides. Raises ConfigError if there is no such model or tag, if it cannot be downloaded, or if
    one of KEY_OF is given.
    """
    refuse_other_names(arguments, KEY_OF)
    full_name = name_with_tag(name, weights)
    wanted: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if weights in (None, False):
        return Loaded(timm.create_model(full_name, pretrained=False, **wanted, **arguments))
    with reading_from_hub(f"model.weights={_shown(weights)} of {full_name}", FILE_OR_NULL):
        model = timm.create_model(full_name, pretrained=True, **wanted, **arguments)
    new = _reset_by_timm(model)
    return Loaded(model, new, note_of_new(new))


def name_with_tag(name: str, weights: str | bool | None) -> str:
    """Return the name of the architecture with the tag that `weights` names, as timm writes it: `resnet18.a1_in1k`.

    Raises ConfigError with the nearest names if timm has no such architecture or no such tag of it.
    """
    if str(name).startswith(SOURCES):
        return name
    architecture, _, tag = str(name).partition(".")
    if not timm.is_model(architecture):
        near = did_you_mean(architecture, timm.list_models())
        raise ConfigError(f"model.name is {name!r}: timm has no such architecture{near}")
    tags = [each.partition(".")[2] for each in timm.list_models(f"{architecture}.*", include_tags=True)]
    if tag and tag not in tags:
        raise ConfigError(f"model.name is {name!r}: {_no_such_tag(architecture, tag, tags)}")
    if weights in (None, False) or is_default(weights):
        if weights and not timm.list_models(name if tag else f"{architecture}.*", pretrained=True):
            raise ConfigError(f"model.weights is {_shown(weights)}: timm has no weights of {name}; give a file or null")
        return name
    if weights not in tags:
        raise ConfigError(f"model.weights is {weights!r}, no file: {_no_such_tag(architecture, str(weights), tags)}")
    return f"{architecture}.{weights}"


def _no_such_tag(architecture: str, tag: str, tags: list[str]) -> str:
    """Return the end of the message for a tag that does not exist: the nearest ones, else those that there are."""
    there = did_you_mean(tag, tags) or f"; it has {listed([each for each in tags if each]) or 'none'}"
    return f"timm has no tag {tag!r} of {architecture}{there}"


def _reset_by_timm(model: nn.Module) -> frozenset[str]:
    """Return the names of the tensors of the heads that timm made anew, as the weights are for another number of classes.

    timm says what the weights are for, and which modules depend on it, in the model's `pretrained_cfg`.
    """
    weights_of: Any = model.pretrained_cfg
    if model.num_classes == weights_of.get("num_classes"):
        return frozenset()
    heads = weights_of.get("classifier") or ()
    starts = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    return frozenset(name for name in model.state_dict(keep_vars=True) if name.startswith(starts))


def _shown(weights: str | bool) -> str:
    """Return the value of `model.weights` as a user writes it."""
    return str(weights).lower() if isinstance(weights, bool) else weights


def transforms(name: str, weights: str | bool) -> Callable[[Any], Any]:
    """Return the function that makes an input of the model `name` of a picture, as its weights need it.

    Raises ConfigError if there is no such architecture, or no such tag of it.
    """
    of_weights: Any = timm.get_pretrained_cfg(name_with_tag(name, weights))
    return timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=of_weights.to_dict()))
