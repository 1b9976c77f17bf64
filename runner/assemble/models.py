"""Build the model of a run from the checked config, with its weights, and find the parts of it that patterns name."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import nn

from runner.assemble.new_parts import NEW, frozen_new_parts, head_of_new
from runner.config.build import build, locate_targets
from runner.config.schema import Config, Model
from runner.contract import Note
from runner.errors import ConfigError, listed
from runner.freezing.parts.evidence import Evidence, Trial
from runner.freezing.patterns import HEAD
from runner.freezing.selection import Selection, select, trainable_names
from runner.freezing.words import FOR_CONFIG
from runner.tensors import refuse_unless_dense, tensor_entries
from runner.training.pretrained.checkpoint import read_checkpoint
from runner.training.pretrained.loaded import Loaded
from runner.training.pretrained.loading import load_into


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

    `note` is called with messages about its weights. Raises ConfigError if its checkpoint does not fit, if it has no
    parameters, or if its tensors cannot be compared.
    """
    loaded = build(config.model.build, "model.build")
    if not isinstance(loaded, Loaded):
        loaded = Loaded(loaded)
    if not isinstance(loaded.model, nn.Module):
        raise ConfigError(
            f"model.build._target_ gives a {type(loaded.model).__name__}; it must give an instance of torch.nn.Module"
        )
    if config.model.checkpoint is not None:
        loaded = with_checkpoint(loaded, config.model)
    for text in loaded.notes:
        note(text)
    entries = tensor_entries(loaded.model).values()
    new = None if loaded.new is None else {id(entry.tensor) for entry in entries if loaded.new & {*entry.names}}
    if not any(True for _ in loaded.model.parameters()):
        raise ConfigError(f"model: {type(loaded.model).__name__} has no parameters: there is nothing to freeze or to train")
    model = loaded.model.to(device, dtype_of(config))
    refuse_unless_dense(model)
    names = [name for entry in tensor_entries(model).values() if new and id(entry.tensor) in new for name in entry.names]
    return BuiltModel(model, None if new is None else frozenset(names), trainable_names(model))


def with_checkpoint(loaded: Loaded, model: Model) -> Loaded:
    """Return the model with the tensors of `model.checkpoint` in it; what its builder's weights supplied is not new either.

    `model`: the config's node. Raises ConfigError if the checkpoint cannot be read or does not fit.
    """
    assert model.checkpoint is not None
    tensors = read_checkpoint(model.checkpoint)
    read = load_into(loaded.model, tensors, classes=model.classes, strict=model.strict)
    assert read.new is not None
    new = read.new if loaded.new is None else read.new & loaded.new
    return Loaded(loaded.model, new, (*loaded.notes, *read.notes))


def build_on_meta(config: Config, note: Note) -> BuiltModel:
    """Return the model that the config declares with all its tensors on the meta device, where they have no values."""
    locate_targets(config.model.build, "model.build")  # what a module makes when it is imported has values
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights that a builder loads: they stay without values
        return build_model(config, None, note)


def dtype_of(config: Config) -> torch.dtype | None:
    """Return the dtype that `model.dtype` names; None to leave the weights as they are."""
    return getattr(torch, config.model.dtype.value) if config.model.dtype else None


def declared_selection(config: Config, built: BuiltModel, trial: Trial | None, note: Note) -> Selection:
    """Return the parameters, buffers and modules that the config declares frozen.

    `trial`: what a forward pass showed, by which parts of the model are found. `note` is called with each message in the
    `notes` of the returned Selection, one of which names the head that was found.
    """
    freeze, head = config.freeze, config.model.head
    if head == NEW:
        head = head_of_new(built.model, built.new)
        note(f"{HEAD} is what no weights supplied: {listed(head, most=4)}")
    evidence = Evidence(None if head == "auto" else head, config.model.classes, trial, built.trainable)
    selection = select(built.model, freeze.patterns, freeze.keep, freeze.buffers.value, evidence=evidence, words=FOR_CONFIG)
    notes = trial.notes if trial and head == "auto" and HEAD in (*freeze.patterns, *freeze.keep) else ()
    selection = replace(selection, notes=(*notes, *selection.notes))
    for text in selection.notes:
        note(text)
    if names := frozen_new_parts(built.model, selection, built.new or frozenset()):
        note(
            f"frozen although no weights supplied it, so it stays at its random start: {listed(names, most=4)}; "
            "freeze=backbone model.head=new keeps it trainable",
            urgent=True,
        )
    return selection
