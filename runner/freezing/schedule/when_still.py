"""The schedule `when_still`: freeze the blocks that hardly move any more, and thaw them when the loss stalls."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from runner.freezing.phases.blocks import selected_blocks
from runner.freezing.phases.phase import Phase, Plan, Run, Values
from runner.freezing.phases.restriction import freezer, is_all
from runner.freezing.phases.spans import check_number, drops, steps_in
from runner.freezing.selection import Selection, nothing_of

TENTH = 0.1  # of the run


def when_still(
    selection: Selection,
    run: Run,
    *,
    window: Any = None,
    threshold: float = 0.01,
    stall: float = 0.001,
    blocks: Any = "auto",
    state: str = "keep",
) -> Plan:
    """Return a plan that freezes nothing at first, and is asked every `window` steps which blocks to freeze.

    A block is frozen when the norm of its change in a window is below `threshold` times its own norm. All blocks are thawed
    when the mean loss of a window is not below that of the window before by a share of `stall`. If everything is selected,
    the block that moves most goes on training. `window` None: a tenth of the run. Raises ConfigError for bad arguments.
    Source: after AutoFreeze (Liu et al. 2021, arXiv:2102.01386) and Egeria (Wang et al. 2023, arXiv:2201.06227)
    """
    cut = selected_blocks(run.model, selection, blocks)
    check_number(threshold, "schedule.threshold", least=0, exclusive=True)
    check_number(stall, "schedule.stall", least=0, most=1)
    frozen_only, must_train = freezer(selection, run.model), is_all(selection, run.model)

    def freezing(first: int, names: set[str]) -> Phase:
        return Phase(first, frozen_only({each for name in names for each in cut[name]}))

    return Plan(
        [Phase(1, nothing_of(selection))],
        cut,
        drops_state=drops(state),
        window=steps_in(TENTH if window is None else window, "schedule.window", run),
        observe=by_movement(freezing, threshold=threshold, stall=stall, must_train=must_train),
    )


def by_movement(
    freezing: Callable[[int, set[str]], Phase], *, threshold: float, stall: float, must_train: bool
) -> Callable[[int, Values], Phase | None]:
    """Return a function (step, values) that returns the phase that begins, or None if what is frozen stays the same.

    `must_train`: whether one block must go on training.
    """
    frozen: set[str] = set()
    last_loss = inf

    def observe(step: int, values: Values) -> Phase | None:
        nonlocal frozen, last_loss
        needed = stall * abs(last_loss) if last_loss < inf else 0.0
        stalls, last_loss = not values.loss < last_loss - needed, values.loss
        if frozen and stalls:
            frozen = set()
            return freezing(step + 1, frozen)
        moved = {name: values.changes[name] / (values.weights[name] or 1.0) for name in values.changes if name not in frozen}
        still = {name for name, change in moved.items() if change < threshold}
        if must_train and still == moved.keys():
            still.discard(max(moved, key=lambda name: moved[name]))
        if not still:
            return None
        frozen = frozen | still
        return freezing(step + 1, frozen)

    return observe
