"""Count the FLOPs and the memory of every operator of torch that runs inside a `with` block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any
from weakref import WeakSet, finalize

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from runner.cost.formulas import formula_of, may_multiply_matrices, name_of, operands


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
        saved_bytes: bytes of the tensors that were given to `add_saved`; memory that several tensors share counts once.
    """

    supports_higher_order_operators = True

    def __init__(self, existing: Iterable[Tensor] = (), parameters: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.flops = self.bytes = self.peak = self.saved_bytes = 0
        self.flops_by_module: Counter[str] = Counter()
        self.unpriced: set[str] = set()
        self._seen: WeakSet[torch.UntypedStorage] = WeakSet(storages_in(existing))  # weak: a reference would keep them
        self._saved: WeakSet[torch.UntypedStorage] = WeakSet()
        self._parameter_ids = {id(parameter) for parameter in parameters}
        self._modules: list[str] = []
        self._whole: set[Any] = set()  # operators that are not made of others

    def enter_module(self, name: str, *_: Any) -> None:
        """Count what follows as part of a module's forward pass, until `leave_module` is called."""
        self._modules.append(name)

    def leave_module(self, *_: Any) -> None:
        """End the forward pass of the module that was entered last."""
        self._modules.pop()

    def add_saved(self, tensor: Tensor) -> Tensor:
        """Count a tensor that autograd saves for backward, and return it."""
        for storage in storages_in([tensor]) if id(tensor) not in self._parameter_ids else ():
            if storage not in self._saved:
                self._saved.add(storage)
                self.saved_bytes += storage.nbytes()
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator `func`, count its FLOPs and the newly allocated memory of its result, and return the result."""
        kwargs = kwargs or {}
        if not isinstance(func, HigherOrderOperator) and not _returns_tensors(func):
            return func(*args, **kwargs)
        formula = formula_of(func)
        if formula is None and func not in self._whole:
            if not isinstance(func, HigherOrderOperator):
                with self:  # an operator that is made of others is counted by its parts
                    parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
            self._whole.add(func)
        result = func(*args, **kwargs)
        self._add_flops(func, formula, args, kwargs, result=result)
        for storage in storages_in(operands(result)):
            if storage not in self._seen:
                self._seen.add(storage)
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                finalize(storage, self._subtract, storage.nbytes()).atexit = False
        return result

    def _add_flops(self, func: Any, formula: Any, args: Any, kwargs: Any, *, result: Any) -> None:
        """Add the FLOPs of an operator that has run, or its name to `unpriced` if they are not known."""
        if formula is None:
            if isinstance(func, HigherOrderOperator) or may_multiply_matrices(func, args):
                self.unpriced.add(name_of(func))
            return
        try:
            flops = formula(*args, **kwargs, out_val=result)
        except Exception:  # a formula does not know every kind of tensor
            flops = None
        if flops is None or any(tensor.layout is not torch.strided for tensor in operands(args)):
            self.unpriced.add(name_of(func))
            return
        self.flops += flops
        self.flops_by_module.update(dict.fromkeys(self._modules, flops))

    def _subtract(self, size: int) -> None:
        """Subtract `size` from `bytes`; called when a storage of that many bytes is freed."""
        self.bytes -= size


@lru_cache(maxsize=4096)
def _returns_tensors(operator: Any) -> bool:
    """Return whether an operator returns a tensor or a list of them, and not just a device, a size or a number."""
    return any("Tensor" in str(returned.type) for returned in operator._schema.returns)


def storages_in(tensors: Iterable[Tensor]) -> Iterator[torch.UntypedStorage]:
    """Yield the storage (block of memory) of every tensor.

    A sparse COO tensor has two storages, for its indices and its values. Tensors of other sparse layouts are passed over.
    """
    for tensor in tensors:
        if tensor.layout is torch.sparse_coo:
            yield from (tensor._indices().untyped_storage(), tensor._values().untyped_storage())
        elif tensor.layout is torch.strided:
            yield tensor.untyped_storage()
