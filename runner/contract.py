"""What users and scripts may rely on: file names, columns, words, exit codes, and the keys of a row and of `run.json`.

Verdicts, causes and statuses are `Literal` types, so that mypy refuses any other word.
"""

from __future__ import annotations

from typing import Any, Final, Literal, Protocol, TypedDict, get_args

# Files in the folder of a run.
CHANGES, STEPS, RECORD, LOG, WEIGHTS = "changes.csv", "steps.csv", "run.json", "runner.log", "model.safetensors"
PHASES = "phases.csv"  # of runs of several phases
RUNNING = ".running"  # in a sweep: exists while the run is in progress
HYDRA = ".hydra"  # the composed config and the overrides, as Hydra writes them
# Files in the folder of a sweep, besides the `changes.csv` of all its runs.
COMPARISON, COMPARISON_JSON = "comparison.csv", "comparison.json"
COMPARISON_SCHEMA = "freeze-runner/comparison/1"  # names the form of `comparison.json`
FAILURES, HEATMAP_SVG, HEATMAP_PNG = "failures.csv", "heatmap.svg", "heatmap.png"
SWEEP_CONFIG = "multirun.yaml"  # the config with which the sweep was started
SWEEP_PLAN = "sweep.json"  # the names of its runs, and the command that goes on with what is not done
STOP = ".stop"  # while it exists, no further run begins
INTERRUPT = ".interrupt"  # while it exists, the runs in progress end too
LOCKS = ".locks"  # the folder of a lock file for each run
SHARED = ".shared"  # the folder of what the runs of a sweep compute once
CONFIGS = ".configs"  # the folder of composed configs for workers, while a sweep runs
BATCHES = ".batches.json"  # which runs follow which in the jobs of `launch.batch`
SLOTS = ".slots"  # the folder of a lock file for each worker that uses an accelerator
PAGE = "report.html"  # in the folder of a run, and of a sweep

TensorKind = Literal["parameter", "buffer"]
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
    "replaced",
    "dtype_changed",
    "shared_tensor",
    "unknown",
]
IdleCause = Literal["not_in_optimizer", "no_gradient", "zero_gradient", "lr_zero", "rounded_away", "unknown"]
Cause = Literal[LeakCause, IdleCause, ""]
Coupling = Literal["clip", "optimizer"]
WhySmall = Literal[
    "the gradients of what is frozen are computed all the same",
    "the frozen part computes little",
    "the frozen part is at the end: backward still runs through it",
    "what trains begins before the frozen part: backward still runs through it",
    "the input of the frozen part requires a gradient: backward runs through it",
]  # why freezing saves few FLOPs
Defect = Literal["no step", "nothing trained", "loss not finite"]  # why a finished run proves nothing, the worst first

VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
DEFECTS: Final[tuple[Defect, ...]] = get_args(Defect)
STATUSES_WITH_TABLES: Final[tuple[Status, ...]] = ("finished", "interrupted")  # runs of these have CSV files

MAX_ERROR_LINE = 400  # characters of a message on stderr
EXIT_DONE, EXIT_FAILED, EXIT_REFUSED, EXIT_STRICT, EXIT_INTERRUPTED = 0, 1, 2, 3, 130

# Config keys that only say where and how a run is carried out: configs that differ only in these have the same hash.
NOT_HASHED = (
    *("hydra", "launch", "tracker", "plan", "resume", "on_error", "timeout", "strict", "save", "cost", "sweep"),
    *("verbose", "checkpoint", "report", "data.workers"),
)


class Row(TypedDict):
    """A row of `changes.csv`: how one parameter or buffer changed during the training. Its keys are the columns, in order.

    `verdict`: `held` (no bit changed) or `leaked` (changed) for frozen tensors; `trained` (changed) or `idle` (no bit
    changed) for other parameters; `drifted` (changed) or `still` for other buffers; `returned` for a frozen tensor or a
    parameter that had changed, but has its initial value again at the end. `cause`: why it leaked or stayed idle.
    """

    name: str
    aliases: str
    kind: TensorKind
    module_type: str
    shape: str
    numel: int
    dtype: str
    frozen: bool
    group: str
    lr: float | None
    requires_grad: bool
    initial_l2: float | None
    change_l2: float | None
    change_rel: float | None
    change_max: float | None
    moved: bool
    moved_elements: int | None
    seen_at: int | None
    verdict: Verdict
    cause: Cause


CHANGE_COLUMNS = tuple(Row.__annotations__)  # of `changes.csv`
PHASE_COLUMNS = ("phase", "first_step", "last_step", *CHANGE_COLUMNS)  # of `phases.csv`

OUTCOME_COLUMNS = (
    *("status", "reason", "verdict", "outcome"),
    *VERDICTS,
    *("loss_first", "loss_last", "loss_not_finite_at", "trained_part", "trained_part_why"),
    *("test_loss", "test_accuracy"),
)  # columns of `comparison.csv`, between the swept keys and `test_NAME` for each metric; then come the costs
TEST = "test_"  # begins the columns of what was measured on held-out data
FAILURE_COLUMNS = ("run", "status", "reason", "log", "overrides")  # columns of `failures.csv`
STEP_COLUMNS = (
    "step",
    "loss",
    "seconds",
)  # columns of `steps.csv`, before `loss/PART` for each part of a loss, `lr/GROUP` for each group

Cost = dict[str, Any]
"""The costs of a run: keys are names in COSTS; a value is None if it could not be measured."""

