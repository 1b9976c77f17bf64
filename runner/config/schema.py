"""The schema of the config: every key of `conf/config.yaml` with its type. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from runner.errors import is_integer

SYNTHETIC = "runner.training.data.synthetic."  # the targets in this module give data without an end
ENDLESS_BATCHES = 10  # of a pass with `batches=auto`, where the data have no length
VOCAB_SIZE = 32  # of synthetic tokens, where the model does not say it
CLASSES = 2  # of synthetic labels, where the model does not say it
RUNNERS_DATA_KEYS = ("epochs", "test")  # keys of the node `data` that are not arguments of its target
STEPS = "<number of steps>"  # stands for it in a config until the data are open


_PACKAGE = Path(__file__).resolve().parent.parent
# An installed wheel has the folder inside the package, a checkout has it beside the package.
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"


class Buffers(Enum):
    """The values of `freeze.buffers`: `frozen` keeps the matched modules in eval mode, so that their buffers do not change.

    `live` leaves the modules in train mode: the running statistics of a BatchNorm change, even if its parameters are frozen.
    """

    live = "live"
    frozen = "frozen"


# What a sweep does after a run has failed. Created by a call, because `continue` is a keyword of Python.
OnError = Enum("OnError", {"continue": "continue", "stop": "stop"})


class CostLevel(Enum):
    """The values of `cost`: what is measured of a training step.

    `off`: nothing. `count`: FLOPs, bytes and peak memory. `time`: seconds too.
    """

    off = "off"
    count = "count"
    time = "time"


class Resume(Enum):
    """The values of `resume`: `last` carries out those runs of the newest sweep that have not finished."""

    last = "last"


class Device(Enum):
    """The values of `device`: where the model and the batches are. `auto` takes an accelerator if there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class DType(Enum):
    """The values of `model.dtype`: the dtype of the weights."""

    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass
class Model:
    """The config node `model`: how the model is built, and which part of it is the head.

    Any other key in the node, such as `name`, is an argument of the target of `build`.
    """

    build: dict[str, Any] = MISSING  # a node with a `_target_`
    head: Any = "auto"  # a pattern, a list of patterns, auto, or new: what the weights did not supply
    input: list[int] | None = None  # the shape of one sample, without the batch, where the data ask for it
    classes: int | None = None
    dtype: DType | None = None  # of the weights and of the real numbers in batches; None: as they are
    checkpoint: str | None = None  # a file or a folder with the values of the model's tensors
    strict: bool = True  # whether the checkpoint must fit the model exactly
    then: list[Any] = field(default_factory=list)  # what is called after the build: names of methods, or nodes


@dataclass
class Freeze:
    """The config node `freeze`: which modules and parameters are frozen.

    `patterns`: what they match is frozen. `keep`: patterns of exceptions; what they match is not frozen. `buffers`: see
    `Buffers`.
    """

    patterns: list[str] = MISSING
    keep: list[str] = field(default_factory=list)
    buffers: Buffers = Buffers.live


@dataclass
class PatternLr:
    """An item of the list `groups.lr`: the learning rate of the parameters whose names match a pattern."""

    pattern: str = MISSING
    lr: float = MISSING


@dataclass
class Groups:
    """The config node `groups`: the optimizer's parameter groups.

    `cut` builds the groups, `names` lists modules that get a group of their own, `lr` sets learning rates.
    """

    cut: dict[str, Any] = MISSING  # a node with a `_target_` that returns the groups
    names: list[str] = field(default_factory=list)  # the modules that `groups=module` makes groups of
    lr: list[PatternLr] = field(default_factory=list)


@dataclass
class Sweep:
    """The config node `sweep`: what concerns a whole sweep."""

    max_runs: int = 10_000  # a sweep of more runs is refused


@dataclass
class Report:
    """The config node `report`: when the tables and the page of a sweep are written."""

    every: float | None = None  # while the sweep runs: at most every that many seconds; None: only at its end


