"""What is foreseen of a run as its phases begin: what would leak, and whether the frozen part's gradients reach the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runner.assemble import Setup, build_optimizer, build_scheduler
from runner.contract import Coupling, method_name
from runner.foresight.hazards import FORESEEN_BY_FLAGS, leaks
from runner.foresight.rehearsal import Effect, Rehearsal, effect_of_flags, rehearse
from runner.proof.replay import gradient


@dataclass(frozen=True)
class Foreseen:
    """What is foreseen of the phases that have begun.

    `effects` are those of a batch in each phase, by its parameters' flags and hooks; `couples` says whether gradients of
    what is frozen change how the optimizer steps the rest.
    """

    effects: tuple[Effect, ...] = ()
    couples: bool = False


def foresee_phase(setup: Setup, before: Foreseen) -> Foreseen:
    """What is foreseen as one more phase has begun, by the scheduler's trace and the optimizer on dummy tensors.

    An urgent note says what would leak, another why that cannot be foreseen.
    """
    effects = (*before.effects, effect_of_flags(setup.parameters))
    if not setup.phases[len(effects) - 1].selection.parameters:
        return Foreseen(effects)
    try:
        rehearsal = rehearsed(setup, effects)
    except Exception as error:  # of anyone's optimizer, built on other tensors than its own; the run itself will tell
        setup.note(f"what would leak could not be foreseen: {type(error).__name__}: {error}")
        return Foreseen(effects, before.couples)
    for warning in leaks(rehearsal, *labels(setup), FORESEEN_BY_FLAGS):
        setup.note(warning, urgent=True)
    return Foreseen(effects, rehearsal.couples)


def rehearsed(setup: Setup, effects: Sequence[Effect]) -> Rehearsal:
    """The phases that have these effects, played by a double."""
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


def couplings(setup: Setup, foreseen: Foreseen) -> list[Coupling]:
    """Through what the frozen part's gradients reached the rest: `clip` (they are in the norm), `optimizer`."""
    pulled = any(gradient(tensor) == "present" for tensor in setup.selection.parameters.values())
    by: dict[Coupling, bool] = {"clip": pulled and setup.config.clip is not None, "optimizer": foreseen.couples}
    return [word for word, is_coupled in by.items() if is_coupled]


def labels(setup: Setup) -> tuple[str, str]:
    """What a method and an optimizer are called in a sentence."""
    method = type(setup.method)
    return method_name(f"{method.__module__}.{method.__qualname__}"), type(setup.optimizer).__name__
