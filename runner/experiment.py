"""Carry out one run, from its config to a verdict for each tensor, such as `held` (frozen, and no bit has changed).

Start reading here. `assembled`, a context manager in `assemble/setup.py`, builds everything that exists before the first
step: the model, the selection of what is frozen, the freezing method and the optimizer. When it is left, it undoes every
change to the model except the trained values. The loop here trains, and `audit` compares the tensors before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import GEN_CLOSED, getgeneratorstate
from itertools import chain, count
from typing import Any

import torch
from torch import nn

from runner.assemble.evaluation import build_evaluation
from runner.assemble.objects import build_scheduler
from runner.assemble.setup import Setup, assembled
from runner.assemble.switching import begin_phase, note_phases_not_reached
from runner.config.schema import Config
from runner.contract import Cost, Note, Row, TrainingRecord, ignore_note
from runner.foresight.warnings import Forecast, couplings, foresee_phase, have_gradients
from runner.freezing.phases.timetable import Timetable
from runner.freezing.schedule import Phase, phase_records
from runner.freezing.selection import Selection, without
from runner.methods.base import PhaseContext
from runner.proof.audit import audit
from runner.proof.audit_report import Report
from runner.proof.changes import trained_digest
from runner.proof.results.phases import PhaseRows, idle_phase_notes, thawed_parameters
from runner.proof.verdict import count_verdicts, finite_or_none, first_not_finite, loss_rose, run_verdict
from runner.seeding import seed_all
from runner.sharing.folder import SharedFolder
from runner.training.data.steps import StepBatches, batches_in_step, batches_of
from runner.training.evaluate import Evaluation
from runner.training.loop import Step, Task, train


@dataclass
class Outcome:
    """The result of a run that trained.

    Attributes:
        model: the trained model. Only its values have changed: what freezing changed in it (modules, `requires_grad` flags,
            train or eval mode) has been restored.
        selection: the parameters, buffers and modules that were to be frozen at some time of the run.
        rows: the rows of `changes.csv`, one for each parameter and buffer: how far it moved, and its verdict.
        phases: the rows of each phase, where the run had several.
        steps: the finished training steps; the loss of each is a tensor on the model's device.
        losses: the losses of the same steps as Python numbers.
        planned_steps: the number of steps that the config asks for.
        interrupted: whether Ctrl-C or SIGTERM ended the training early.
        record: the entries of `run.json` that a run has only if it trained, such as its verdict and its costs.
    """

    model: nn.Module
    selection: Selection
    rows: list[Row]
    phases: list[PhaseRows]
    steps: list[Step]
    losses: list[float]
    planned_steps: int
    interrupted: bool
    record: TrainingRecord


@dataclass
class TrainingState:
    """What `training_steps` has done so far. A phase is a span of steps in which the same parameters are frozen.

    Attributes:
        steps: the finished training steps.
        forecast: what was predicted for the phases that have begun, such as whether gradients of frozen parameters change
            how the optimizer updates the others; empty without `warn_of_leaks`.
        frozen_gradients: whether a frozen parameter had a gradient at the end of a phase.
        interrupted: whether Ctrl-C or SIGTERM ended the training early.
        evaluation: the evaluations on held-out data, and their results.
    """

    steps: list[Step] = field(default_factory=list)
    forecast: Forecast = field(default_factory=Forecast)
    frozen_gradients: bool = False
    interrupted: bool = False
    evaluation: Evaluation = field(default_factory=Evaluation)


def experiment(
    config: Config,
    on_step: Callable[[Step], None] = lambda step: None,
    on_note: Note = ignore_note,
    *,
    warn_of_leaks: bool = False,
    shared: SharedFolder | None = None,
) -> Outcome:
    """Train the model that a config declares, and return how its tensors changed (until Ctrl-C); no file is written.

    `on_step` is called after each step, `on_note` with each message, with `warn_of_leaks` also about leaks that it predicts.
    `shared`: what the runs of a sweep compute once.
    Raises ConfigError for a wrong config, and SkippedError if the freezing method does not work with this model.
    """
    state = TrainingState()
    with assembled(config, on_note, shared=shared) as setup:
        state.evaluation = build_evaluation(setup)
        state.evaluation.before()
        with audit(setup.model, setup.phases[0].selection, setup.optimizer, **audit_options(setup)) as report:
            try:
                with setup.shared_prefix.blamed_for_errors():
                    for step in (steps := training_steps(setup, report, state, warn_of_leaks)):
                        on_step(step)
            except KeyboardInterrupt:
                note_interrupt(state, on_note, within_step=getgeneratorstate(steps) == GEN_CLOSED)
        for text in (*report.notes, *idle_phase_notes(report.phases)):
            on_note(text)
        if not state.interrupted:
            evaluate_after(state)
        losses = torch.stack([step.loss for step in state.steps]).tolist() if state.steps else []
        return Outcome(
            model=setup.built_model,
            selection=setup.selection,
            rows=report.rows,
            phases=report.phases,
            steps=state.steps,
            losses=losses,
            planned_steps=setup.config.steps,
            interrupted=state.interrupted,
            record=training_record(setup, report, state, losses),
        )


def evaluate_after(state: TrainingState) -> None:
    """Evaluate the trained model; an interrupt ends that alone, for the training is done."""
    try:
        state.evaluation.after()
    except KeyboardInterrupt:
        state.interrupted = True


def training_record(setup: Setup, report: Report, state: TrainingState, losses: list[float]) -> TrainingRecord:
    """Return the entries of `run.json` that a run has only if it trained; measures the costs of a step."""
    thawed, cost = thawed_parameters(report.phases), read_costs(setup, state)
    return {
        "verdict": run_verdict(chain(report.rows, *(phase.rows for phase in report.phases))),
        "counts": count_verdicts(report.rows),
        "loss_first": finite_or_none(losses[0]) if losses else None,
        "loss_last": finite_or_none(losses[-1]) if losses else None,
        "loss_not_finite_at": first_not_finite(losses),
        "loss_rose": loss_rose(losses),
        "phases": phase_records(
            setup.phases,
            len(state.steps),
            setup.parameters,
            blocks=setup.plan.blocks,
            rows=[phase.rows for phase in report.phases],
        ),
        "looks": report.looks,
        "batches": setup.feed.batches_a_pass,
        "threads": torch.get_num_threads(),
        "device": str(setup.device),
        "trained_digest": trained_digest(setup.before, setup.selection, thawed.names),
        "trained_in_phases": len(thawed.trained),
        "idle_in_phases": thawed.idle,
        "nothing_frozen": setup.selection.nothing_frozen,
        "shared": setup.shared_prefix.record_with(setup.meter.flops_by_module) if setup.meter.sharing.folder else {},
        "couplings": couplings(setup, state.forecast, state.frozen_gradients),
        "evaluation": state.evaluation.record,
        "cost": cost,
    }


def note_interrupt(state: TrainingState, on_note: Note, *, within_step: bool) -> None:
    """Store in `state` that the training was interrupted; if a step had begun, note it: it may be half done."""
    state.interrupted = True
    if within_step:
        on_note(f"interrupted within step {len(state.steps) + 1}: parameters and buffers may hold a part of it")


def audit_options(setup: Setup) -> dict[str, Any]:
    """Return the options of a run's audit: compare with the model as built, and watch forward passes from the first one."""
    return {"before": setup.before, "watch_forward": True}


