"""The call of a model: its arguments, the signature of its forward, and what the errors of a call mean."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from inspect import Signature, signature
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from runner.errors import ConfigError, listed
from runner.tensors import tensors_in
from runner.training.tasks.wording import described, short_signature

TARGET_NAMES = ("labels", "label", "targets", "target", "y")  # of a field that is the target if the model does not take it
CLASS_A_SAMPLE = "data=synthetic '++data.fields={input_ids: {shape: [16], below: 32}, labels: {shape: [], below: 2}}'"


@dataclass(frozen=True)
class Call:
    """One call of a model.

    Attributes:
        args, kwargs: its arguments.
        target: the target, which the model is not given; None if the batch has none.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any = None


def call_model(model: nn.Module, call: Call) -> Any:
    """Return the output of the model for the arguments.

    Raises ConfigError if its forward does not take such arguments, if an input or target is outside an embedding or the
    classes (on a CPU), if the target has another size than its loss takes, if BatchNorm cannot normalise a single sample, or
    if the dtype of an input is not that of the model. Other errors are passed on.
    """
    try:
        return model(*call.args, **call.kwargs)
    except (TypeError, LookupError, ValueError, RuntimeError) as error:
        if meaning := _meaning(error, model, call):
            raise ConfigError(meaning) from error
        raise


def takes_target(model: nn.Module, call: Call) -> bool:
    """Return whether the model's forward also takes the target of the call, as its next positional argument."""
    return call.target is not None and not _mismatch(model, replace(call, args=(*call.args, call.target)))


def _mismatch(model: nn.Module, call: Call) -> str:
    """Return why the model's forward does not take the arguments of the call; "" if it does."""
    try:
        forward_signature(model).bind(*call.args, **call.kwargs)
    except TypeError as error:
        return str(error)
    return ""


def _meaning(error: Exception, model: nn.Module, call: Call) -> str:
    """Return what an error of a call means and what to do; "" for an error of the model itself."""
    words, takes = str(error), short_signature(forward_signature(model).parameters)
    if isinstance(error, TypeError) and (mismatch := _mismatch(model, call)):
        given = [*map(described, call.args), *(f"{name}=..." for name in call.kwargs)]
        whole = "task=model_loss if the model computes its loss, " if takes_target(model, call) else ""
        return (
            f"the model takes {takes} and was given ({', '.join(given)}): {mismatch}; "
            f"give {whole}task.fields={{FIELD: ARGUMENT}}, or task.call=first, args or kwargs"
        )
    if isinstance(error, KeyError) and call.kwargs and call.target is not None and error.args[0] in TARGET_NAMES:
        return (
            f"the model takes {takes} and looks for {error.args[0]!r}, and the task keeps the target for its own loss: give "
            "task=model_loss if the model computes its loss"
        )
    if isinstance(error, IndexError) and words.startswith("index out of range in self"):
        return f"data: an input is outside an embedding of the model, such as a token that its vocabulary lacks ({words})"
    if isinstance(error, IndexError) and words.startswith("Target "):
        return f"data: a target is outside the classes of the model ({words}){_place_of_target(words, call)}"
    if isinstance(error, (ValueError, RuntimeError)) and re.match(r"Expected input batch_size|Expected target size", words):
        shapes = listed([described(each) for each in _targets(call)]) or "this"
        return (
            f"data: the loss of the model does not take {shapes} as the target ({words.rstrip('.')}); give one of another "
            f"shape, such as {CLASS_A_SAMPLE} for one class a sample"
        )
    if isinstance(error, ValueError) and "more than 1 value per channel" in words:
        return (
            "a batch has one sample: BatchNorm cannot normalise one value per channel; give another data.batch_size or "
            "data.drop_last=true, or keep it in eval mode with freeze.buffers=frozen"
        )
    return _other_dtype(words, model, call)


def _place_of_target(words: str, call: Call) -> str:
    """Return which sample of the batch has the target that torch's error names, such as `, in sample 3`; "" if unknown."""
    value = re.match(r"Target (-?\d+)", words)
    targets = [each for each in _targets(call) if each.dim() and not each.is_floating_point()]
    places = [(target == int(value[1])).nonzero() for target in targets] if value else []
    return next((f", in sample {int(place[0, 0])} of the batch" for place in places if len(place)), "")


def _targets(call: Call) -> list[Tensor]:
    """Return the tensors among the arguments that may be a target: those with such a name, else all but the first."""
    named = [call.kwargs[name] for name in TARGET_NAMES if name in call.kwargs]
    return list(tensors_in(named or list(call.args[1:])))


def _other_dtype(words: str, model: nn.Module, call: Call) -> str:
    """Return what an error about dtypes means if an input has another dtype than the model's parameters; else ""."""
    expected = next((each.dtype for each in model.parameters() if each.is_floating_point()), None)
    given = [each.dtype for each in tensors_in([*call.args, *call.kwargs.values()]) if each.is_floating_point()]
    other = next((dtype for dtype in given if dtype is not expected), None)
    if expected is None or other is None or not re.search("type", words):
        return ""
    names = [str(dtype).removeprefix("torch.") for dtype in (other, expected)]
    return f"the data are {names[0]} and the parameters of the model {names[1]} ({words[:90]}); give model.dtype={names[1]}"


def forward_signature(model: nn.Module) -> Signature:
    """Return the signature of the model's forward, without `self`.

    A wrapper whose forward is only (*args, **kwargs) and that has one child, as DataParallel, is looked through.
    """
    while True:
        forward, children = model.forward, list(model.children())
        is_method = isinstance(getattr(forward, "__func__", None), FunctionType)
        found = _method_signature(forward.__func__) if is_method else _signature_or_any(forward)  # type: ignore[attr-defined]
        takes_anything = all(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in found.parameters.values())
        if not takes_anything or not found.parameters or len(children) != 1:
            return found
        model = children[0]


@lru_cache(maxsize=256)
def _method_signature(function: FunctionType) -> Signature:
    """Return the signature of a method without `self`, from a cache: the models of a class share it."""
    return _signature_or_any(MethodType(function, object()))


def _signature_or_any(function: Any) -> Signature:
    """Return the signature of a function; (*args, **kwargs) if it has none that can be read, such as one of TorchScript."""
    try:
        return signature(function)
    except (TypeError, ValueError):
        return signature(lambda *args, **kwargs: None)
