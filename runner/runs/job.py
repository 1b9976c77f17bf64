"""One composed config -> one run, carried out in its folder: the log, the files, and what is said of a failure."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from runner.config.check import check
from runner.config.compose import hydra_initialized
from runner.config.hydra_errors import short_message
from runner.config.naming import config_hash, setting_hash
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
    unheard,
)
from runner.errors import ConfigError, Refused, SkippedError
from runner.proof.verdict import strayed
from runner.runs.folder import discard, logging_to, write_record
from runner.runs.interrupts import interrupts_held_back, time_limit
from runner.runs.record import one_line, unmeasured
from runner.runs.write import TABLES, remarks, write_tables

if TYPE_CHECKING:
    from torch import nn

    from runner.experiment import Outcome
    from runner.training.loop import Step

log = logging.getLogger("runner")


@dataclass
class Result:
    """A run that ended. `record` is what `run.json` holds; `model` is trained, with its flags and modes restored."""

    folder: Path
    record: Record
    exit_code: int
    rows: list[Row] = field(default_factory=list)
    model: nn.Module | None = None

    @property
    def status(self) -> Status:
        return self.record["status"]

    @property
    def verdict(self) -> RunVerdict | None:
        return self.record["verdict"]

    def end(self, status: Status, reason: str, exit_code: int) -> None:
        """Say how the run ended, and why."""
        self.record["status"], self.record["reason"], self.exit_code = status, reason, exit_code


def run(*overrides: str) -> Result:
    """One run from Python, as `python -m runner OVERRIDES...` makes it, files included; it never exits.

    Raises ConfigError, a ValueError, for what the command line would refuse with exit code 2, and whatever a run that
    fails raises. A run that is skipped or interrupted returns and says so in its status.
    """
    if not all(isinstance(text, str) for text in overrides):
        raise ConfigError(f"run takes texts, run('method=zero_lr', 'freeze=fc'), not {overrides!r}")
    outer, name = (
        GlobalHydra.instance().hydra,
        JobRuntime.instance().get("name"),
    )  # `run` may be called inside another Hydra app
    GlobalHydra.instance().clear()
    errors: list[BaseException] = []
    try:
        with hydra_initialized():
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            done = hydra.run("config", lambda cfg: perform(cfg, on_error=errors.append), list(overrides), False)
    except Refused as refused:
        raise ConfigError(str(refused.code)) from refused
    except SystemExit as left:  # a plan, which prints and makes no run, or a bug in the user's class that it met
        if isinstance(left.__cause__, Exception):
            raise left.__cause__ from None
        raise ConfigError("plan=true makes no run to return; look first on the command line") from left
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(short_message(error)) from error
    finally:
        GlobalHydra.instance().hydra = outer
        JobRuntime.instance().set("name", name)
    if errors:
        raise errors[0]
    return done.return_value


def perform(
    composed: DictConfig,
    on_step: Callable[[Step], None] = lambda step: None,
    on_error: Callable[[BaseException], None] = lambda error: None,
    on_note: Note = unheard,
    own_process: bool = False,
) -> Result:
    """Carry out one run in the folder that Hydra made for it, and write its files, whatever happens.

    A failure is logged with its traceback, recorded in `run.json`, handed to `on_error`, and not raised. `timeout` is
    checked between steps; where the run has a process of its own, that ends even within one. Each note goes to the log,
    to the record and to `on_note`.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    config = check(composed, HydraConfig.get().runtime.choices["method"])
    record = record_of(config, composed, HydraConfig.get().overrides.task)
    result = Result(folder, record, exit_code=EXIT_FAILED)
    discard(folder, RECORD, *TABLES)  # of an earlier try, in a sweep that is started again

    def note(text: str, *, urgent: bool = False) -> None:
        log.warning("%s", text)
        record["notes"].append(text)
        on_note(text, urgent=urgent)

    with logging_to(folder / LOG), interrupts_held_back() as let_through:
        log.info("%s", " ".join(record["overrides"]) or "(no overrides)")
        with end_recorded(result, on_error):
            import_all()
            with let_through():
                outcome = trained(
                    result=result, config=config, on_step=on_step, note=note, on_end=on_error if own_process else None
                )
            measured(result, outcome, config, note)
        write_record(folder, record)
        log.info("%s%s", record["status"], f": {record['reason']}" if record["reason"] else "")
    return result


@contextmanager
def end_recorded(result: Result, on_error: Callable[[BaseException], None]) -> Iterator[None]:
    """Whatever ends the block early is how the run ended; a failure is logged, and its tables are removed."""
    try:
        yield
    except SkippedError as skipped:
        result.end("skipped", str(skipped), EXIT_REFUSED)
    except KeyboardInterrupt:
        result.end("interrupted", "interrupted", EXIT_INTERRUPTED)
    except (Exception, SystemExit) as error:  # a user's `sys.exit()` ends its run, not the sweep
        discard(result.folder, *TABLES)
        if isinstance(error, ConfigError):
            result.end("failed", " ".join(str(error).split()), EXIT_REFUSED)
        else:
            result.end("failed", one_line(error), EXIT_FAILED)
        log.error("%s\n%s", result.record["reason"], traceback.format_exc())
        on_error(error)


def record_of(config: Config, composed: DictConfig, overrides: Sequence[str]) -> Record:
    """The record of a run of this config before it has measured anything."""
    return unmeasured(
        overrides=overrides,
        config_hash=config_hash(composed),
        method=config.method,
        buffers=config.freeze.buffers.value,
        setting=setting_hash(composed),
        seed=config.seed,
        device=config.device.value,
    )


def import_all() -> None:
    """Import what a run needs, and torch._dynamo, which its optimizer would: half an import is worse than none."""
    import_module("runner.experiment")
    import_module("torch._dynamo")


def trained(
    result: Result,
    config: Config,
    on_step: Callable[[Step], None],
    note: Note,
    on_end: Callable[[BaseException], None] | None,
) -> Outcome:
    """The run itself, within its time.

    `on_end` is called where the time ends within a step, and the process with it.
    """
    from runner.experiment import experiment

    def end(reason: str) -> None:
        write_record(result.folder, {**result.record, "reason": reason})
        assert on_end is not None
        on_end(TimeoutError(reason))

    with time_limit(config.timeout, result.folder / LOG, end if on_end else None) as check_time:

        def after_step(step: Step) -> None:
            on_step(step)
            check_time()

        return experiment(config, after_step, note, foresees=True)


def measured(result: Result, outcome: Outcome, config: Config, note: Note) -> None:
    """Write the tables of a run that trained, and complete its record."""
    for remark in remarks(outcome, config.steps):
        note(remark)
    write_tables(result.folder, outcome, with_weights=config.save)
    result.rows, result.model = outcome.rows, outcome.model
    result.record.update(outcome.figures)
    if outcome.interrupted:
        result.end("interrupted", f"interrupted after step {len(outcome.steps)} of {config.steps}", EXIT_INTERRUPTED)
    else:
        result.end("finished", "", EXIT_STRICT if config.strict and strayed(result.record["counts"]) else EXIT_DONE)
