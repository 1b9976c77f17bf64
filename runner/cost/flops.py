"""Count the FLOPs and the memory of forward and backward on a copy of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet, finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from runner.seeding import preserve_random_state
from runner.tensors import map_tensors, tensor_entries, tensors_in
from runner.tracing import tracing

Task = Callable[[nn.Module, Any], Tensor]
META, REAL = "a meta copy", "a real batch"
ATTENTION_FORMULAS: dict[str, Callable[..., int]] = {  # CPU operators of aten that torch's counter does not know
    "_scaled_dot_product_flash_attention_for_cpu": lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
    "_scaled_dot_product_flash_attention_for_cpu_backward": (
        lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(gradient, query, key, value)
    ),
}


@dataclass(frozen=True)
class StepCount:
    """What forward and backward of one batch take.

    Attributes:
        flops_forward, flops_backward: floating-point operations of matrix products and convolutions, as torch counts them.
        saved_bytes: what autograd saves for backward, each storage once, without parameters; a view of a parameter counts,
            such as the transposed weight of a linear layer.
        gradient_bytes: of the gradients of parameters after backward.
        peak_bytes: the largest size at any time of all tensors that forward and backward create, gradients included, without
            the scratch memory of kernels. Agrees with torch's profiler, which needs half a second and prints lines.
        gradients: the names of the parameters that have a gradient after backward.
        parameter_order: the names of the parameters, in the order in which the forward pass calls their modules.
        flops_by_module: floating-point operations of the forward pass of each module with its submodules, by name.
        counted_on: `a meta copy` (on fake tensors, nothing is computed) or `a real batch`.
    """

    flops_forward: int
    flops_backward: int
    saved_bytes: int
    gradient_bytes: int
    peak_bytes: int
    gradients: tuple[str, ...]
    parameter_order: tuple[str, ...]
    flops_by_module: Mapping[str, int]
    counted_on: str


@dataclass(frozen=True)
class FakeCopy:
    """A copy of a model with fake tensors, which have device, dtype and shape but no values; keeps hooks, flags and ties.

    Operators select the same kernels as on real tensors, and compute nothing.
    Source: https://docs.pytorch.org/docs/stable/torch.compiler_fake_tensor.html
    """

    model: nn.Module
    mode: FakeTensorMode

    @classmethod
    def copy_of(cls, model: nn.Module) -> FakeCopy:
        """Copy a model; gradients are not copied."""
        mode = FakeTensorMode(allow_non_fake_inputs=True)  # the model may use tensors that it keeps outside its modules
        fakes = {id(entry.tensor): mode.from_tensor(entry.tensor) for entry in tensor_entries(model).values()}
        for fake in fakes.values():
            fake.grad = None
        return cls(copy.deepcopy(model, fakes), mode)

    def count(self, task: Task, batch: Any) -> StepCount:
        """Count one step on a batch with the shapes of this one."""
        with preserve_random_state(), _without_fused_attention(), self.mode:
            return _run_and_count(self.model, task, map_tensors(batch, self.mode.from_tensor), META)


def count_step(model: nn.Module, task: Task, batch: Any) -> StepCount:
    """Count one step of a model on a batch, without changing the model, its gradients or the random state.

    Counts on a fake copy if the model allows it, else on a real copy and the real batch, which takes time and memory.
    Source: https://github.com/pytorch/pytorch/blob/main/torch/utils/flop_counter.py,
    https://docs.pytorch.org/docs/stable/autograd.html#torch.autograd.graph.saved_tensors_hooks
    """
    try:
        return FakeCopy.copy_of(model).count(task, batch)
    except Exception:  # the forward pass may need values; any other error is raised again below
        with preserve_random_state(), _without_fused_attention():
            model_copy = copy.deepcopy(model)
            model_copy.zero_grad()
            return _run_and_count(model_copy, task, map_tensors(batch, Tensor.clone), REAL)


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """Disable torch's fused transformer layer for eval mode, whose FLOPs torch does not count."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


def _attention_formulas(aten: Any) -> dict[Any, Callable[..., int]]:
    """Return the formulas by operator; operators that this torch does not have are omitted, for their names are private."""
    found = {getattr(aten, name, None): formula for name, formula in ATTENTION_FORMULAS.items()}
    return {operator: formula for operator, formula in found.items() if operator is not None}


class _MemoryCounter(TorchDispatchMode):
    """Counts the bytes of all storages that operators create while they exist: `bytes` now, `peak` at most.

    `existing`: tensors whose storages are not counted.
    """

    def __init__(self, existing: Any) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.seen: WeakSet[torch.UntypedStorage] = WeakSet(storages_in(existing))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count the storages of its result that are new."""
        result = func(*args, **(kwargs or {}))
        for storage in storages_in(result):
            if storage not in self.seen:
                self.seen.add(storage)
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                finalize(storage, self.subtract, storage.nbytes()).atexit = False
        return result

    def subtract(self, size: int) -> None:
        """Subtract the bytes of a storage that has been freed."""
        self.bytes -= size


def storages_in(value: Any) -> Iterator[torch.UntypedStorage]:
    """Yield the storage of every tensor in nested dicts, lists and tuples; of a sparse one those of indices and values."""
    for tensor in tensors_in(value):
        if tensor.layout is torch.sparse_coo:
            yield from (tensor._indices().untyped_storage(), tensor._values().untyped_storage())
        elif tensor.layout is torch.strided:
            yield tensor.untyped_storage()


def _run_and_count(model: nn.Module, task: Task, batch: Any, counted_on: str) -> StepCount:
    """Run forward and backward of this model and count; `counted_on` is only stored in the result."""
    parameters = dict(model.named_parameters())
    parameter_ids = {id(parameter) for parameter in parameters.values()}
    saved: WeakSet[torch.UntypedStorage] = WeakSet()  # weak, because a reference would prolong the storage's life
    saved_sizes: list[int] = []
    parameter_order: dict[str, None] = {}  # used as an ordered set

    def record_saved(tensor: Tensor) -> Tensor:
        for storage in storages_in(tensor) if id(tensor) not in parameter_ids else ():
            if storage not in saved:
                saved.add(storage)
                saved_sizes.append(storage.nbytes())
        return tensor

    def record_order(name: str, module: nn.Module, *_: Any) -> None:
        prefix = f"{name}." if name else ""
        parameter_order.update(dict.fromkeys(prefix + key for key, _ in module.named_parameters(recurse=False)))

    existing = [entry.tensor for entry in tensor_entries(model).values()]
    formulas = _attention_formulas(torch.ops.aten)
    with FlopCounterMode(display=False, custom_mapping=formulas) as flops, _MemoryCounter([existing, batch]) as memory:
        with tracing(model, record_order), torch.autograd.graph.saved_tensors_hooks(record_saved, lambda tensor: tensor):
            loss = task(model, batch)
        flops_forward = flops.get_total_flops()
        flops_by_module = {name.partition(".")[2]: sum(ops.values()) for name, ops in flops.get_flop_counts().items()}
        if loss.requires_grad:
            loss.backward()
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    return StepCount(
        flops_forward=flops_forward,
        flops_backward=flops.get_total_flops() - flops_forward,
        saved_bytes=sum(saved_sizes),
        gradient_bytes=sum(storage.nbytes() for storage in storages_in(gradients)),
        peak_bytes=memory.peak,
        gradients=tuple(gradients),
        parameter_order=tuple(parameter_order),
        flops_by_module=flops_by_module,
        counted_on=counted_on,
    )
