"""Build the objects of a run from the checked config: groups, optimizer, scheduler, meter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from runner.assemble.models import build_as_declared, declared_selection, wants_trial
from runner.config.build import build, build_instance
from runner.config.schema import Config
from runner.contract import Note, ignore_note
from runner.cost.meter import CountingMeter, Meter
from runner.cost.timing import TimingMeter
from runner.errors import ConfigError
from runner.freezing.groups import Group, split_by_lr
from runner.freezing.selection import Selection
from runner.seeding import machine_settings, seed_all
from runner.sharing.folder import Sharing
from runner.tensors.optimizer_state import needs_closure


def check_patterns(configs: Sequence[Config]) -> None:
    """Raise the ConfigError of the first config if none has patterns that fit the model, which must be the same in all."""
    with machine_settings(configs[0].threads, configs[0].deterministic):
        seed_all(configs[0].seed)
        built = build_as_declared(configs[0], None, ignore_note)
        errors = []
        for config in configs:
            if wants_trial(config):  # what its patterns name is known once there is a batch
                return
            try:
                build_groups(config, built.model, declared_selection(config, built, ignore_note))
                return
            except ConfigError as error:
                errors.append(error)
    raise errors[0]


def build_groups(config: Config, model: nn.Module, selection: Selection) -> list[Group]:
    """Return the parameter groups as the config declares them: built by `groups.cut`, with learning rates from `groups.lr`.

    The freezing method may later derive the optimizer's groups from these. `selection`: what the config declares frozen.
    """
    groups = build(config.groups.cut, "groups.cut", model, selection)
    return split_by_lr(groups, model, selection, [(entry.pattern, entry.lr) for entry in config.groups.lr])


def build_optimizer(config: Config, groups: Sequence[Group]) -> Optimizer:
    """Return the optimizer that the config declares, built with copies of the given parameter groups.

    Raises ConfigError if a step is to take several batches (`accumulate`), and the optimizer runs the forward pass itself.
    """
    optimizer = build_instance(Optimizer, config.optimizer, "optimizer", [dict(group) for group in groups])
    if config.accumulate > 1 and needs_closure(optimizer):
        raise ConfigError(
            f"accumulate={config.accumulate}: {type(optimizer).__name__} runs the forward pass itself, several times in a "
            "step, and takes one batch; give accumulate=1 and a larger data.batch_size"
        )
    return optimizer


def build_scheduler(config: Config, optimizer: Optimizer) -> Any:
    """Return the learning rate scheduler that the config declares, or None if it declares none.

    Raises ConfigError if the scheduler has no method `step`.
    """
    scheduler = build(config.scheduler, "scheduler", optimizer) if config.scheduler else None
    if scheduler is not None and not callable(getattr(scheduler, "step", None)):
        raise ConfigError(f"scheduler is a {type(scheduler).__name__}; it must be an object with a method `step`")
    return scheduler


def build_meter(
    config: Config, device: torch.device, model: nn.Module, note: Note, *, sharing: Sharing, skips_layers: bool
) -> Meter:
    """Return the object that measures the costs of a step of a new model, as `cost` in the config asks for.

    `off` measures nothing, `count` FLOPs and bytes, `time` seconds too. `note` is called with messages for the user.
    `sharing`: what the run shares with the others of a sweep. `skips_layers`: whether steps may use stored outputs.
    """
    meter_class = {"off": Meter, "count": CountingMeter, "time": TimingMeter}[config.cost.value]
    settings = ("task", "autocast", "method", "freeze", "schedule")
    values = {"model": config.model.build} | {key: getattr(config, key) for key in settings}
    meter = meter_class(values, device, note, sharing=sharing, skips_layers=skips_layers)
    meter.on_model_built(model)
    return meter
