"""A task as a run calls it: what it returns, and the parts of its losses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from runner.errors import ConfigError
from runner.training.tasks.task import BatchTask
from runner.training.tasks.trained import TrainedTask

BATCH = (torch.eye(4), torch.arange(4))
MODEL = nn.Linear(4, 4)


class Doubled(BatchTask):
    """A task of a user's, which changes what the call of a task returns."""

    def __call__(self, model, batch):
        return 2 * super().__call__(model, batch)


def parted(model, batch):
    """Return a loss in two parts."""
    return {"first": model(batch[0]).sum() * 0 + 1.0, "second": model(batch[0]).sum() * 0 + 2.0}


def test_a_derived_task_is_called_as_it_defines_its_call():
    assert torch.equal(TrainedTask(Doubled())(MODEL, BATCH), 2 * TrainedTask(BatchTask())(MODEL, BATCH))


def test_the_loss_of_a_mapping_of_scalars_is_their_sum_and_the_parts_are_the_mean_over_the_first_calls():
    task = TrainedTask(parted)
    assert [float(task(MODEL, BATCH).detach()) for _ in range(3)] == [3.0, 3.0, 3.0]
    assert {name: float(part) for name, part in task.take_parts(2).items()} == {"first": 1.0, "second": 2.0}
    assert task.take_parts(2) == {}


def test_a_loss_in_one_part_has_no_parts():
    task = TrainedTask(BatchTask())
    task(MODEL, BATCH)
    assert task.take_parts(1) == {}


@pytest.mark.parametrize("returned", [1.0, None, {}, {"loss": 1.0}, torch.ones(3), {"loss": torch.ones(2)}], ids=str)
def test_what_is_no_scalar_and_no_mapping_of_scalars_is_refused(returned):
    with pytest.raises(ConfigError, match=r"the task returned .*; it must return the loss as a tensor of shape"):
        TrainedTask(lambda model, batch: returned)(MODEL, BATCH)


def test_the_model_runs_in_bfloat16_under_autocast_and_its_parameters_keep_their_dtype():
    seen = []
    TrainedTask(lambda model, batch: seen.append(model(batch[0]).dtype) or torch.ones(()), "cpu")(MODEL, BATCH)
    assert seen == [torch.bfloat16]
    assert MODEL.weight.dtype is torch.float32
