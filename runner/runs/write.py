"""Write the files that only a run that trained has: `changes.csv`, `phases.csv`, `steps.csv` and the model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.contract import CHANGE_COLUMNS, CHANGES, PHASE_COLUMNS, PHASES, STEP_COLUMNS, STEPS, WEIGHTS
from runner.runs.folder import csv_text, write_atomically, write_text

if TYPE_CHECKING:
    from runner.experiment import Outcome
    from runner.proof.results.phases import PhaseRows

TRAINING_FILES = (CHANGES, PHASES, STEPS, WEIGHTS)  # the files that only a run that trained has


def write_tables(folder: Path, outcome: Outcome, with_weights: bool) -> None:
    """Write the files `changes.csv`, `steps.csv`, and, if the run had several phases, `phases.csv` to its folder.

    `outcome`: the result of the training. `with_weights`: also write the model's weights to `model.safetensors`.
    """
    write_text(folder / CHANGES, csv_text(CHANGE_COLUMNS, outcome.rows))
    write_text(folder / STEPS, steps_csv(outcome))
    if outcome.phases:
        write_text(folder / PHASES, phases_csv(outcome.phases))
    if with_weights:
        from safetensors.torch import save_model

        write_atomically(folder / WEIGHTS, lambda temporary: save_model(outcome.model, str(temporary)))


def phases_csv(phases: Sequence[PhaseRows]) -> str:
    """Return the content of `phases.csv`: the rows of each phase, after its number, its first and its last step."""
    rows = [
        {"phase": number, "first_step": phase.first_step, "last_step": phase.last_step, **row}
        for number, phase in enumerate(phases, 1)
        for row in phase.rows
    ]
    return csv_text(PHASE_COLUMNS, rows)


def steps_csv(outcome: Outcome) -> str:
    """Return the content of `steps.csv`: one line for each training step with its loss, seconds and learning rates.

    `outcome`: the result of the training. A loss that is a sum has a column `loss/PART` for each of its parts. The learning
    rate of the parameter group NAME is in the column `lr/NAME`; it is empty for a step in which the group did not exist.
    """
    names = dict.fromkeys(name for step in outcome.steps for name in step.lrs)
    parts = dict.fromkeys(name for step in outcome.steps for name in step.parts)
    rows = [
        {"step": step.number, "loss": loss, "seconds": step.seconds}
        | {f"loss/{name}": float(part) for name, part in step.parts.items()}
        | {f"lr/{name}": lr for name, lr in step.lrs.items()}
        for step, loss in zip(outcome.steps, outcome.losses, strict=True)
    ]
    columns = [*STEP_COLUMNS, *(f"loss/{name}" for name in parts), *(f"lr/{name}" for name in names)]
    return csv_text(columns, rows)


def training_notes(outcome: Outcome) -> Iterator[str]:
    """Yield messages for the user about a run that trained.

    There are at most three: that every parameter is frozen; that the data ended before the steps that the config asks for;
    that the loss became NaN or infinite.

    `outcome`: the result of the training.
    """
    parameters = [row for row in outcome.rows if row["kind"] == "parameter"]
    losses = outcome.losses
    if parameters and all(row["frozen"] for row in parameters) and not outcome.record["trained_in_phases"]:
        yield "every parameter is declared frozen: nothing trains"
    if len(losses) < outcome.planned_steps and not outcome.interrupted:
        yield f"the data ended after {len(losses)} of {outcome.planned_steps} steps"
    if (not_finite := outcome.record["loss_not_finite_at"]) is not None:
        yield f"the loss became {losses[not_finite - 1]} at step {not_finite}"
