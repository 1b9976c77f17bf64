"""A callback for the Trainer of transformers and TRL that proves what is frozen: `callbacks=[FreezeAudit()]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from runner.integrations.audited_training import FIRST_STEPS, AuditedTraining

if TYPE_CHECKING:
    from runner.proof.audit_report import Report


class FreezeAudit(TrainerCallback):
    """Audits each `train`: watches its first steps, follows the flags, and says at the end whether what is frozen held.

    A table is printed at the end, and the number of tensors with each verdict goes to `trainer.state.log_history`. What is
    wrong is said after the last watched step already, by a warning. The Trainer tells no callback that its training has
    failed; the audit of a training that has failed ends when the next one begins, or when the Trainer is deleted.

    Args:
        frozen: patterns of names that are declared frozen, such as `["transformer.wte"]`; refused before the first step if
            one matches nothing. None: what `requires_grad` says before each step.
        until: the number of the last step that is watched; None for all. Up to it a copy of the model is kept.
        strict: raise UnsoundError, with names and causes, after that step and at the end, if a frozen tensor leaked, if a
            trainable parameter stayed idle, or if nothing was watched.
        folder: where `changes.csv` is written at the end; None for nowhere.
        buffers: with "frozen", the buffers of frozen modules (BatchNorm's statistics) are declared frozen too.
    """

    def __init__(
        self,
        frozen: Sequence[str] | None = None,
        *,
        until: int | None = FIRST_STEPS,
        strict: bool = False,
        folder: str | Path | None = None,
        buffers: str = "live",
    ) -> None:
        self.training = AuditedTraining(frozen, until=until, strict=strict, folder=folder, buffers=buffers)
        self.steps_before = 0  # those that the Trainer had made when the training began

    @property
    def report(self) -> Report | None:
        """The report of the last training, which is what `runner.audit` yields; None if it could not be watched."""
        return self.training.report

    @property
    def metrics(self) -> dict[str, float]:
        """{name: how many tensors have each verdict, and how many problems there are}, for `trainer.log(audit.metrics)`."""
        return self.training.metrics

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **events: Any) -> None:
        """Begin to watch: weights and optimizer have been restored, and no step has been made."""
        self.steps_before = state.global_step
        self.training.forget()
        self.training.begin(events["model"], [events["optimizer"]])

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Read the flags."""
        self.training.before_step(state.global_step - self.steps_before)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Say what is wrong once the last watched step has been made."""
        self.training.after_step(state.global_step - self.steps_before)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End the audit, and say how it ended."""
        self.training.end()
        state.log_history.append({**self.training.metrics, "epoch": state.epoch, "step": state.global_step})
        self.training.conclude(shows=state.is_world_process_zero)
