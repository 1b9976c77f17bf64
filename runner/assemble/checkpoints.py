"""Load the checkpoint of a run into its model, before the calls that `model.then` lists, or after them."""

from __future__ import annotations

from dataclasses import replace

from torch.nn.parameter import is_lazy

from runner.assemble.calls_after import called_after
from runner.assemble.following_new import names_of_new, new_entries
from runner.config.schema import Model
from runner.errors import ConfigError
from runner.tensors import copy_of, tensor_entries
from runner.tensors.checkpoint import Tensors, read_checkpoint
from runner.training.pretrained.loaded import Loaded
from runner.training.pretrained.loading import load_into


def loaded_and_called(loaded: Loaded, node: Model) -> Loaded:
    """Return the model with the tensors of `model.checkpoint` in it, after the calls that `model.then` lists.

    `node`: the config's node `model`. A checkpoint may be one of the model as it is built, or as it is after these calls: a
    run that puts adapters into its model saves both. So the checkpoint is loaded before the calls or, where it does not fit
    then, after them. Raises ConfigError if it cannot be read, if a call is refused, or if it fits neither of the two models:
    the message is about the model as it is built.
    """
    if node.checkpoint is None:
        return _called(loaded, node)
    notes: list[str] = []
    tensors = read_checkpoint(node.checkpoint, _key(node), notes.append)
    loaded = replace(loaded, notes=(*loaded.notes, *notes))
    if not node.then:
        return with_checkpoint(loaded, tensors, node)
    tensors_before = [entry.tensor for entry in tensor_entries(loaded.model).values()]
    values = [(tensor, copy_of(tensor)) for tensor in tensors_before if not is_lazy(tensor)]
    try:
        fitted = with_checkpoint(loaded, tensors, node)
    except ConfigError as refused:
        for tensor, value in values:  # some were loaded before the refusal
            tensor.data.copy_(value)
        return _with_checkpoint_of_called(loaded, tensors, node, refused)
    return _called(fitted, node)


def with_checkpoint(loaded: Loaded, tensors: Tensors, node: Model) -> Loaded:
    """Return the model with these tensors in it; what the weights of its builder supplied is not new either.

    Raises ConfigError if the tensors do not fit.
    """
    read = load_into(loaded.model, tensors, classes=node.classes, strict=node.strict, key=_key(node))
    assert read.new is not None
    new = read.new if loaded.new is None else read.new & loaded.new
    return Loaded(loaded.model, new, (*loaded.notes, *read.notes))


def _called(loaded: Loaded, node: Model) -> Loaded:
    """Return the model after the calls; what was new is followed into what wraps it, and into copies."""
    new, known = new_entries(loaded), {id(each.tensor): each.tensor for each in tensor_entries(loaded.model).values()}
    model = called_after(loaded.model, node.then)
    return Loaded(model, None if loaded.new is None else names_of_new(model, new, known), loaded.notes)


def _with_checkpoint_of_called(loaded: Loaded, tensors: Tensors, node: Model, refused: ConfigError) -> Loaded:
    """Return the model after the calls, and then with these tensors in it. Raises `refused` if they do not fit it either.

    What the calls add, such as adapters, no weights of the builder supplied: it is new unless the tensors have it.
    """
    before, of_builder = tensor_entries(loaded.model), loaded.new
    supplied = {id(e.tensor) for e in before.values() if of_builder is not None and not of_builder & {*e.names}}
    model = called_after(loaded.model, node.then)
    entries = tensor_entries(model).values()
    others = frozenset(name for entry in entries if id(entry.tensor) not in supplied for name in entry.names)
    try:
        fitted = with_checkpoint(Loaded(model, others, loaded.notes), tensors, node)
    except ConfigError:
        raise refused from None
    return Loaded(model, fitted.new, (*fitted.notes, f"{_key(node)} is loaded after model.then, whose model it fits"))


def _key(node: Model) -> str:
    """Return the key with which the user gave the checkpoint: `model.weights` may be a file too, and is then false here."""
    return "model.weights" if node.build.get("weights") is False else "model.checkpoint"
