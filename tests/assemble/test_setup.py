"""What a run says of its objects before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

RUN = (
    "model=custom model.build._target_=mine.Net data=custom data._target_=mine.batches freeze=none batches=2 "
    "hydra.run.dir=out ++data.names={}"
)
MINE = """
import torch

class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

    def forward(self, features, attention_mask=None):
        return super().forward(features)

def batches(names):
    return [{name: torch.ones(4, 3) for name in names} | {"label": torch.tensor([0, 1, 1, 0])} for _ in range(2)]
"""


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("[features]", []),
        ("[features,index]", ["the model does not take the field index of a batch: it is left out"]),
        ("[features,index,size]", ["the model does not take the fields index and size of a batch: they are left out"]),
    ],
)
def test_the_fields_of_a_batch_that_nobody_takes_are_noted_once(cli, names, said):
    Path("mine.py").write_text(MINE)
    assert cli(*RUN.format(names).split())[0] == 0
    notes = json.loads(Path("out/run.json").read_text())["notes"]
    assert [note for note in notes if "of a batch" in note] == said


@pytest.mark.long
def test_a_field_with_nearly_the_name_of_an_argument_ends_with_2_and_the_keys_to_set(cli):
    Path("mine.py").write_text(MINE)
    code, _, err = cli(*RUN.format("[features,attn_mask]").split())
    assert (code, err.count("\n")) == (2, 1)
    assert "give task.fields={features: features, attn_mask: attention_mask}" in err
    run = RUN.format("[features,attn_mask]").split()
    code, _, err = cli(*run, "task.fields={features: features, attn_mask: attention_mask}", "hydra.run.dir=again")
    assert (code, err) == (0, "")
