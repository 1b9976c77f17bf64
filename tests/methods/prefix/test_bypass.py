"""The frozen first layers of a model are skipped, and nobody else notices that `forward` was replaced."""

from __future__ import annotations

from inspect import signature

from torch import nn

from runner.methods.prefix.bypass import Bypass


class Tokens(nn.Module):
    """A model that takes its inputs by their names."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(8, 4), nn.Linear(4, 8)

    def forward(self, input_ids, attention_mask=None, labels=None):
        return self.head(self.embed(input_ids))


def test_a_replaced_forward_has_the_signature_of_the_models_own():
    model = Tokens()
    expected = signature(model.forward)
    bypass = Bypass(model, "embed", [])
    assert signature(model.forward) == expected
    bypass.undo()
    assert signature(model.forward) == expected
