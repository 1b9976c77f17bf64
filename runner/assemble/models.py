"""Build the model of a run from the checked config, with its weights, and find the parts of it that patterns name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from runner.config.build import build, locate_targets
from runner.config.schema import Config
from runner.contract import Note
from runner.errors import ConfigError
from runner.freezing.parts.evidence import Evidence, Trial
from runner.freezing.parts.trial import try_model
from runner.freezing.patterns import needs_trial, parse
from runner.freezing.selection import Selection, select_by_evidence, trainable_names
from runner.freezing.words import FOR_CONFIG
from runner.tensors import map_tensors, refuse_unless_dense, tensor_entries
from runner.training.pretrained.loaded import Loaded


@dataclass(frozen=True)
class BuiltModel:
    """The model of a run as the config declares it, on its device.

    Attributes:
        model: the model.
        new: the names of the parameters and buffers that no weights supplied; None if the config gives no weights.
        trainable: the names of the parameters that had `requires_grad` when the model was built.
    """

    model: nn.Module
    new: frozenset[str] | None
    trainable: frozenset[str]


def build_model(config: Config, device: torch.device | None, note: Note) -> BuiltModel:
    """Return the model that the config declares, on the device (None: where its builder puts it).

    `note` is called with messages about its weights. Raises ConfigError if its tensors cannot be compared.
    """
    loaded = build(config.model.build, "model.build")
    if not isinstance(loaded, Loaded):
        loaded = Loaded(loaded)
    if not isinstance(loaded.model, nn.Module):
        raise ConfigError(
            f"model.build._target_ gives a {type(loaded.model).__name__}; it must give an instance of torch.nn.Module"
        )
    for text in loaded.notes:
        note(text)
    entries = tensor_entries(loaded.model).values()
    new = None if loaded.new is None else {id(entry.tensor) for entry in entries if loaded.new & {*entry.names}}
    model = loaded.model.to(device, dtype_of(config))
    refuse_unless_dense(model)
    names = [name for entry in tensor_entries(model).values() if new and id(entry.tensor) in new for name in entry.names]
    return BuiltModel(model, None if new is None else frozenset(names), trainable_names(model))


def build_on_meta(config: Config, note: Note) -> BuiltModel:
    """Return the model that the config declares with all its tensors on the meta device, where they have no values."""
    locate_targets(config.model.build, "model.build")  # what a module makes when it is imported has values
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights that a builder loads: they stay without values
        return build_model(config, None, note)


def dtype_of(config: Config) -> torch.dtype | None:
    """Return the dtype that `model.dtype` names; None to leave the weights as they are."""
    return getattr(torch, config.model.dtype.value) if config.model.dtype else None


def trial_of(config: Config, model: nn.Module, task: Callable[[nn.Module, Any], Any], batch: Any) -> Trial | None:
    """Return what a forward pass on the first batch shows of the model, if a pattern in the config needs that; else None."""
    texts = [
        *config.freeze.patterns,
        *config.freeze.keep,
        *config.groups.names,
        *(each.pattern for each in config.groups.lr),
    ]
    if not needs_trial([parse(text, "freeze.patterns") for text in texts], _named_head(config)):
        return None
    if any(parameter.is_meta for parameter in model.parameters()):
        batch = map_tensors(batch, lambda tensor: tensor.to("meta"))
    return try_model(model, batch, task, classes=config.model.classes)


def declared_selection(config: Config, built: BuiltModel, trial: Trial | None, note: Note) -> Selection:
    """Return the parameters, buffers and modules that the config declares frozen.

    `trial`: what a forward pass showed, by which parts of the model are found. `note` is called with each message in the
    `notes` of the returned Selection, one of which names the head that was found.
    """
    freeze = config.freeze
    evidence = Evidence(_named_head(config), config.model.classes, trial, built.trainable)
    selection = select_by_evidence(
        built.model, freeze.patterns, freeze.keep, freeze.buffers.value, evidence=evidence, words=FOR_CONFIG
    )
    for text in selection.notes:
        note(text)
    return selection


def _named_head(config: Config) -> str | list[str] | None:
    """Return the patterns of the head that the config names; None if the head is to be found."""
    return None if config.model.head == "auto" else config.model.head