@dataclass
class Config:
    """The config of one run: every key of `conf/config.yaml`, with its type and default.

    The fields of type `dict` are nodes with a `_target_`: each describes an object by its class and the arguments.
    """

    model: Model = field(default_factory=Model)
    method: dict[str, Any] = MISSING
    freeze: Freeze = field(default_factory=Freeze)
    groups: Groups = field(default_factory=Groups)
    optimizer: dict[str, Any] = MISSING
    scheduler: dict[str, Any] = MISSING
    schedule: dict[str, Any] = MISSING
    task: dict[str, Any] = MISSING
    data: dict[str, Any] = MISSING
    batches: Any = "auto"  # of a pass: a number, auto or all
    accumulate: int = 1  # batches whose gradients are averaged for one step
    evaluate: Any = False  # true: on held-out data before and after the training; epoch: after each pass too
    metrics: list[Any] = field(default_factory=list)  # names of torchmetrics, or nodes with a `_target_`
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
    verbose: bool = False  # print everything about a run in the terminal
    resume: Resume | None = None
    on_error: OnError = OnError["continue"]
    timeout: float | None = None  # the most seconds that a run may take
    sweep: Sweep = field(default_factory=Sweep)
    report: Report = field(default_factory=Report)

    @property
    def epochs(self) -> int:
        """The number of passes over the data; a pass has `batches` batches."""
        return self.data.get("epochs", 1)

    @property
    def steps_a_pass(self) -> int:
        """The number of training steps of a pass: each takes `accumulate` batches, the last one of a pass what is left."""
        return -(-self.batches // self.accumulate)

    @property
    def steps(self) -> int:
        """The number of training steps of a run. Only known when `batches` is a number."""
        return self.steps_a_pass * self.epochs

    def with_batches(self, batches: int) -> Config:
        """Return the config with this number of batches a pass, and the number of steps wherever the config refers to it."""
        known = replace(self, batches=batches)
        nodes = {each.name: getattr(known, each.name) for each in fields(known)}
        filled = {name: _with_steps(node, known.steps) for name, node in nodes.items() if isinstance(node, dict)}
        return replace(known, **filled)


def _with_steps(value: Any, steps: int) -> Any:
    """Return a copy of nested dicts and lists in which STEPS is replaced by the number of steps."""
    if isinstance(value, dict):
        return {key: _with_steps(each, steps) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_steps(each, steps) for each in value]
    return steps if value == STEPS else value


def epochs_of(composed: DictConfig) -> Any:
    """Return the number of epochs of a config that is not checked yet; what is returned may have a wrong type."""
    return composed.get("data", {}).get("epochs", 1)


def batches_of(composed: DictConfig) -> Any:
    """Return the number of batches a pass of a config that is not checked yet; STEPS if only the opened data can tell."""
    is_endless = str(OmegaConf.select(composed, "data._target_")).startswith(SYNTHETIC)
    if composed.batches == "auto" and is_endless:
        return ENDLESS_BATCHES
    return STEPS if composed.batches in ("auto", "all") else composed.batches


def steps_of(composed: DictConfig) -> Any:
    """Return the number of training steps of a config that is not checked yet; STEPS if only the opened data can tell.

    If a number is wrong, which `check` refuses later, the number of batches is returned.
    """
    batches, epochs, accumulate = batches_of(composed), epochs_of(composed), composed.get("accumulate", 1)
    if not all(is_integer(number) and number > 0 for number in (batches, epochs, accumulate)):
        return batches
    return -(-batches // accumulate) * epochs


def vocab_size_of(composed: DictConfig) -> Any:
    """Return the number of tokens of the model: `model.config.vocab_size` where it is set, else VOCAB_SIZE."""
    return OmegaConf.select(composed, "model.config.vocab_size") or VOCAB_SIZE


def classes_of(composed: DictConfig) -> Any:
    """Return the number of classes of the model: `model.classes`, or that of its config, where it is set, else CLASSES."""
    keys = ("model.classes", "model.config.num_labels")
    return next(filter(None, (OmegaConf.select(composed, key) for key in keys)), CLASSES)


def values_by_key(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for each value in nested dicts, lists and nodes of the schema; inner ones are yielded too.

    `key` is the dotted key of the argument `value`; "" for the whole config. The key of a list item ends in its index, such
    as `groups.lr[0]`.
    """
    if key:
        yield key, value
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from values_by_key(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from values_by_key(inner, f"{key}[{index}]")


def known_keys() -> list[str]:
    """Return every key of the schema in dotted form, such as `seed` and `freeze.keep`.

    A node with a `_target_` counts as one key, because the keys in it depend on its target.
    """

    def keys_of(schema: type, prefix: str) -> list[str]:
        keys = []
        for each in fields(schema):
            keys.append(prefix + each.name)
            if isinstance(each.default_factory, type) and is_dataclass(each.default_factory):
                keys += keys_of(each.default_factory, f"{prefix}{each.name}.")
        return keys

    return keys_of(Config, "")
