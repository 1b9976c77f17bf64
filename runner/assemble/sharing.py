"""What the runs of a sweep compute once, as far as it concerns the frozen first layers of a run."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext

import torch

from runner.config.schema import Config, CostLevel
from runner.methods.prefix.shared.feed import SharedPrefix
from runner.sharing.draws import Draws
from runner.sharing.folder import SharedFolder, Sharing
from runner.sharing.settings import process_settings

WORTH = 30  # a trial takes about as long as the frozen layers for this many batches

_draws = Draws()


def first_weights(shared: SharedFolder | None) -> AbstractContextManager[None]:
    """Return a context in which to build the model of a run: in a sweep, the last model's random numbers are copied."""
    return nullcontext() if shared is None else _draws.copied()


def sharing_of(config: Config, shared: SharedFolder | None, device: torch.device) -> Sharing:
    """Return what the run shares with the others of a sweep, by the folder `shared`."""
    if shared is None:
        return Sharing()
    settings = {"autocast": config.autocast, "task": config.task, **process_settings(device)}
    return Sharing(shared, json.dumps(settings, sort_keys=True, default=str))


def build_shared_prefix(config: Config, sharing: Sharing) -> SharedPrefix:
    """Return what lets the steps of a run use outputs that other runs of the sweep have computed."""
    shared = sharing.folder
    if shared is None or not shared.limit:
        return SharedPrefix(Sharing())
    if config.cost is CostLevel.time:
        return SharedPrefix(Sharing(), reason="cost=time measures the seconds of whole steps")
    again = max((shared.runs - 1) * config.epochs, config.epochs - 1) * config.batches
    if again < WORTH:
        return SharedPrefix(
            Sharing(), reason=f"trials take longer than what they save: {again} batches at most are used again"
        )
    return SharedPrefix(sharing)
