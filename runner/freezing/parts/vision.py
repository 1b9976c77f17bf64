"""Find the part of a model that takes the picture, where the model has another input too."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Sequence

from torch import nn

from runner.errors import ConfigError
from runner.freezing.parts.evidence import Evidence
from runner.freezing.patterns import with_parents
from runner.freezing.words import Words

# Names of arguments of `forward`; what a part makes of pictures, such as `image_features`, is none.
PICTURE = re.compile(r"(.*_)?(pixels?|pixel_values\w*|images?|pictures?)")
OTHER = re.compile(r"(.*_)?(input_ids|input_values|input_features|texts?|tokens?|audio|captions?|questions?|prompts?)")


def find_vision(model: nn.Module, evidence: Evidence, words: Words) -> Sequence[str]:
    """Return the names of the outermost modules that take the picture of a batch and nothing else of it.

    By what a trial showed; without one it is a guess by the names of the arguments of `forward`, such as `pixel_values` and
    `input_ids`. None if no module does. Raises ConfigError if the picture is the model's only input.
    """
    takes_picture: Sequence[str]
    takes_other: Sequence[str]
    if evidence.trial:
        takes_picture, takes_other = evidence.trial.takes_picture, evidence.trial.takes_other
    else:
        takes_picture, takes_other = _by_signature(model, PICTURE), _by_signature(model, OTHER)
    if takes_picture and not takes_other:
        raise ConfigError("@vision: the picture is the model's only input, so all of the model is for it; write **")
    return _outermost([name for name in takes_picture if name and name not in takes_other])


def _by_signature(model: nn.Module, wanted: re.Pattern[str]) -> list[str]:
    """Return the names of the modules whose `forward` has an argument with a name that matches as a whole."""
    return [
        name
        for name, module in model.named_modules()
        if any(map(wanted.fullmatch, inspect.signature(module.forward).parameters))
    ]


def _outermost(names: Collection[str]) -> list[str]:
    """Return those of the names of modules that are not inside another one of them."""
    return [name for name in names if not {*names}.intersection(with_parents(name)[:-1])]
