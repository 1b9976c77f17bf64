"""Why freezing saves little, by where most of what the frozen part computes stands in the forward pass."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from torch import Tensor

from runner.contract import WhySmall
from runner.cost.flops import StepCount
from runner.freezing.resolver import owner_of
from runner.tensors import TensorEntry

SMALL_SAVING = 0.9  # share of an unfrozen run's FLOPs; from here on `why_small` is filled in
COMPUTED: Final[WhySmall] = "the gradients of what is frozen are computed all the same"
LITTLE: Final[WhySmall] = "the frozen part computes little"
AT_END: Final[WhySmall] = "the frozen part is at the end: backward still runs through it"
BETWEEN: Final[WhySmall] = "what trains begins before the frozen part: backward still runs through it"
THROUGH: Final[WhySmall] = "the input of the frozen part requires a gradient: backward runs through it"


@dataclass(frozen=True)
class FrozenPart:
    """What is frozen of a model.

    Attributes:
        names: the names of the frozen parameters, also the other names of tied ones.
        share: their share of the model's weights, from 0 to 1.
    """

    names: frozenset[str]
    share: float

    @classmethod
    def of(cls, entries: Mapping[str, TensorEntry], frozen: Container[Tensor]) -> FrozenPart:
        """Return the part of a model that has these tensors; `frozen`: a Selection."""
        parameters = [entry for entry in entries.values() if entry.kind == "parameter"]
        chosen = [entry for entry in parameters if entry.tensor in frozen]
        weights, of_frozen = (sum(entry.tensor.numel() for entry in each) for each in (parameters, chosen))
        return cls(frozenset(name for entry in chosen for name in entry.names), of_frozen / weights if weights else 0.0)


def explain_small_saving(flops_share: float | None, counted: StepCount, frozen: FrozenPart) -> WhySmall | Literal[""]:
    """Return a clause that says why freezing saves few FLOPs.

    Returns "" if freezing saves more than 10% of the FLOPs, if the saving is not known, or if nothing is frozen.
    `flops_share`: the FLOPs of a step, relative to training everything. `counted`: the count of that step.
    """
    is_small = flops_share is not None and flops_share >= SMALL_SAVING and bool(frozen.names)
    return explain_cost(counted, frozen) if is_small else ""


def explain_cost(counted: StepCount, frozen: FrozenPart) -> WhySmall:
    """Return a clause that says why a step costs what it does although something is frozen.

    If backward does not run through the frozen part, that computes little of the step. A layer with several names counts at
    each of them: a weight that a frozen embedding shares with the head is used at the end.
    """
    if not frozen.names.isdisjoint(counted.gradients):
        return COMPUTED
    order = list(counted.parameter_order)
    trained = [place for place, name in enumerate(order) if name not in frozen.names] or [len(order)]
    places = {owner_of(name): place for place, name in reversed(list(enumerate(order))) if name in frozen.names}
    before = {owner for owner, place in places.items() if place < trained[0]}
    behind = places.keys() - before
    through = before.intersection(counted.backward_through)
    of_before, of_behind, of_through = (_flops_of(part, counted.flops_by_module) for part in (before, behind, through))
    if behind and of_behind >= of_before:
        return AT_END if min(places[owner] for owner in behind) > trained[-1] else BETWEEN
    return THROUGH if through and of_through > of_before / 2 else LITTLE


def flops_computed_again(counted: StepCount, frozen: FrozenPart) -> int:
    """Return the FLOPs of the forward passes of frozen layers that backward makes again (activation checkpointing)."""
    trained = {owner_of(name) for name in counted.parameter_order if name not in frozen.names}
    return _flops_of({owner_of(name) for name in frozen.names} - trained, counted.flops_again_by_module)


def _flops_of(modules: Collection[str], flops_by_module: Mapping[str, int]) -> int:
    """Return the FLOPs of these modules; those of a module in another one of them count once."""
    within = {name for name in modules if any(name.startswith(f"{other}.") for other in modules)}
    return sum(flops_by_module.get(name, 0) for name in set(modules) - within)
