"""The schema of the composed config: every key of `conf/config.yaml`, typed. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig

_HERE = Path(__file__).resolve().parent.parent
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"  # in a wheel; in a checkout


class Buffers(Enum):
    live = "live"
    frozen = "frozen"


# What a sweep does when a run has failed; made by call, for Python keeps the word `continue` for itself.
OnError = Enum("OnError", {"continue": "continue", "stop": "stop"})


class CostLevel(Enum):
    off = "off"
    count = "count"
    time = "time"


class Resume(Enum):
    last = "last"


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


@dataclass
class Model:
    build: dict[str, Any] = MISSING
    head: Any = "auto"  # a pattern, a list of them, or auto
    input: list[int] = MISSING
    classes: int = MISSING


@dataclass
class Freeze:
    patterns: list[str] = MISSING
    keep: list[str] = field(default_factory=list)
    buffers: Buffers = Buffers.live


@dataclass
class PatternLr:
    pattern: str = MISSING
    lr: float = MISSING


@dataclass
class Groups:
    cut: dict[str, Any] = MISSING
    names: list[str] = field(default_factory=list)
    lr: list[PatternLr] = field(default_factory=list)


@dataclass
class Config:
    """One run, whole: every key of `conf/config.yaml`, typed."""

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
    autocast: bool = False  # the forward pass in bfloat16
    cost: CostLevel = CostLevel.count
    save: bool = False
    strict: bool = False
    plan: bool = False
    resume: Resume | None = None
    on_error: OnError = OnError["continue"]
    timeout: float | None = None  # seconds that a run may take

    @property
    def epochs(self) -> int:
        """How many passes a run makes over the samples of `batches` batches."""
        return self.data.get("epochs", 1)

    @property
    def steps(self) -> int:
        """How many steps a run makes: a step a batch, in each pass."""
        return self.batches * self.epochs


def epochs_of(composed: DictConfig) -> Any:
    """`Config.epochs` of a config that has not been checked."""
    return composed.get("data", {}).get("epochs", 1)


def steps_of(composed: DictConfig) -> Any:
    """`Config.steps` of a config that has not been checked."""
    epochs = epochs_of(composed)
    return composed.batches * epochs if is_whole(epochs) else composed.batches  # it is refused where it is checked


def known_keys() -> list[str]:
    """Every key of the schema, dotted, nodes with a `_target_` as one."""

    def below(schema: type, prefix: str) -> list[str]:
        keys = []
        for entry in fields(schema):
            keys.append(prefix + entry.name)
            if isinstance(entry.default_factory, type) and is_dataclass(entry.default_factory):
                keys += below(entry.default_factory, f"{prefix}{entry.name}.")
        return keys

    return below(Config, "")


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, and not true or false."""
    return isinstance(value, int) and not isinstance(value, bool)
