"""A run that trained -> its tables, its weights, and the figures of its record."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from runner.contract import CHANGES, COLUMNS, STEP_COLUMNS, STEPS, WEIGHTS
from runner.runs.folder import csv_text, write_text, write_whole

if TYPE_CHECKING:
    from runner.experiment import Outcome

TABLES = (CHANGES, STEPS, WEIGHTS)  # what only a run that trained leaves


def write_tables(folder: Path, outcome: Outcome, with_weights: bool) -> None:
    """Write `changes.csv` and `steps.csv`, and the model's weights where they are wanted, each whole or not at all."""
    write_text(folder / CHANGES, csv_text(COLUMNS, outcome.rows))
    write_text(folder / STEPS, steps_text(outcome))
    if with_weights:
        from safetensors.torch import save_model

        write_whole(folder / WEIGHTS, lambda beside: save_model(outcome.model, str(beside)))


def steps_text(outcome: Outcome) -> str:
    """`steps.csv`: a row a step, a column a group that the run had at any time."""
    names = dict.fromkeys(name for step in outcome.steps for name in step.lrs)
    rows = [
        {"step": step.number, "loss": loss, "seconds": step.seconds, **{f"lr/{n}": lr for n, lr in step.lrs.items()}}
        for step, loss in zip(outcome.steps, outcome.losses, strict=True)
    ]
    return csv_text([*STEP_COLUMNS, *(f"lr/{name}" for name in names)], rows)


def remarks(outcome: Outcome, steps: int) -> Iterator[str]:
    """What the user should be told though nothing stopped; `steps` are those that were asked for."""
    parameters = [row for row in outcome.rows if row["kind"] == "parameter"]
    losses = outcome.losses
    if parameters and all(row["frozen"] for row in parameters):
        yield "every parameter is declared frozen: nothing trains"
    if len(losses) < steps and not outcome.interrupted:
        yield f"the data ended after {len(losses)} of {steps} batches"
    broken = next((number for number, loss in enumerate(losses, 1) if not math.isfinite(loss)), None)
    if broken is not None:
        yield f"the loss became {losses[broken - 1]} at step {broken}"
