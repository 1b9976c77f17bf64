"""The straight line: config -> model -> selection -> method -> groups -> train -> changes -> verdict. Start reading here.

Everything before the first step is put together in `assemble.py`, and undone when the block is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import nn

from runner.assemble import Setup, assembled, begin_phase, build_batches, build_scheduler, build_task
from runner.config.schema import Config
from runner.contract import Cost, Figures, Note, Row, unheard
from runner.foresight.warnings import Forecast, couplings, foresee_phase
from runner.freezing.schedule import spans
from runner.freezing.selection import Selection
from runner.methods.base import PhaseContext
from runner.proof.audit import audit
from runner.proof.audit_report import Report
from runner.proof.changes import trained_digest
from runner.proof.verdict import count_verdicts, finite_or_none, run_verdict
from runner.seeding import seed_all
from runner.training.loop import Step, train


@dataclass
class Outcome:
    """What one run left: the model as built, trained; a row for each tensor; the steps; what its record holds of it."""

    model: nn.Module
    selection: Selection
    rows: list[Row]
    steps: list[Step]
    losses: list[float]
    interrupted: bool
    figures: Figures


@dataclass
class Training:
    """How far the training has come. `not_run`: of each module, the share of the phase's steps that did not run it."""

    steps: list[Step] = field(default_factory=list)
    foreseen: Forecast = field(default_factory=Forecast)
    not_run: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False


def experiment(
    config: Config,
    on_step: Callable[[Step], None] = lambda step: None,
    on_note: Note = unheard,
    *,
    foresees: bool = False,
) -> Outcome:
    """One run, from a config to the rows that say what became of every parameter and buffer.

    `on_note` takes each note as it arises; with `foresees` also what would leak, as a phase begins. An interrupt (Ctrl-C)
    ends the training and keeps what was measured. Raises ConfigError for what the config got wrong and SkippedError where
    the method cannot serve this model.
    """
    training = Training()
    with assembled(config, on_note) as setup:
        with audit(setup.model, setup.phases[0].selection, setup.optimizer, before=setup.before) as report:
            try:
                for step in training_steps(setup, report, training, foresees):
                    on_step(step)
            except KeyboardInterrupt:
                training.interrupted = True
        for text in report.notes:
            on_note(text)
        losses = torch.stack([step.loss for step in training.steps]).tolist() if training.steps else []
        figures: Figures = {
            "verdict": run_verdict(report.rows),
            "counts": count_verdicts(report.rows),
            "loss_first": finite_or_none(losses[0]) if losses else None,
            "loss_last": finite_or_none(losses[-1]) if losses else None,
            "looks": report.looks,
            "threads": torch.get_num_threads(),
            "device": str(setup.device),
            "trained_digest": trained_digest(setup.before, setup.selection),
            "couplings": couplings(setup, training.foreseen),
            "cost": costs(setup, training),
        }
        return Outcome(
            model=setup.built,
            selection=setup.selection,
            rows=report.rows,
            steps=training.steps,
            losses=losses,
            interrupted=training.interrupted,
            figures=figures,
        )


def training_steps(setup: Setup, report: Report, training: Training, foresees: bool = False) -> Iterator[Step]:
    """The steps of a run, phase by phase, each kept in `training` with what else the training leaves."""
    config, phases, optimizer = setup.config, setup.phases, setup.optimizer
    task = build_task(config, setup.device)
    scheduler = build_scheduler(config, optimizer)  # under the audit, which has to see the declared rates
    task = setup.meter.wrap_task(task, optimizer, setup.undo)
    setup.method.attach(optimizer, phases[0].selection, setup.undo)
    seed_all(config.seed)
    batches = build_batches(config, setup.device)
    for number, (phase, count) in enumerate(spans(phases, config.steps)):
        if len(training.steps) < phase.first - 1:
            setup.note(f"the data ended before step {phase.first}, from which on more was to be frozen")
            return
        if number:
            begin_phase(setup, number)
            report.freeze(phase.selection)
        if foresees:
            training.foreseen = foresee_phase(setup, training.foreseen)
        context = PhaseContext(setup.model, task, setup.note)
        fed = setup.method.feed(islice(batches, count), context)
        fed = setup.meter.watch_first_batch(fed, phase.first, optimizer, setup.undo)
        how = {"scheduler": scheduler, "clip": config.clip, "zero_grad_to_none": config.zero_grad_to_none}
        for step in train(setup.model, optimizer, task, fed, **how, first=phase.first):
            training.steps.append(step)
            yield step
        made = len(training.steps) - phase.first + 1
        training.not_run = {name: steps / made for name, steps in context.not_run.items()}


def costs(setup: Setup, training: Training) -> Cost:
    """The figures of a run that made steps; none of one that was interrupted, whose end is not to wait for them."""
    if not training.steps or training.interrupted:
        return {}
    return setup.meter.read_costs(
        model=setup.model,
        optimizer=setup.optimizer,
        selection=setup.selection,
        parameters=setup.parameters,
        skipped=training.not_run,
    )
