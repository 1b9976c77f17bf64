"""A small model that takes the place of a real one in a rehearsal: for each tensor it has a stand-in of a few elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from runner.foresight.effects import Effect
from runner.freezing.groups import Group
from runner.freezing.phases.phase import Blocks, Phase
from runner.freezing.selection import Selection
from runner.tensors import TensorEntry


class StandInModel(nn.Module):
    """A small model for simulating a training: for each tensor of the real model it has a stand-in of a few elements.

    Attributes:
        stand_in_of: {id of a tensor of the real model: its stand-in}.
        initial_of: {id of a tensor of the real model: copy of its stand-in's initial values}.
        by_name: {name of a tensor of the real model: its stand-in}.
        name_of: {name of a stand-in: name of the tensor of the real model}. Stand-ins are numbered: names of the real model
            have dots, which would mean submodules, and any other character.
    """

    def __init__(self, model_entries: Mapping[str, TensorEntry]) -> None:
        super().__init__()
        self.stand_in_of: dict[int, Tensor] = {}
        self.initial_of: dict[int, Tensor] = {}
        self.by_name: dict[str, Tensor] = {}
        self.name_of: dict[str, str] = {str(number): name for number, name in enumerate(model_entries)}
        for number, (name, entry) in zip(self.name_of, model_entries.items(), strict=True):
            values = _few_elements(entry.tensor.detach())
            registry: Any = self._parameters if entry.kind == "parameter" else self._buffers
            stand_in = nn.Parameter(values) if entry.kind == "parameter" and values.is_floating_point() else values
            self.initial_of[id(entry.tensor)] = values.clone()
            registry[number] = stand_in
            self.stand_in_of[id(entry.tensor)] = self.by_name[name] = stand_in

    def forward(self, step: int, effect: Effect) -> Tensor:
        """Return a loss that gives the same parameters a gradient as a real batch does.

        The loss is half the squared distance of the stand-in parameters to a random point; `step` is the random seed.
        `effect`: what a real batch does. A parameter to which a real batch gives no gradient is left out of the loss. If all
        elements of its gradient are 0, they are 0 here too. The stand-ins of the tensors in `effect.written` are changed.
        """
        generator = torch.Generator().manual_seed(step)
        terms = [torch.zeros((), requires_grad=True)]
        for tensor_id, stand_in in self.stand_in_of.items():
            if effect.gradients.get(tensor_id, "untouched") != "untouched" and stand_in.requires_grad:
                target = self.initial_of[tensor_id] + torch.randn(stand_in.shape, generator=generator).to(stand_in)
                weight = 0.0 if effect.gradients[tensor_id] == "zero" else 0.5
                terms.append(weight * (stand_in - target).abs().square().sum().float().cpu())
        with torch.no_grad():
            for name in effect.written & self.by_name.keys():
                value = self.by_name[name]
                value.copy_(~value if value.dtype is torch.bool else value + value.abs() + 1)
        return torch.stack(terms).sum()

    def map_selection(self, selection: Selection) -> Selection:
        """Return a copy of `selection` in which stand-ins replace the parameters and buffers, and which has no modules."""
        selected = {id(each) for each in (*selection.parameters.values(), *selection.buffers.values())}
        frozen = {id(self.stand_in_of[each]) for each in selected & self.stand_in_of.keys()}
        parameters, buffers = (
            {name: each for name, each in named if id(each) in frozen}
            for named in (self.named_parameters(), self.named_buffers())
        )
        return replace(selection, parameters=parameters, buffers=buffers, modules={}, names=frozenset())

    def map_blocks(self, blocks: Blocks, model_entries: Mapping[str, TensorEntry]) -> dict[int, str]:
        """Return {id of a stand-in: the block of its parameter}; `model_entries`: the tensors of the real model, by name."""
        block_of = {id(model_entries[name].tensor): block for block, names in blocks.items() for name in names}
        return {id(each): block_of[key] for key, each in self.stand_in_of.items() if key in block_of}

    def map_groups(self, groups: Sequence[Group]) -> list[Group]:
        """Return copies of the optimizer's parameter groups that have stand-ins in place of the real parameters."""
        return [
            {**group, "params": [self.stand_in_of[id(p)] for p in group["params"] if id(p) in self.stand_in_of]}
            for group in groups
        ]


def _few_elements(tensor: Tensor) -> Tensor:
    """Return a small tensor with copies of a few elements; each dimension has the size of the original, but at most 2.

    The elements are the first ones of the flattened tensor. If one of these first elements is 0, and the tensor has any
    element that is not 0, the elements of largest absolute value are taken instead.
    """
    shape = _cut_shape(tensor)
    flat, count = tensor.reshape(-1), shape.numel()
    chosen = flat[:count]
    if _has_nonzero(tensor) and not bool(chosen.all()):
        chosen = flat[(flat if flat.is_complex() else flat.float()).abs().topk(count).indices]
    return chosen.reshape(shape).clone()


def _cut_shape(tensor: Tensor) -> torch.Size:
    """Return the tensor's shape with every size above 2 replaced by 2."""
    return torch.Size(min(2, size) for size in tensor.shape)


def _has_nonzero(tensor: Tensor) -> bool:
    """Return whether any element of the tensor is not 0.

    To save time, the whole tensor is read only if its first 64 elements are all 0.
    """
    flat = tensor.detach().reshape(-1)
    return bool(flat[:64].any()) or bool(flat.any())


def group_equivalent(
    model_entries: Mapping[str, TensorEntry], phases: Sequence[Phase], effects: Sequence[Effect]
) -> dict[str, list[TensorEntry]]:
    """Group the tensors for which a simulated training gives the same result, so that one stand-in serves a whole group.

    Returns {name of the group's first tensor: all tensors of the group}. `model_entries`: {name: tensor of the real model}.
    `phases`: spans of steps with the same frozen layers. `effects`: for each phase, which tensors get a gradient from a
    batch, and which ones the forward pass changes.

    A stand-in is a small tensor that takes the place of a real one in the simulation. All tensors of a group are of the same
    kind (parameter or buffer), have the same dtype, and get stand-ins of the same shape. A tensor of zeros only is never in
    a group with one that has other values. In each phase, all tensors of a group are frozen or none is, all are in the same
    parameter group of the optimizer, and `effects` says the same of all.
    """
    group_names = [{id(p): group["name"] for group in phase.groups for p in group["params"]} for phase in phases]
    equivalents: dict[Any, list[TensorEntry]] = {}
    for name, entry in model_entries.items():
        tensor, tensor_id = entry.tensor, id(entry.tensor)
        of_each_phase = zip(
            (tensor in phase.selection or name in phase.selection.buffers for phase in phases),
            (names.get(tensor_id) for names in group_names),
            (effect.gradients.get(tensor_id) for effect in effects),
            (name in effect.written for effect in effects),
            strict=True,
        )
        key = (entry.kind, tensor.dtype, _cut_shape(tensor), _has_nonzero(tensor), *of_each_phase)
        equivalents.setdefault(key, []).append(entry)
    return {members[0].name: members for members in equivalents.values()}
