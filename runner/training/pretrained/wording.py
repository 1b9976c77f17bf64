"""What a run says of the weights of a library's model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from runner.errors import ConfigError, listed, short_repr

FILE_OR_NULL = "a file that has them, model.weights=FILE, or model.weights=null for random values"


def note_of_new(new: Iterable[str]) -> tuple[str, ...]:
    """Return one note that names the modules which the weights did not supply; none if they supplied everything.

    `new`: the names of the parameters and buffers that have the values with which the model was built.
    """
    modules = list(dict.fromkeys(name.rpartition(".")[0] or name for name in sorted(new)))
    if not modules:
        return ()
    return (
        f"model.weights did not supply {listed(modules, 6)}: they begin with random values; "
        "model.head=new trains exactly these",
    )


def not_downloaded(asked: str, reason: object, instead: str) -> str:
    """Return the message for what cannot be downloaded.

    `asked`: the setting that asks for it, such as `model.weights=DEFAULT`. `reason`: why it cannot be. `instead`: what to
    give without a network.
    """
    return f"{asked} must be downloaded, which is not possible here ({reason}); give {instead}"


def is_default(weights: object) -> bool:
    """Return whether a value of `model.weights` asks for the weights that the library takes by itself."""
    return weights is True or (isinstance(weights, str) and weights.lower() in ("true", "default"))


def refuse_other_names(arguments: Mapping[str, Any], key_of: Mapping[str, str]) -> None:
    """Raise ConfigError if an argument is the library's own name of something for which the node `model` has a key.

    `key_of`: {name: key}, such as {"num_classes": "model.classes"}. Of the two values, one would have no effect.
    """
    for name in arguments.keys() & key_of.keys():
        raise ConfigError(f"model.{name} is {short_repr(arguments[name])}; give {key_of[name]} in place of model.{name}")
