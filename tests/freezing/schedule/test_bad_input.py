"""A schedule that cannot be carried out ends the command with one line and the exit code 2, before a step is made."""

from __future__ import annotations

from pathlib import Path

import pytest

STREAM = """
import torch


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        for number in range(6):
            yield torch.full((4, 64), float(number)), torch.arange(4)


def stream():
    return torch.utils.data.DataLoader(Stream(), batch_size=None)
"""
UNKNOWN_LENGTH = ("data=custom", "data._target_=mine.stream", "batches=auto")
LBFGS = ("optimizer=lbfgs", "groups=one")
EXPLICIT = ("schedule=explicit",)


def items(text: str) -> tuple[str, ...]:
    """Return the overrides that choose `explicit` with this list."""
    return "schedule=explicit", f"schedule.phases=[{text}]"


REFUSED = {
    # after the last step
    ("schedule=gradual", "schedule.every=5"): "1 of 3 phases would begin after the last step, the last one at step 11",
    ("schedule=linear_probe_then_finetune", "schedule.every=8"): "1 of 2 phases would begin after the last step",
    ("schedule=block_coordinate", "schedule.every=8"): "the first of 2 blocks would train in all 8 steps",
    ("schedule=when_still", "schedule.window=8"): "decides every 8 steps what is frozen, but the run has 8",
    ("schedule=freeze_out", "batches=1"): "nothing would be frozen in the 1 steps of the run",
    items("{at: 9, thaw: [body]}"): "schedule.phases[0].at is 9: step 9, after the last step 8 of the run",
    ("schedule=gradual", "batches=2"): "the run has 2 steps, too few for 3 phases",
    # nothing, everything, never frozen
    items("{at: 3, thaw: [nope]}"): "schedule.phases[0].thaw: 'nope' matches no parameter or module of the model",
    items("{at: 3, thaw: [head]}"): "schedule.phases[0].thaw: 'head' matches nothing that freeze selects",
    items("{at: 3, thaw: [body]}, {at: 4, thaw: [body]}"): "schedule.phases[1].thaw: ['body'] is not frozen at step 4",
    (*items("{at: 3, thaw: [body]}"), "freeze=all"): "every parameter would be frozen from step 1 on",
    ("schedule=gradual", "freeze=none"): "freeze selects no parameter, so the schedule has nothing to act on",
    # blocks
    ("schedule=gradual", "schedule.blocks=[nope]"): "schedule.blocks: 'nope' matches no parameter or module of the model",
    ("schedule=gradual", "schedule.blocks=nope"): "schedule.blocks is 'nope'; give auto, or a list",
    ("schedule=gradual", "freeze=all", "schedule.blocks=[[body,head]]"): "no blocks were found to freeze one by one",
    # numbers and words
    items("{at: 3, factors: {body: -1}}"): "schedule.phases[0].factors.body is -1; give a number of 0 or more",
    ("schedule=linear_probe_then_finetune", "schedule.factor=-1"): "schedule.factor is -1; give a number of 0 or more",
    ("schedule=freeze_out", "schedule.how=square"): "schedule.how is 'square'; give linear or cubic",
    ("schedule=block_coordinate", "schedule.by=luck"): "schedule.by is 'luck'; give cyclic, random or gradient_norm",
    ("schedule=gradual", "schedule.state=gone"): "schedule.state is 'gone'; give keep or drop",
    ("schedule=gradual", "schedule.reverse=maybe"): "schedule.reverse is 'maybe'",
    ("schedule=gradual", "schedule.evry=2"): "schedule.evry: no such key; did you mean schedule.every",
    ("schedule=freeze_out", "schedule.every=2"): "schedule.every: no such key of the chosen schedule",
    EXPLICIT: "schedule.phases is missing; give schedule.phases=...",
    # data of unknown length
    ("schedule=gradual", *UNKNOWN_LENGTH): "the phases divide the run, but the data have no length; give batches=N",
    ("schedule=gradual", "schedule.every=25%", *UNKNOWN_LENGTH): "schedule.every is '25%', but the data have no length",
    ("schedule=when_still", *UNKNOWN_LENGTH): "schedule.window is 0.1, but the data have no length",
    # what cannot be switched
    ("schedule=gradual", *LBFGS): "skipped: LBFGS cannot train parameters that were frozen in mid-run",
    (
        "schedule=freeze_out",
        *LBFGS,
    ): "skipped: LBFGS takes one parameter group, and each block of the schedule needs its own",
    (
        "schedule=block_coordinate",
        "method=detach",
    ): "skipped: there.weight is frozen, but no single module's output separates",
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.items(), ids=map(" ".join, REFUSED))
def test_it_is_refused_in_one_line(cli, arguments, message):
    Path("mine.py").write_text(STREAM)
    code, out, err = cli("model=mlp", "cost=off", "batches=8", "freeze=backbone", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert len(err) < 400
    assert not list(Path().glob("outputs/*/*/steps.csv"))


def test_a_plan_refuses_it_too(cli):
    code, _, err = cli("model=mlp", "batches=8", "freeze=backbone", "schedule=gradual", "schedule.every=5", "plan=true")
    assert (code, err.count("\n")) == (2, 1)
    assert "1 of 3 phases would begin after the last step" in err


def test_steps_are_enough_for_data_of_unknown_length(cli):
    Path("mine.py").write_text(STREAM)
    options = ("model=mlp", "cost=off", "freeze=backbone", "schedule=gradual", "schedule.every=2", *UNKNOWN_LENGTH)
    assert cli(*options, "hydra.run.dir=run")[0] == 0
    assert len(Path("run/steps.csv").read_text().splitlines()) == 7
