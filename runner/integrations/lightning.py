"""A callback for Lightning that proves what is frozen while a model is fitted: `Trainer(callbacks=[FreezeAudit()])`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from runner.integrations.audited_training import FIRST_STEPS, AuditedTraining

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from runner.proof.audit_report import Report


class FreezeAudit(Callback):
    """Audits each `fit`: watches its first steps, follows the flags, and says at the end whether what is frozen held.

    A table is printed at the end, and the number of tensors with each verdict goes to the loggers of the Trainer. What is
    wrong is said after the last watched step already, by a warning.

    Args:
        frozen: patterns of names that are declared frozen, such as `["backbone"]`; refused before the first step if one
            matches nothing. None: what `requires_grad` says before each step, so that what a BaseFinetuning unfreezes is
            trainable from then on.
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
        self.steps: dict[int, tuple[int, int]] = {}  # by id of an optimizer: (its steps, `global_step` at the last)

    @property
    def report(self) -> Report | None:
        """The report of the last fit, which is what `runner.audit` yields; None if it could not be watched."""
        return self.training.report

    @property
    def _most_steps(self) -> int:
        """How many steps the optimizer that made the most has made in this fit."""
        return max((begun for begun, _ in self.steps.values()), default=0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the fit before."""
        self.training.forget()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch: weights and optimizers have been restored, and no step has been made."""
        self.steps.clear()
        self.training.begin(pl_module, trainer.optimizers)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Read the flags before the forward pass, which may write to the buffers of what has just been unfrozen.

        A loop with several optimizers may leave flags switched off between two batches, so that they say nothing here.
        """
        if len(trainer.optimizers) == 1:
            self.training.before_step(self._most_steps)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Read the flags, but those of other optimizers: `toggle_optimizer` switches them off for a moment."""
        others = [each for each in trainer.optimizers if each is not optimizer]
        own = {id(each) for group in optimizer.param_groups for each in group["params"]} if others else set()
        held = (each for other in others for group in other.param_groups for each in group["params"])
        begun, last = self.steps.get(id(optimizer), (0, -1))
        if trainer.global_step != last:  # LBFGS calls its closure, and this, several times in a step
            begun += 1
            self.steps[id(optimizer)] = begun, trainer.global_step
        self.training.before_step(begun - 1, ignored=[each for each in held if id(each) not in own])

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Say what is wrong once the last watched step has been made."""
        self.training.after_step(self._most_steps)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch no more steps: other callbacks may still write to the model, and it is moved to the CPU."""
        self.training.stop()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the audit when all other callbacks have done what they do at the end, and say how it ended."""
        self.training.end()
        for logger in trainer.loggers:
            logger.log_metrics(self.training.metrics, step=trainer.global_step)
        self.training.conclude(shows=trainer.is_global_zero)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the audit of a fit that fails; if it was interrupted, say what was found so far."""
        self.training.end(exception)
        if isinstance(exception, KeyboardInterrupt):
            self.training.conclude(shows=trainer.is_global_zero, may_raise=False)
