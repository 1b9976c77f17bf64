"""Check what a schedule has returned: a plan with its phases, or a phase that it has found during the run."""

from __future__ import annotations

from math import inf
from typing import Any

from runner.errors import ConfigError, is_integer, short_repr
from runner.freezing.phases.phase import Phase, Plan, Run
from runner.freezing.selection import Selection


def check_plan(plan: Plan, run: Run, selection: Selection) -> None:
    """Raise ConfigError if a plan has blocks that are none, a malformed phase, a useless window, or can freeze nothing.

    `selection`: what the config declares frozen.
    """
    parameters = {name for name, _ in run.model.named_parameters()}
    found = set[str]()
    for name in (name for names in plan.blocks.values() for name in names):
        if name not in parameters or name in found:
            what = "in two blocks" if name in found else "in a block, and is no parameter of the model"
            raise ConfigError(f"schedule returned a Plan in which {short_repr(name)} is {what}")
        found.add(name)
    for phase in plan.phases:
        check_phase(phase, plan, selection)
    if plan.observe and (not is_integer(plan.window) or not 1 <= plan.window < run.steps):
        raise ConfigError(
            f"schedule decides every {short_repr(plan.window)} steps what is frozen, but the run has {run.steps}; "
            "give a smaller number of steps, 1 or more"
        )
    if not plan.observe and selection.parameters and not any(phase.selection.parameters for phase in plan.phases):
        raise ConfigError(f"schedule: nothing would be frozen in the {run.steps} steps of the run; give more batches")


def check_phase(phase: Any, plan: Plan, selection: Selection) -> None:
    """Raise ConfigError unless `phase` is a Phase that freezes what is selected, with factors of blocks of the plan."""
    if not isinstance(phase, Phase):
        raise ConfigError(f"schedule: observe returned a {type(phase).__name__}; it must return a Phase, or None")
    for name, parameter in phase.selection.parameters.items():
        if parameter not in selection:
            raise ConfigError(f"schedule: the phase at step {phase.first} freezes {name}, which freeze does not select")
    for block, factor in phase.factors.items():
        if block not in plan.blocks:
            raise ConfigError(f"schedule: the phase at step {phase.first} has a factor for {block}, which is no block")
        is_number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
        if not callable(factor) and not (is_number and 0 <= factor < inf):
            raise ConfigError(f"schedule: the factor of {block} is {short_repr(factor)}; give a number of 0 or more")
