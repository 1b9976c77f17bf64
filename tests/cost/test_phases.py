"""The costs of a run whose phases freeze different layers: FLOPs are the mean over its steps, bytes the largest phase's."""

from __future__ import annotations

import json
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import nn

from runner import select
from runner.assemble.setup import assembled
from runner.cost import meter as meter_module
from runner.cost.flops import REAL
from runner.cost.meter import CountingMeter
from runner.cost.phases import MOST_SETS, MeteredSet, held_in_run, most_bytes
from runner.cost.shares import total_bytes
from runner.experiment import TrainingState, training_steps
from runner.freezing.schedule import reached_phases
from runner.proof.audit import audit
from runner.tensors import tensor_entries
from tests.in_memory import config_with, run_experiment

BATCH = 4  # samples
LAYERS = {"body": 64 * 32, "there": 32 * 32, "back": 32 * 32, "head": 32 * 10}  # products for one sample
FORWARD = 2 * BATCH * sum(LAYERS.values())
BACKWARD = 2 * FORWARD - 2 * BATCH * LAYERS["body"]  # weights and inputs; the data need no gradient
HEAD = 2 * BATCH * LAYERS["head"]
PARAMETERS, HEAD_PARAMETERS = 3562, 330
FROM_STEP_5 = ("freeze=backbone", "schedule=after", "schedule.step=5", "batches=16")  # 4 steps with nothing frozen, 12 with


def costs(*overrides: str) -> dict:
    """Return the costs of a run with these overrides."""
    return run_experiment(*overrides).record["cost"]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("method", ["requires_grad", "zero_lr", "detach", "to_buffer", "grad_none", "exclude"])
def test_flops_are_the_mean_of_runs_of_one_phase_weighted_by_steps_and_bytes_those_of_the_larger(method, accumulate):
    both = (f"method={method}", f"accumulate={accumulate}")
    nothing, frozen = costs("method=none", "freeze=none", both[1]), costs(*both, "freeze=backbone")
    run = costs(*both, "freeze=backbone", "schedule=after", "schedule.step=3", f"batches={8 * accumulate}")
    for key in ("flops_forward", "flops_backward"):
        assert 8 * run[key] == 2 * nothing[key] + 6 * frozen[key]
    assert run["flops_share"] == (2 + 6 * frozen["flops_share"]) / 8
    for key in ("saved_bytes", "gradient_bytes", "optimizer_state_bytes", "peak_memory_bytes", "parameter_bytes"):
        assert run[key] == max(nothing[key], frozen[key]) == nothing[key]
        if key not in ("peak_memory_bytes", "parameter_bytes"):
            assert run[f"{key}_share"] == 1


@pytest.mark.parametrize("method", ["requires_grad", "to_buffer", "detach", "zero_lr"])
def test_where_phases_thaw_the_costs_are_those_of_runs_that_freeze_the_same_all_the_time(method):
    overrides = (f"method={method}", "freeze=backbone", "schedule=gradual", "batches=16")
    with assembled(config_with(*overrides)) as setup:
        phases = list(reached_phases(setup.phases, 16))
    assert [len(phase.selection.parameters) for phase, _ in phases] == [7, 4, 0]
    frozen = [f"freeze={{patterns: {list(phase.selection.parameters)}}}" for phase, _ in phases[:2]] + ["freeze=none"]
    alone = [costs(f"method={method}", each) for each in frozen]
    run = costs(*overrides)
    for key in ("flops_forward", "flops_backward"):
        assert run[key] == round(sum(steps * each[key] for (_, steps), each in zip(phases, alone, strict=True)) / 16)
    for key in ("saved_bytes", "gradient_bytes", "optimizer_state_bytes", "peak_memory_bytes"):
        assert run[key] == max(each[key] for each in alone)


def test_a_schedule_that_drops_state_holds_that_of_the_largest_block_and_of_what_always_trains():
    run = costs("freeze=backbone", "schedule=block_coordinate", "schedule.every=2", "batches=12")
    largest = 64 * 32 + 32 + 2 * 32  # body and norm
    assert run["optimizer_state_bytes"] == run["gradient_bytes"] == 4 * (largest + HEAD_PARAMETERS)
    assert run["optimizer_state_bytes_share"] == (largest + HEAD_PARAMETERS) / PARAMETERS
    assert run["frozen_optimizer_state_bytes"] == 0


