"""What would move, before anything is trained: the run's optimizer, scheduler and method, rehearsed on a stunt double.

The double has a few elements for each tensor of the model. Its loss pulls at them as a batch pulled at the real ones, its
forward pass writes what the real one writes, and the audit watches it as it will watch the run.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.contract import Row
from runner.freezing.groups import Group, rate, regroup
from runner.freezing.schedule import Phase
from runner.freezing.selection import Selection
from runner.methods.base import FreezingMethod
from runner.proof.audit import audit
from runner.proof.changes import snapshot
from runner.proof.replay import couples_with, gradient
from runner.seeding import kept_random_state
from runner.tensors import Entry, entries, now, same_bits
from runner.training.loop import Step, train

IN_FULL = 32  # steps of a phase; of the others only the scheduler's are made, and one step at the highest rates
Task = Callable[[nn.Module, Any], Tensor]
Rates = dict[int, dict[str, float]]  # by the number of a step and the name of a group


@dataclass(frozen=True)
class Effect:
    """What a batch does to a model in one phase.

    `pulls` says, by a parameter's identity, what backward makes of its gradient: `present`, `zero`, `dropped` (set to
    None), and `untouched` where it is left as it was. `written`: names of the tensors that the forward pass writes.
    """

    pulls: Mapping[int, str] = field(default_factory=dict)
    written: frozenset[str] = frozenset()


@dataclass
class Rehearsal:
    """What became of the double: rows as of a run, under the real names; the groups' rates at each step; the scheduler.

    `couples`: the gradients of what is frozen change how the optimizer steps the rest (LBFGS).
    """

    phases: Sequence[Phase]
    rows: list[Row]
    rates: Rates
    scheduler: Any
    couples: bool


def effect_of_a_batch(model: nn.Module, parameters: Sequence[Tensor], task: Task, batch: Any) -> Effect:
    """What one batch does to gradients, which are put back, and what its forward pass writes, which the model keeps."""
    written: set[str] = set()

    def pull() -> None:
        before = snapshot(model)
        loss = task(model, batch)
        resolve = now(entries(model))
        for name, was in before.entries.items():
            after = resolve(was)
            if after is None or not same_bits(before.values[name], after):
                written.add(name)
        if loss.requires_grad:
            loss.backward()

    pulls = _pulls(parameters, pull)
    return Effect(pulls, frozenset(written))


def effect_of_flags(parameters: Sequence[Tensor]) -> Effect:
    """The same without a batch: what backward would do to each parameter by its flag and its hooks alone.

    Hooks are tried on a copy of one element, for they may be anybody's.
    """
    return Effect({id(p): _pull_of(p) if p.requires_grad else "untouched" for p in parameters})


def _pull_of(parameter: Tensor) -> str:
    if not (parameter._backward_hooks or parameter._post_accumulate_grad_hooks):
        return "present"
    copied = parameter.detach().reshape(-1)[:1].clone().requires_grad_()
    copied._backward_hooks = OrderedDict(parameter._backward_hooks or {})
    copied._post_accumulate_grad_hooks = OrderedDict(parameter._post_accumulate_grad_hooks or {})
    with kept_random_state():
        return _pulls([copied], lambda: copied.sum().backward())[id(copied)]


def _pulls(parameters: Sequence[Tensor], pull: Callable[[], None]) -> dict[int, str]:
    """Pull from no gradients, and again from zeros if that has to tell `dropped` from `untouched`; then put all back."""
    were = [parameter.grad for parameter in parameters]
    fresh = _pulled_from(parameters, lambda parameter: None, pull)
    found = {it: "untouched" if left == "none" else left for it, left in fresh.items()}
    if any(fresh[id(parameter)] == "none" and parameter.requires_grad for parameter in parameters):
        kept = _pulled_from(parameters, torch.zeros_like, pull)
        found.update({it: "dropped" for it, left in fresh.items() if left == kept[it] == "none"})
    for parameter, was in zip(parameters, were, strict=True):
        parameter.grad = was
    return found


def _pulled_from(
    parameters: Sequence[Tensor], start: Callable[[Tensor], Tensor | None], pull: Callable[[], None]
) -> dict[int, str]:
    for parameter in parameters:
        parameter.grad = start(parameter)
    pull()
    return {id(parameter): gradient(parameter) for parameter in parameters}


class Double(nn.Module):
    """A few elements of each tensor; `forward` gives the loss of a step, and writes what the model writes."""

    def __init__(self, found: Mapping[str, Entry]) -> None:
        super().__init__()
        self.of: dict[int, Tensor] = {}
        self.start: dict[int, Tensor] = {}
        self.named: dict[str, Tensor] = {}
        for name, entry in found.items():
            values = _some(entry.tensor.detach())
            registry: Any = self._parameters if entry.kind == "parameter" else self._buffers
            dummy = nn.Parameter(values) if entry.kind == "parameter" and values.is_floating_point() else values
            self.start[id(entry.tensor)] = values.clone()
            # Registered without dots, for the double has no modules within.
            self.of[id(entry.tensor)] = self.named[name] = registry[name.replace(".", "/")] = dummy

    def forward(self, step: int, effect: Effect) -> Tensor:
        """Half the squared distance to a point, another at each step, over what is pulled."""
        noise = torch.Generator().manual_seed(step)
        terms = [torch.zeros((), requires_grad=True)]
        for real, dummy in self.of.items():
            if effect.pulls.get(real, "untouched") != "untouched" and dummy.requires_grad:
                aim = self.start[real] + torch.randn(dummy.shape, generator=noise).to(dummy)
                force = 0.0 if effect.pulls[real] == "zero" else 0.5
                terms.append(force * (dummy - aim).abs().square().sum().float().cpu())
        with torch.no_grad():
            for name in effect.written & self.named.keys():
                value = self.named[name]
                value.copy_(~value if value.dtype is torch.bool else value + value.abs() + 1)
        return torch.stack(terms).sum()

    def stands_in(self, selection: Selection) -> Selection:
        """The selection of the doubles of what is selected."""
        parameters, buffers = (
            {name.replace(".", "/"): self.of[id(tensor)] for name, tensor in named.items() if id(tensor) in self.of}
            for named in (selection.parameters, selection.buffers)
        )
        return replace(selection, parameters=parameters, buffers=buffers, modules={})

    def groups(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the doubles of their parameters."""
        return [{**group, "params": [self.of[id(p)] for p in group["params"] if id(p) in self.of]} for group in groups]


