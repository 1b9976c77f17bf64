"""Warn before training of frozen tensors that would change all the same, without running a batch.

Also finds out whether gradients of frozen parameters affect how the other parameters are updated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from runner.assemble.objects import build_optimizer, build_scheduler
from runner.assemble.setup import Setup
from runner.contract import Coupling, method_name
from runner.foresight.effects import Effect, effect_of_flags
from runner.foresight.hazards import CAUSES_WITHOUT_BATCH, leak_hazards
from runner.foresight.rehearsal import Rehearsal, rehearse
from runner.freezing.selection import Selection, without
from runner.proof.causes.gradients import gradient_kind

MOST_PHASES = 20  # that are simulated


@dataclass(frozen=True)
class Forecast:
    """The predictions for the phases (spans of steps with the same frozen layers) that have begun so far.

    They end with the first phase that freezes something in mid-run: later ones do it by the same means.

    Attributes:
        effects: one Effect for each phase that has begun: what backward does to gradients, predicted from `requires_grad`
            and hooks.
        optimizer_couples: whether gradients of frozen parameters change how the optimizer updates the other parameters.
        is_complete: whether no later phase is predicted.
    """

    effects: tuple[Effect, ...] = ()
    optimizer_couples: bool = False
    is_complete: bool = False


def foresee_phase(setup: Setup, before: Forecast) -> Forecast:
    """Warn the user if frozen tensors would change in the phase (span of steps with the same frozen layers) that has begun.

    `before`: the predictions for the earlier phases. Returns the predictions for the earlier phases and the new phase. No
    batch is needed: the steps are simulated on a small stand-in for the model. Warnings are reported by `setup.note`. If
    the simulation fails, a message with the reason is reported instead.
    """
    if before.is_complete:
        return before
    effects = (*before.effects, effect_of_flags(setup.parameters))
    number = len(effects) - 1
    frozen = setup.phases[number].selection
    newly = without(frozen, setup.phases[number - 1].selection) if number else frozen
    if not newly.parameters:
        return Forecast(effects, before.optimizer_couples, is_complete=number + 1 >= MOST_PHASES)
    try:
        rehearsal = rehearse_phases(setup, effects)
    except Exception as error:  # a user's optimizer may not work with a stand-in's tensors; the run itself goes on
        setup.note(f"what would leak could not be foreseen: {type(error).__name__}: {error}")
        return Forecast(effects, before.optimizer_couples, is_complete=number > 0)
    of_this_phase = replace(rehearsal, phases=rehearsal.phases[-1:])
    for hazard in leak_hazards(of_this_phase, *method_and_optimizer_names(setup), CAUSES_WITHOUT_BATCH):
        setup.note(hazard.sentence, urgent=True)
    return Forecast(effects, rehearsal.optimizer_couples, is_complete=number > 0)


def rehearse_phases(setup: Setup, effects: Sequence[Effect]) -> Rehearsal:
    """Simulate the steps of a run on a small stand-in for its model, and return which tensors would change.

    `effects`: what a batch does in each phase (span of steps with the same frozen layers), in order. If it is shorter than
    the list of phases, only as many phases are simulated.
    """
    config, later = setup.config, setup.phases[len(effects) :]
    return rehearse(
        setup.before.entries,
        setup.plan,
        setup.phases[: len(effects)],
        effects=effects,
        batches=later[0].first - 1 if later else config.steps,
        method=setup.method,
        build_optimizer=lambda groups: build_optimizer(config, groups),
        build_scheduler=lambda optimizer: build_scheduler(config, optimizer),
        zero_grad_to_none=config.zero_grad_to_none,
        reset=setup.made_groups,
    )


def have_gradients(selection: Selection) -> bool:
    """Return whether a frozen parameter has a gradient that is not zero."""
    return any(gradient_kind(tensor) == "present" for tensor in selection.parameters.values())


def couplings(setup: Setup, forecast: Forecast, frozen_have_gradients: bool) -> list[Coupling]:
    """Return how the gradients of frozen parameters affected the other updates: `clip`, `optimizer`, both or neither.

    `clip`: gradients of frozen parameters counted in the norm that gradient clipping uses. `optimizer`: the optimizer
    computes the update of a parameter from the gradients of other parameters too, as LBFGS does.
    """
    is_coupled: dict[Coupling, bool] = {
        "clip": frozen_have_gradients and setup.config.clip is not None,
        "optimizer": forecast.optimizer_couples,
    }
    return [coupling for coupling, holds in is_coupled.items() if holds]


def method_and_optimizer_names(setup: Setup) -> tuple[str, str]:
    """Return (name of the freezing method, class name of the optimizer), such as (`zero_lr`, `SGD`), for messages."""
    method = type(setup.method)
    return method_name(f"{method.__module__}.{method.__qualname__}"), type(setup.optimizer).__name__