def equal_layers(count: int) -> nn.Sequential:
    """Return a chain of layers with as many parameters each."""
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(count)))


def state_at_each_step(count: int, *overrides: str) -> list[int]:
    """Return the bytes of optimizer state after each step of a run with a model of `count` equal layers."""
    model = ("model=custom", f"model.build._target_={__name__}.equal_layers", f"model.build.count={count}")
    config = config_with(*model, "model.input=[8]", "model.classes=8", f"batches={3 * count}", "cost=off", *overrides)
    with assembled(config) as setup, audit(setup.model, setup.phases[0].selection, setup.optimizer) as report:
        return [total_bytes(setup.optimizer.state) for _ in training_steps(setup, report, TrainingState())]


@pytest.mark.parametrize(("optimizer", "buffers", "counters"), [("sgd", 1, 0), ("adam", 2, 1), ("adamw", 2, 1)])
@pytest.mark.parametrize("count", [2, 5])
def test_equal_blocks_that_train_in_turn_hold_of_the_optimizer_state_the_share_of_one_at_every_step(
    optimizer, buffers, counters, count
):
    block = 4 * (buffers * (8 * 8 + 8) + counters * 2)  # bytes, for a weight and a bias
    in_turn = (f"optimizer={optimizer}", "freeze=all", "schedule=block_coordinate")
    for every in (1, 2, 3):
        assert set(state_at_each_step(count, *in_turn, f"schedule.every={every}")) == {block}
    kept = state_at_each_step(count, *in_turn, "schedule.every=1", "schedule.state=keep")
    assert kept == [min(step, count) * block for step in range(1, 3 * count + 1)]
    assert set(state_at_each_step(count, in_turn[0], "method=none", "freeze=none")) == {count * block}


def test_the_costs_of_a_small_model_are_as_by_hand():
    run = costs(*FROM_STEP_5)
    assert run["flops_forward"] == FORWARD
    assert run["flops_backward"] == (4 * BACKWARD + 12 * HEAD) / 16
    assert run["flops_share"] == (4 * (FORWARD + BACKWARD) + 12 * (FORWARD + HEAD)) / (16 * (FORWARD + BACKWARD))
    assert run["gradient_bytes"] == run["optimizer_state_bytes"] == 4 * PARAMETERS
    assert run["frozen_gradient_bytes"] == 0
    assert run["frozen_optimizer_state_bytes"] == 4 * (PARAMETERS - HEAD_PARAMETERS)  # of the steps before


def test_a_phase_in_which_a_method_skips_layers_saves_them_in_its_own_batches_alone():
    skipping = ("method=cached_prefix", "freeze={patterns: ['**'], keep: ['@head'], buffers: frozen}", "batches=4")
    for accumulate, first in ((1, 5), (2, 3)):
        more = ("data.epochs=4", f"accumulate={accumulate}", "schedule=after", f"schedule.step={first}")
        run = costs(*skipping, *more)  # all trains in pass 1, pass 2 fills the cache, and passes 3 and 4 skip the backbone
        assert run["flops_forward"] == (2 * FORWARD + 2 * HEAD) / 4
        assert run["flops_backward"] == (BACKWARD + 3 * HEAD) / 4


def test_the_mean_weighs_the_shapes_that_were_fed_in_each_phase(cli):
    Path("mine.py").write_text(
        "import torch\nclass Data:\n    def __init__(self, sizes): self.sizes = sizes\n"
        "    def __iter__(self):\n"
        "        for size in self.sizes: yield torch.randn(size, 64), torch.randint(10, (size,))\n"
    )
    sizes = [4, 8, 8, 8, 4, 4, 4, 4]
    data = ("data=custom", "data._target_=mine.Data", f"++data.sizes={sizes}".replace(" ", ""), f"batches={len(sizes)}")
    frozen = ("freeze=backbone", "schedule=after", "schedule.step=3")
    assert cli("model=mlp", *data, *frozen, "hydra.run.dir=run")[0] == 0
    cost = json.loads(Path("run/run.json").read_text())["cost"]
    assert cost["flops_backward"] == ((1 + 2) * BACKWARD + (2 + 2 + 4) * HEAD) / len(sizes)
    assert cost["flops_forward"] == 11 * FORWARD / len(sizes)


