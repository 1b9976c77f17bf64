"""Put the tensors of a checkpoint into a model, and say what fits and what does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from runner.errors import ConfigError, listed
from runner.freezing.resolver import owner_of
from runner.tensors import TensorEntry, memory_overlaps, tensor_entries
from runner.tensors.checkpoint import Tensors
from runner.training.pretrained.loaded import Loaded
from runner.training.pretrained.other_classes import makes_other_classes
from runner.training.pretrained.prefixes import shape_of, with_names_of_model

MAX_PROBLEM = 270  # characters of what does not fit, in a message


@dataclass(frozen=True)
class Comparison:
    """How the tensors of a checkpoint fit a model.

    Attributes:
        fitting: the names of the tensors that were loaded.
        given: the number of tensors in the checkpoint.
        new: the names of the parameters and buffers that were not loaded, tied names included.
        missing: what the model has and the checkpoint lacks.
        unexpected: what the checkpoint has and the model lacks.
        mismatched: {name of a tensor with another shape in the model: both shapes, for a message}.
    """

    fitting: frozenset[str]
    given: int
    new: frozenset[str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, str]

    @property
    def fits(self) -> bool:
        """Whether the checkpoint and the model have the same names and shapes."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        shapes = [f"{name} ({shapes})" for name, shapes in self.mismatched.items()]
        lists = {"missing in it": self.missing, "not in the model": self.unexpected, "of another shape": shapes}
        for most in (4, 3, 2, 1):
            parts = [f"{len(names)} {what}: {listed(names, most)}" for what, names in lists.items() if names]
            text = "; ".join([f"{len(self.fitting)} of its {self.given} tensors fit the model", *parts])
            if len(text) <= MAX_PROBLEM:
                break
        return text


def load_into(
    model: nn.Module,
    tensors: Tensors,
    *,
    classes: int | None = None,
    strict: bool = True,
    key: str = "model.checkpoint",
) -> Loaded:
    """Copy the tensors of a checkpoint into a model, in place, and return the model with the names of what is new in it.

    `tensors`: what `read_checkpoint` returns. `classes`: the number of classes that the model is built for; the layers that
    make another number in the checkpoint are not loaded. `strict`: whether all else must fit. `key`: what messages call the
    checkpoint. Raises ConfigError if it does not fit, or if nothing in it does.
    """
    tensors, notes = with_names_of_model(tensors, model, key)
    notes += _cast_notes(tensors, model, key)
    compared = _load(model, tensors, key)
    if head := _replaced_head(compared, tensors, model, classes):
        notes.append(
            f"{key}: {listed(sorted(head), most=4)} are not loaded and stay as they were built: model.classes is {classes}, "
            "the checkpoint has another number of classes"
        )
        compared = replace(compared, mismatched={})
    if not compared.fits and (strict or not compared.fitting):
        others = max(compared.given, len(model.state_dict()))
        is_another = 2 * len(compared.fitting) < others
        advice = (
            "it is of another model, or only its library can load it" if is_another else "model.strict=false loads what fits"
        )
        raise ConfigError(f"{key}: {compared}; {advice}")
    if not compared.fits:
        notes.append(f"{key}: {compared}")
    return Loaded(model, compared.new, tuple(notes))


def _load(model: nn.Module, tensors: Tensors, key: str) -> Comparison:
    """Load the tensors with `load_state_dict`, those of another shape only if the model's own code takes them."""
    state = model.state_dict()
    mismatched = {
        name: f"{_written(each)} in it, {_written(state[name])} in the model"
        for name, each in tensors.items()
        if name in state and shape_of(each) != shape_of(state[name])
    }
    try:
        result = _load_state_dict(model, tensors, key)
        mismatched = {}
    except ConfigError:
        if not mismatched:
            raise
        result = _load_state_dict(model, _without(tensors, mismatched), key)
    not_in_file = {*result.missing_keys} - mismatched.keys()
    fitting = frozenset(tensors.keys() - {*result.unexpected_keys} - mismatched.keys())
    new = _new_entries(model, {*result.missing_keys}, fitting)
    names = [next((name for name in each.names if name in not_in_file), "") for each in new]
    others = not_in_file.difference(*(each.names for each in tensor_entries(model).values()))  # extra state
    return Comparison(
        fitting=fitting,
        given=len(tensors),
        new=frozenset(name for each in new for name in each.names),
        missing=(*filter(None, names), *sorted(others)),
        unexpected=tuple(name for name in result.unexpected_keys if name not in _not_persistent(model)),
        mismatched=mismatched,
    )


