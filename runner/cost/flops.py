"""Count the FLOPs and bytes of memory that one forward and backward pass of a model take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from runner.cost.operators.counter import OperatorCounter, OutlineCounter, memories_in
from runner.cost.operators.outline import Outline
from runner.tensors import tensor_entries, tensors_in
from runner.tracing import tracing
from runner.training.loop import Task

META, REAL = "a meta copy", "a real batch"


@dataclass(frozen=True)
class StepCount:
    """The FLOPs and memory that one forward and backward pass of a batch take.

    Attributes:
        flops_forward, flops_backward: floating-point operations in matrix products, convolutions and attention; other
            operations do not count.
        saved_bytes: bytes of the tensors that autograd saves for backward. Tensors that share memory count once. Parameters
            do not count, but a view of a parameter does, such as the transposed weight of a linear layer.
        gradient_bytes: bytes of all `.grad` tensors of parameters after backward.
        peak_bytes: bytes of the tensors made by forward and backward (gradients included), at the moment when these tensors
            take the most memory. Excludes memory that kernels use internally. Agrees with torch's profiler, which is slower.
        gradients: the names of the parameters that have a gradient after backward.
        parameter_order: the names of the parameters, in the order in which the forward pass calls their modules.
        flops_by_module: {module name: FLOPs of the module's forward pass, submodules included}; "" is the whole model.
        flops_again_by_module: the same of the forward passes that backward makes again, as activation checkpointing does.
        backward_through: the names of the modules whose output requires a gradient.
        unpriced: the names of operators that may multiply matrices, but whose FLOPs are not known and not contained.
        unmeasured: the names of operators that keep memory for backward which is not known (on fake tensors) nor contained.
        depends_on_values: whether values of tensors were read, or random numbers that may decide what runs, so that another
            batch of these shapes may take other FLOPs.
        counted_on: `a meta copy` (counted on fake tensors, which have no values) or `a real batch`.
    """

    flops_forward: int
    flops_backward: int
    saved_bytes: int
    gradient_bytes: int
    peak_bytes: int
    gradients: tuple[str, ...]
    parameter_order: tuple[str, ...]
    flops_by_module: Mapping[str, int]
    flops_again_by_module: Mapping[str, int]
    backward_through: tuple[str, ...]
    unpriced: tuple[str, ...]
    unmeasured: tuple[str, ...]
    depends_on_values: bool
    counted_on: str


@dataclass
class _Calls:
    """What the calls of modules show; modules are called in forward, and again in backward if they are checkpointed.

    Attributes:
        counter: counts the operators in each module.
        parameter_order: the names of the parameters, as an ordered set, in the order in which their modules are called.
        through: the names of the modules whose output requires a gradient, as an ordered set.
    """

    counter: OperatorCounter
    parameter_order: dict[str, None] = field(default_factory=dict)
    through: dict[str, None] = field(default_factory=dict)

    def begin(self, name: str, module: nn.Module, *_: Any) -> None:
        """Called before the forward pass of a module."""
        self.counter.enter_module(name)
        prefix = f"{name}." if name else ""
        self.parameter_order.update(dict.fromkeys(prefix + key for key, _ in module.named_parameters(recurse=False)))

    def end(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Called after it, with None as the output if it has raised."""
        self.counter.leave_module()
        if any(tensor.requires_grad for tensor in tensors_in(output)):
            self.through[name] = None


def run_and_count(model: nn.Module, task: Task, batch: Any, counted_on: str) -> StepCount:
    """Run forward and backward on the given model itself, not on a copy, and return their FLOPs and memory.

    `counted_on`: the constant META or REAL, for a model and batch without values or with them; only stored in the
    result.
    """
    model.zero_grad()
    parameters = dict(model.named_parameters())
    tensors = [entry.tensor for entry in tensor_entries(model).values()]
    existing = [*tensors, *tensors_in(batch)]
    counting = OutlineCounter if any(isinstance(each, Outline) for each in existing) else OperatorCounter
    calls = _Calls(counter := counting(existing, parameters.values()))
    with counter, tracing(model, calls.begin, calls.end, always_ends=True):  # checkpoints end passes with an exception
        with torch.autograd.graph.saved_tensors_hooks(counter.add_saved, lambda tensor: tensor):
            loss = task(model, batch)
        flops_forward, flops_by_module = counter.flops, dict(counter.flops_by_module)
        counter.flops_by_module.clear()
        if loss.requires_grad:
            loss.backward()
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    return StepCount(
        flops_forward=flops_forward,
        flops_backward=counter.flops - flops_forward,
        saved_bytes=counter.saved_bytes,
        gradient_bytes=sum(storage.nbytes() for storage in memories_in(gradients.values())),
        peak_bytes=counter.peak,
        gradients=tuple(gradients),
        parameter_order=tuple(calls.parameter_order),
        flops_by_module=flops_by_module,
        flops_again_by_module=dict(counter.flops_by_module),
        backward_through=tuple(calls.through),
        unpriced=tuple(sorted(counter.unpriced)),
        unmeasured=tuple(sorted(counter.unmeasured)) if counted_on == META else (),
        depends_on_values=counter.depends_on_values,
        counted_on=counted_on,
    )
