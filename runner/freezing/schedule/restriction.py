"""Restrict what is declared frozen to some of its parameters, for a phase in which the others train."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set
from dataclasses import replace

from torch import nn

from runner.freezing.patterns import with_parents
from runner.freezing.resolver import owner_of
from runner.freezing.selection import Selection
from runner.tensors import tensor_entries


def restricted(selection: Selection, model: nn.Module, names: Set[str]) -> Selection:
    """Return what stays frozen of a Selection if, of its parameters, only those with these `names` do.

    A module stays in eval mode, and the buffers in it stay frozen, if all selected parameters in it stay frozen. If none are
    in it, as in dropout, this is decided by the smallest module around it with selected parameters. One that is registered
    several times, or a buffer that is, stays so only if this holds at each place. The result has no notes.

    `model`: the model as it was when the selection was made. `names`: some of the keys of `selection.parameters`.
    """
    assert names <= selection.parameters.keys(), "only what is selected can stay frozen"
    entries = tensor_entries(model)
    has_selected, trains = set[str](), set[str]()  # names of modules with selected parameters, and with some that train
    for name in selection.parameters:
        around = {module for each in entries[name].names for module in with_parents(owner_of(each))}
        has_selected |= around
        if name not in names:
            trains |= around

    def stays(module: str) -> bool:
        """Return whether the smallest module with selected parameters, this one or one around it, has none that train."""
        return next((each for each in reversed(with_parents(module)) if each in has_selected), None) not in trains

    places = defaultdict(list)  # {id of a module: its names}
    for name, module in model.named_modules(remove_duplicate=False):
        places[id(module)].append(name)
    parameters = {name: each for name, each in selection.parameters.items() if name in names}
    buffers = {name: each for name, each in selection.buffers.items() if all(map(stays, map(owner_of, entries[name].names)))}
    frozen_names = {each for name in (*parameters, *buffers) for each in entries[name].names}
    return replace(
        selection,
        parameters=parameters,
        buffers=buffers,
        modules={name: each for name, each in selection.modules.items() if all(map(stays, places[id(each)]))},
        names=selection.names & frozen_names,
        notes=(),
    )
