"""What the Auto classes of transformers cannot build, with what to give in its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from runner.errors import ConfigError, listed


def refuse_adapters(asked: Mapping[str, Any]) -> None:
    """Raise ConfigError if a folder holds a peft adapter and not the model around which it was trained.

    `asked`: the folders or names of models, by the settings that ask for them.
    """
    for key, source in asked.items():
        folder = Path(str(source))
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise ConfigError(
                f"{key} is {source!r}, a peft adapter without its model; give as {key} the model that it is for, and "
                f"'model.then=[{{_target_: peft.PeftModel.from_pretrained, model_id: {source}, is_trainable: true}}]'"
            )


def refuse_other_class(auto_class: Any, config: Any) -> None:
    """Raise ConfigError if an Auto class builds no model for a config, with the Auto classes that do.

    A config that brings its own code says itself which classes it is for, so it is not refused.
    """
    if hasattr(config, "auto_map") or type(config) in auto_class._model_mapping:
        return
    every = (getattr(transformers, name) for name in dir(transformers) if name.startswith("AutoModel"))
    fitting = [each.__name__ for each in every if type(config) in each._model_mapping]
    raise ConfigError(
        f"model.auto is {auto_class.__name__}, and transformers has no such model of the type {config.model_type}; it has "
        f"{listed(fitting, most=6)}"
    )
