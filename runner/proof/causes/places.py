"""Where the tensors of a model are registered: in which module, under which key, and within which modules."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def places_of(model: nn.Module, names: Iterable[str]) -> list[tuple[nn.Module, str]]:
    """Return (module, key) for each of the names, such as (layer, "weight"), without those that are not in the model."""
    places = []
    for name in names:
        owners, key = owners_of(model, name), name.rpartition(".")[2]
        places += [(owners[-1], key)] if len(owners) == name.count(".") + 1 else []
    return places


def owners_of(model: nn.Module, name: str) -> list[nn.Module]:
    """Return the modules around a tensor, from the model to the one that has it; fewer if the name is not in the model."""
    owners = [model]
    for part in name.split(".")[:-1]:
        inner = dict(owners[-1]._modules.items()).get(part)  # the `_modules` of a ScriptModule has no `get`
        if inner is None:
            break
        owners.append(inner)
    return owners
