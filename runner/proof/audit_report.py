"""The result of an audit: a row for each tensor, which frozen tensors changed, and what a person should read of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from runner.contract import CHANGE_COLUMNS, Row
from runner.errors import listed
from runner.freezing.flag_changes import FlagChange, tell
from runner.freezing.flags import Flags
from runner.freezing.selection import Selection
from runner.proof.verdict import count_verdicts, problems_of

if TYPE_CHECKING:
    from pandas import DataFrame

    from runner.proof.results.phases import PhaseRows

Frozen = Selection | Sequence[str]
MAX_LINES = 9  # of `str(report)`
ALL_FLAGS_OFF = "no parameter has requires_grad=True"
MAY_STILL_TRAIN = ("lr_zero", "zero_gradient", "rounded_away", "unknown")  # causes of idleness that later steps may end


class LeakError(AssertionError):
    """Raised if a tensor that was declared frozen has changed."""


class UnsoundError(AssertionError):
    """Raised by `Report.raise_if_unsound` if the training did not do what was declared."""


class Watcher(Protocol):
    """What compares the tensors of a model while an audit runs."""

    def end_phase(self) -> None:
        """End the present phase, if a step was made in it."""

    def freeze(self, frozen: Frozen) -> None:
        """Declare more tensors frozen from now on."""

    def unfreeze(self, frozen: Frozen) -> None:
        """Declare tensors trainable again."""

    def declared_tensors(self) -> dict[str, Tensor]:
        """Return {name declared frozen now: the tensor at it}."""

    def pause(self) -> AbstractContextManager[None]:
        """Watch neither forward passes nor steps in the block."""

    def stop(self) -> None:
        """Watch no more steps, and keep a digest of each frozen tensor."""

    def finish(self) -> None:
        """Compare tensors for the last time, and fill the rows and notes of the report."""


@dataclass(repr=False)
class Report:
    """The result of `audit`, complete when its `with` block has been left.

    `str(report)` is what a person reads, in less than ten lines.

    Attributes:
        rows: a dict for each parameter and buffer, with the columns of `changes.csv` as keys: how far it moved, and why.
        phases: the spans of steps between calls of `freeze` and `unfreeze`, each with rows of its own; empty if there was no
            such call after a step. To know what moved in a phase, the audit keeps one more copy of what has moved so far.
        looks: the numbers of the steps after which all tensors were compared bit by bit with their initial values.
        notes: sentences for the user, such as why the cause of a change is `unknown`.
        why_unknown: {tensor name: why the cause of its change is not known}; empty where it is known.
        steps: the number of steps that were watched so far.
        ended: whether the `with` block has been left, so that the report is complete.
        is_empty: whether nothing was ever declared frozen, although the flags of the parameters were to say it.
        declarations: the number of calls of `freeze` and `unfreeze`.
        by_flags: whether the flags of the parameters say what is declared frozen, because no patterns were given.
        flag_changes: what `follow_flags` has declared, for want of patterns.
        lost_flags: the parameters that lost their flag though patterns declare them trainable.
        appeared: the names of the tensors that were not in the model on entry.
        not_training: sentences about parameters that are declared trainable, but lost their flag, or did not change after
            they were unfrozen.
        watcher: what compares the tensors while the audit runs; None when it has ended.
        flags: the flags of the parameters when they were last read; None when the audit has ended.
    """

    rows: list[Row] = field(default_factory=list)
    phases: list[PhaseRows] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    why_unknown: dict[str, str] = field(default_factory=dict)
    steps: int = 0
    ended: bool = False
    is_empty: bool = False
    declarations: int = 0
    by_flags: bool = False
    flag_changes: list[FlagChange] = field(default_factory=list)
    lost_flags: list[FlagChange] = field(default_factory=list)
    appeared: set[str] = field(default_factory=set)
    not_training: list[str] = field(default_factory=list)
    watcher: Watcher | None = None
    flags: Flags | None = None

    def freeze(self, frozen: Frozen) -> None:
        """Declare more tensors frozen from now on, for a loop that freezes in the middle of training.

        `frozen`: patterns of names, or what `select` returns. Tensors that were not declared frozen before must keep their
        current values; their norms begin at this call, too. Tensors that were declared frozen before stay so.
        Call this method after you have frozen the tensors. If you freeze by a learning rate of 0, set the rate before the
        call: a change of a learning rate after the call counts as done by a scheduler.
        A call after a step ends a phase: see `phases`. Raises ConfigError for bad patterns, and RuntimeError if the audit
        has ended.
        """
        self._require_watcher("freeze").end_phase()
        self._freeze(frozen)

    def unfreeze(self, frozen: Frozen) -> None:
        """Declare tensors trainable again, for a loop that unfreezes layers in the middle of training.

        `frozen`: patterns of names, or what `select` returns. Call this method before the next step. The verdict of these
        tensors is that of the spans in which they were declared frozen; their norms are those of the whole block.
        A call after a step ends a phase: see `phases`. Raises ConfigError for bad patterns and if none of the tensors is
        declared frozen, and RuntimeError if the audit has ended.
        """
        self._require_watcher("unfreeze").end_phase()
        self._unfreeze(frozen)

    def end_phase(self) -> None:
        """End the present phase (see `phases`), if a step was made in it, as `freeze` and `unfreeze` do by themselves.

        Call it before other tensors are put at the names of the model for what is then declared. Raises as they do.
        """
        self._require_watcher("end_phase").end_phase()

    def _freeze(self, frozen: Frozen) -> None:
        """Declare more tensors frozen, within the present phase."""
        self._require_watcher("freeze").freeze(frozen)
        self.declarations += 1

    def _unfreeze(self, frozen: Frozen) -> None:
        """Declare tensors trainable again, within the present phase."""
        self._require_watcher("unfreeze").unfreeze(frozen)
        self.declarations += 1

    def follow_flags(self, ignored: Iterable[Tensor] = (), step: int | None = None) -> None:
        """Read all flags again; call it before each step, for a loop whose flags change in mid-run.

        The flags are those of the parameters that were in the model on entry, not of what appears later.
        Without patterns, what the flags say from now on is declared, as `freeze` and `unfreeze` do: what is unfrozen before
        a step may move in it. With patterns, what they declare stays; a parameter that loses its flag and is not declared
        frozen has stopped to train, which `raise_if_unsound` refuses. `ignored`: parameters whose flags are not read, such
        as those of the optimizers of a GAN that do not step now. `step`: the number of the step that comes now, for an
        audit that watches no more steps and cannot know it. Raises RuntimeError if the audit has ended.
        """
        watcher = self._require_watcher("follow_flags")
        if self.flags is None or (changes := self.flags.changes(ignored)) is None:
            return
        declared = {id(tensor) for tensor in watcher.declared_tensors().values()}
        unfrozen = [name for name, each in changes.trainable.parameters.items() if id(each) in declared]
        frozen = [name for name, each in changes.frozen.parameters.items() if id(each) not in declared]
        is_before = bool(step) or not self.rows
        when = step or (self.steps + 1 if is_before else self.steps)
        thawed = FlagChange(tuple(unfrozen), frozen=False, step=when, is_before=is_before)
        froze = FlagChange(tuple(frozen), frozen=True, step=when, is_before=is_before)
        if unfrozen and self.by_flags:
            self._unfreeze(changes.trainable)
            tell(thawed, self.flag_changes, self.notes, "the flags declare trainable")
        if frozen and self.by_flags:
            self._freeze(changes.frozen)
            tell(froze, self.flag_changes, self.notes, "the flags declare frozen")
        elif frozen:
            tell(froze, self.lost_flags, self.not_training, "requires_grad is False though not declared frozen")
        if self.flags.are_all_frozen and not any(text.endswith(ALL_FLAGS_OFF) for text in self.not_training):
            self.not_training.append(f"{froze.since}, {ALL_FLAGS_OFF}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not watch the code in this block, such as an evaluation between two steps.

        Its forward passes and optimizer steps are neither watched nor counted, and what it writes to tensors of the model
        and puts back is not noticed. What it does not put back is found at the next comparison of bits.
        Raises RuntimeError if the audit has ended.
        """
        with self._require_watcher("paused").pause():
            yield

    def stop(self) -> None:
        """Watch no more steps: compare bits, and keep digests alone, as after the step `until`.

        Call it after the last step if more is done to the model before the block is left, such as moving it to another
        device, so that it is not taken for a cause. Raises RuntimeError if the audit has ended.
        """
        self._require_watcher("stop").stop()

    @property
    def frame(self) -> DataFrame:
        """A pandas DataFrame with a row for each parameter and buffer, and the columns of `changes.csv`.

        Raises RuntimeError inside the `with` block of the audit.
        """
        from pandas import DataFrame

        self._require_ended()
        return DataFrame(self.rows, columns=list(CHANGE_COLUMNS))

    @property
    def leaks(self) -> list[str]:
        """The names of the tensors that were declared frozen and differ at the end from their initial values.

        Raises RuntimeError inside the `with` block of the audit.
        """
        self._require_ended()
        return [row["name"] for row in self.rows if row["verdict"] == "leaked"]

    def raise_if_leaked(self) -> None:
        """Raise LeakError, with names and causes, if tensors declared frozen differ at the end from their initial values.

        Raises RuntimeError inside the `with` block of the audit.
        """
        self._require_ended()
        leaks = _names_with_causes(self.rows, "leaked")
        if leaks:
            raise LeakError(f"{len(leaks)} frozen tensor{'s' * (len(leaks) > 1)} changed: {', '.join(leaks)}")

    def raise_if_unsound(self) -> None:
        """Raise UnsoundError, with names and causes, if the training did not do what was declared: see `problems`.

        Raises RuntimeError inside the `with` block, until the last step that is watched.
        """
        if problems := self.problems:
            raise UnsoundError("; ".join(problems))

    @property
    def problems(self) -> list[str]:
        """What the training did other than declared, with names and causes; empty if it did what was declared.

        A frozen tensor leaked; a trainable parameter stayed idle, also after it was unfrozen, or lost its flag; no parameter
        was trained; or nothing was frozen although the flags were to say it. Inside the `with` block, after the last step
        that is watched, it is as of that step, and with shards, of those of this process; before, RuntimeError is raised.
        A parameter that later steps may still train, such as one whose learning rate was 0, is no problem until the end.
        """
        if not self.rows:
            self._require_ended()
        rows = [row for row in self.rows if row["verdict"] != "idle" or self._is_idle_for_good(row)]
        details = {word: _names_with_causes(rows, word) for word in ("leaked", "idle")}
        found = problems_of(count_verdicts(rows), self.is_empty)
        was_trained = any(row["moved"] and row["verdict"] == "held" for row in rows)  # before it was frozen, or after
        if was_trained or (not self.ended and len(rows) < len(self.rows)):
            found.pop("trained", None)
        if any(row["verdict"] == "idle" and not row["requires_grad"] for row in rows):
            details["idle"].append("of which some have requires_grad=False: declare them frozen too")
        told = [f"{text}: {', '.join(details[word])}" if word in details else text for word, text in found.items()]
        return [*told, *self.not_training]

    def _is_idle_for_good(self, row: Row) -> bool:
        """Return whether an idle parameter is a problem: no later step can train it, and no flag has ever frozen it.

        A parameter that the model got in mid-run was not declared frozen; if its flag is off, it is not trainable either.
        """
        never_trainable = row["name"] in self.appeared and not row["requires_grad"]
        return not never_trainable and (self.ended or row["cause"] not in MAY_STILL_TRAIN)

    def __str__(self) -> str:
        if not self.ended:
            return f"an audit that has not ended; bits were compared after {len(self.looks)} steps"
        count = count_verdicts(self.rows)
        counts = ", ".join(f"{number} {word}" for word, number in count.items() if number)
        headline = "LEAKED" if count["leaked"] else "held" if any(row["frozen"] for row in self.rows) else "nothing frozen"
        lines = [f"{headline}: {counts or 'no tensors'}"]
        for word in ("leaked", "idle"):
            if names := _names_with_causes(self.rows, word):
                lines.append(f"{word}: {listed(names, most=4)}")
        lines += self.not_training[:1]
        looks = f"after steps {listed(list(map(str, self.looks)), most=12)}" if self.looks else "on leaving only"
        lines.append(f"bits compared {looks}")
        if len(self.notes) > MAX_LINES - len(lines):
            left = MAX_LINES - len(lines) - 1
            return "\n".join([*lines, *self.notes[:left], f"and {len(self.notes) - left} more notes: see report.notes"])
        return "\n".join([*lines, *self.notes])

    __repr__ = __str__

    def _require_watcher(self, method: str) -> Watcher:
        """Return the watcher, or raise RuntimeError if the audit has ended."""
        if self.watcher is None:
            raise RuntimeError(f"the audit has ended; call report.{method}() inside the with block")
        return self.watcher

    def _require_ended(self) -> None:
        """Raise RuntimeError if the `with` block of the audit has not been left, so that the report is not complete."""
        if not self.ended:
            raise RuntimeError("the audit has not ended; read its report after the with block, not in it")


def _names_with_causes(rows: Sequence[Row], verdict: str) -> list[str]:
    """Return `name (cause)` for each row with this verdict."""
    return [f"{row['name']} ({row['cause']})" for row in rows if row["verdict"] == verdict]
