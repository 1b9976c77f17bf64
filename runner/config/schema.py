"""The schema of the config: every key of `conf/config.yaml` with its type, and beneath it its sentence in `--help`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

MISSING: Any = "???"  # a value that must be given, as OmegaConf writes it
SYNTHETIC = "runner.training.data.synthetic."  # the targets in this module give data without an end
ENDLESS_BATCHES = 10  # of a pass with `batches=auto`, where the data have no length
RUNNERS_DATA_KEYS = ("epochs", "test")  # keys of the node `data` that are not arguments of its target
STEPS = "<number of steps>"  # stands for it in a config until the data are open

_PACKAGE = Path(__file__).resolve().parent.parent  # a wheel has `conf` inside, a checkout beside it
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


class Share(Enum):
    """The values of `sweep.share`; `prefix`: outputs of frozen first layers, and costs of a step, are computed once."""

    none = "none"
    prefix = "prefix"


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

    build: dict[str, Any] = MISSING
    """What builds it: a `_target_` and its arguments."""
    head: Any = "auto"
    """Its head: patterns, auto, or new.

    `auto` finds it by one forward pass, `new` is what no weights supplied.
    """
    input: list[int] | None = None
    """Shape of one sample, without the batch."""
    classes: int | None = None
    """Number of outputs."""
    dtype: DType | None = None
    """Dtype of weights and inputs; null: as is."""
    checkpoint: str | None = None
    """File or folder of weights to load."""
    strict: bool = True
    """If false, loads what fits of the checkpoint."""
    then: list[Any] = field(default_factory=list)
    """Calls after the build, such as adapters."""


@dataclass
class Freeze:
    """The config node `freeze`: which modules and parameters are frozen."""

    patterns: list[str] = MISSING
    """What one of them matches is frozen."""
    keep: list[str] = field(default_factory=list)
    """Exceptions: what they match is not frozen."""
    buffers: Buffers = Buffers.live
    """If frozen, matched modules are in eval mode."""


@dataclass
class PatternLr:
    """An item of the list `groups.lr`: the learning rate of the parameters whose names match a pattern."""

    pattern: str = MISSING
    """Which parameters have this rate."""
    lr: float = MISSING
    """Their learning rate."""


@dataclass
class Groups:
    """The config node `groups`: the optimizer's parameter groups."""

    cut: dict[str, Any] = MISSING
    """What makes the groups: a `_target_`."""
    names: list[str] = field(default_factory=list)
    """Modules that groups=module makes groups of."""
    lr: list[PatternLr] = field(default_factory=list)
    """Learning rates: [{pattern: fc, lr: 0.1}]."""


@dataclass
class Launch:
    """The config node `launch`: how the runs of a sweep start; the keys of Hydra's launcher are in `hydra.launcher`."""

    batch: int = 1
    """Runs that a job of Ray or Slurm carries out.

    Without effect with launch=local and launch=joblib, whose processes live through the sweep anyway.
    """


@dataclass
class Sweep:
    """The config node `sweep`: what concerns a whole sweep."""

    max_runs: int = 10_000
    """A sweep of more runs is refused."""
    share: Share = Share.prefix
    """What runs compute once: `prefix`, `none`."""
    share_mb: float = 1024.0
    """MiB on disk for outputs of frozen layers."""
    keep: bool = False
    """Keep what the runs shared after the sweep."""


@dataclass
class Report:
    """The config node `report`: when the tables and the page of a sweep are written."""

    every: float | None = None
    """Seconds after which a sweep's page is rewritten."""


@dataclass
class Config:
    """The config of one run: every key of `conf/config.yaml`, with its type and default.

    The fields of type `dict` are nodes with a `_target_`: each describes an object by its class and the arguments.
    """

    model: Model = field(default_factory=Model)
    """How the model is built, and what its head is."""
    method: dict[str, Any] = MISSING
    """How frozen parameters are kept unchanged."""
    freeze: Freeze = field(default_factory=Freeze)
    """Which parameters are frozen."""
    groups: Groups = field(default_factory=Groups)
    """The optimizer's parameter groups."""
    optimizer: dict[str, Any] = MISSING
    """The optimizer, with its arguments."""
    scheduler: dict[str, Any] = MISSING
    """What changes the learning rate, or none."""
    schedule: dict[str, Any] = MISSING
    """When what `freeze` selects is frozen."""
    task: dict[str, Any] = MISSING
    """How a batch becomes a loss."""
    data: dict[str, Any] = MISSING
    """Where the batches come from."""
    batches: Any = "auto"
    """Batches a pass: a number, auto, or all.

    `auto` is every sample once where the data have a length, and ENDLESS_BATCHES where they have none; `all` refuses these.
    """
    accumulate: int = 1
    """Batches whose gradients make one step."""
    evaluate: Any = False
    """On held-out data: false, true, or epoch.

    `true`: before and after the training. `epoch`: after each pass too.
    """
    metrics: list[Any] = field(default_factory=list)
    """Metrics of torchmetrics, such as [F1Score]."""
    seed: int = 0
    """Of initial weights, data and dropout."""
    device: Device = Device.auto
    """One of auto, cpu, cuda, mps."""
    threads: Any = "auto"
    """Threads of PyTorch: a number, or auto."""
    deterministic: bool = False
    """Only deterministic algorithms of PyTorch."""
    clip: float | None = None
    """Greatest norm of all gradients together."""
    zero_grad_to_none: bool = True
    """If false, zeros gradients and keeps them."""
    autocast: bool = False
    """Forward pass in bfloat16."""
    cost: CostLevel = CostLevel.count
    """Costs of a step: off, count, or time as well."""
    save: bool = False
    """Writes model.safetensors (extra `save`)."""
    strict: bool = False
    """Exit code 3 if it leaked or did not train."""
    plan: bool = False
    """Trains nothing, shows what a run would do."""
    verbose: bool = False
    """Prints all that is known about a run."""
    resume: Resume | None = None
    """If last, finishes the newest sweep (with -m)."""
    on_error: OnError = OnError["continue"]
    """After a failed run: continue, or stop."""
    timeout: float | None = None
    """The most seconds that a run may take."""
    launch: Launch = field(default_factory=Launch)
    """Where the runs of a sweep run."""
    sweep: Sweep = field(default_factory=Sweep)
    """What concerns a whole sweep."""
    report: Report = field(default_factory=Report)
    """The tables and the page of a sweep."""

    @property
    def epochs(self) -> int:
        """The number of passes over the data; a pass has `batches` batches."""
        return self.data.get("epochs", 1)

    @property
    def is_endless(self) -> bool:
        """Whether the data are made as they are asked for, and never end."""
        return str(self.data.get("_target_")).startswith(SYNTHETIC)

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
