"""Price one training step of any model: what it costs, why freezing saves little, and what other frozen sets would save."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from runner.contract import COUNTED, Cost
from runner.cost.answers import LITTLE, FrozenPart, explain_cost, explain_small_saving, flops_computed_again
from runner.cost.blocks import Block, blocks_in_order
from runner.cost.copies import ModelCopy, count_step
from runner.cost.flops import StepCount
from runner.cost.shares import bytes_held, costs_of_count, shares_of_unfrozen, state_per_byte, total_bytes
from runner.cost.slower import why_slower
from runner.display.units import bytes_text, flops_text, percent_text
from runner.errors import ConfigError, listed
from runner.freezing.covering import covering_names
from runner.freezing.selection import Selection, select, select_by_flags
from runner.freezing.words import FOR_AUDIT
from runner.tensors import tensor_entries
from runner.training.loop import Task
from runner.training.tasks.given import given_task
from runner.training.tasks.losses import LossFunction

MOST_TRIED, MOST_NAMED = 8, 3  # frozen sets that are tried, and those of them that are named
MEMORY = {"saved_bytes": "saved activations", "gradient_bytes": "gradients", "optimizer_state_bytes": "optimizer state"}
LEAST_SURPRISE = 0.2  # by which more of a cost is left than of the weights, so that the reason is said
MANY = 0.5  # share of the activations, from which on the reason is said
LEAST_DIFFERENCE = 0.01  # of the FLOPs of training everything, by which a saving must be larger to be named


@dataclass(frozen=True)
class Saving:
    """What a step would cost if other layers were frozen.

    Attributes:
        patterns: what to freeze: the first layers in the order of the forward pass.
        flops_share, saved_bytes_share: the cost of a step, relative to training everything; the second may be None.
    """

    patterns: tuple[str, ...]
    flops_share: float
    saved_bytes_share: float | None

    def __str__(self) -> str:
        """The saving, with the argument that `select`, `audit` and `price` take."""
        return f"{percent_text(self.flops_share):>6} with frozen={list(self.patterns)}"


@dataclass(frozen=True)
class Price:
    """What a training step costs.

    Attributes:
        cost: {name: FLOPs, bytes or share}: the costs of `run.json`, without those of time; what is unknown is None.
        why_small: why freezing saves few FLOPs; "" if it saves more than 10%, or nothing is frozen.
        savings: what other frozen sets would cost, the cheapest first; at most three.
        trains: how many parameters are trained, and how many there are.
        frozen_share: how much of the model's elements is frozen.
        why_cost: why backward and its memory cost what they do although something is frozen; "" if nothing is.
        why_slower: what takes time in each step besides FLOPs, such as hooks.
        notes: what could not be counted.
    """

    cost: Cost
    why_small: str
    savings: tuple[Saving, ...]
    trains: tuple[int, int]
    frozen_share: float
    why_cost: str = ""
    why_slower: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What a person reads, in under ten lines."""
        return "\n".join(filter(None, (self._step(), self._memory(), *self._answers(), self._others(), *self.notes)))

    def _step(self) -> str:
        """Return the line about the FLOPs of a step."""
        if self.cost["flops_forward"] is None:
            return "a step: its FLOPs are not known"
        flops = self.cost["flops_forward"] + self.cost["flops_backward"]
        parts = [f"{part} {_share(self.cost, f'flops_{part}')}" for part in ("forward", "backward")]
        return f"a step: {flops_text(flops)}, {_share(self.cost, 'flops')} of training everything ({', '.join(parts)})"

    def _memory(self) -> str:
        """Return the line about the memory of a step."""
        known = {key: name for key, name in MEMORY.items() if self.cost.get(key) is not None}
        parts = [f"{name} {bytes_text(self.cost[key])} ({_share(self.cost, key)})" for key, name in known.items()]
        parameters = bytes_text(self.cost["parameter_bytes"])
        return f"memory: {listed(parts)}; parameters {parameters}, which freezing leaves as they are"

    def _answers(self) -> Iterator[str]:
        """Yield what to know where memory did not fall, or a step is no faster."""
        if self.trains[0] == self.trains[1]:
            yield "nothing is frozen"
        if self.why_small:
            yield f"no faster: {self.why_small}"
        elif self._is_surprising("flops"):
            frozen, left = percent_text(self.frozen_share), _share(self.cost, "flops")
            why = f"; {self.why_cost}" if self._is_surprising("flops_backward") else ""
            yield f"{frozen} of the weights are frozen, {left} of the FLOPs are left: forward still computes them{why}"
        if self.why_slower:
            yield f"slower than its FLOPs: {'; '.join(self.why_slower)}"
        kept = {"frozen_gradient_bytes": "gradients", "frozen_optimizer_state_bytes": "optimizer state"}
        are_many = self._is_surprising("saved_bytes") and self.cost["saved_bytes_share"] >= MANY
        parts = [self._activations()] if are_many else []
        if held := [f"{bytes_text(self.cost[key])} of {what}" for key, what in kept.items() if self.cost.get(key)]:
            fix = "set p.grad = None for them, and make the optimizer without them"
            parts.append(f"{listed(held)} of frozen parameters are still there; {fix}")
        if parts:
            yield f"memory did not fall: {'; '.join(parts)}" if held else f"memory fell little: {parts[0]}"

    def _activations(self) -> str:
        """Return why activations are saved for backward although something is frozen."""
        why = "the frozen part saves little for backward" if self.why_cost == LITTLE else self.why_cost
        told = ", for the same reason" if why == self.why_small else f" ({why})"
        return f"{_share(self.cost, 'saved_bytes')} of the activations are still saved{told}"

    def _is_surprising(self, key: str) -> bool:
        """Return whether much more of a cost is left than the share of the weights that train."""
        share = self.cost.get(f"{key}_share")
        return bool(self.why_cost) and share is not None and share >= 1 - self.frozen_share + LEAST_SURPRISE

    def _others(self) -> str:
        """Return the lines about other frozen sets."""
        return "\n".join(["freezing other layers would take", *map(str, self.savings)]) if self.savings else ""


