"""Models of transformers, by the name of a folder or of the hub, or from a config alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from difflib import get_close_matches
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from runner.errors import ConfigError, did_you_mean, listed
from runner.training.pretrained.auto_classes import refuse_adapters, refuse_other_class
from runner.training.pretrained.hub import reading_from_hub
from runner.training.pretrained.loaded import Loaded
from runner.training.pretrained.other_classes import Shapes, makes_other_classes
from runner.training.pretrained.wording import is_default, note_of_new, refuse_other_names

NEARLY = 0.85  # of 1: how alike a key is to one that is taken for what was meant
INSTEAD = "a folder that save_pretrained wrote, or without weights model.config={model_type: ...} in place of model.name"


def huggingface_model(
    name: str | None = None,
    weights: str | bool | None = True,
    *,
    auto: str = "AutoModel",
    config: Mapping[str, Any] | None = None,
    classes: int | None = None,
    **arguments: Any,
) -> Loaded:
    """Return a model of transformers, with weights or from a config alone.

    `name`: a folder or a name on the hub, whose config is taken. `weights`: True for those of `name`, another folder or
    name, or None for random values. `auto`: the Auto class that builds it. `config`: what differs from the config of `name`;
    without a name, the whole config with its `model_type`. `classes`: the `num_labels` of the config, where it is given.
    `arguments`: what `from_pretrained` takes besides. Raises ConfigError if there is no such class, type of model or key of
    its config, if the weights have other shapes for another reason than `classes`, or if it cannot be downloaded.
    """
    refuse_other_names(arguments, {"num_labels": "model.classes"})
    auto_class = _auto_class(auto)
    changes = {**(config or {}), **({} if classes is None else {"num_labels": classes})}
    source = name if is_default(weights) else weights or None
    if name is None and source is None and "model_type" not in changes:
        raise ConfigError(
            "model=huggingface needs a model; give model.name=NAME, a folder or a name on the hub, or without weights "
            "'model.config={model_type: gpt2, n_layer: 2}'"
        )
    asked = {"model.name": name} if source in (None, name) else {"model.name": name, "model.weights": source}
    refuse_adapters(asked)
    with _quiet(), _reading(asked):
        of_model = _config_of(name or source, changes, arguments, notes := list[str]())
        refuse_other_class(auto_class, of_model)
        if source is None:
            return Loaded(auto_class.from_config(of_model, **arguments), notes=tuple(notes))
        model, info = auto_class.from_pretrained(
            source, config=of_model, output_loading_info=True, ignore_mismatched_sizes=True, **arguments
        )
    differing = {name: (tuple(given), tuple(wanted)) for name, given, wanted in info["mismatched_keys"]}
    _refuse_other_shapes(model, differing, changes.get("num_labels"))
    new = frozenset([*info["missing_keys"], *differing])
    if surplus := sorted(info["unexpected_keys"]):
        notes.append(f"model.weights have {len(surplus)} tensors that the model has not: {listed(surplus, most=3)}")
    return Loaded(model, new, (*note_of_new(new), *notes))


def _refuse_other_shapes(model: nn.Module, differing: Shapes, classes: int | None) -> None:
    """Raise ConfigError if weights have other shapes than the model, except in layers that make another number of classes.

    `differing`: {name: shape in the weights, shape in the model}. A detector's layer may make one more, for no object.
    """
    if not differing:
        return
    if classes is not None and any(makes_other_classes(model, differing, number) for number in (classes, classes + 1)):
        return
    shapes = [
        f"{name} ({'x'.join(map(str, g))} in them, {'x'.join(map(str, w))} in the model)"
        for name, (g, w) in differing.items()
    ]
    raise ConfigError(
        f"model.weights: {len(shapes)} tensors are of another shape: {listed(shapes, most=2)}; give the model.config of the "
        "weights, or model.weights=null for random values"
    )


def _config_of(name: Any, changes: dict[str, Any], arguments: dict[str, Any], notes: list[str]) -> Any:
    """Return the config of the model: that of `name` with changes, or one of the `model_type` among the changes.

    What the config has of `arguments` is moved into it, as `from_pretrained` does. A message about keys that its class does
    not have is added to `notes`. Raises ConfigError if there is no such type of model, or if a key is nearly one of its.
    """
    changes = dict(changes)
    if name is not None and "model_type" not in changes:
        config, unused = transformers.AutoConfig.from_pretrained(name, return_unused_kwargs=True, **changes)
        for key in (unknown := [key for key in changes if key in unused]):
            setattr(config, key, changes[key])
    else:
        kind = changes.pop("model_type")
        if kind not in transformers.CONFIG_MAPPING:
            near = did_you_mean(str(kind), transformers.CONFIG_MAPPING)
            raise ConfigError(f"model.config.model_type is {kind!r}: transformers has no such type of model{near}")
        config = transformers.AutoConfig.for_model(kind, **changes)
        unknown = _kept_only(config, changes)
    notes += _notes_of_unknown(config, unknown, "model.config")
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(inner := getattr(config, key, None), transformers.PretrainedConfig):
            notes += _notes_of_unknown(inner, _kept_only(inner, value), f"model.config.{key}")
    for key in [key for key in arguments if hasattr(config, key)]:
        setattr(config, key, arguments.pop(key))
    return config


def _kept_only(config: Any, given: Mapping[str, Any]) -> list[str]:
    """Return the given keys that a config keeps, as it keeps any key, although its class does not have them."""
    return [key for key in given if key in vars(config) and key not in _keys_of(config)]


def _keys_of(config: Any) -> list[str]:
    """Return what the class of a config takes: its arguments, its other names for them, and its attributes."""
    kind = type(config)
    return [
        *signature(kind.__init__).parameters,
        *kind.attribute_map,
        *(key for key in dir(kind) if not key.startswith("_")),
    ]


def _notes_of_unknown(config: Any, keys: Sequence[str], where: str) -> list[str]:
    """Return a message about keys that the class of a config does not have, as a list; the config keeps them all the same.

    Some are of use, such as `decoder_start_token_id`. Raises ConfigError if one is nearly a key that the class has. `where`:
    the config's own key.
    """
    for key in keys:
        if get_close_matches(key, _keys_of(config), n=1, cutoff=NEARLY):
            near = did_you_mean(key, _keys_of(config))
            raise ConfigError(f"{where}.{key}: {type(config).__name__} of transformers has no {key}{near}")
    return [f"{where}: {type(config).__name__} of transformers has no {listed(keys)}; it is kept"] if keys else []


def _reading(asked: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Return the context in which folders, or names on the hub, are read. `asked`: they, by the settings that ask for them.

    Raises ConfigError if one can only be a folder, and there is none: the names on the hub have at most one slash.
    """
    names = {key: source for key, source in asked.items() if source is not None and not Path(source).is_dir()}
    for key, source in names.items():
        if source.count("/") > 1 or source.startswith(("/", ".", "~")):
            raise ConfigError(f"{key} is {source!r}, which is no folder; give one that save_pretrained wrote, or a hub name")
    return (
        reading_from_hub(listed([f"{key}={source}" for key, source in names.items()]), INSTEAD) if names else nullcontext()
    )


def _auto_class(auto: str) -> Any:
    """Return the Auto class of transformers of that name. Raises ConfigError with the nearest names if there is none."""
    names = [name for name in dir(transformers) if name.startswith("AutoModel")]
    if auto not in names:
        raise ConfigError(f"model.auto is {auto!r}: transformers has no such Auto class{did_you_mean(str(auto), names)}")
    return getattr(transformers, auto)


@contextmanager
def _quiet() -> Iterator[None]:
    """In the block, transformers prints neither bars nor tables: what weights do not supply is said by a note."""
    log = transformers.logging
    level, had_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if had_bars:
            log.enable_progress_bar()


def transforms(name: str | None, weights: str | bool) -> Callable[[Any], Any]:
    """Return the function that makes an input of a picture, by the image processor that is saved with the weights."""
    source = str(name if is_default(weights) else weights)
    with _quiet(), _reading({"model.name" if is_default(weights) else "model.weights": source}):
        processor = transformers.AutoImageProcessor.from_pretrained(source)
    return partial(_pixel_values, processor)


def _pixel_values(processor: Any, picture: Any) -> Any:
    """Return a picture as the tensor (channels, height, width) that the processor makes of it."""
    return processor(picture, return_tensors="pt")["pixel_values"][0]
