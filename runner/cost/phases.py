"""What a run did while the same was frozen, for each distinct set of what was frozen, and the costs of the run from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from runner.contract import COUNTED, Cost, WhySmall
from runner.cost.answers import FrozenPart, explain_small_saving
from runner.cost.batches import Shapes
from runner.cost.copies import ModelCopy
from runner.cost.flops import META, REAL, StepCount
from runner.cost.shares import Shares, costs_of_count, shares_of_unfrozen
from runner.display.units import bytes_text
from runner.freezing.selection import Selection
from runner.tensors import TensorEntry

PEAK_COUNTED = "tensors of forward and backward counted, without the scratch memory of kernels"
MOST_SETS = 64  # distinct sets of what is frozen in which steps are counted
MOST_BYTES = 2**28  # of the values in copies of the model; the first copy may always have its values

Entries = Mapping[str, TensorEntry]  # {name of a tensor: its entry}


@dataclass
class MeteredSet:
    """What a run did in all phases in which one set of parameters and modules was frozen.

    Attributes:
        selection: what is frozen.
        copied: a copy of the model before the first step of the first of these phases; None if there is none.
        fed: {shapes of a batch: number of such batches that were fed in these phases}.
        not_run: {module name: number of these batches for which the method skipped the module's forward pass}.
        ends: for each of these phases (bytes of gradients and optimizer state at its end, as `bytes_held` returns them, and
            bytes of state per byte of a parameter with state); ({}, None) if they are not known.
    """

    selection: Selection
    copied: ModelCopy | None = None
    fed: Counter[Shapes] = field(default_factory=Counter)
    not_run: Counter[str] = field(default_factory=Counter)
    ends: list[tuple[Cost, float | None]] = field(default_factory=list)

    @property
    def batches(self) -> int:
        """The number of batches that were fed while this set was frozen."""
        return self.fed.total()

    @property
    def skipped(self) -> Shares:
        """{module name: share of the batches, from 0 to 1, for which its forward pass was skipped}."""
        return {name: count / self.batches for name, count in self.not_run.items()}

    @property
    def held(self) -> Cost:
        """{name of a cost: bytes} of gradients and optimizer state at the end of a phase, of each the most."""
        return most_bytes([held for held, _ in self.ends])

    def peak_bytes(self, counted: StepCount) -> int | None:
        """Return the peak memory on a CPU, without buffers; None if it is not known.

        These are the bytes of parameters and optimizer state, plus the peak of a step with its batch, of which `counted` is
        the count. The sum excludes what the optimizer allocates within its step and what the freezing method keeps. It is a
        sum of tensor sizes, because the memory use that the operating system reports depends on what the process did before.
        """
        parameters, state = (self.held.get(key) for key in ("parameter_bytes", "optimizer_state_bytes"))
        if parameters is None or state is None or counted.unmeasured:
            return None
        return parameters + state + counted.peak_bytes


Counted = tuple[MeteredSet, StepCount]  # what was done while a set was frozen, and the count of a step then


def names_frozen(selection: Selection) -> frozenset[str]:
    """Return the names of the parameters that are frozen and of the modules in eval mode; equal if the same is frozen."""
    return frozenset((*selection.parameters, *selection.modules))


def most_bytes(costs: Sequence[Cost]) -> Cost:
    """Return {name of a cost: the most of several values}; None if one of them is not known."""
    most: Cost = {}
    for key in dict.fromkeys(key for cost in costs for key in cost):
        known = [cost[key] for cost in costs if cost.get(key) is not None]
        most[key] = max(known) if len(known) == len(costs) else None
    return most


def held_in_run(sets: Sequence[MeteredSet]) -> tuple[Cost, float | None]:
    """Return (most bytes at the end of a phase, bytes of state per byte of a parameter with state where most state was)."""
    ends = [end for each in sets for end in each.ends]
    _, per_byte = max(ends, key=lambda end: end[0].get("optimizer_state_bytes") or 0)
    return most_bytes([held for held, _ in ends]), per_byte


def costs_of_run(counts: Sequence[Counted], besides: int) -> Cost:
    """Return {name of a cost: FLOPs or bytes} of a run, from the count of a step in each of its sets.

    FLOPs are the mean over all batches of the run. Saved bytes and the peak memory on a CPU are those of the set in which
    they are most. A value is None if that of a set is not known. `besides`: bytes of buffers and of what a schedule keeps.
    """
    costs = [costs_of_count(counted, each.skipped) for each, counted in counts]
    batches = [each.batches for each, _ in counts]
    run = most_bytes(
        [
            {"saved_bytes": cost["saved_bytes"], "peak_memory_bytes": each.peak_bytes(counted)}
            for cost, (each, counted) in zip(costs, counts, strict=True)
        ]
    )
    if run["peak_memory_bytes"] is not None:
        run |= {"peak_memory_bytes": run["peak_memory_bytes"] + besides, "peak_memory_by": PEAK_COUNTED}
    for key in ("flops_forward", "flops_backward"):
        values = [cost[key] for cost in costs]
        total = None if None in values else sum(value * number for value, number in zip(values, batches, strict=True))
        run[key] = None if total is None else round(total / sum(batches))
    run["flops_counted_on"] = META if all(counted.counted_on == META for _, counted in counts) else REAL
    return run


def why_small_of_run(counts: Sequence[Counted], baseline: StepCount, entries: Entries) -> WhySmall | Literal[""]:
    """Return a clause that says why freezing saves few FLOPs: the reason of the set that was frozen in most steps.

    Returns "" if more than 10% are saved, in the run or in these steps, if that is not known, or if they freeze nothing.
    `baseline`: the count of a step with nothing frozen. `entries`: {name: entry} of the model's tensors.
    """
    most, counted = max(counts, key=lambda each: each[0].batches)
    costs = (dict.fromkeys(COUNTED) | costs_of_run(each, besides=0) for each in (counts, [(most, counted)]))
    shares = [share for cost in costs if (share := shares_of_unfrozen(cost, baseline, None).get("flops_share")) is not None]
    return explain_small_saving(min(shares, default=None), counted, FrozenPart.of(entries, most.selection))


def phase_notes(sets: Sequence[MeteredSet], extra_bytes: int) -> Iterator[str]:
    """Yield sentences about what the costs of a run leave out, and about the memory that its schedule takes."""
    if len(sets) > MOST_SETS:
        yield f"FLOPs and saved bytes are those of the first {MOST_SETS} of the {len(sets)} different sets that were frozen"
    if extra_bytes:
        yield f"the peak memory includes {bytes_text(extra_bytes)} for a copy of the weights, by which the schedule decides"