@pytest.mark.parametrize(
    ("freeze", "step", "message"),
    [("head", 2, "at the end"), ("head", 6, ""), ("backbone", 2, ""), ("backbone", 6, "")],
)
def test_why_little_is_saved_is_that_of_the_phase_with_most_steps(freeze, step, message):
    run = costs(f"freeze={freeze}", "schedule=after", f"schedule.step={step}", "batches=6")
    assert message in run["why_small"] if message else not run["why_small"]


def test_the_copy_of_the_weights_by_which_a_schedule_decides_is_a_part_of_the_peak_memory_and_a_note_says_so():
    notes = []
    config = config_with("freeze=backbone", "schedule=when_still", "schedule.window=2", "batches=5")
    with assembled(config, lambda text, *, urgent=False: notes.append(text)) as setup:
        with audit(setup.model, setup.phases[0].selection, setup.optimizer, before=setup.before) as report:
            assert list(training_steps(setup, report, TrainingState()))
        peaks = []
        for extra in (setup.meter.extra_bytes, 0):
            setup.meter.extra_bytes = extra
            peaks.append(setup.meter.read_costs(setup.model, setup.optimizer, setup.before.entries)["peak_memory_bytes"])
    assert peaks[0] - peaks[1] == 4 * (PARAMETERS - HEAD_PARAMETERS)
    (note,) = [text for text in notes if "peak memory" in text]
    assert note == "cost: the peak memory includes 12.62 KiB for a copy of the weights, by which the schedule decides"


def test_what_a_method_turns_into_a_buffer_counts_once_in_the_peak_memory():
    peaks = [costs(f"method={method}", "freeze=backbone")["peak_memory_bytes"] for method in ("requires_grad", "to_buffer")]
    assert peaks[0] == peaks[1]