COUNTED = ("flops_forward", "flops_backward", "saved_bytes", "gradient_bytes", "optimizer_state_bytes")
SECONDS = ("seconds_forward", "seconds_backward", "seconds_step")
COSTS_WITH_SHARE = (*COUNTED, "peak_memory_bytes", *SECONDS)  # each also has a `_share`: relative to training everything
TEXT_COSTS = ("flops_counted_on", "peak_memory_by", "why_small")
COSTS = (
    *COUNTED,
    "parameter_bytes",
    "peak_memory_bytes",
    *SECONDS,
    *(f"{key}_spread" for key in SECONDS),
    "frozen_gradient_bytes",
    "frozen_optimizer_state_bytes",
    *(f"{key}_share" for key in COSTS_WITH_SHARE),
    "flops_share",
    *TEXT_COSTS,
)


class BlockRecord(TypedDict):
    """A block of parameters in a phase of a run: whether it was frozen, and how far it moved.

    `factor`: by what its scheduled learning rate was multiplied at the last step of the phase. `change_rel`: the norm of the
    change of its parameters in the phase, divided by their norm when the phase began; None if that is not known.
    """

    name: str
    frozen: bool
    factor: float
    change_rel: float | None


class PhaseCounts(TypedDict):
    """A span of steps in which the same was frozen: `frozen` tensors were, `trained` parameters (tensors) were not."""

    first_step: int
    last_step: int
    frozen: int
    trained: int


class PhaseRecord(PhaseCounts, total=False):
    """An entry of `phases` in `run.json`. `blocks`: the blocks that the schedule acts on, from the input to the head.

    Entries of runs whose schedule has no blocks do not have the key `blocks`.
    """

    blocks: list[BlockRecord]


class SharedRecord(TypedDict, total=False):
    """The entry `shared` of `run.json`: what a run of a sweep took from other runs, and stored for them.

    `layer`: the last of the frozen layers whose outputs are shared; "" if none are. `batches_read`: how many batches were
    trained on with stored outputs, without running these layers; `batches_stored`: of how many the outputs were stored.
    `flops_not_run`: the FLOPs of these layers in the batches read; None if they are not known. `reason`: why outputs are not
    shared, or why not all; "" if they are.
    """

    layer: str
    batches_read: int
    batches_stored: int
    flops_not_run: int | None
    reason: str


class TrainingRecord(TypedDict):
    """The entries of `run.json` that a run has only if it trained.

    `verdict`: `leaked` if a frozen tensor changed, otherwise `held`. `counts`: {verdict: number of tensors that have it}.
    `loss_not_finite_at`: the first step whose loss was NaN or infinite; None if there was none. `loss_rose`: whether the
    losses of the last quarter are above those of the first, beyond the differences between batches.
    `phases`: the spans of steps in which the same was frozen, as far as the run came; mostly one.
    `looks`: the steps after which the bits of the tensors were compared. `batches`: the number of batches of a pass over the
    data. `trained_digest`: a sha256 of all parameters that were not frozen, or were thawed. `trained_in_phases`: how many
    parameters were frozen in some phases and moved in others. `idle_in_phases`: the names, with causes, of those that moved
    in none. `nothing_frozen`: why nothing was, although the flags of the model as built were to say what is; else empty.
    `shared`: what was shared with the other runs of a sweep; empty outside a sweep, and where nothing is to be shared.
    `couplings`: how gradients of frozen parameters changed the updates of the others. `cost`: see `Cost`.
    `evaluation`: the values on held-out data (`loss`, `accuracy`, each metric) under `before` and `after`, and a list of
    such values after each pass under `passes`; empty without evaluation.
    """

    verdict: RunVerdict | None
    counts: dict[str, int]
    loss_first: float | None
    loss_last: float | None
    loss_not_finite_at: int | None
    loss_rose: bool
    phases: list[PhaseRecord]
    looks: list[int]
    batches: int | None
    threads: int | None
    device: str
    trained_digest: str | None
    trained_in_phases: int
    idle_in_phases: list[str]
    nothing_frozen: str
    shared: SharedRecord
    couplings: list[Coupling]
    evaluation: dict[str, Any]
    cost: Cost


class Record(TrainingRecord):
    """All entries of `run.json`: what one run was, with which versions and config, and how it ended.

    `overrides`: the changes to the config on the command line. `config_hash`: equal for runs with the same config.
    `setting`: a hash that is equal for runs that differ only in the freezing method and in `freeze.buffers`. `method`: the
    config of the freezing method. `buffers`: the value of `freeze.buffers`.
    """

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


def is_hashed(key: str) -> bool:
    """Return whether the dotted config key concerns a run's results, that is, whether it is not in NOT_HASHED."""
    return key not in NOT_HASHED and key.split(".")[0] not in NOT_HASHED


def names_in(row: Row) -> set[str]:
    """Return all names of the tensor of a row: its name and its aliases."""
    return {row["name"], *filter(None, row["aliases"].split("|"))}


def method_name(target: str) -> str:
    """Return a short name for a freezing method from its `_target_`, the dotted path of its class.

    For a class in `runner.methods`, the name is the last part of its module's name, such as `zero_lr`. For any other class,
    it is the name of the class.
    """
    parent, _, name = target.rpartition(".")
    return parent.rpartition(".")[2] if parent.startswith("runner.methods.") else name


class Note(Protocol):
    """The type of a function that reports a message (a note) to the user.

    An urgent note is printed at once, any other one at the end of the run; `run.json` lists them all.
    """

    def __call__(self, text: str, *, urgent: bool = False) -> None: ...


def ignore_note(text: str, *, urgent: bool = False) -> None:
    """Do nothing with a message for the user: the default where a caller wants no messages."""
