"""How a batch meets the model: which of its fields become which arguments, and which one is the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import Parameter
from typing import Any

from torch import Tensor, nn

from runner.errors import ConfigError, listed
from runner.training.tasks.forward import TARGET_NAMES, Call, forward_signature
from runner.training.tasks.wording import OWN_TASK, described, fields_of, short_signature

CALLS = ("auto", "first", "args", "kwargs")


@dataclass(frozen=True)
class CallOptions:
    """The keys of a task that say how a batch meets the model.

    Attributes:
        call: one of CALLS.
        fields: {field of the batch: name or position of the argument}; None for what `call` says.
        target: the field that is the target; None for the second of a pair, or a field with one of TARGET_NAMES.
        loss_by: who computes the loss, and so takes the target: `model`, `task`, or `auto` for the model if it has an
            argument of the target's name, else the task.
    """

    call: str = "auto"
    fields: Mapping[str | int, str | int] | None = None
    target: str | int | None = None
    loss_by: str = "auto"


def arrange(batch: Any, model: nn.Module, options: CallOptions) -> Call:
    """Return how the model is to be called with the batch. Raises ConfigError if that would be a guess."""
    if not isinstance(batch, (Mapping, tuple, list)):
        if options.fields or options.target is not None or options.call == "kwargs":
            raise ConfigError(f"the data gave {described(batch)} as a batch, which has no fields; {OWN_TASK}")
        return Call((batch,), {})
    parts = dict(batch.items()) if isinstance(batch, Mapping) else dict(enumerate(batch))
    if not parts:
        raise ConfigError(f"the data gave an empty {type(batch).__name__} as a batch")
    if options.fields:
        return _by_fields(parts, options)
    if isinstance(batch, Mapping):
        return _of_mapping(parts, model, options)
    return _of_row(parts, model, options)


def _by_fields(parts: dict[Any, Any], options: CallOptions) -> Call:
    """Return the call that `task.fields` describes. Raises ConfigError if a field is not in the batch."""
    assert options.fields
    given = {_key(field, parts, "task.fields"): argument for field, argument in options.fields.items()}
    positions = sorted(argument for argument in given.values() if isinstance(argument, int))
    if positions != list(range(len(positions))):
        raise ConfigError(f"task.fields gives the positions {positions}; number positional arguments 0, 1, 2, ...")
    by_position = {argument: parts[field] for field, argument in given.items()}
    rest = [key for key in parts if key not in given]
    if options.target is not None:
        target = _key(options.target, parts, "task.target")
    elif options.loss_by == "model":
        target = None
    else:
        target = _only([key for key in rest if key in TARGET_NAMES or isinstance(key, int)], parts)
    return Call(
        tuple(by_position[position] for position in positions),
        {name: value for name, value in by_position.items() if isinstance(name, str)},
        None if target is None else parts[target],
    )


def _of_mapping(parts: dict[Any, Any], model: nn.Module, options: CallOptions, within: int | None = None) -> Call:
    """Return the call with a mapping's fields as keywords. Raises ConfigError if the model takes none of them.

    `within`: the index of the mapping in the batch, if it is a part of a row.
    """
    if options.call in ("first", "args"):
        raise ConfigError(
            f"task.call={options.call} takes a tuple or list; the data gave a mapping with {_names(parts)}: give "
            "task.call=kwargs, or task.fields={FIELD: ARGUMENT}"
        )
    parameters = forward_signature(model).parameters
    named = {name for name, each in parameters.items() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    target = None
    if options.target is not None:
        target = _key(options.target, parts, "task.target")
    elif options.loss_by != "model":
        kept = named if options.loss_by == "auto" else set()
        target = _only([key for key in parts if key in TARGET_NAMES and key not in kept], parts)
    inputs = {str(key): value for key, value in parts.items() if key != target}
    if options.call == "auto" and not takes_any:
        _refuse_near_names(inputs, target, named)
        inputs = {key: value for key, value in inputs.items() if key in named}
    if not inputs or (options.call == "auto" and named and not named & inputs.keys()):
        source = next((key for key in parts if key != target), "FIELD") if within is None else within
        raise ConfigError(
            f"the data gave the fields {_names(parts)}, and the model takes {short_signature(parameters)}: give "
            f"task.fields={{{source}: {next(iter(parameters), 'ARGUMENT')}}}"
        )
    return Call((), inputs, None if target is None else parts[target])


def _refuse_near_names(inputs: dict[str, Any], target: Any, named: set[str]) -> None:
    """Raise ConfigError if a tensor would be left out whose name is nearly that of an argument that nothing is given for."""
    taken = {name: name for name in inputs if name in named}
    for name, value in inputs.items():
        near = get_close_matches(name, named - {*taken, target}, n=1) if isinstance(value, Tensor) and taken else []
        if near and name not in named:
            fields = ", ".join(f"{field}: {argument}" for field, argument in {**taken, name: near[0]}.items())
            kept = ", ".join(f"{field}: {argument}" for field, argument in taken.items())
            raise ConfigError(
                f"the model does not take the field {name} of a batch; did you mean {near[0]}? give "
                f"task.fields={{{fields}}}, or task.fields={{{kept}}} to leave it out"
            )


def left_out(batch: Any, model: nn.Module, options: CallOptions) -> list[str]:
    """Return the names of the tensors in a mapping that `auto` gives neither to the model nor to the loss.

    Raises ConfigError as `arrange` does.
    """
    if options.call != "auto" or options.fields:
        return []
    call = arrange(batch, model, options)
    mapping = batch[0] if isinstance(batch, (tuple, list)) and batch and call.kwargs else batch
    reached = {id(value) for value in (*call.args, *call.kwargs.values(), call.target)}
    fields = fields_of(mapping) if isinstance(mapping, Mapping) else {}
    return [str(name) for name, value in fields.items() if isinstance(value, Tensor) and id(value) not in reached]


def _of_row(parts: dict[Any, Any], model: nn.Module, options: CallOptions) -> Call:
    """Return the call with a tuple's or list's parts. Raises ConfigError if `auto` cannot know which ones are inputs."""
    values = list(parts.values())
    if options.call == "kwargs":
        raise ConfigError(
            f"task.call=kwargs takes a mapping; the data gave a batch of {len(values)} parts: give task.call=args"
        )
    is_detection = len(values) == 2 and isinstance(values[1], (list, tuple)) and _are_mappings(values[1])
    target = None
    if options.target is not None:
        target = _key(options.target, parts, "task.target")
    elif options.loss_by == "model" or (is_detection and options.loss_by == "auto"):
        return _positional(values if options.call != "first" else values[:1], None, model)
    elif len(values) == 2:
        target = 1
    elif len(values) > 2:
        ways = ("args task.target=-1", "first task.target=1")
        keys = ", ".join(f"task.call={way}" for way in ways if options.call in ("auto", way.split()[0]))
        raise ConfigError(
            f"the data gave a batch of {len(values)} parts, and the model takes "
            f"{short_signature(forward_signature(model).parameters)}: give {keys}, or task.fields={{0: ARGUMENT}}"
        )
    inputs = [value for key, value in parts.items() if key != target]
    if not inputs or (options.call == "auto" and len(inputs) > 1):
        raise ConfigError(
            f"the data gave a batch of {len(values)} parts, {len(inputs)} of them besides the target; auto takes one: give "
            "task.call=args, task.call=first, or task.fields={0: ARGUMENT}"
        )
    inputs = inputs if options.call == "args" else inputs[:1]
    found = None if target is None else parts[target]
    if options.call != "args" and isinstance(inputs[0], Mapping):
        inner = _of_mapping(dict(inputs[0].items()), model, CallOptions(loss_by="model"), within=0)
        return Call((), inner.kwargs, found)
    return _positional(inputs, found, model)


def _positional(inputs: list[Any], target: Any, model: nn.Module) -> Call:
    """Return the call with positional arguments. Raises ConfigError if a tensor would be an argument for something else.

    Its annotation tells: GPT-2 would take a mask, given second, as its cache. The first argument is what it is called for.
    """
    parameters = list(forward_signature(model).parameters.items()) if len(inputs) > 1 else []
    for value, (name, parameter) in list(zip(inputs, parameters, strict=False))[1:]:
        if parameter.kind is Parameter.VAR_POSITIONAL:
            break
        if isinstance(value, Tensor) and not _may_be_tensor(parameter.annotation):
            raise ConfigError(
                f"the model would take {described(value)} as `{name}: {_annotated(parameter.annotation)}`, as its arguments "
                "are given by position; name them with task.fields={0: input_ids, 1: attention_mask}"
            )
    return Call(tuple(inputs), {}, target)


def _may_be_tensor(annotation: Any) -> bool:
    """Return whether an argument with this annotation may be a tensor, as far as the annotation tells."""
    if annotation in (Parameter.empty, Any, object):
        return True
    return any(word in _annotated(annotation) for word in ("Tensor", "Any", "object", "~"))


def _annotated(annotation: Any) -> str:
    """Return an annotation as it is written."""
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _are_mappings(values: Any) -> bool:
    """Return whether there are values and each is a mapping, as the targets of a detection model are."""
    return bool(values) and all(isinstance(value, Mapping) for value in values)


def _key(field: str | int, parts: dict[Any, Any], key: str) -> str | int:
    """Return the key of a field in the batch; an index may be negative. Raises ConfigError if there is no such field."""
    if isinstance(field, int) and field < 0 and field not in parts:
        field += len(parts)
    if field not in parts:
        raise ConfigError(f"{key} names {field!r}, which the batch does not have; its fields are {_names(parts)}")
    return field


def _only(candidates: list[Any], parts: dict[Any, Any]) -> Any:
    """Return the only candidate for the target, None if there is none. Raises ConfigError if there are several."""
    if len(candidates) > 1:
        raise ConfigError(f"the batch has the fields {_names(parts)}: say which one is the target with task.target=FIELD")
    return candidates[0] if candidates else None


def _names(parts: dict[Any, Any]) -> str:
    """Return the names or indices of a batch's fields for a message."""
    return listed([*map(str, fields_of(parts))], most=8)
