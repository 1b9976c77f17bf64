"""The schema of the config: every key of `conf/config.yaml` with its type. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig

_HERE = Path(__file__).resolve().parent.parent
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"  # in an installed wheel; in a checkout


class Buffers(Enum):
    """`freeze.buffers`: whether frozen modules are held in eval mode."""

    live = "live"
    frozen = "frozen"


# What a sweep does after a run has failed. Created by a call, because `continue` is a keyword of Python.
OnError = Enum("OnError", {"continue": "continue", "stop": "stop"})


class CostLevel(Enum):
    """`cost`: which costs are measured."""

    off = "off"
    count = "count"
    time = "time"


class Resume(Enum):
    """`resume`: `last` resumes the last sweep."""

    last = "last"


class Device(Enum):
    """`device`: the device of the model and the batches."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


@dataclass
class Model:
    """`model`: how the model is built, and which part of it is the classifier."""

    build: dict[str, Any] = MISSING  # a node with a `_target_`
    head: Any = "auto"  # a pattern, a list of patterns, or auto
    input: list[int] = MISSING  # the shape of one sample, without the batch
    classes: int = MISSING


@dataclass
class Freeze:
    """`freeze`: the patterns of what is frozen, and the exceptions (`keep`)."""

    patterns: list[str] = MISSING
    keep: list[str] = field(default_factory=list)
    buffers: Buffers = Buffers.live


@dataclass
class PatternLr:
    """An entry of `groups.lr`: the learning rate of the parameters that match a pattern."""

    pattern: str = MISSING
    lr: float = MISSING


@dataclass
class Groups:
    """`groups`: how the parameters are divided into groups, and the learning rates of the groups."""

    cut: dict[str, Any] = MISSING  # a node with a `_target_` that returns the groups
    names: list[str] = field(default_factory=list)  # the modules that `groups=module` makes groups of
    lr: list[PatternLr] = field(default_factory=list)


@dataclass
class Config:
    """The config of one run: every key of `conf/config.yaml`. The fields of type `dict` are nodes with a `_target_`."""

    model: Model = field(default_factory=Model)
    method: dict[str, Any] = MISSING
    freeze: Freeze = field(default_factory=Freeze)
    groups: Groups = field(default_factory=Groups)
    optimizer: dict[str, Any] = MISSING
    scheduler: dict[str, Any] = MISSING
    schedule: dict[str, Any] = MISSING
    task: dict[str, Any] = MISSING
    data: dict[str, Any] = MISSING
    batches: int = 10
    seed: int = 0
    device: Device = Device.auto
    threads: Any = "auto"  # a number, or auto
    deterministic: bool = False
    clip: float | None = None
    zero_grad_to_none: bool = True
    autocast: bool = False  # run the forward pass in bfloat16
    cost: CostLevel = CostLevel.count
    save: bool = False
    strict: bool = False
    plan: bool = False
    resume: Resume | None = None
    on_error: OnError = OnError["continue"]
    timeout: float | None = None  # the most seconds that a run may take

    @property
    def epochs(self) -> int:
        """The number of epochs: how often a run iterates over the samples of its `batches` batches."""
        return self.data.get("epochs", 1)

    @property
    def steps(self) -> int:
        """The number of steps of a run: one for each batch of each epoch."""
        return self.batches * self.epochs


def epochs_of(composed: DictConfig) -> Any:
    """Return `Config.epochs` of a composed config that is not checked yet."""
    return composed.get("data", {}).get("epochs", 1)


def steps_of(composed: DictConfig) -> Any:
    """Return `Config.steps` of a composed config that is not checked yet."""
    epochs = epochs_of(composed)
    return composed.batches * epochs if is_integer(epochs) else composed.batches  # wrong epochs are refused by `check`


def known_keys() -> list[str]:
    """Return every key of the schema, dotted; of a node with a `_target_` only its own key."""

    def keys_of(schema: type, prefix: str) -> list[str]:
        keys = []
        for each in fields(schema):
            keys.append(prefix + each.name)
            if isinstance(each.default_factory, type) and is_dataclass(each.default_factory):
                keys += keys_of(each.default_factory, f"{prefix}{each.name}.")
        return keys

    return keys_of(Config, "")


def is_integer(value: Any) -> bool:
    """Return whether a value is an integer, but not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)
