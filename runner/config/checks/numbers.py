"""Check that the numbers of a config are in range. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite
from typing import Any

from runner.config.schema import Config, values_by_key
from runner.errors import ConfigError, is_integer

MAX_COUNT = 2**63 - 1  # the largest whole number that torch and `range` can count to
MAX_TIMEOUT = 1e6  # seconds; no clock or timer overflows at this value
# Nodes in which a number that is not finite has no meaning. A model, a task or a data source may have a use for one.
FINITE_NODES = ("optimizer", "scheduler", "schedule", "method", "groups")

# Options of torch's schedulers that are a number of steps. torch divides by them, by some only in a later step.
DIVISORS = ("step_size", "step_size_up", "step_size_down", "T_max", "T_0", "total_steps")


def check_numbers(config: Config) -> None:
    """Raise ConfigError if a number in the config is out of range, such as `batches=0` or `optimizer.lr=nan`."""
    _check_counts(config)
    _check_loading(config.data)
    for name in FINITE_NODES:
        for key, value in values_by_key(getattr(config, name), name):
            if isinstance(value, float) and not isfinite(value):
                raise ConfigError(f"{key} is {value}; give a finite number")
    _check_learning_rate(config.optimizer)
    _check_scheduler(config.scheduler)
    _check_step(config)
    if config.threads != "auto" and (not is_integer(config.threads) or not 1 <= config.threads <= 1024):
        raise ConfigError(f"threads is {config.threads!r}; give auto or a whole number from 1 to 1024")
    if not 0 <= config.seed <= MAX_COUNT:
        raise ConfigError(f"seed is {config.seed}; it must be between 0 and 2**63 - 1")
    if config.timeout is not None and not 0 < config.timeout <= MAX_TIMEOUT:
        raise ConfigError(
            f"timeout is {config.timeout}; give the most seconds of a run, above 0 and at most {MAX_TIMEOUT:g}, or null"
        )
    _check_seconds_between_reports(config.report.every)
    if not 0 <= config.sweep.share_mb < inf:
        raise ConfigError(f"sweep.share_mb is {config.sweep.share_mb}; give MiB, 0 or more")
    if config.clip is not None and not (config.clip > 0 and isfinite(config.clip)):
        raise ConfigError(
            f"clip is {config.clip}; give the maximum total norm of the gradients, above 0, or null for no clipping"
        )
    for index, entry in enumerate(config.groups.lr):
        if not entry.lr >= 0:
            raise ConfigError(
                f"groups.lr[{index}]: the learning rate of {entry.pattern!r} is {entry.lr}; it must be 0 or more"
            )


def _check_counts(config: Config) -> None:
    """Raise ConfigError if what the config counts (batches, epochs, samples, classes, sizes) is no whole number in range."""
    counts = {"data.epochs": config.epochs, "accumulate": config.accumulate, "sweep.max_runs": config.sweep.max_runs}
    if config.batches not in ("auto", "all"):
        counts["batches"] = config.batches
    if config.model.classes is not None:
        counts["model.classes"] = config.model.classes
    if "batch_size" in config.data:
        counts["data.batch_size"] = config.data["batch_size"]
    for key, value in counts.items():
        if not is_integer(value) or value < 1:
            also = ", auto or all" if key == "batches" else ""
            raise ConfigError(f"{key} is {value!r}; it must be a whole number of 1 or more{also}")
        if value > MAX_COUNT:
            raise ConfigError(f"{key} is {value}; it must be at most 2**63 - 1")
    if is_integer(config.batches) and config.batches * config.epochs > MAX_COUNT:
        raise ConfigError(
            f"batches is {config.batches} and data.epochs is {config.epochs}: together more than 2**63 - 1; give fewer"
        )
    sizes = config.model.input
    if sizes is not None and (not sizes or not all(is_integer(size) and 1 <= size <= MAX_COUNT for size in sizes)):
        raise ConfigError(f"model.input is {sizes}; give the shape of one sample, e.g. [3,224,224]")


def _check_seconds_between_reports(every: float | None) -> None:
    """Raise ConfigError if `report.every` is not None and no number of seconds that a clock can wait for."""
    if every is not None and not 0 < every <= MAX_TIMEOUT:
        raise ConfigError(
            f"report.every is {every}; give after how many seconds the page of a sweep is written again, "
            f"above 0 and at most {MAX_TIMEOUT:g}, or null to write it at the end alone"
        )


def _check_loading(data: Mapping[str, Any]) -> None:
    """Raise ConfigError if a key of the node `data` that says how a dataset of ours is read has a wrong value.

    `Loading` raises the same for its direct use; here it is found before a run has a folder.
    """
    if not str(data.get("_target_")).startswith("runner."):
        return
    workers, holdout = data.get("workers", 0), data.get("holdout")
    if not is_integer(workers) or workers < 0:
        raise ConfigError(f"data.workers is {workers!r}; it must be a whole number of 0 or more")
    if holdout is not None and (isinstance(holdout, bool) or not isinstance(holdout, (int, float)) or not 0 < holdout < 1):
        raise ConfigError(f"data.holdout is {holdout!r}; give the share to hold out, above 0 and below 1")
    for key in ("shuffle", "drop_last"):
        if not isinstance(data.get(key, False), bool):
            raise ConfigError(f"data.{key} is {data[key]!r}; give true or false")


def _check_learning_rate(optimizer: Mapping[str, Any]) -> None:
    """Raise ConfigError if the learning rate of one of torch's or our own optimizers is not a number of 0 or more.

    Optimizers of other libraries may take something else, such as None for a rate that they find themselves.
    """
    if "lr" not in optimizer or str(optimizer.get("_target_")).split(".")[0] not in ("torch", "runner"):
        return
    lr = optimizer["lr"]
    if isinstance(lr, bool) or not isinstance(lr, (int, float)) or lr < 0:
        raise ConfigError(f"optimizer.lr is {lr!r}; give a learning rate, a number of 0 or more")


def _check_scheduler(scheduler: Mapping[str, Any]) -> None:
    """Raise ConfigError if an option of one of torch's schedulers that is a number of steps is 0 or less."""
    if str(scheduler.get("_target_")).startswith("torch."):
        for name in DIVISORS:
            value = scheduler.get(name)
            if isinstance(value, (int, float)) and value <= 0:
                raise ConfigError(f"scheduler.{name} is {value!r}; give a number of steps, 1 or more")


def _check_step(config: Config) -> None:
    """Raise ConfigError if `schedule.step` is not the number of a step of the run, as far as its steps are known."""
    step = config.schedule.get("step", 1)
    if config.schedule.get("_target_") == "runner.freezing.schedule.after" and (not is_integer(step) or step < 1):
        raise ConfigError(
            f"schedule.step is {step!r}; give the number of the first step at which the layers are frozen, 1 or more"
        )
    if is_integer(step) and is_integer(config.batches) and step > config.steps:
        epochs = f" and data.epochs is {config.epochs}" if config.epochs > 1 else ""
        accumulate = f" and accumulate is {config.accumulate}" if config.accumulate > 1 else ""
        raise ConfigError(
            f"schedule.step is {step} and batches is {config.batches}{epochs}{accumulate}: nothing would ever be frozen"
        )