def price(
    model: nn.Module,
    batch: Any,
    loss: LossFunction | None = None,
    frozen: Selection | Sequence[str] | None = None,
    *,
    task: Task | None = None,
    optimizer: Optimizer | None = None,
) -> Price:
    """Return what a training step of the model costs, counted on copies without values; the model stays as it is.

    FLOPs are those of matrix products, convolutions and attention. Raises ConfigError (a ValueError) for bad arguments, and
    if the batch, the model and the loss do not go together.

    Args:
        model: the model, on any device; parameters without `requires_grad` count as frozen.
        batch: one batch, on the model's device: any nesting of tensors.
        loss: a function (output, target), such as `nn.CrossEntropyLoss()`. None: as by `task.loss=auto`, the model's own or
            the cross entropy.
        frozen: patterns, or what `select` returns: what would be frozen besides. None: what the flags say.
        task: a function (model, batch) -> loss, in place of `loss`.
        optimizer: the optimizer of the model, for the bytes of its state.
    """
    _check_arguments(model, optimizer)
    task = given_task(loss, task)
    selection = _as_selection(model, frozen, batch, task)
    trainable = {name for name, _ in model.named_parameters()} - selection.parameters.keys()
    count = partial(_count, model, task, batch)
    counted, baseline = count(trainable), count()
    cost = _cost(counted, list(model.parameters()), selection, optimizer)
    cost |= shares_of_unfrozen(cost, baseline, state_per_byte(optimizer) if optimizer is not None else None)
    unknown = (*counted.unpriced, *counted.unmeasured)
    frozen_part = FrozenPart.of(tensor_entries(model), selection)
    return Price(
        cost=cost,
        why_small=explain_small_saving(cost.get("flops_share"), counted, frozen_part),
        savings=() if unknown else _savings(model, count, baseline, cost),
        trains=(len(trainable), len(trainable) + len(selection.parameters)),
        frozen_share=frozen_part.share,
        why_cost=explain_cost(counted, frozen_part) if frozen_part.names else "",
        why_slower=tuple(why_slower(model, selection, optimizer, flops_computed_again(counted, frozen_part))),
        notes=(f"not counted: {listed(unknown)}",) if unknown else (),
    )