def _load_state_dict(model: nn.Module, tensors: Tensors, key: str) -> Any:
    """Return what `load_state_dict(strict=False)` does: the names that are missing and unexpected.

    Raises ConfigError if that refuses the tensors, of which it then has loaded those that fit.
    """
    try:
        return model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"{key}: {' '.join(str(error).split())}") from error


def _without(tensors: Tensors, names: Iterable[str]) -> Tensors:
    """Return a copy of the tensors without some names; the versions that a `state_dict` has for its modules are kept."""
    result = tensors.copy()
    for name in names:
        del result[name]
    if (versions := getattr(tensors, "_metadata", None)) is not None:
        result._metadata = versions  # type: ignore[attr-defined]
    return result


def _new_entries(model: nn.Module, missing: set[str], fitting: frozenset[str]) -> list[TensorEntry]:
    """Return the parameters and buffers that have got no values from the tensors with the names `fitting`.

    They are those that `missing` names, and what else is in a module that got nothing: BatchNorm does not miss its counter.
    A tensor that is tied to another that got values, or lies in its memory, has got them too.
    """
    entries, in_file = tensor_entries(model).values(), model.state_dict().keys()
    lacking = {*map(owner_of, missing)} - {*map(owner_of, fitting)}
    by_memory: dict[int, list[Tensor]] = {}
    for entry in entries:
        if fitting & {*entry.names} and not entry.tensor.is_meta:
            by_memory.setdefault(entry.tensor.untyped_storage().data_ptr(), []).append(entry.tensor)
    return [
        entry
        for entry in entries
        if any(name in missing or (name in in_file and owner_of(name) in lacking) for name in entry.names)
        and not fitting & {*entry.names}
        and not any(memory_overlaps(entry.tensor, each) for each in _at_memory_of(entry.tensor, by_memory))
    ]


def _at_memory_of(tensor: Tensor, by_memory: Mapping[int, list[Tensor]]) -> list[Tensor]:
    """Return the tensors that use the same storage as `tensor`; none for a tensor without memory."""
    return [] if tensor.is_meta else by_memory.get(tensor.untyped_storage().data_ptr(), [])


def _not_persistent(model: nn.Module) -> set[str]:
    """Return the names of the buffers that a `state_dict` of the model does not have; older checkpoints may have them."""
    return {name for name, _ in model.named_buffers(remove_duplicate=False)} - model.state_dict().keys()


def _replaced_head(compared: Comparison, tensors: Tensors, model: nn.Module, classes: int | None) -> set[str]:
    """Return the names of the tensors of another shape if they make another number of classes, else an empty set."""
    state = model.state_dict()
    differing = {name: (shape_of(tensors[name]) or (), shape_of(state[name]) or ()) for name in compared.mismatched}
    is_head = classes is not None and makes_other_classes(model, differing, classes)
    return {*differing} if is_head else set()


def _cast_notes(tensors: Tensors, model: nn.Module, key: str) -> list[str]:
    """Return a note about the tensors that have another dtype in the model, to which they are cast, as a list."""
    state: Mapping[str, Any] = model.state_dict()
    both = {name: (each, state[name]) for name, each in tensors.items() if isinstance(state.get(name), Tensor)}
    cast = [name for name, (given, wanted) in both.items() if isinstance(given, Tensor) and given.dtype != wanted.dtype]
    if not cast:
        return []
    old, new = (str(each.dtype).removeprefix("torch.") for each in both[cast[0]])
    return [f"{key}: {len(cast)} of its tensors are cast to the model's dtype, such as {cast[0]} from {old} to {new}"]


def _written(value: object) -> str:
    """Return the shape of a tensor for a message, such as `64x3x7x7`."""
    shape = shape_of(value)
    return "no tensor" if shape is None else "x".join(map(str, shape)) or "a number"
