"""One audit that is open from the first to the last event of a training in another library's loop."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.contract import CHANGE_COLUMNS, CHANGES
from runner.errors import ConfigError, is_integer, listed, short_repr
from runner.freezing.selection import select
from runner.freezing.words import FOR_AUDIT
from runner.integrations.audit_table import print_problems, print_report
from runner.proof.audit import audit
from runner.proof.audit_report import Report, UnsoundError
from runner.proof.verdict import NOTHING_FROZEN, count_verdicts
from runner.runs.folder import csv_text, write_text
from runner.shards import is_dtensor, rank_and_count

if TYPE_CHECKING:
    from torch import Tensor, nn

FIRST_STEPS = 8  # that are watched by default
MAX_WARNING = 600  # characters
NO_FLAG = "no parameter has requires_grad=False, so nothing is frozen; freeze before the training, or give patterns"
NOT_COMPARED = "an exception ended the training, and its tensors could not be compared, so nothing is known of what held"


class AuditedTraining:
    """An audit that callbacks begin, feed and end. It can be used for one training after another.

    Args:
        frozen: patterns of names that are declared frozen; None for what `requires_grad` says before each step.
        until: the number of the last step that is watched, counted from the begin of each training; None for all.
        strict: raise UnsoundError if the training did not do what was declared; otherwise a warning says it.
        folder: where `changes.csv` is written when the training has ended; None for nowhere.
        buffers: with "frozen", the buffers of frozen modules are declared frozen too.

    Attributes:
        report: the report of the last training; None if it could not be watched.
        problems: what was wrong with the last training that has ended; empty if it did what was declared.
    """

    def __init__(
        self, frozen: Sequence[str] | None, *, until: int | None, strict: bool, folder: str | Path | None, buffers: str
    ) -> None:
        if frozen is not None and (not isinstance(frozen, (list, tuple)) or not frozen):
            raise ConfigError(
                f"frozen is {short_repr(frozen)}; give a list of patterns, or None for what requires_grad says"
            )
        if until is not None and (not is_integer(until) or until < 1):
            raise ConfigError(f"until is {until!r}; give a number of steps, 1 or more, or None for all")
        if buffers not in ("live", "frozen"):
            raise ConfigError(f"buffers is {buffers!r}; give live or frozen")
        self.frozen, self.until, self.strict, self.buffers = frozen, until, strict, buffers
        self.folder = None if folder is None else Path(folder)
        self.report: Report | None = None
        self.problems: list[str] = []
        self.open: ExitStack | None = None  # the audit that runs
        self.checks = False  # whether the last watched step is still to come
        self.why_unwatched = ""
        self.written = ""  # the file with the rows of the last training
        self.no_step = ""  # what is said if no step is seen

    def forget(self) -> None:
        """Forget the training before; if an exception ended it that no callback was told of, its hooks are removed."""
        self.end(GeneratorExit())
        self.report, self.problems, self.why_unwatched, self.written = None, [], "", ""

    def begin(self, model: nn.Module, optimizers: Iterable[Any]) -> None:
        """Begin to watch a training, before its first step. Raises ConfigError for bad patterns.

        If this model cannot be audited, a warning says why, and the training goes on unwatched; with `strict`, the error is
        raised.
        """
        from torch.optim import Optimizer

        selection = None if self.frozen is None else select(model, self.frozen, buffers=self.buffers, words=FOR_AUDIT)
        optimizers = list(optimizers)
        names = listed([type(each).__name__ for each in optimizers]) or "an optimizer"
        self.no_step = f"no step of {names} was seen, so nothing was watched; bits were compared at the end only"
        given = [each for each in optimizers if isinstance(each, Optimizer)]
        stack = ExitStack()
        try:
            report = stack.enter_context(audit(model, selection, given, until=self.until, buffers=self.buffers))
        except Exception as error:  # such as missing memory for the copies, which is a RuntimeError on a CPU
            if self.strict:
                raise
            self.why_unwatched = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
            self._warn(f"the training is not watched: {self.why_unwatched}")
            return
        report.notes += () if selection is None else selection.notes
        self.report, self.open = report, stack
        self.checks = not any(map(is_dtensor, model.parameters()))  # of shards, the other processes have to be asked
        if report.is_empty and not self.strict:
            self._warn(NO_FLAG)

    def before_step(self, steps: int, ignored: Iterable[Tensor] = ()) -> None:
        """Read the flags before a step.

        `steps`: how many steps the loop has made before it. `ignored`: parameters of optimizers that do not step now.
        """
        if self.open is not None and self.report is not None:
            self.report.follow_flags(ignored, step=steps + 1)

    def after_step(self, steps: int) -> None:
        """Say what is wrong once the last watched step has been made; with `strict`, raise UnsoundError.

        `steps`: how many steps the loop has made since the training began, as it counts them.
        """
        if not self.checks or self.open is None or self.report is None:
            return
        if self.report.rows:
            self.checks = False
            said = () if self.strict else (NOTHING_FROZEN,)  # when the training began
            self._refuse([each for each in self.report.problems if each not in said], f"after step {self.report.steps}")
        elif not self.report.steps and steps >= (self.until or FIRST_STEPS):
            self.checks = False
            self._refuse([self.no_step], f"after step {steps}")

    def _refuse(self, problems: list[str], when: str) -> None:
        """Raise UnsoundError, or warn of the problems, if there are any."""
        if not problems:
            return
        text = f"{when}: {'; '.join(problems)}"
        if self.strict:
            error = UnsoundError(text)
            self.end(error)
            raise error
        self._warn(text)

    def stop(self) -> None:
        """Watch no more steps; what is done to the model until `end` is compared by digests."""
        if self.open is not None and self.report is not None:
            self.report.stop()

    def end(self, error: BaseException | None = None) -> None:
        """End the audit, and write `changes.csv`; without effect if none runs.

        `error`: the exception that has ended the training. Processes with shards are then not asked for theirs.
        """
        stack, self.open = self.open, None
        if stack is None or self.report is None:
            return
        stack.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        if not self.report.ended:  # the tensors cannot be compared as the exception has left them
            self.problems = [NOT_COMPARED]
            return
        self.problems = [*self.report.problems, *([] if self.report.steps else [self.no_step])]
        if self.file:
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                write_text(self.file, csv_text(CHANGE_COLUMNS, self.report.rows))
                self.written = str(self.file)
            except OSError as why:  # the training has ended all the same
                self._warn(f"{self.file} could not be written: {why}")

    def conclude(self, shows: bool, may_raise: bool = True) -> None:
        """Say how a training ended, after `end`: print a table, and, with `strict`, raise UnsoundError for what is wrong.

        `shows`: whether this process speaks for the others; one that does not prints only what is wrong. `may_raise`: False
        if another exception ends the training.
        """
        if self.report is None:
            self.problems = [f"nothing was watched: {self.why_unwatched or 'the training made no step'}"]
            if self.why_unwatched:  # which a warning has said when the training began
                print_problems(self.problems)
            elif not self.strict:
                self._warn(self.problems[0])
        elif not self.report.ended:
            print_problems(self.problems)
        elif shows or self.problems:
            print_report(self.report, self.problems, self.written)
        if self.strict and self.problems and may_raise:
            raise UnsoundError("; ".join(self.problems))

    @property
    def metrics(self) -> dict[str, float]:
        """{name: number} for the loggers: how many tensors have each verdict, and how many problems there are."""
        counts = count_verdicts(self.report.rows if self.report else [])
        return {f"freeze_audit/{word}": float(count) for word, count in {**counts, "problems": len(self.problems)}.items()}

    @property
    def file(self) -> Path | None:
        """Where this process writes the rows; None for nowhere. The processes after the first add their rank to the name."""
        rank = rank_and_count()[0]
        return None if self.folder is None else self.folder / (f"rank{rank}-{CHANGES}" if rank else CHANGES)

    def _warn(self, text: str) -> None:
        """Warn the user of something, in one line."""
        line = " ".join(f"FreezeAudit: {text}".split())
        warnings.warn(line if len(line) <= MAX_WARNING else f"{line[: MAX_WARNING - 3]}...", stacklevel=3)
