"""Carry out one run: from its composed config to the files in its folder."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from omegaconf import DictConfig

from runner.config.arguments import with_added_targets
from runner.config.check import check
from runner.config.compose import hydra_initialized
from runner.config.hydra_errors import raised_by_hydra, refuse_wrong_overrides, short_message
from runner.config.naming import config_and_setting_hash
from runner.config.schema import Config
from runner.contract import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_STRICT,
    LOG,
    RECORD,
    Note,
    Record,
    Row,
    RunVerdict,
    Status,
    ignore_note,
)
from runner.errors import ConfigError, Refused, SkippedError
from runner.proof.verdict import strict_problems
from runner.runs.exits import crash_dumps_in, end_once, guard_process
from runner.runs.folder import logging_to, remove_files, write_record
from runner.runs.interrupts import delay_interrupts, import_dependencies, time_limit
from runner.runs.record import error_line, new_record
from runner.runs.write import TRAINING_FILES, training_notes, write_tables
from runner.sharing.folder import SharedFolder

if TYPE_CHECKING:
    from torch import nn

    from runner.experiment import Outcome
    from runner.proof.results.phases import PhaseRows
    from runner.training.loop import Step

log = logging.getLogger("runner")


@dataclass
class Result:
    """What a run returns: where its files are, how it ended, and the model.

    Attributes:
        folder: the folder with the run's files.
        record: the content of `run.json`, a dict.
        exit_code: the code with which the command line would exit; 0 is success.
        rows: the rows of `changes.csv`, a dict for each parameter and buffer; empty if the run did not train.
        phases: the rows of each phase, with its first and last step; empty unless the run had several.
        model: the trained model, with the `requires_grad` flags and train/eval modes that it had before freezing; None if
            the run did not train.
    """

    folder: Path
    record: Record
    exit_code: int
    rows: list[Row] = field(default_factory=list)
    phases: list[PhaseRows] = field(default_factory=list)
    model: nn.Module | None = None

    @property
    def status(self) -> Status:
        """How the run ended: `finished`, `failed`, `interrupted` or `skipped`."""
        return self.record["status"]

    @property
    def verdict(self) -> RunVerdict | None:
        """The verdict: `leaked` if a frozen tensor has changed, `held` if none has; None if the run did not train."""
        return self.record["verdict"]

    def set_end(self, status: Status, reason: str, exit_code: int) -> None:
        """Store the run's status and reason in `record`, and its exit code in `exit_code`."""
        self.record["status"], self.record["reason"], self.exit_code = status, reason, exit_code


def run(*overrides: str) -> Result:
    """Carry out one run, as `python -m runner OVERRIDES...` does, and return a Result; never exit the process.

    `overrides`: texts such as `"method=zero_lr"`. Raises ConfigError (a ValueError) if the config is wrong or has
    `plan=true`. If the run fails, raises the exception that ended it, or RuntimeError in place of one that is no Exception,
    such as a SystemExit. If the run is skipped or interrupted, nothing is raised; the status of the Result says so.
    """
    if not all(isinstance(text, str) for text in overrides):
        raise ConfigError(f"run takes texts, run('method=zero_lr', 'freeze=fc'), not {overrides!r}")
    # This may be inside another Hydra app, whose global state is restored below.
    outer_hydra, outer_name = GlobalHydra.instance().hydra, JobRuntime.instance().get("name")
    GlobalHydra.instance().clear()
    errors: list[BaseException] = []
    try:
        refuse_wrong_overrides(overrides)
        overrides = tuple(with_added_targets(overrides))
        with hydra_initialized():
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            done = hydra.run("config", lambda cfg: execute_run(cfg, on_error=errors.append), list(overrides), False)
    except Refused as refused:
        raise ConfigError(str(refused.code)) from refused
    except SystemExit as system_exit:  # by plan=true: a plan was printed, or a user's class failed in it
        if isinstance(system_exit.__cause__, Exception):
            raise system_exit.__cause__ from None
        raise ConfigError("plan=true makes no run to return; use it on the command line") from system_exit
    except Exception as error:
        if not raised_by_hydra(error):
            raise
        raise ConfigError(short_message(error)) from error
    finally:
        GlobalHydra.instance().hydra = outer_hydra
        JobRuntime.instance().set("name", outer_name)
    if errors and not isinstance(errors[0], Exception):  # a SystemExit would end the caller, even with exit code 0
        raise RuntimeError(f"the run was ended by {error_line(errors[0])}") from errors[0]
    if errors:
        raise errors[0]
    return done.return_value