def _check_arguments(model: object, optimizer: object) -> None:
    """Raise ConfigError if one of these is not what it has to be."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise ConfigError(f"optimizer is a {type(optimizer).__name__}; give one torch optimizer")


def _as_selection(model: nn.Module, frozen: Selection | Sequence[str] | None, batch: Any, task: Task) -> Selection:
    """Return the parameters that are frozen: by their flags, and those that `frozen` names."""
    if frozen is None:
        return select_by_flags(model)
    if not isinstance(frozen, Selection):
        frozen = select(model, frozen, batch=batch, task=task, words=FOR_AUDIT)
    named = model.named_parameters()
    return Selection(parameters={name: each for name, each in named if each in frozen or not each.requires_grad})


def _count(model: nn.Module, task: Task, batch: Any, trainable: Collection[str] | None = None) -> StepCount:
    """Return the FLOPs and memory of a step in which these parameters have gradients; None: all that can."""
    copied = ModelCopy.unfrozen(model)
    if trainable is not None:
        for name, parameter in copied.model.named_parameters():
            parameter.requires_grad_(name in trainable)
    return count_step(copied, task, batch)


def _cost(counted: StepCount, parameters: Sequence[Tensor], selection: Selection, optimizer: Optimizer | None) -> Cost:
    """Return the FLOPs of a step, the bytes that it keeps, and those that are kept now of what is frozen."""
    kept = [each.grad for each in parameters if each in selection and each.grad is not None]
    cost: Cost = costs_of_count(counted, {}) | {"parameter_bytes": total_bytes(parameters)}
    cost |= {
        "gradient_bytes": counted.gradient_bytes,
        "frozen_gradient_bytes": total_bytes(kept),
        "optimizer_state_bytes": None,
    }
    if optimizer is not None and optimizer.state:
        held = bytes_held(parameters, optimizer, selection)
        cost |= {key: held[key] for key in ("optimizer_state_bytes", "frozen_optimizer_state_bytes")}
    return cost


def _savings(
    model: nn.Module, count: Callable[[Collection[str]], StepCount], baseline: StepCount, cost: Cost
) -> tuple[Saving, ...]:
    """Return what a step would cost if the first blocks were frozen, up to each of several places, the cheapest first.

    `count`: returns the count of a step in which these parameters train. Named are those that are cheaper than `cost`, the
    costs of the model as it is. The last block that may train is never frozen.
    """
    may_train = {name for name, each in model.named_parameters() if each.requires_grad}
    blocks = [each for each in blocks_in_order(model, baseline.parameter_order) if not may_train.isdisjoint(each.parameters)]
    places = range(1, len(blocks))
    stride = -(-len(places) // MOST_TRIED) or 1
    found = []
    for place in places[::-1][::stride]:
        patterns, trainable = _split(blocks, place)
        other = dict.fromkeys(COUNTED) | costs_of_count(count(may_train & trainable), {})
        shares = shares_of_unfrozen(other, baseline, None)
        if "flops_share" in shares and shares["flops_share"] < cost.get("flops_share", 1) - LEAST_DIFFERENCE:
            found.append(Saving(patterns, shares["flops_share"], shares.get("saved_bytes_share")))
    return tuple(sorted(found, key=lambda each: each.flops_share)[:MOST_NAMED])


def _split(blocks: Sequence[Block], place: int) -> tuple[tuple[str, ...], set[str]]:
    """Return (patterns for the blocks before a place, the names of the parameters of the others)."""
    frozen, trainable = ({name for block in part for name in block.parameters} for part in (blocks[:place], blocks[place:]))
    return tuple(covering_names([name for block in blocks for name in block.parameters], frozen)), trainable


def _share(cost: Mapping[str, Any], key: str) -> str:
    """Return a share of training everything as a percentage; `?` if it is not known."""
    return percent_text(cost.get(f"{key}_share")) or "?"
