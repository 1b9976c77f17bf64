"""Models of transformers, by the name of a folder or of the hub, or from a config alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import transformers

from runner.errors import ConfigError, did_you_mean, listed
from runner.training.pretrained.auto_classes import refuse_adapters, refuse_other_class
from runner.training.pretrained.hub import reading_from_hub
from runner.training.pretrained.loaded import Loaded
from runner.training.pretrained.wording import is_default, note_of_new

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
    `arguments`: what `from_pretrained` takes besides. Raises ConfigError if there is no such class or type of model, or if
    it cannot be downloaded.
    """
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
        of_model = _config_of(name or source, changes, arguments)
        refuse_other_class(auto_class, of_model)
        if source is None:
            return Loaded(auto_class.from_config(of_model, **arguments))
        model, info = auto_class.from_pretrained(
            source, config=of_model, output_loading_info=True, ignore_mismatched_sizes=classes is not None, **arguments
        )
    new = frozenset([*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])])
    return Loaded(model, new, note_of_new(new))


def _config_of(name: Any, changes: dict[str, Any], arguments: dict[str, Any]) -> Any:
    """Return the config of the model: that of `name` with changes, or one of the `model_type` among the changes.

    What the config has of `arguments` is moved into it, as `from_pretrained` does.
    """
    changes = dict(changes)
    if name is not None and "model_type" not in changes:
        config = transformers.AutoConfig.from_pretrained(name, **changes)
    else:
        kind = changes.pop("model_type")
        if kind not in transformers.CONFIG_MAPPING:
            near = did_you_mean(str(kind), transformers.CONFIG_MAPPING)
            raise ConfigError(f"model.config.model_type is {kind!r}: transformers has no such type of model{near}")
        config = transformers.AutoConfig.for_model(kind, **changes)
    for key in [key for key in arguments if hasattr(config, key)]:
        setattr(config, key, arguments.pop(key))
    return config


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