def execute_run(
    composed: DictConfig,
    on_step: Callable[[Step], None] = lambda step: None,
    on_error: Callable[[BaseException], None] = lambda error: None,
    on_note: Note = ignore_note,
    before_exit: Callable[[str], None] | None = None,
    *,
    shared: SharedFolder | None = None,
    checked: Config | None = None,
) -> Result:
    """Carry out one run, write its files to the folder that Hydra made for it, and return a Result.

    `composed`: the config as Hydra composed it; `checked`: what `check` returned for it, if it has been checked already.
    `on_step` is called after each training step. `on_note` is called with each message for the user; the message is also
    logged and written to `run.json`. If the run fails, nothing is raised: the exception is logged, written to `run.json` and
    passed to `on_error`.

    The run fails when the config's `timeout` is over. `before_exit`: if given, the process may be ended where nothing else
    ends the run, such as a call of a library that hangs. The run is recorded as failed, and `before_exit(reason)` is called.
    `shared`: what the runs of a sweep compute once.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    config = checked or check(composed, HydraConfig.get().runtime.choices.get("method"))
    record = initial_record(config, composed, HydraConfig.get().overrides.task)
    result = Result(folder, record, exit_code=EXIT_FAILED)
    remove_files(folder, RECORD, *TRAINING_FILES)  # of an earlier attempt, in a sweep that is resumed

    def note(text: str, *, urgent: bool = False) -> None:
        log.warning("%s", text)
        record["notes"].append(text)
        on_note(text, urgent=urgent)

    with logging_to(folder / LOG), delay_interrupts() as raise_interrupts, guard_process(sys.exit):
        log.info("%s", " ".join(record["overrides"]) or "(no overrides)")
        with record_early_end(result, on_error):
            import_dependencies()
            with end_once(partial(record_process_end, result, before_exit), folder / LOG) as end, raise_interrupts():
                on_kill = end if before_exit else None
                outcome = train_guarded(config, on_step, note, folder / LOG, end=end, on_kill=on_kill, shared=shared)
            write_outcome(result, outcome, config, note)
        write_record(folder, record)
        log.info("%s%s", record["status"], f": {record['reason']}" if record["reason"] else "")
    return result


@contextmanager
def record_early_end(result: Result, on_error: Callable[[BaseException], None]) -> Iterator[None]:
    """Catch an exception that ends the block, and store in `result` how and why the run ended.

    The status becomes `skipped` for a SkippedError, `interrupted` for a KeyboardInterrupt, and `failed` for any other
    exception. If it is `failed`, the exception is also logged and passed to `on_error`, and `changes.csv`, `steps.csv` and
    the weights are removed from the folder.
    """
    try:
        yield
    except SkippedError as skipped:
        result.set_end("skipped", str(skipped), EXIT_REFUSED)
    except KeyboardInterrupt:
        result.set_end("interrupted", "interrupted", EXIT_INTERRUPTED)
    except BaseException as error:  # `sys.exit()` in a user's class, too, ends its run, not the sweep
        remove_files(result.folder, *TRAINING_FILES)
        if isinstance(error, ConfigError):
            result.set_end("failed", " ".join(str(error).split()), EXIT_REFUSED)
        else:
            result.set_end("failed", error_line(error), EXIT_FAILED)
        log.error("%s\n%s", result.record["reason"], traceback.format_exc())
        on_error(error)


def initial_record(config: Config, composed: DictConfig, overrides: Sequence[str]) -> Record:
    """Return the content of `run.json` for a run that has not trained yet: its config and versions, but no results.

    `composed`: the config as Hydra composed it. `config`: the same config after it was checked. `overrides`: the
    command-line arguments.
    """
    hash_, setting = config_and_setting_hash(composed)
    return new_record(
        overrides=overrides,
        config_hash=hash_,
        method=config.method,
        buffers=config.freeze.buffers.value,
        setting=setting,
        seed=config.seed,
        device=config.device.value,
    )


def record_process_end(result: Result, before_exit: Callable[[str], None] | None, reason: str) -> None:
    """Write to the log and to `run.json` that the run failed, because its process ends; then call `before_exit(reason)`."""
    log.error("%s", reason)
    try:
        write_record(result.folder, {**result.record, "reason": reason})
    except OSError as error:
        reason = f"{reason}, and its record could not be written ({error})"
    if before_exit is not None:
        before_exit(reason)


def train_guarded(
    config: Config,
    on_step: Callable[[Step], None],
    note: Note,
    log_file: Path,
    *,
    end: Callable[[str], None],
    on_kill: Callable[[str], None] | None,
    shared: SharedFolder | None,
) -> Outcome:
    """Train as the config says, and return the Outcome, which is the result of the training.

    `on_step` is called after each training step, and `note` with each message for the user. Raises TimeoutError if the
    config's `timeout` is over, and SystemExit if the code of the run calls `os._exit`. A child that this code forks writes
    nothing. What crashes the process leaves its stack traces in `log_file`.

    `end(reason)` must end the process; it is called if another thread calls `os._exit`. So must `on_kill(reason)`, which is
    called if the training hangs in spite of the timeout; None: that is not ended.
    """
    from runner.experiment import experiment
    from runner.methods.prefix.shared.alone import alone_if_it_differs

    with (
        crash_dumps_in(log_file),
        time_limit(config.timeout, log_file, on_kill) as check_time,
        guard_process(end) as end_forked_child,
    ):

        def after_step(step: Step) -> None:
            end_forked_child()
            on_step(step)
            check_time()

        def note_unless_forked(text: str, *, urgent: bool = False) -> None:
            end_forked_child()
            note(text, urgent=urgent)

        train = partial(experiment, config, after_step, warn_of_leaks=True)
        return alone_if_it_differs(train, note_unless_forked, shared)


def write_outcome(result: Result, outcome: Outcome, config: Config, note: Note) -> None:
    """Write the files of a run that trained, and store its results, status and exit code in `result`.

    `outcome`: the result of the training. `note`: a function that reports a message to the user.
    """
    for text in training_notes(outcome):
        note(text)
    write_tables(result.folder, outcome, with_weights=config.save)
    result.rows, result.phases, result.model = outcome.rows, outcome.phases, outcome.model
    result.record.update(outcome.record)
    if outcome.interrupted:
        result.set_end(
            "interrupted", f"interrupted after step {len(outcome.steps)} of {outcome.planned_steps}", EXIT_INTERRUPTED
        )
    else:
        exit_code = EXIT_STRICT if config.strict and strict_problems(result.record) else EXIT_DONE
        result.set_end("finished", "", exit_code)
