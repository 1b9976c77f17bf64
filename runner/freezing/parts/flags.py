"""Find the parts of a model that its builder left trainable, or froze, by the flags that the parameters had then."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from runner.freezing.parts.evidence import Evidence
from runner.freezing.words import Words


def find_as_built(model: nn.Module, evidence: Evidence, words: Words) -> Sequence[str]:
    """Return the names of the parameters that had `requires_grad=False` when the model was built, tied names included."""
    return [name for name, _ in model.named_parameters(remove_duplicate=False) if name not in evidence.trainable]
