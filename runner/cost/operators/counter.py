"""Count the FLOPs and the memory of every operator of torch that runs inside a `with` block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any
from weakref import WeakSet, ref

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from runner.cost.operators.formulas import (
    WITH_WORKSPACE,
    depends_on_values,
    formula_of,
    is_of_torch,
    may_multiply_matrices,
    name_of,
    operands,
)
from runner.cost.operators.outline import Memory, Outline
from runner.cost.operators.results import execute

Storage = torch.UntypedStorage | Memory


class OperatorCounter(TorchDispatchMode):
    """Adds up the FLOPs of operators, and the memory of the tensors that they create, until each tensor is freed.

    The argument `existing` holds tensors whose memory is not to be counted, and `parameters` those that do not count as
    saved for backward.

    Attributes:
        flops: floating-point operations in matrix products, convolutions and attention; other operators do not count.
        flops_by_module: {module name: the FLOPs between `enter_module` and `leave_module`}, submodules included.
        unpriced: the names of operators that may multiply matrices, but whose FLOPs are not known.
        bytes: the bytes of all counted tensors that exist now.
        peak: the largest value that `bytes` has had.
        depends_on_values: whether values of tensors may have decided what was run.
        unmeasured: the names of operators that keep memory for backward whose size is only known on real tensors.
        saved_bytes: bytes of the tensors that were given to `add_saved`; memory that several tensors share counts once.
    """

    supports_higher_order_operators = True

    def __init__(self, existing: Iterable[Tensor] = (), parameters: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.flops = self.bytes = self.peak = self.saved_bytes = 0
        self.flops_by_module: Counter[str] = Counter()
        self.unpriced: set[str] = set()
        self.unmeasured: set[str] = set()
        self.depends_on_values = False
        # By weak references, which do not keep a storage (block of memory of a tensor) from being freed.
        self._sizes: dict[ref[Storage], int] = {}
        self._saved: WeakSet[Storage] = WeakSet()
        for storage in memories_in(existing):
            self._sizes[ref(storage, self._forget)] = 0
        self._parameter_ids = {id(parameter) for parameter in parameters}
        self._modules: list[str] = []
        self._without_flops: set[int] = set()  # ids of torch's operators that are not made of others and have no FLOPs

    def enter_module(self, name: str, *_: Any) -> None:
        """Count what follows as part of a module's forward pass, until `leave_module` is called."""
        self._modules.append(name)

    def leave_module(self, *_: Any) -> None:
        """End the forward pass of the module that was entered last."""
        self._modules.pop()

    def add_saved(self, tensor: Tensor) -> Tensor:
        """Count a tensor that autograd saves for backward, and return it."""
        for storage in memories_in([tensor]) if id(tensor) not in self._parameter_ids else ():
            if storage not in self._saved:
                self._saved.add(storage)
                self.saved_bytes += storage.nbytes()
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator `func`, count its FLOPs and the newly allocated memory of its result, and return the result."""
        return self.run_and_count(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator, and return its result."""
        return func(*args, **kwargs)

    def run_and_count(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator, count its FLOPs and the newly allocated memory of its result, and return the result."""
        if id(func) in self._without_flops:
            result = self.run(func, args, kwargs)
        else:
            parts = self._count_parts(func, args, kwargs)
            if parts is not NotImplemented:
                return parts
            result = self.run(func, args, kwargs)
            self._add_flops(func, args, kwargs, result=result)
        for storage in memories_in(operands(result)):
            reference = ref(storage, self._forget)
            if reference not in self._sizes:
                self._sizes[reference] = storage.nbytes()
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
        return result

    def _count_parts(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator without a formula by the operators that it is made of, which are counted, and return its result.

        Returns NotImplemented if it has a formula, or is not made of others.
        """
        if formula_of(func) is not None or isinstance(func, HigherOrderOperator) or not _returns_tensors(func):
            return NotImplemented
        with self:
            return func.decompose(*args, **kwargs)

    def _add_flops(self, func: Any, args: Any, kwargs: Any, *, result: Any) -> None:
        """Add the FLOPs of an operator that has run, or its name to `unpriced` if they are not known."""
        formula, name = formula_of(func), name_of(func)
        reads_values = depends_on_values(func, args)
        self.depends_on_values |= reads_values
        if name in WITH_WORKSPACE:
            self.unmeasured.add(name)
        if formula is None:
            if isinstance(func, HigherOrderOperator) or may_multiply_matrices(func, args):
                self.unpriced.add(name)
            elif is_of_torch(func) and not reads_values and name != "aten::index":  # which reads only some
                self._without_flops.add(id(func))
            return
        try:
            flops = formula(*args, **kwargs, out_val=result)
        except Exception:  # a formula does not know every kind of tensor
            flops = None
        if flops is None or any(tensor.layout is not torch.strided for tensor in operands(args)):
            self.unpriced.add(name)
            return
        self.flops += flops
        self.flops_by_module.update(dict.fromkeys(self._modules, flops))

    def _forget(self, reference: ref[Storage]) -> None:
        """Subtract the size of a storage from `bytes`; called when it is freed."""
        self.bytes -= self._sizes.pop(reference)


class OutlineCounter(OperatorCounter):
    """Counts operators on outlines, tensors without values: what they return is known without running them."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # no code that is compiled runs on outlines: each operator need not be shielded from the compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the operator `func`, and return what it returns, as outlines."""
        return self.run_and_count(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what an operator returns, as outlines; raises NotOutlinedError if that is not known without values."""
        return execute(func, args, kwargs)


@lru_cache(maxsize=4096)
def _returns_tensors(operator: Any) -> bool:
    """Return whether an operator returns a tensor or a list of them, and not just a device, a size or a number."""
    return any("Tensor" in str(returned.type) for returned in operator._schema.returns)


def memories_in(tensors: Iterable[Tensor]) -> Iterator[Storage]:
    """Yield the storage (block of memory) of every tensor; of an outline, the memory that it would take."""
    for tensor in tensors:
        if isinstance(tensor, Outline):
            yield tensor.memory
        else:
            yield from storages_in([tensor])


def storages_in(tensors: Iterable[Tensor]) -> Iterator[torch.UntypedStorage]:
    """Yield the storage (block of memory) of every tensor.

    A sparse COO tensor has two storages, for its indices and its values. Tensors of other sparse layouts are passed over.
    """
    for tensor in tensors:
        if tensor.layout is torch.sparse_coo:
            yield from (tensor._indices().untyped_storage(), tensor._values().untyped_storage())
        elif tensor.layout is torch.strided:
            yield tensor.untyped_storage()