class Metered:
    """A model, trained in phases under a meter; in each phase layers of some names train."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.notes = model, []
        self.names = [name for name, child in model.named_children() if list(child.parameters())]
        self.meter = CountingMeter({}, torch.device("cpu"), lambda text, urgent=False: self.notes.append(text))
        self.meter.on_model_built(model)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        self.meter.wrap_task(lambda model, batch: model(batch).sum(), self.optimizer, ExitStack())

    def train(self, phases) -> dict:
        """Return the costs after one step in each phase, given by the names of the layers that train."""
        for step, trained in enumerate(phases, 1):
            frozen = [name for name in self.names if name not in trained]
            selection = select(self.model, frozen)
            for parameter in self.model.parameters():
                parameter.requires_grad_(parameter not in selection)
            self.meter.on_phase_prepared(self.model, selection)
            for batch in self.meter.watch_batches([torch.ones(2, 8)], step, self.optimizer, ExitStack()):
                self.optimizer.zero_grad()
                self.model(batch).sum().backward()
                self.optimizer.step()
            self.meter.on_phase_end(list(self.model.parameters()), self.optimizer, {})
        return self.meter.read_costs(self.model, self.optimizer, tensor_entries(self.model))


def linear_layers(count: int) -> nn.Sequential:
    """Return a model of linear layers of 8 units."""
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(count)))


def test_of_hundreds_of_phases_a_step_is_counted_once_for_each_distinct_set(monkeypatch):
    counted = []
    count_step = meter_module.count_step
    monkeypatch.setattr(meter_module, "count_step", lambda *args: counted.append(args) or count_step(*args))
    run = Metered(linear_layers(3))
    cost = run.train([["0"], ["1"], ["2"]] * 100)
    assert len(counted) == 3 + 1  # and once with nothing frozen
    layer = 2 * 2 * 8 * 8
    assert cost["flops_backward"] == layer * ((1 + 2) + (1 + 1) + 1) / 3  # its weight, and the inputs of those behind it
    assert cost["gradient_bytes"] == 4 * (8 * 8 + 8)
    assert cost["optimizer_state_bytes"] == 3 * cost["gradient_bytes"]  # what was frozen keeps its state


def test_the_order_and_the_number_of_phases_do_not_matter_if_as_many_steps_are_made_in_each_set():
    turns, blocks = (Metered(linear_layers(3)).train(phases) for phases in (["0", "2"] * 5, ["0"] * 5 + ["2"] * 5))
    assert turns == blocks


def test_of_very_many_sets_the_first_are_counted_and_a_note_says_so():
    sets = [names for size in (1, 2, 3) for names in combinations("01234567", size)]
    run = Metered(linear_layers(8))
    cost = run.train(sets)
    assert len(sets) == 92
    assert (
        f"cost: FLOPs and saved bytes are those of the first {MOST_SETS} of the 92 different sets that were frozen"
        in run.notes
    )
    assert cost["gradient_bytes"] == 3 * 4 * (8 * 8 + 8)  # measured in every phase
    first = Metered(linear_layers(8)).train(sets[:MOST_SETS])
    assert cost["flops_share"] == first["flops_share"]


def test_copies_without_values_in_place_of_many_with_them_give_the_same_costs(monkeypatch):
    phases = [["0"], ["1"], ["2"]]
    with_values = Metered(linear_layers(3)).train(phases)
    monkeypatch.setattr(meter_module, "MOST_BYTES", 0)
    few = Metered(linear_layers(3))
    assert few.train(phases) == with_values
    assert [each.copied.has_values for each in few.meter.sets.values()] == [True, False, False]


class ReadsValues(nn.Module):
    """A model that is too large to be copied with its values, and whose forward pass reads one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 2**19), nn.Linear(2**19, 8)

    def forward(self, x):
        return self.last(self.first(x)) if x.sum().item() < 1e9 else None


def test_where_values_are_needed_each_phase_is_counted_with_those_of_the_trained_model():
    cost = Metered(ReadsValues()).train([["first", "last"], ["last"], ["first", "last"], ["last"]])
    layer = 2 * 2 * 8 * 2**19
    assert cost["flops_counted_on"] == REAL
    assert cost["flops_forward"] == 2 * layer
    assert cost["flops_backward"] == (3 * layer + layer) / 2
    assert cost["flops_share"] == (5 + 3) / 2 / 5


def test_a_model_that_cannot_be_copied_in_a_later_phase_has_no_flops_and_one_note_says_why():
    class Locked(nn.Sequential):
        def forward(self, x):
            self.lock = (each for each in ())  # a generator cannot be copied
            return super().forward(x)

    run = Metered(Locked(nn.Linear(8, 8), nn.Linear(8, 8)))
    cost = run.train([["0", "1"], ["1"], ["0"], ["1"]])
    assert (cost["flops_forward"], cost["saved_bytes"], cost["flops_share"]) == (None, None, None)
    assert cost["gradient_bytes"] == 2 * 4 * (8 * 8 + 8)
    assert sum("the cost of a step is not known" in note for note in run.notes) == 1


def test_a_figure_that_is_not_known_in_one_phase_is_not_known_of_the_run():
    assert most_bytes([{"a": 1, "b": 2}, {"a": 3, "b": None}]) == {"a": 3, "b": None}
    assert most_bytes([{"a": 1}, {}]) == {"a": None}
    assert most_bytes([{}]) == {}


def test_the_state_of_training_everything_is_estimated_from_the_phase_with_most_state():
    selection = select(nn.Linear(2, 2), ["bias"])
    ends = [({"optimizer_state_bytes": size}, per_byte) for size, per_byte in ((800, 2.0), (0, None), (400, 2.5))]
    sets = [MeteredSet(selection, ends=ends[:2]), MeteredSet(selection, ends=ends[2:])]
    assert held_in_run(sets) == ({"optimizer_state_bytes": 800}, 2.0)