def rehearse(
    found: Mapping[str, Entry],
    phases: Sequence[Phase],
    effects: Sequence[Effect],
    *,
    batches: int,
    method: FreezingMethod,
    build_optimizer: Callable[[list[Group]], Optimizer],
    build_scheduler: Callable[[Optimizer], Any],
    zero_grad_to_none: bool,
) -> Rehearsal:
    """Run the phases on a double of what was found in a model; a batch has `effects`, one for each phase.

    Draws no random state. Raises what the optimizer, scheduler or method raises.
    """
    method = copy.copy(method)  # one that keeps what it is attached to must not lose the real optimizer
    with kept_random_state(), ExitStack() as undo:
        classes = alike(found, phases, effects)
        double = Double({name: members[0] for name, members in classes.items()})
        optimizer = build_optimizer([dict(group) for group in double.groups(phases[0].groups)])
        frozen = double.stands_in(phases[0].selection)
        rates: Rates = {}
        put_back = ExitStack()  # the rates as the scheduler left them
        with audit(double, frozen, optimizer) as report:
            scheduler = build_scheduler(optimizer)
            for number, (phase, effect) in enumerate(zip(phases, effects, strict=True)):
                put_back.close()
                if number:
                    frozen = double.stands_in(phase.selection)
                    regroup(optimizer, double.groups(phases[number - 1].groups), double.groups(phase.groups))
                    report.freeze(frozen)
                method.attach(optimizer, frozen, undo)
                for real, dummy in double.of.items():
                    if effect.pulls.get(real) == "dropped":
                        undo.callback(dummy.register_post_accumulate_grad_hook(_drop).remove)
                last = phases[number + 1].first - 1 if number + 1 < len(phases) else batches
                play = partial(train, double, optimizer, _task(effect), zero_grad_to_none=zero_grad_to_none)
                rates |= _played(play, optimizer, scheduler, range(phase.first, last + 1), put_back=put_back)
        couples = False
        double.zero_grad()
        double(batches + 1, replace(effects[-1], written=frozenset())).backward()
        with suppress(Exception):  # a step that cannot be replayed tells nothing of it
            couples = couples_with(optimizer, list(frozen.parameters.values()))
    rows = _told(report.rows, found, classes)
    return Rehearsal(phases=phases, rows=rows, rates=rates, scheduler=scheduler, couples=couples)


