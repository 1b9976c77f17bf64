"""Build the model of a run from the checked config, with its weights, and find the parts of it that patterns name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from runner.assemble.calls_after import build_loaded
from runner.assemble.checkpoints import loaded_and_called
from runner.assemble.new_parts import NEW, frozen_at_random, frozen_new_parts, head_of_new
from runner.config.build import locate_targets
from runner.config.schema import Config
from runner.contract import Note
from runner.errors import ConfigError, listed
from runner.freezing.parts.evidence import Evidence, Trial
from runner.freezing.patterns import HEAD, needs_trial, parse_all, parse_both
from runner.freezing.selection import Selection, select_by_evidence, trainable_names
from runner.freezing.words import FOR_CONFIG
from runner.tensors import refuse_unless_dense


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


def build_model(config: Config, device: torch.device, note: Note) -> BuiltModel:
    """Return the model that the config declares, on the device.

    `note` is called with messages about its weights. Raises ConfigError if its checkpoint does not fit, if it has no
    parameters, or if its tensors cannot be compared.
    """
    built = build_as_declared(config, device, note)
    refuse_unless_dense(built.model)
    return built


def build_as_declared(config: Config, device: torch.device | None, note: Note) -> BuiltModel:
    """Return the model of `build_model`, whatever its tensors are; `device` None: where its builder puts it."""
    loaded = loaded_and_called(build_loaded(config.model.build, "model.build"), config.model)
    for text in loaded.notes:
        note(text)
    model = loaded.model
    if not any(True for _ in model.parameters()):
        raise ConfigError(f"model: {type(model).__name__} has no parameters: there is nothing to freeze or to train")
    return BuiltModel(model.to(device, dtype_of(config)), loaded.new, trainable_names(model))


def build_on_meta(config: Config, note: Note) -> BuiltModel:
    """Return the model that the config declares with all its tensors on the meta device, where they have no values."""
    locate_targets(config.model.build, "model.build")  # what a module makes when it is imported has values
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights that a builder loads: they stay without values
        return build_as_declared(config, None, note)


def dtype_of(config: Config) -> torch.dtype | None:
    """Return the dtype that `model.dtype` names; None to leave the weights as they are."""
    return getattr(torch, config.model.dtype.value) if config.model.dtype else None


def declared_selection(
    config: Config, built: BuiltModel, note: Note, make_trial: Callable[[], Trial | None] = lambda: None
) -> Selection:
    """Return the parameters, buffers and modules that the config declares frozen.

    `make_trial` is called if a pattern names a part that a forward pass shows; without a trial, the part is a guess. `note`
    is called with each message in the `notes` of the returned Selection, one of which names the head.
    """
    freeze, head = config.freeze, _named_head(config, built, note)
    patterns, keep = parse_both(freeze.patterns, freeze.keep, FOR_CONFIG)
    trial = make_trial() if wants_trial(config) else None
    selection = select_by_evidence(
        built.model,
        patterns,
        keep,
        with_modules=freeze.buffers.value == "frozen",
        evidence=Evidence(head, config.model.classes, trial, built.trainable),
        words=FOR_CONFIG,
    )
    for text in selection.notes:
        note(text)
    if names := frozen_new_parts(built.model, selection, built.new or frozenset()):
        note(frozen_at_random(names, built.trainable), urgent=True)
    return selection


def wants_trial(config: Config) -> bool:
    """Return whether a pattern in the config names a part that is found by a forward pass."""
    freeze, groups = config.freeze, config.groups
    texts = [*freeze.patterns, *freeze.keep, *groups.names, *(each.pattern for each in groups.lr)]
    return needs_trial(parse_all(texts, "patterns"), None if config.model.head == "auto" else config.model.head)


def _named_head(config: Config, built: BuiltModel, note: Note) -> str | Sequence[str] | None:
    """Return the patterns that `@head` stands for in the config, or None if the head is to be found."""
    head = config.model.head
    if head != NEW:
        return None if head == "auto" else head
    names = head_of_new(built.model, built.new)
    note(f"{HEAD} is what no weights supplied: {listed(names, most=4)}")
    return names
