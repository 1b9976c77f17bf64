"""What users and scripts may rely on: file names, columns, words, exit codes, and the shape of a row and of a record.

Each word is a `Literal`: where a value has such a type, the type checker refuses any other word.
"""

from __future__ import annotations

from typing import Any, Final, Literal, Protocol, TypedDict, get_args

# A run's folder.
CHANGES, STEPS, RECORD, LOG, WEIGHTS = "changes.csv", "steps.csv", "run.json", "runner.log", "model.safetensors"
RUNNING = ".running"  # the mark of a run in progress, in a sweep
HYDRA = ".hydra"  # the composed config and the overrides, as Hydra writes them
# A sweep's folder; it holds a `changes.csv` of all its runs, too.
COMPARISON, FAILURES, HEATMAP_SVG, HEATMAP_PNG = "comparison.csv", "failures.csv", "heatmap.svg", "heatmap.png"
SWEEP_CONFIG = "multirun.yaml"  # the config that the sweep was started with
STOP, INTERRUPT = ".stop", ".interrupt"  # begin no more runs; end those in progress, too
LOCKS = ".locks"  # a lock for each run
SLOTS = ".slots"  # a lock for each worker that computes on an accelerator
PAGE = "report.html"  # of a run as of a sweep

Kind = Literal["parameter", "buffer"]
Verdict = Literal["held", "returned", "leaked", "trained", "idle", "still", "drifted"]
RunVerdict = Literal["held", "leaked"]
Status = Literal["finished", "failed", "interrupted", "skipped"]
LeakCause = Literal[
    "gradient",
    "weight_decay",
    "optimizer_state",
    "weight_decay|optimizer_state",
    "optimizer_rule",
    "optimizer_ignores_lr",
    "scheduler",
    "forward_write",
    "outside_write",
    "shared_tensor",
    "unknown",
]
IdleCause = Literal["not_in_optimizer", "no_gradient", "zero_gradient", "lr_zero", "rounded_away", "unknown"]
Cause = Literal[LeakCause, IdleCause, ""]
Coupling = Literal["clip", "optimizer"]

VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
WITH_TABLES: Final[tuple[Status, ...]] = ("finished", "interrupted")  # the statuses of runs that leave tables

EXIT_DONE, EXIT_FAILED, EXIT_REFUSED, EXIT_STRICT, EXIT_INTERRUPTED = 0, 1, 2, 3, 130

# Keys that only say where and how a run is carried out: two configs that differ in these alone are the same run.
NOT_HASHED = ("hydra", "launch", "tracker", "plan", "resume", "on_error", "timeout", "strict", "save", "cost")


class Row(TypedDict):
    """A row of `changes.csv`: one parameter or buffer. Its keys are the columns, in order."""

    name: str
    aliases: str
    kind: Kind
    module_type: str
    shape: str
    numel: int
    dtype: str
    frozen: bool
    group: str
    lr: float | None
    requires_grad: bool
    initial_l2: float
    change_l2: float
    change_rel: float | None
    change_max: float
    moved: bool
    verdict: Verdict
    cause: Cause


COLUMNS = tuple(Row.__annotations__)

OUTCOME_COLUMNS = (
    *("status", "reason", "verdict"),
    *VERDICTS,
    *("loss_first", "loss_last", "trained_part", "trained_part_why"),
)  # of `comparison.csv`, between the swept keys and the costs
FAILURE_COLUMNS = ("run", "status", "reason", "log", "overrides")  # of `failures.csv`
STEP_COLUMNS = ("step", "loss", "seconds")  # of `steps.csv`; then a column `lr/GROUP` for each group that the run had

Cost = dict[str, Any]
"""The figures of a run's cost by name: the keys of COSTS that are known, and None for what could not be had."""

PREDICTED = ("flops_forward", "flops_backward", "saved_bytes", "gradient_bytes", "optimizer_state_bytes")
SECONDS = ("seconds_forward", "seconds_backward", "seconds_step")
COMPARED = (*PREDICTED, "peak_memory_bytes", *SECONDS)  # figures that are compared with those of an unfrozen run
COST_TEXTS = ("flops_counted_on", "peak_memory_by", "why_small")
COSTS = (
    *PREDICTED,
    "parameter_bytes",
    "peak_memory_bytes",
    *SECONDS,
    *(f"{key}_spread" for key in SECONDS),
    "frozen_gradient_bytes",
    "frozen_optimizer_state_bytes",
    *(f"{key}_share" for key in COMPARED),
    "flops_share",
    *COST_TEXTS,
)


class Figures(TypedDict):
    """The keys of a record that only a run that trained can fill."""

    verdict: RunVerdict | None
    counts: dict[str, int]
    loss_first: float | None
    loss_last: float | None
    looks: list[int]
    threads: int | None
    device: str
    trained_digest: str | None
    couplings: list[Coupling]
    cost: Cost


class Record(Figures):
    """What `run.json` holds."""

    status: Status
    reason: str
    notes: list[str]
    overrides: list[str]
    config_hash: str
    method: dict[str, Any]
    buffers: str
    setting: str
    seed: int
    versions: dict[str, str]
    git: dict[str, Any]


def method_name(target: str) -> str:
    """What a method is called: the module of one in `runner.methods`, the class of any other."""
    home, _, name = target.rpartition(".")
    return home.rpartition(".")[2] if home.startswith("runner.methods.") else name


class Note(Protocol):
    """The one channel for what the user should be told: called with a sentence, when it arises.

    An urgent one is shown at once; the others at the end, where the run's record has them all.
    """

    def __call__(self, text: str, *, urgent: bool = False) -> None: ...


def unheard(text: str, *, urgent: bool = False) -> None:
    """A note for nobody."""