def _told(rows: list[Row], found: Mapping[str, Entry], classes: Mapping[str, list[Entry]]) -> list[Row]:
    """What became of each tensor, which is what became of the double of its class."""
    fates = {row["name"].replace("/", "."): row for row in rows}
    fate_of = {entry.name: fates[name] for name, members in classes.items() for entry in members}
    return [{**fate_of[name], "name": name, "module_type": entry.module_type} for name, entry in found.items()]


def _played(
    play: Callable[..., Iterator[Step]], optimizer: Optimizer, scheduler: Any, numbers: range, *, put_back: ExitStack
) -> Rates:
    """Make the steps of these numbers; returns the groups' rates at each.

    Few steps are made in full. Of more, the scheduler alone is stepped to the end, and the optimizer once more at the
    highest rate that each group had meanwhile: what moves at any of them moves then. That rate stays until `put_back` is
    closed, for a leak that is found at the end is replayed for its cause.
    """
    in_full, others = numbers[:IN_FULL], numbers[IN_FULL:]
    rates = {step.number: step.lrs for step in play(in_full, scheduler=scheduler, first=numbers.start)}
    if scheduler is None or not others:
        return rates
    for number in others:
        rates[number] = {group["name"]: rate(group) for group in optimizer.param_groups}
        scheduler.step(*([0.0] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
    for group in (group for group in optimizer.param_groups if "lr" in group):
        put_back.callback(group.__setitem__, "lr", group["lr"])
        group["lr"] = max(rates[number][group["name"]] for number in others)
    for _ in play(others[-1:]):
        pass
    return rates


def _task(effect: Effect) -> Task:
    return lambda double, step: double(step, effect)


def _some(tensor: Tensor) -> Tensor:
    """The first elements, or the largest if those are 0, in a tensor of as many dimensions, each of two at most."""
    shape = [min(2, size) for size in tensor.shape]
    flat, count = tensor.reshape(-1), torch.Size(shape).numel()
    chosen = flat[:count]
    if _some_is_not_zero(tensor) and not bool(chosen.all()):
        chosen = flat[(flat if flat.is_complex() else flat.float()).abs().topk(count).indices]
    return chosen.reshape(shape).clone()


def _some_is_not_zero(tensor: Tensor) -> bool:
    flat = tensor.detach().reshape(-1)
    return bool(flat[:64].any()) or bool(flat.any())


def alike(found: Mapping[str, Entry], phases: Sequence[Phase], effects: Sequence[Effect]) -> dict[str, list[Entry]]:
    """What of a model fares alike, for one double to stand for it, by the name of the first."""
    placed = [{id(p): group["name"] for group in phase.groups for p in group["params"]} for phase in phases]
    alike: dict[Any, list[Entry]] = {}
    for name, entry in found.items():
        tensor, it = entry.tensor, id(entry.tensor)
        frozen = (tensor in phase.selection or name in phase.selection.buffers for phase in phases)
        fate = zip(
            frozen,
            (groups.get(it) for groups in placed),
            (effect.pulls.get(it) for effect in effects),
            (name in effect.written for effect in effects),
            strict=True,
        )
        shape = tuple(min(2, size) for size in tensor.shape)
        alike.setdefault((entry.kind, tensor.dtype, shape, _some_is_not_zero(tensor), *fate), []).append(entry)
    return {entries[0].name: entries for entries in alike.values()}


def _drop(parameter: Tensor) -> None:
    parameter.grad = None
