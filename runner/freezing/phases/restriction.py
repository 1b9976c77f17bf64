"""Restrict what is declared frozen to some of its parameters, for a phase in which the others train."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Set
from dataclasses import replace

from torch import nn

from runner.errors import ConfigError
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


def freezer(selection: Selection, model: nn.Module) -> Callable[[Set[str]], Selection]:
    """Return a function that returns what `restricted` does for a set of names, the same object for the same names."""
    known: dict[frozenset[str], Selection] = {frozenset(selection.parameters): selection}

    def frozen_only(names: Set[str]) -> Selection:
        key = frozenset(names)
        if key not in known:
            known[key] = restricted(selection, model, key)
        return known[key]

    return frozen_only


def is_all(selection: Selection, model: nn.Module) -> bool:
    """Return whether every parameter of a model is selected, so that nothing trains while all of it is frozen."""
    return all(parameter in selection for parameter in model.parameters())


def require_selected(selection: Selection) -> None:
    """Raise ConfigError if no parameter is selected."""
    if not selection.parameters:
        why = f" ({selection.nothing_frozen})" if selection.nothing_frozen else ""
        advice = "give freeze=backbone or freeze=all"
        raise ConfigError(f"freeze selects no parameter{why}, so the schedule has nothing to act on; {advice}")


def require_several(blocks: Collection[str], to_freeze: int, schedule: str) -> None:
    """Raise ConfigError if none of the blocks can be frozen while another part of the model trains."""
    if to_freeze < 1:
        raise ConfigError(
            f"{schedule}: no blocks were found to freeze one by one: freeze selects every parameter, in one block "
            f"({next(iter(blocks))}); give schedule.blocks, or freeze=backbone"
        )
