"""Find the adapters of a model: what its builder left trainable where it froze something."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from torch import nn

from runner.errors import ConfigError
from runner.freezing.matching import Matching
from runner.freezing.parts.evidence import Evidence
from runner.freezing.parts.head import find_head
from runner.freezing.patterns import parse_all
from runner.freezing.words import Words


def find_adapters(model: nn.Module, evidence: Evidence, words: Words) -> Sequence[str]:
    """Return the names of the parameters that were trainable when the model was built, without those of its head.

    None if all parameters were trainable then. If the head is not known, nothing is left out.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if evidence.trainable.issuperset(names):
        return []
    head: Sequence[str] = ()
    with suppress(ConfigError):
        head = find_head(model, evidence, words)
    matching = Matching(model)
    matchers = [matching.matcher(pattern) for pattern in parse_all(head, words.head)]
    return [name for name in names if name in evidence.trainable and not any(matches(name) for matches in matchers)]
