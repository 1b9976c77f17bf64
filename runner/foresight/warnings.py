"""Warn when a phase begins of what would leak in it, and find out whether gradients of frozen parameters affect others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runner.assemble import Setup, build_optimizer, build_scheduler
from runner.contract import Coupling, method_name
from runner.foresight.effects import Effect, effect_of_flags
from runner.foresight.hazards import CAUSES_WITHOUT_BATCH, leak_warnings
from runner.foresight.rehearsal import Rehearsal, rehearse
from runner.proof.replay import gradient_kind


@dataclass(frozen=True)
class Forecast:
    """What is foreseen for the phases that have begun.

    Attributes:
        effects: what a batch does in each phase, judging by the flags and hooks of the parameters.
        optimizer_couples: whether gradients of frozen parameters change how the optimizer updates the others.
    """

    effects: tuple[Effect, ...] = ()
    optimizer_couples: bool = False


def foresee_phase(setup: Setup, before: Forecast) -> Forecast:
    """Return the forecast extended by the phase that has just begun, and warn of leaks in an urgent note.

    Needs no batch: it rehearses the run's steps on a stand-in for the model. If that fails, a note says why.
    """
    effects = (*before.effects, effect_of_flags(setup.parameters))
    if not setup.phases[len(effects) - 1].selection.parameters:
        return Forecast(effects)
    try:
        rehearsal = rehearse_phases(setup, effects)
    except Exception as error:  # a user's optimizer may not work with a stand-in's tensors; the run itself goes on
        setup.note(f"what would leak could not be foreseen: {type(error).__name__}: {error}")
        return Forecast(effects, before.optimizer_couples)
    for warning in leak_warnings(rehearsal, *method_and_optimizer_names(setup), CAUSES_WITHOUT_BATCH):
        setup.note(warning, urgent=True)
    return Forecast(effects, rehearsal.optimizer_couples)


def rehearse_phases(setup: Setup, effects: Sequence[Effect]) -> Rehearsal:
    """Rehearse the first phases of a run, one for each effect of a batch."""
    config = setup.config
    return rehearse(
        setup.before.entries,
        setup.phases[: len(effects)],
        effects,
        batches=config.steps,
        method=setup.method,
        build_optimizer=lambda groups: build_optimizer(config, groups),
        build_scheduler=lambda optimizer: build_scheduler(config, optimizer),
        zero_grad_to_none=config.zero_grad_to_none,
    )


def couplings(setup: Setup, forecast: Forecast) -> list[Coupling]:
    """Return how gradients of frozen parameters changed the updates of the others.

    `clip`: they were part of the gradient norm that was clipped. `optimizer`: the optimizer's rule combines parameters.
    """
    frozen_have_gradients = any(gradient_kind(tensor) == "present" for tensor in setup.selection.parameters.values())
    is_coupled: dict[Coupling, bool] = {
        "clip": frozen_have_gradients and setup.config.clip is not None,
        "optimizer": forecast.optimizer_couples,
    }
    return [coupling for coupling, holds in is_coupled.items() if holds]


def method_and_optimizer_names(setup: Setup) -> tuple[str, str]:
    """Return the names of a run's method and optimizer for messages, such as `zero_lr` and `SGD`."""
    method = type(setup.method)
    return method_name(f"{method.__module__}.{method.__qualname__}"), type(setup.optimizer).__name__
