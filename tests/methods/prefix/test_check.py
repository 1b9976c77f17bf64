"""`verified_recording` tries a step without the frozen first layers, and measures what the rest of a batch changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from runner.errors import SkippedError
from runner.methods.base import Example
from runner.methods.prefix.check import Prefix, verified_recording
from tests.methods.token_models import Language, own_loss


class Scale(nn.Module):
    """Multiplies by 0.3 where no sample of the batch is padded, otherwise by 0.1 and by 3, which rounds differently."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3), requires_grad=False)

    def forward(self, x, mask):
        return x * self.weight if mask.all() else x * 0.1 * (self.weight * 10)


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.head = Scale(), nn.Linear(50, 1)

    def forward(self, x, mask):
        return self.head(self.scale(x, mask) * mask).sum()


@pytest.mark.parametrize(("mask", "depends"), [([1, 1, 1], False), ([0, 0, 0], False), ([1, 0, 0], True), ([0, 0, 1], True)])
def test_outputs_that_depend_on_the_padding_of_other_samples_are_measured(mask, depends):
    batch = {"x": torch.rand(3, 50), "mask": torch.tensor(mask).view(3, 1).expand(3, 50)}
    step = Example(lambda model, batch: model(**batch), batch)
    difference = verified_recording(Padded(), Prefix("scale", []), step, {})[1]
    assert (0 < difference < 1e-6) == depends
    assert (difference == 0) != depends


def test_a_module_without_parameters_runs_if_later_layers_need_its_output():
    model = Language()
    for module in (model.embed, model.blocks[0]):
        module.requires_grad_(False)
    ids = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(0))
    step = Example(own_loss, {"ids": ids, "labels": ids})
    recording, _ = verified_recording(model, Prefix("blocks.0", ["embed", "angles"]), step, {})
    assert list(recording.outputs) == ["embed"]


def test_a_module_with_parameters_whose_output_is_needed_cannot_be_skipped():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x):
            x = self.first(x)
            return self.head(x + self.second(x)).sum()

    step = Example(lambda model, batch: model(batch), torch.randn(4, 3))
    with pytest.raises(SkippedError, match="cannot be skipped in a step"):
        verified_recording(Around(), Prefix("second", ["first"]), step, {})