def training_steps(
    setup: Setup, report: Report, state: TrainingState, warn_of_leaks: bool = False
) -> Generator[Step, None, None]:
    """Train the model, yield each step when it is finished, and update `state`.

    At each new phase (span of steps in which the same parameters are frozen), `switch_phase` is called.
    `warn_of_leaks`: predict which frozen tensors will change in the phase, and report them by `setup.note`.
    """
    config, optimizer = setup.config, setup.optimizer
    scheduler = build_scheduler(config, optimizer)  # after the audit began, because a scheduler changes the learning rates
    task = setup.meter.wrap_task(setup.task, optimizer, setup.undo)
    setup.method.attach(optimizer, setup.phases[0].selection, setup.phase_undo)
    seed_all(config.seed)
    all_steps, sizes = state.evaluation.between_passes(setup.feed.steps, report.paused), list[int]()
    timetable = Timetable(setup.plan, setup.phases, setup.parameters_by_name, selection=setup.selection)
    setup.meter.extra_bytes += timetable.copied_bytes
    ahead: list[StepBatches] = []
    while True:
        phase = setup.phases[timetable.present]
        if warn_of_leaks:
            state.forecast = foresee_phase(setup, state.forecast)
        batches = batches_of(steps_of_phase(all_steps, ahead, timetable, state), sizes)
        yield from phase_steps(setup, state, phase, batches, task=task, scheduler=scheduler, sizes=sizes)
        if setup.phases[timetable.present] is phase:
            note_phases_not_reached(setup, timetable)
            return
        switch_phase(setup, report, timetable.present)


