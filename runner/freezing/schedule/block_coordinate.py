"""The schedule `block_coordinate`: train a few blocks at a time, in turn, and freeze the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from random import Random
from typing import Any

from runner.errors import ConfigError, is_integer
from runner.freezing.phases.blocks import selected_blocks
from runner.freezing.phases.phase import Blocks, Phase, Plan, Run, Values
from runner.freezing.phases.restriction import freezer
from runner.freezing.phases.spans import check_choice, drops, first_steps, steps_in
from runner.freezing.selection import Selection

BY = ("cyclic", "random", "gradient_norm")


def block_coordinate(
    selection: Selection,
    run: Run,
    *,
    every: Any = None,
    blocks: Any = "auto",
    at_once: int = 1,
    by: str = "cyclic",
    state: str = "drop",
) -> Plan:
    """Return a plan that trains `at_once` blocks of the selection for `every` steps, then others, and so on to the end.

    `by`: "cyclic" takes them from the input to the head, "random" in an order that the seed decides anew for each cycle.
    With "gradient_norm", each block trains once, and then those whose gradients had the largest norm when they last
    trained; the phases are found during the run. `every` None: so that each block trains once. What is in no block trains
    throughout.
    With `state="drop"`, only the blocks that train have optimizer state, if the method keeps the optimizer from stepping
    the others (as `requires_grad` does, and `zero_lr` does not). Raises ConfigError for bad arguments.
    Source: Luo et al. 2024, arXiv:2404.02827 (BAdam); Pan et al. 2024, arXiv:2403.17919 (LISA)
    """
    cut = selected_blocks(run.model, selection, blocks)
    check_choice(by, "schedule.by", BY)
    if not is_integer(at_once) or not 1 <= at_once < len(cut):
        most = f"at most {len(cut) - 1}" if len(cut) > 1 else "and let freeze select more than one block"
        raise ConfigError(f"schedule.at_once is {at_once!r}, of {len(cut)} blocks; give a number of 1 or more, {most}")
    frozen_only = freezer(selection, run.model)
    in_blocks = {parameter for names in cut.values() for parameter in names}

    def training(first: int, names: Sequence[str]) -> Phase:
        return Phase(first, frozen_only(in_blocks - {each for name in names for each in cut[name]}))

    a_cycle = -(-len(cut) // at_once)
    length = steps_in(every, "schedule.every", run) if every is not None else 0
    if length >= run.steps:
        raise ConfigError(
            f"schedule.every is {every!r}: the first of {len(cut)} blocks would train in all {run.steps} steps"
        )
    if by == "gradient_norm":
        window = length or first_steps(a_cycle, None, run)[1] - 1
        observe = by_gradient_norm(cut, at_once, training)
        return Plan([training(1, list(cut)[:at_once])], cut, drops_state=drops(state), window=window, observe=observe)
    firsts = first_steps(-(-run.steps // length) if length else a_cycle, every, run)
    turns = zip(firsts, in_turn(list(cut), at_once, Random(run.seed) if by == "random" else None), strict=False)
    return Plan([training(first, names) for first, names in turns], cut, drops_state=drops(state))


def in_turn(blocks: Sequence[str], at_once: int, random: Random | None) -> Iterator[list[str]]:
    """Yield the blocks that train in each phase, without end; `random` decides their order anew for each cycle."""

    def one_by_one() -> Iterator[str]:
        while True:
            yield from random.sample(blocks, len(blocks)) if random else blocks

    names = one_by_one()
    while True:
        turn = list(dict.fromkeys(islice(names, at_once)))
        while len(turn) < at_once:  # a cycle ended within it, and the next began with a block of the last
            turn = list(dict.fromkeys([*turn, next(names)]))
        yield turn


def by_gradient_norm(
    blocks: Blocks, at_once: int, training: Callable[[int, Sequence[str]], Phase]
) -> Callable[[int, Values], Phase | None]:
    """Return a function (step, values) that returns the phase that trains the blocks with the largest gradient norms.

    A block that has never trained comes first. The function returns None if these blocks train now.
    """
    norms: dict[str, float] = {}
    present = list(blocks)[:at_once]

    def observe(step: int, values: Values) -> Phase | None:
        nonlocal present
        # Not of frozen blocks: by some methods these have gradients, which are zeros, or the sum of those of many steps.
        norms.update({name: values.gradients.get(name, 0.0) for name in present})
        ranked = sorted(blocks, key=lambda name: norms.get(name, float("inf")), reverse=True)
        if set(ranked[:at_once]) == set(present):
            return None
        present = ranked[:at_once]
        return training(step + 1, present)

    return observe
