"""Find the parts of a model that its weights did not supply, such as the classifier on a pretrained encoder."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from runner.errors import ConfigError, listed
from runner.freezing.patterns import with_parents
from runner.freezing.selection import Selection

KEEP_NEW = "freeze=backbone model.head=new keeps it trainable"
NEW = "new"  # the value of `model.head` that stands for these parts


def head_of_new(model: nn.Module, new: Collection[str] | None) -> list[str]:
    """Return the names of the parts that `@head` stands for with `model.head=new`.

    `new`: the names of the parameters and buffers that no weights supplied; None if there are no weights. Raises ConfigError
    then, and if no parameter is new.
    """
    if new is None:
        raise ConfigError(
            "model.head=new stands for what the weights do not supply, and there are no weights; "
            "give model.checkpoint=FILE, or model.head=auto"
        )
    if not (names := parts_of(model, new)):
        raise ConfigError("model.head=new: the weights supply every parameter, so nothing is new; give model.head=auto")
    return names


def parts_of(model: nn.Module, new: Collection[str]) -> list[str]:
    """Return the names of the topmost modules of which every parameter and every persistent buffer is new.

    `new`: the names of the tensors that are new. New parameters that are in no such module come with their own names; the
    model itself, and modules without parameters, are not returned. The list is empty if no parameter is new.
    """
    if not new:  # a model's own `state_dict` is not called for nothing
        return []
    persistent, parameters = model.state_dict().keys(), dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    old = [name for name in (*parameters, *(buffers.keys() & persistent)) if name not in new]
    partly_old = {module for name in old for module in with_parents(name)[1:-1]}
    parts = (_topmost(name, partly_old) for name in parameters if name in new)
    return [*dict.fromkeys(parts)]


def frozen_new_parts(model: nn.Module, selection: Selection, new: Collection[str]) -> list[str]:
    """Return the names of the parts, as `parts_of` does, that are new and frozen, so that they stay as they were built."""
    trainable = {name for name, each in model.named_parameters(remove_duplicate=False) if each not in selection}
    return parts_of(model, {*new} - trainable)


def frozen_at_random(names: Sequence[str], trainable: Collection[str]) -> str:
    """Return the message that parts which are new are frozen, and what to do.

    `trainable`: the names of the parameters that had `requires_grad` when the model was built. A run sets no flag to True.
    """
    is_built_frozen = not any(name == part or name.startswith(f"{part}.") for name in trainable for part in names)
    advice = "its builder set requires_grad=False, so have it built trainable" if is_built_frozen else KEEP_NEW
    return f"frozen although no weights supplied it, so it stays at its random start: {listed(names, most=4)}; {advice}"


def _topmost(name: str, partly_old: Collection[str]) -> str:
    """Return the outermost module above a parameter that is not in `partly_old`; the parameter's own name if all are."""
    return next((module for module in with_parents(name)[1:-1] if module not in partly_old), name)
