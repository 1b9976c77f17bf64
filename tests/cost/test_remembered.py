"""Equal steps are counted once, also in several processes of a sweep; whatever a count may depend on tells steps apart."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from runner.cost import remembered
from runner.cost.batches import shapes_of
from runner.cost.copies import ModelCopy, count_step
from runner.cost.remembered import counting_once
from runner.experiment import experiment
from runner.sharing.folder import SharedFolder, Sharing
from runner.training.tasks.task import BatchTask
from tests.in_memory import config_with


class Net(nn.Sequential):
    def __init__(self, *layers: nn.Module, scale: object = 1.0) -> None:
        super().__init__(*(layers or (nn.Linear(8, 8), nn.Dropout(0.1), nn.Linear(8, 4))))
        self.scale = scale


def batch(samples: int = 2, dtype: torch.dtype = torch.float32):
    return torch.randn(samples, 8, dtype=dtype), torch.randint(4, (samples,))


def count(model, one, sharing, task=None, depends_on="a run"):
    """The count of a step, as another process of the sweep takes it, which remembers nothing."""
    remembered._counts.clear()
    return counting_once(ModelCopy.outlined(model), task or BatchTask(), depends_on, sharing)(one, shapes_of(one))


def counts_in(folder):
    return len(list(folder.glob("counts/*.json")))


def test_another_process_gets_the_same_count_without_counting(tmp_path, monkeypatch):
    sharing = Sharing(SharedFolder(tmp_path), "settings")
    first = count(Net(), batch(), sharing)
    assert first == count_step(ModelCopy.outlined(Net()), BatchTask(), batch())
    monkeypatch.delattr(remembered, "count_step")
    assert count(Net(), batch(), sharing) == first  # with other weights and another batch of these shapes
    assert counts_in(tmp_path) == 1


OTHERS = {
    "a frozen layer": lambda model, **_: {"model": model.requires_grad_(False)},
    "a mode": lambda model, **_: {"model": model.eval()},
    "an attribute": lambda **_: {"model": Net(scale=2.0)},
    "an attribute of a layer": lambda **_: {"model": Net(nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 4))},
    "a layer": lambda **_: {"model": Net(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))},
    "a shape": lambda **_: {"model": Net(nn.Linear(8, 9), nn.Dropout(0.1), nn.Linear(9, 4))},
    "a dtype": lambda **_: {"model": Net().double(), "one": batch(dtype=torch.float64)},
    "a hook": lambda model, **_: {"model": hooked(model)},
    "a tensor beside": lambda **_: {"model": Net(scale=torch.ones(2))},
    "the batch's size": lambda **_: {"one": batch(3)},
    "the batch's nesting": lambda one, **_: {"one": list(one)},
    "a number in the batch": lambda one, **_: {"one": (*one, 3), "task": BatchTask(call="first", target=1)},
    "the task": lambda **_: {"task": BatchTask(call="first")},
    "the method": lambda **_: {"depends_on": "another run"},
    "the settings": lambda sharing, **_: {"sharing": Sharing(sharing.folder, "others")},
}


def hooked(model: nn.Module) -> nn.Module:
    model[0].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("name", OTHERS)
def test_steps_that_may_differ_are_counted_apart(name, tmp_path):
    given = {"model": Net(), "one": batch(), "sharing": Sharing(SharedFolder(tmp_path), "settings")}
    count(**given)
    count(**(given | OTHERS[name](**given)))
    assert counts_in(tmp_path) == 2


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "the settings"])
def test_steps_that_may_differ_are_counted_apart_in_one_process_too(name):
    given = {"model": Net(), "one": batch(), "sharing": Sharing()}
    count(**given)
    first = list(remembered._counts)
    count(**(given | OTHERS[name](**given)))
    assert len({*first, *remembered._counts}) == 2


def test_a_model_with_a_part_that_cannot_be_compared_is_counted_in_each_process(tmp_path):
    class Opaque:
        def __reduce_ex__(self, version):
            raise TypeError("not to be pickled")

        def __deepcopy__(self, memo):
            return self

    sharing = Sharing(SharedFolder(tmp_path), "settings")
    assert count(Net(scale=Opaque()), batch(), sharing) == count(Net(), batch(), Sharing())
    assert counts_in(tmp_path) == 0


@pytest.mark.parametrize("method", ["requires_grad", "zero_lr", "detach"])
def test_the_costs_of_a_run_are_the_same_with_and_without_sharing(method, tmp_path):
    size = ["model=mlp", "model.input=[64]", "model.build.width=2100"]  # too large to be counted with its values
    config = config_with(*size, "batches=2", f"method={method}", "freeze=backbone")

    def cost(shared=None):
        remembered._counts.clear()
        return experiment(config, shared=shared).record["cost"]

    alone = cost()
    assert alone["flops_counted_on"] == "a meta copy"
    assert cost(SharedFolder(tmp_path)) == cost(SharedFolder(tmp_path)) == alone
    assert counts_in(tmp_path) == 2


def test_a_step_is_counted_for_each_number_in_the_batch_that_the_model_reads():
    class Repeating(Net):
        def forward(self, x, times):
            for _ in range(times):
                x = self[0](x)
            return self[2](x)

    remembered._counts.clear()
    (x, y), counts = batch(), []
    for times in (1, 3):
        count_of = counting_once(ModelCopy.outlined(Repeating()), BatchTask(call="args", target=-1), "", Sharing())
        counts.append(count_of((x, times, y), shapes_of((x, times, y))).flops_forward)
    assert counts == [2 * 2 * (64 + 32), 2 * 2 * (3 * 64 + 32)]


def test_a_step_that_draws_what_it_runs_is_counted_each_time(tmp_path):
    class DropsLayers(Net):
        def forward(self, x):
            for layer in self:
                x = x if random.random() < 0.5 and layer is self[0] else layer(x)
            return x

    remembered._counts.clear()
    counts = set()
    for seed in range(8):
        random.seed(seed)
        for sharing in (Sharing(), Sharing(SharedFolder(tmp_path), "settings")):
            count_of = counting_once(ModelCopy.outlined(DropsLayers()), BatchTask(), "", sharing)
            counts.add(count_of(batch(), shapes_of(batch())).flops_forward)
    assert counts == {2 * 2 * 32, 2 * 2 * (64 + 32)}
    assert not remembered._counts
    assert counts_in(tmp_path) == 0


def test_dropout_does_not_decide_what_runs():
    count_of = counting_once(ModelCopy.outlined(Net()), BatchTask(), "", Sharing())
    assert not count_of(batch(), shapes_of(batch())).depends_on_values