def phase_steps(
    setup: Setup,
    state: TrainingState,
    phase: Phase,
    batches: Iterator[Any],
    *,
    task: Task,
    scheduler: Any,
    sizes: list[int],
) -> Iterator[Step]:
    """Train in one phase on its batches, yield each step when it is finished, and update `state`.

    `sizes`: the number of batches of each step, filled in as the batches are read.
    """
    config = setup.config
    setup.meter.on_phase_prepared(setup.model, phase.selection)
    context = PhaseContext(setup.model, task, setup.note)
    setup.task.take_parts(0)  # those of trials before the first step
    batches = setup.shared_prefix.feed(
        batches, context, phase.selection, example=setup.method.example, undo=setup.phase_undo
    )
    fed = setup.meter.watch_batches(setup.method.feed(batches, context), phase.first, setup.optimizer, setup.undo)
    for step in train(
        setup.model,
        setup.optimizer,
        task,
        fed,
        scheduler=scheduler,
        clip=config.clip,
        zero_grad_to_none=config.zero_grad_to_none,
        first=phase.first,
        batches_in_step=partial(batches_in_step, sizes),
    ):
        parts = setup.task.take_parts(batches_in_step(sizes, step.number))
        step = replace(step, planned=config.steps, parts=parts, lrs=setup.factors.multiplied(step.lrs))
        state.steps.append(step)
        yield step
    setup.meter.on_phase_end(setup.parameters, setup.optimizer, context.not_run)
    state.frozen_gradients |= have_gradients(phase.selection)


def steps_of_phase(
    all_steps: Iterator[StepBatches], ahead: list[StepBatches], timetable: Timetable, state: TrainingState
) -> Generator[StepBatches, None, None]:
    """Yield the batches of each step, until the next phase begins or the data end.

    `ahead`: the batches of a step that were read before a phase ended; they are the first of the next one. So a phase begins
    only if there is a step to make in it.
    """
    first, window = len(state.steps) + 1, timetable.plan.window
    for number in count(first):
        if (step := ahead.pop() if ahead else next(all_steps, None)) is None:
            return
        if number > first and timetable.next_begins(number, lambda: [step.loss for step in state.steps[-window:]]):
            ahead.append(step)
            return
        yield step


def switch_phase(setup: Setup, report: Report, number: int) -> None:
    """End a phase of the training, and begin the phase with this index; the audit is told what is frozen from now on."""
    before, after = setup.phases[number - 1].selection, setup.phases[number].selection
    report.end_phase()  # before the method changes the model
    thawed = without(before, after)
    if thawed.parameters or thawed.buffers:
        report.unfreeze(thawed)  # before the method puts back what it did to them
    begin_phase(setup, number)
    report.freeze(after)


def read_costs(setup: Setup, state: TrainingState) -> Cost:
    """Measure the costs of a step, such as FLOPs, bytes and seconds, and return {name of a cost: value}.

    The names are those in `COSTS` in `contract.py`. The dict is empty if the run made no step. It is also empty if the
    run was interrupted, because measuring takes time.
    """
    if not state.steps or state.interrupted:
        return {}
    if setup.config.accumulate > 1:
        setup.note(f"cost: FLOPs and memory are those of one of the {setup.config.accumulate} batches that a step takes")
    return setup.meter.read_costs(setup.model, setup.optimizer, setup.before.entries)
