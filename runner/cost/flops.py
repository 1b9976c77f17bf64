"""Count the FLOPs and bytes of memory that one forward and backward pass take, on a copy of the model."""

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
from runner.training.loop import Task

META, REAL = "a meta copy", "a real batch"
ATTENTION_FORMULAS: dict[str, Callable[..., int]] = {  # CPU operators of aten that torch's counter does not know
    "_scaled_dot_product_flash_attention_for_cpu": lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
    "_scaled_dot_product_flash_attention_for_cpu_backward": (
        lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(gradient, query, key, value)
    ),
}


@dataclass(frozen=True)
class StepCount:
    """The FLOPs and memory that one forward and backward pass of a batch take.

    Attributes:
        flops_forward, flops_backward: floating-point operations in matrix products and convolutions; other operations do not
            count.
        saved_bytes: bytes of the tensors that autograd saves for backward. Tensors that share memory count once. Parameters
            do not count, but a view of a parameter does, such as the transposed weight of a linear layer.
        gradient_bytes: bytes of all `.grad` tensors of parameters after backward.
        peak_bytes: bytes of the tensors made by forward and backward (gradients included), at the moment when these tensors
            take the most memory. Excludes memory that kernels use internally. Agrees with torch's profiler, which is slower.
        gradients: the names of the parameters that have a gradient after backward.
        parameter_order: the names of the parameters, in the order in which the forward pass calls their modules.
        flops_by_module: {module name: FLOPs of the module's forward pass, submodules included}; "" is the whole model.
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
    counted_on: str


@dataclass(frozen=True)
class FakeCopy:
    """A copy of a model whose tensors are fake: they have device, dtype and shape but no values, so nothing is computed.

    Operators select the same kernels as on real tensors. Hooks, `requires_grad` and tied parameters are as in the model.
    Source: https://docs.pytorch.org/docs/stable/torch.compiler_fake_tensor.html

    Attributes:
        model: the copy.
        mode: torch's context manager in which operators work on fake tensors.
    """

    model: nn.Module
    mode: FakeTensorMode

    @classmethod
    def copy_of(cls, model: nn.Module) -> FakeCopy:
        """Return a copy of the model with fake tensors in place of its parameters and buffers, and without gradients."""
        mode = FakeTensorMode(allow_non_fake_inputs=True)  # the model may use tensors that it keeps outside its modules
        fakes = {id(entry.tensor): mode.from_tensor(entry.tensor) for entry in tensor_entries(model).values()}
        for fake in fakes.values():
            fake.grad = None
        return cls(copy.deepcopy(model, fakes), mode)

    def count(self, task: Task, batch: Any) -> StepCount:
        """Return the FLOPs and memory of one forward and backward pass, without computing any values.

        `task`: a function (model, batch) -> loss. `batch`: a real batch, of which only the shapes and dtypes of the tensors
        are used. Raises an error if the forward pass needs the values of tensors, as `tensor.item()` does.
        """
        with preserve_random_state(), _without_fused_attention(), self.mode:
            return _run_and_count(self.model, task, map_tensors(batch, self.mode.from_tensor), META)


def count_step(model: nn.Module, task: Task, batch: Any) -> StepCount:
    """Return the FLOPs and memory of one forward and backward pass, without changing the model or the random state.

    `task`: a function (model, batch) -> loss. The passes run on a copy of the model with fake tensors, so that nothing is
    computed. If this fails because the forward pass needs the values of tensors, the passes run on a real copy with the real
    batch, which takes time and memory.
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
    """Inside the `with` block, disable torch's fused transformer layer of eval mode, whose FLOPs torch does not count."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


def _attention_formulas(aten: Any) -> dict[Any, Callable[..., int]]:
    """Return {operator: function that computes its FLOPs} for the attention operators that torch's counter does not know.

    `aten`: `torch.ops.aten`. The names of these operators are private to torch and may change, so an operator that the
    installed torch does not have is left out.
    """
    found = {getattr(aten, name, None): formula for name, formula in ATTENTION_FORMULAS.items()}
    return {operator: formula for operator, formula in found.items() if operator is not None}


class _MemoryCounter(TorchDispatchMode):
    """Counts the memory of the tensors that operators create inside its `with` block, until each tensor is freed.

    The argument `existing` holds tensors, in nested dicts, lists or tuples, whose memory is not to be counted.

    Attributes:
        bytes: the bytes of all counted tensors that exist now.
        peak: the largest value that `bytes` has had.
        seen: the storages (blocks of memory of tensors) that are already counted, and the storages of `existing`.
    """

    def __init__(self, existing: Any) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.seen: WeakSet[torch.UntypedStorage] = WeakSet(storages_in(existing))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator `func`, add the bytes of newly allocated memory in its result, and return the result."""
        result = func(*args, **(kwargs or {}))
        for storage in storages_in(result):
            if storage not in self.seen:
                self.seen.add(storage)
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                finalize(storage, self.subtract, storage.nbytes()).atexit = False
        return result

    def subtract(self, size: int) -> None:
        """Subtract `size` from `bytes`; called when a storage of that many bytes is freed."""
        self.bytes -= size


def storages_in(value: Any) -> Iterator[torch.UntypedStorage]:
    """Yield the storage (block of memory) of every tensor in nested dicts, lists and tuples.

    A sparse COO tensor has two storages, for its indices and its values. Tensors of other sparse layouts are passed over.
    """
    for tensor in tensors_in(value):
        if tensor.layout is torch.sparse_coo:
            yield from (tensor._indices().untyped_storage(), tensor._values().untyped_storage())
        elif tensor.layout is torch.strided:
            yield tensor.untyped_storage()


def _run_and_count(model: nn.Module, task: Task, batch: Any, counted_on: str) -> StepCount:
    """Run forward and backward on the given model itself, not on a copy, and return their FLOPs and memory.

    `counted_on`: the constant META or REAL, for a fake or a real model and batch; only stored in the result.
    """
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
