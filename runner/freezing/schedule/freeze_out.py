"""The schedule `freeze_out`: each block's learning rate anneals to 0 on a cosine of its own; then the block is frozen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil, cos, pi
from typing import Any

from runner.errors import ConfigError
from runner.freezing.phases.blocks import selected_blocks
from runner.freezing.phases.phase import Phase, Plan, Run
from runner.freezing.phases.restriction import freezer, is_all, require_several
from runner.freezing.phases.spans import check_choice, check_number, drops, require_length
from runner.freezing.selection import Selection

HOW: dict[str, Callable[[float], float]] = {"linear": lambda t: t, "cubic": lambda t: t**3}


def freeze_out(
    selection: Selection,
    run: Run,
    *,
    blocks: Any = "auto",
    how: str = "cubic",
    t0: float = 0.8,
    scaled: bool = True,
    state: str = "keep",
) -> Plan:
    """Return a plan that anneals and freezes the blocks of the selection one after another, from the input up.

    Block i of n trains for a share of the run that rises evenly from `t0` (the first block) to 1 (what trains throughout:
    what is not selected, or else the last block); `how="cubic"` takes the third power of these shares. Its learning rate is
    the scheduled one times `(1 + cos(pi * t / share)) / 2`, where t is the share of the run that has passed. `scaled`
    divides it by the share, so that all blocks get the same sum of rates. Raises ConfigError for bad arguments.
    Source: Brock et al. 2017, arXiv:1706.04983 (FreezeOut)
    """
    cut = selected_blocks(run.model, selection, blocks)
    check_choice(how, "schedule.how", tuple(HOW))
    if check_number(t0, "schedule.t0", least=0, exclusive=True) >= 1:
        raise ConfigError(f"schedule.t0 is {t0}, with which no block is frozen before the end; give a number below 1")
    require_length(run, "schedule")
    last = len(cut) - is_all(selection, run.model)  # the place of what trains throughout
    require_several(cut, last, "schedule=freeze_out")
    shares = {name: HOW[how](t0 + (1 - t0) * place / last) for place, name in enumerate(cut)}
    begins = {name: ceil(round(share * run.steps, 9)) + 1 for name, share in shares.items()}  # the first step frozen
    factors = {name: partial(annealed, share=share, steps=run.steps, scaled=scaled) for name, share in shares.items()}
    frozen_only = freezer(selection, run.model)
    in_blocks = {parameter for names in cut.values() for parameter in names}
    firsts = sorted({1, *(begin for begin in begins.values() if begin <= run.steps)})
    trained = [{each for name in cut if begins[name] > first for each in cut[name]} for first in firsts]
    turns = zip(firsts, trained, strict=True)
    phases = [Phase(first, frozen_only(in_blocks - names), factors=factors) for first, names in turns]
    return Plan(phases, cut, drops_state=drops(state))


def annealed(step: int, *, share: float, steps: int, scaled: bool) -> float:
    """Return the factor of a block at a step: half a cosine that ends at 0 when a `share` of the run's steps has passed."""
    passed = min((step - 1) / steps / share, 1.0)
    return (1 + cos(pi * passed)) / 2 / (share if scaled else 1)
