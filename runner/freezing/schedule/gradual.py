"""The schedule `gradual`: unfreeze block by block from the head down, or freeze block by block from the input up."""

from __future__ import annotations

from typing import Any

from runner.freezing.phases.blocks import selected_blocks
from runner.freezing.phases.phase import Phase, Plan, Run
from runner.freezing.phases.restriction import freezer, is_all, require_several
from runner.freezing.phases.spans import check_number, drops, first_steps
from runner.freezing.selection import Selection

RATE_DECAY = 2.6  # of ULMFiT


def gradual(
    selection: Selection,
    run: Run,
    *,
    every: Any = None,
    blocks: Any = "auto",
    rate_decay: float | None = None,
    reverse: bool = False,
    state: str = "keep",
) -> Plan:
    """Return a plan that freezes the selection and thaws its blocks one by one, from the one nearest to the head down.

    With `reverse`, nothing is frozen at first, and the blocks are frozen one by one from the input up. Each phase lasts
    `every` steps. A block `n` places below the head trains at the scheduled rate divided by `rate_decay` to the power of
    `n` (None: 2.6, or 1 with `reverse`). If everything is selected, the block nearest to the head trains throughout.
    What is selected and in no block stays frozen; with `reverse`, it trains.
    Raises ConfigError for bad arguments, and if the selection is not divided into blocks.
    Source: Howard and Ruder 2018, arXiv:1801.06146 (ULMFiT); reversed: Raghu et al. 2017, arXiv:1706.05806 (freeze training)
    """
    cut = selected_blocks(run.model, selection, blocks)
    frozen_only, names = freezer(selection, run.model), list(cut)
    decay = (1.0 if reverse else RATE_DECAY) if rate_decay is None else rate_decay
    check_number(decay, "schedule.rate_decay", least=1)
    most = len(names) - is_all(selection, run.model)  # blocks that are frozen at once
    require_several(cut, most, "schedule=gradual")
    nearest = int(not is_all(selection, run.model))  # how far the last block is from the part that trains throughout
    factors = {name: float(decay) ** -(nearest + place) for place, name in enumerate(reversed(names))} if decay != 1 else {}
    counts = [*range(most + 1)] if reverse else [*range(most, -1, -1)]
    held = {parameter for name in names for parameter in cut[name]} if reverse else selection.parameters.keys()
    thawed = [{parameter for name in names[count:] for parameter in cut[name]} for count in counts]
    return Plan(
        [
            Phase(first, frozen_only(held - trained), factors=factors)
            for first, trained in zip(first_steps(len(counts), every, run), thawed, strict=True)
        ],
        cut,
        drops_state=drops(state),
    )
