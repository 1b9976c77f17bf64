"""Find the head of a model: the modules that make what its loss is made of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from runner.errors import ConfigError
from runner.freezing.parts.evidence import Evidence
from runner.freezing.words import Words


def find_head(model: nn.Module, evidence: Evidence, words: Words) -> Sequence[str]:
    """Return the patterns that `@head` stands for: what the user says, or what a trial showed, else a guess.

    Raises ConfigError if none is known; `words` are those of its message.
    """
    if evidence.head is not None:
        return [evidence.head] if isinstance(evidence.head, str) else evidence.head
    if evidence.trial is None:
        return (guess_head(model, evidence.classes, words),)
    if evidence.trial.problem:
        raise ConfigError(f"{words.head}: {evidence.trial.problem}; name the head with {words.head}=NAME")
    return evidence.trial.heads


def guess_head(model: nn.Module, classes: int | None, words: Words) -> str:
    """Return the name of the module that is taken for the model's classifier.

    Candidates are the submodules that have parameters of their own and an attribute `out_features` or `out_channels`, as
    linear and convolutional modules have. The result is the last candidate with exactly `classes` outputs, in the order of
    `named_modules()`. If there is none, it is the last candidate. Raises ConfigError if there are no candidates; `words` are
    those of its message.
    """
    output_sizes = {
        name: getattr(module, "out_features", getattr(module, "out_channels", None))
        for name, module in model.named_modules()
        if name and any(True for _ in module.parameters(recurse=False))
    }
    output_sizes = {name: size for name, size in output_sizes.items() if size is not None}
    if not output_sizes:
        raise ConfigError(
            f"{words.head}=auto finds no classifier: no named module with parameters of its own has out_features or "
            f"out_channels; name it with {words.head}=NAME"
        )
    with_that_size = [name for name, size in output_sizes.items() if size == classes]
    return with_that_size[-1] if with_that_size else [*output_sizes][-1]
