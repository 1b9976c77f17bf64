"""The parameters and buffers of a model: their names, and those that are tied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from runner.contract import TensorKind
from runner.errors import ConfigError
from runner.shards import local, refuse_several_processes


@dataclass
class TensorEntry:
    """One parameter or buffer of a model.

    Attributes:
        name: its full name, such as `layer1.0.weight`; if it is registered several times, the first one.
        kind: `parameter` or `buffer`.
        owner: the name of the module that contains it, such as `layer1.0`; "" for the model itself.
        module_type: the class name of that module, such as `Linear`.
        tensor: the parameter or buffer itself, not a copy.
        aliases: its other full names, if it is tied (registered in several places).
    """

    name: str
    kind: TensorKind
    owner: str
    module_type: str
    tensor: Tensor
    aliases: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """All full names under which it is registered: `name`, then `aliases`."""
        return [self.name, *self.aliases]


def tensor_entries(model: nn.Module) -> dict[str, TensorEntry]:
    """Return {name: TensorEntry} for all parameters and buffers of a model, non-persistent buffers included.

    The order is that of `named_modules()`; in each module, parameters come before buffers. A tensor that is registered under
    several names (the same object) has one entry, under the first name.
    """
    by_id: dict[int, TensorEntry] = {}
    for owner, module, kind, key, tensor in _registered(model):
        name, module_type = f"{owner}.{key}" if owner else key, type(module).__name__
        if id(tensor) in by_id:
            by_id[id(tensor)].aliases.append(name)
        else:
            by_id[id(tensor)] = TensorEntry(name=name, kind=kind, owner=owner, module_type=module_type, tensor=tensor)
    return {entry.name: entry for entry in by_id.values()}


def names_and_tensors(model: nn.Module) -> tuple[list[str], list[Tensor]]:
    """Return (full names, tensors) of all parameters and buffers of a model; a tied tensor occurs once for each name.

    Those of a lazy module are left out until it is initialised.
    """
    registered = [each for each in _registered(model) if not is_lazy(each[-1])]
    names = [f"{owner}.{key}" if owner else key for owner, _, _, key, _ in registered]
    return names, [tensor for *_, tensor in registered]


def _registered(model: nn.Module) -> Iterator[tuple[str, nn.Module, TensorKind, str, Tensor]]:
    """Yield (name of the module, module, kind, key, tensor) for each place where a tensor is registered in a model."""
    for owner, module in model.named_modules(remove_duplicate=False):
        for key, tensor in module._parameters.items():
            if tensor is not None:
                yield owner, module, "parameter", key, tensor
        for key, buffer in module._buffers.items():
            if buffer is not None:
                yield owner, module, "buffer", key, buffer


def tensor_resolver(current: Mapping[str, TensorEntry]) -> Callable[[TensorEntry], Tensor | None]:
    """Return a function that takes an earlier TensorEntry of a model and returns the tensor that is now in its place.

    `current`: the result of `tensor_entries(model)` now. If the model still has the entry's tensor under any name, the
    returned function returns this tensor. If not, it returns the tensor that now has the entry's name, or None if the model
    has no tensor of this name.
    """
    current_ids = {id(entry.tensor) for entry in current.values()}

    def resolve(entry: TensorEntry) -> Tensor | None:
        if id(entry.tensor) in current_ids:
            return entry.tensor
        return current[entry.name].tensor if entry.name in current else None

    return resolve


def refuse_unless_dense(model: nn.Module) -> None:
    """Raise ConfigError if several processes run, or if a tensor is a DTensor or its bits cannot be compared."""
    refuse_several_processes(model)
    refuse_unreadable(model)


def refuse_unreadable(model: nn.Module) -> None:
    """Raise ConfigError if a tensor is sparse, nested or without values, or if a layer has packed its quantised weights.

    Of a DTensor, the part that this process holds is looked at.
    """
    for name, module in model.named_modules():
        if any(_is_packed(value) for value in vars(module).values()):
            raise ConfigError(f"model: {name or 'the model'} has packed its quantised weights, whose bits cannot be read")
    for name, entry in tensor_entries(model).items():
        tensor = local(entry.tensor)
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            problem = "not initialised yet (a lazy module); run one batch through the model in the function that builds it"
        elif tensor.is_meta:
            problem = "on the meta device and has no values; build the model on a real device"
        elif tensor.is_nested or tensor.layout is not torch.strided:
            problem = f"{'nested' if tensor.is_nested else 'sparse'}; only dense tensors can be watched bit by bit"
        elif type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            problem = f"a {type(tensor).__name__} (sharded or quantised); use dense tensors or DTensors"
        else:
            continue
        raise ConfigError(f"model: {name} is {problem}")


def _is_packed(value: object) -> bool:
    """Return whether a value holds the weights of a quantised layer in a form that only torch's own kernels can read."""
    return isinstance(value, torch.ScriptObject) and ".quantized." in value._type().qualified_name()  # type: ignore[attr-defined]


def is_compiled(model: nn.Module) -> bool:
    """Return whether torch.compile was applied to the model or to any module in it."""
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules())
