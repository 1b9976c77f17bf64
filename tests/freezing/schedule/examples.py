"""A model of four like layers and a head, and what schedules say of it."""

from __future__ import annotations

from typing import Any

from torch import nn

from runner.freezing.phases.phase import Phase, Plan, Run, Values
from runner.freezing.selection import Selection, select

LAYERS = ("0", "1", "2", "3")


def net() -> nn.Sequential:
    """Return four layers, `0` to `3`, and a head, `4`."""
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))


def ask(schedule: Any, steps: int = 100, frozen: tuple[str, ...] = LAYERS, seed: int = 0, **keys: Any) -> Plan:
    """Return the plan that a schedule makes for a run of `net` that declares these layers frozen; 10 steps are a pass."""
    model = net()
    run = Run(model, steps, steps_a_pass=10, seed=seed, is_length_known=keys.pop("is_length_known", True))
    return schedule(select(model, list(frozen)), run, **keys)


def trained(phase: Phase) -> str:
    """Return the numbers of the layers of which a phase freezes nothing: `34`."""
    return "".join(name for name in (*LAYERS, "4") if f"{name}.weight" not in phase.selection.parameters)


def timetable(plan: Plan) -> list[tuple[int, str]]:
    """Return (first step, the layers that train) of each phase."""
    for phase in plan.phases:
        frozen = phase.selection.parameters
        assert all((f"{name}.weight" in frozen) == (f"{name}.bias" in frozen) for name in LAYERS)
    return [(phase.first, trained(phase)) for phase in plan.phases]


def frozen_in(selection: Selection) -> set[str]:
    """Return the layers of which something is selected."""
    return {name.partition(".")[0] for name in selection.parameters}


def values(changes: dict[str, float], loss: float = 1.0, gradients: dict[str, float] | None = None) -> Values:
    """Return what a schedule is told; all weights have the norm 1."""
    return Values(loss, dict.fromkeys(changes, 1.0), changes, gradients or {})
