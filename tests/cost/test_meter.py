"""The cost of a run: compared with independent counts, measured without changing a bit, empty with a reason if unknown."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, vit_b_16

from runner import truth_table
from runner.assemble import assembled
from runner.contract import COSTS
from runner.cost.flops import META, REAL, FakeCopy, StepCount, _run_and_count, count_step
from runner.cost.meter import explain_small_saving
from runner.experiment import TrainingState, training_steps
from runner.freezing.selection import select
from runner.proof.audit import audit
from runner.tensors import same_bits
from runner.training.models import MLP, TokenMLP
from runner.training.tasks import Classification
from tests.conftest import read_table
from tests.in_memory import config_with, run_experiment

MIB = 2**20


def batch(*shape: int, classes: int = 10, size: int = 8):
    return torch.randn(size, *shape), torch.randint(classes, (size,))


def frozen(model: nn.Module, *patterns: str) -> nn.Module:
    for parameter in select(model, patterns).parameters.values():
        parameter.requires_grad_(False)
    return model


def test_the_counts_of_resnet18_are_those_known():
    model, one = resnet18(), batch(3, 128, 128, classes=1000)
    whole_step = count_step(model, Classification(), one)
    assert whole_step.counted_on == META
    assert round((whole_step.flops_forward + whole_step.flops_backward) / 1e9, 2) == 27.83
    assert round(whole_step.saved_bytes / MIB, 1) == 57.3
    assert round(whole_step.gradient_bytes / MIB, 1) == 44.6
    head = count_step(frozen(model, "conv1", "bn1", "layer*"), Classification(), one)
    assert round((head.flops_forward + head.flops_backward) / 1e9, 2) == 9.49
    assert head.saved_bytes < 0.1 * MIB


def test_the_counts_of_two_linear_layers_agree_with_a_hand_count():
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 4, bias=False))
    one = count_step(model, lambda model, x: model(x).sum(), torch.zeros(3, 6))
    products = 2 * 3 * (6 * 5 + 5 * 4)
    assert one.flops_forward == products
    assert one.flops_backward == products + 2 * 3 * 5 * 4  # of both weights, and of the activation between them
    assert one.gradient_bytes == 4 * (6 * 5 + 5 * 4)
    # x, the output of the first layer, and a view of the second weight
    assert one.saved_bytes == 4 * (3 * 6 + 3 * 5 + 5 * 4)
    assert one.parameter_order == ("0.weight", "1.weight")
    assert one.flops_by_module == {"": products, "0": 2 * 3 * 6 * 5, "1": 2 * 3 * 5 * 4}


MODELS = {
    "mlp": (lambda: MLP([64]), batch(64)),
    "token_mlp": (TokenMLP, (torch.rand(8, 6), torch.randint(4, (8,)))),
    "resnet18": (lambda: frozen(resnet18(num_classes=10), "layer1", "layer3.0"), batch(3, 32, 32)),
    "vit": (lambda: vit_b_16(num_classes=10, image_size=32), batch(3, 32, 32, size=2)),
    "attention": (lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16), nn.Flatten(), nn.Linear(32, 10)), batch(4, 8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_fake_copy_gives_the_same_counts_as_a_real_step(name):
    build, one = MODELS[name]
    model = build()
    fake = count_step(model, Classification(), one)
    real = _run_and_count(copy.deepcopy(model), Classification(), one, META)
    assert fake == real
    assert fake.flops_forward > 0


@pytest.mark.parametrize("name", ["mlp", "attention"])  # a convolution takes scratch memory
def test_the_peak_memory_agrees_with_the_profiler_of_torch(name):
    from torch.profiler import ProfilerActivity, profile

    build, one = MODELS[name]
    model = build()
    Classification()(model, one).backward()
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        Classification()(model, one).backward()
    live = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert count_step(model, Classification(), one).peak_bytes == peak


def test_counting_does_not_change_the_model_its_gradients_or_the_random_state():
    class Draws(MLP):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            return super().forward(nn.functional.dropout(x + torch.rand_like(x)))

    model, one = Draws([64]), batch(64)
    model(one[0]).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    count_step(model, Classification(), one)
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in model.named_parameters())
    assert model.calls == 1
    assert not any(module._forward_pre_hooks for module in model.modules())


def bits_of_a_run(cost: str, *overrides: str):
    """Rows, losses, weights and buffers, optimizer state and random state after a run."""
    config = config_with(f"cost={cost}", "batches=6", *overrides)
    with assembled(config) as setup:
        with audit(setup.model, setup.phases[0].selection, setup.optimizer, before=setup.before) as report:
            steps = list(training_steps(setup, report, TrainingState()))
        state = setup.optimizer.state_dict()
        values = [value.clone() for value in setup.built_model.state_dict().values()]
        return report.rows, [step.loss for step in steps], values, state, torch.get_rng_state()


def assert_same_bits(one, other) -> None:
    """Assert that nested values are equal, tensors to the last bit."""
    if isinstance(one, torch.Tensor):
        assert same_bits(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        assert_same_bits(list(one.values()), list(other.values()))
    elif isinstance(one, (list, tuple)):
        for left, right in zip(one, other, strict=True):
            assert_same_bits(left, right)
    else:
        assert one == other or one != one


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=requires_grad",),
        ("method=zero_grad", "model=token_mlp", "optimizer=adam"),
        ("method=restore", "optimizer=adamw", "autocast=true"),
        ("method=detach", "freeze=backbone", "schedule=after", "schedule.step=3"),
        ("method=grad_none", "optimizer=lbfgs", "groups=one", "clip=1.0"),
    ],
    ids=" ".join,
)
def test_meters_leave_weights_buffers_random_state_and_the_optimizer_bit_identical(overrides):
    off = bits_of_a_run("off", *overrides)
    for cost in ("count", "time"):
        assert_same_bits(bits_of_a_run(cost, *overrides), off)


def test_the_bytes_of_gradients_and_optimizer_state_are_read_from_the_run_and_split_by_frozen():
    def costs(method, optimizer="sgd"):
        return run_experiment(f"method={method}", "freeze=backbone", f"optimizer={optimizer}", "batches=3").record["cost"]

    model = MLP([64])
    parts = {name: 4 * parameter.numel() for name, parameter in model.named_parameters()}
    head = sum(size for name, size in parts.items() if name.startswith("head"))
    rest = sum(parts.values()) - head
    zero, flag, out = (costs(method) for method in ("zero_lr", "requires_grad", "exclude"))
    keys = ("gradient_bytes", "frozen_gradient_bytes", "optimizer_state_bytes", "frozen_optimizer_state_bytes")
    assert [zero[key] for key in keys] == [head + rest, rest, head + rest, rest]  # SGD's momentum is as large
    assert [flag[key] for key in keys] == [head, 0, head, 0]
    assert [out[key] for key in keys] == [head + rest, rest, head, 0]
    steps = 4 * 2  # Adam counts the steps of each parameter
    assert costs("requires_grad", "adam")["optimizer_state_bytes"] == 2 * head + steps
    assert zero["parameter_bytes"] == flag["parameter_bytes"] == head + rest


def test_cost_time_has_every_figure_and_cost_off_has_none():
    assert tuple(run_experiment("batches=9", "cost=time").record["cost"]) == COSTS
    assert run_experiment("cost=off").record["cost"] == {}


def test_the_seconds_of_forward_backward_and_step_are_measured_after_a_warm_up():
    cost = run_experiment("batches=9", "cost=time").record["cost"]
    assert all(cost[f"seconds_{part}"] > 0 for part in ("forward", "backward", "step"))
    assert all(cost[f"seconds_{part}_spread"] >= 0 for part in ("forward", "backward", "step"))
    assert run_experiment("batches=8").record["cost"]["seconds_step"] is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("batches=5", "cost=time"), "needs 6 steps or more"),
        (("batches=8", "cost=time", "optimizer=lbfgs", "groups=one"), "the optimizer's step runs the forward pass itself"),
    ],
    ids=["short", "lbfgs"],
)
def test_seconds_that_are_not_known_are_empty_and_a_note_says_why(overrides, message):
    outcome = run_experiment(*overrides)
    assert outcome.record["cost"]["seconds_step"] is None
    assert outcome.record["cost"]["flops_forward"] > 0
    assert any(message in note for note in outcome.notes)


HOSTILE = {
    "needs values": ("if x.sum().item() > 1e9: raise KeyError", REAL),
    "refuses dispatch modes": (
        "if torch.utils._python_dispatch._get_current_dispatch_mode(): raise KeyError('no modes')",
        None,
    ),
    "custom function": ("x = Double.apply(x)", META),
    "has side effects": ("self.calls = getattr(self, 'calls', 0) + 1; assert self.calls < 9", META),
    "cannot be copied": ("self.lock = threading.Lock()", None),
}


@pytest.mark.parametrize(("line", "on"), HOSTILE.values(), ids=HOSTILE)
def test_a_model_that_cannot_be_counted_trains_and_a_note_says_why(line, on, cli):
    Path("mine.py").write_text(
        "import threading, torch, runner.training.models\n"
        "class Double(torch.autograd.Function):\n"
        "    @staticmethod\n"
        "    def forward(ctx, x): return 2 * x\n"
        "    @staticmethod\n"
        "    def backward(ctx, gradient): return 2 * gradient\n"
        "class Net(runner.training.models.MLP):\n"
        f"    def forward(self, x):\n        {line}\n        return super().forward(x)\n"
    )
    code, out, _ = cli("model=mlp", "model.build._target_=mine.Net", "batches=3", "hydra.run.dir=run")
    record = json.loads(Path("run/run.json").read_text())
    assert (code, record["status"]) == (0, "finished")
    assert record["cost"]["flops_counted_on"] == on
    assert record["cost"]["gradient_bytes"] > 0
    if on is None:
        assert record["cost"]["flops_forward"] is None
        assert "note: cost: FLOPs and saved bytes are not known: " in out


def cost_with_share(share=1.0):
    return {"flops_share": share}


def count_with(*order: str, gradients: tuple[str, ...] = ()) -> StepCount:
    return StepCount(1, 1, 0, 0, 0, gradients, order, {}, META)


def test_the_summary_says_why_a_saving_is_small():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    order = ("0.weight", "0.bias", "1.weight", "1.bias")
    first, last, nothing = (select(model, patterns) for patterns in (["0"], ["1"], ["0.bias"]))
    assert explain_small_saving(cost_with_share(0.3), count_with(*order), first) == ""
    assert "computed all the same" in explain_small_saving(
        cost_with_share(), count_with(*order, gradients=("0.weight",)), first
    )
    assert "at the end: backward still runs through it" in explain_small_saving(cost_with_share(), count_with(*order), last)
    assert "begins before the frozen part" in explain_small_saving(
        cost_with_share(), count_with(*order), select(model, ["0.bias"])
    )
    assert "computes little" in explain_small_saving(cost_with_share(0.99), count_with("0.bias", *order), nothing)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method=grad_none", "freeze=backbone"), "computed all the same"),
        (("method=requires_grad", "freeze=head"), "at the end"),
        (("method=requires_grad", "freeze=bias"), "begins before the frozen part"),
        (("method=requires_grad", "freeze=backbone"), ""),
        (("method=requires_grad", "freeze=none"), ""),
    ],
    ids=" ".join,
)
def test_a_run_says_why_it_saves_little(overrides, message):
    why = run_experiment(*overrides).record["cost"]["why_small"]
    assert message in why if message else not why


def test_the_terminal_explains_a_small_saving(cli):
    _, out, _ = cli("freeze=head", "model=mlp", "batches=2")
    assert "little is saved: the frozen part is at the end: backward still runs through it" in out
    assert "(percentages: compared with training everything)" in out
    _, out, _ = cli("freeze=backbone", "model=mlp", "batches=2", "cost=off")
    assert "GFLOP" not in out


def test_a_sweep_with_an_unfrozen_run_has_measured_shares_and_a_single_run_has_predicted_ones(cli):
    grid = ("model=mlp", "batches=9", "freeze=backbone", "cost=time", "hydra.sweep.dir=sweep")
    cli("-m", "method=requires_grad,none", *grid)
    rows = {row["method"]: row for row in read_table(Path("sweep/comparison.csv"))}
    for key in (
        "flops_backward",
        "saved_bytes",
        "gradient_bytes",
        "optimizer_state_bytes",
        "peak_memory_bytes",
        "seconds_step",
    ):
        measured = float(rows["requires_grad"][key]) / float(rows["none"][key])
        assert float(rows["requires_grad"][f"{key}_share"]) == pytest.approx(measured)
        assert float(rows["none"][f"{key}_share"]) == 1
    alone = json.loads(next(Path("sweep").glob("requires_grad*/run.json")).read_text())["cost"]
    for key in ("flops_backward_share", "saved_bytes_share", "gradient_bytes_share", "optimizer_state_bytes_share"):
        assert alone[key] == pytest.approx(float(rows["requires_grad"][key]))  # as predicted by the run itself
    assert alone["seconds_step_share"] is None


def test_a_sweep_counts_once_per_model_input_and_frozen_set(cli):
    Path("mine.py").write_text(
        "from pathlib import Path\nimport torch, runner.training.models\n"
        "class Net(runner.training.models.MLP):\n    def forward(self, x):\n"
        "        if torch.utils._python_dispatch._get_current_dispatch_mode():\n"
        "            with Path('counted').open('a') as file: file.write('x')\n"
        "        return super().forward(x)\n"
    )
    grid = ("model=mlp", "model.build._target_=mine.Net", "batches=2", "seed=0,1,2", "hydra.sweep.dir=sweep")
    assert cli("-m", "method=zero_lr,requires_grad", *grid)[0] == 0
    assert Path("counted").read_text() == "x" * 3  # two methods and the unfrozen baseline, once for all three seeds


def test_the_baseline_is_counted_on_the_model_as_built():
    class Halved(MLP):
        def __init__(self) -> None:
            super().__init__([64])
            self.body.requires_grad_(False)

    model = Halved()
    assert FakeCopy.copy_of(model).count(Classification(), batch(64)) == count_step(model, Classification(), batch(64))


def test_modules_skipped_by_cached_prefix_are_not_counted_in_the_mean_step():
    frozen_part = ("freeze=backbone", "freeze={patterns: ['**'], keep: ['@head'], buffers: frozen}", "batches=4")
    once = run_experiment("method=cached_prefix", *frozen_part).record["cost"]["flops_forward"]
    twice = run_experiment("method=cached_prefix", *frozen_part, "data.epochs=2").record["cost"]["flops_forward"]
    head = 2 * 4 * 32 * 10
    assert once == run_experiment("method=requires_grad", *frozen_part).record["cost"]["flops_forward"]
    assert 2 * twice == once + head


def test_the_terminal_shows_the_cost_of_freezing_everything(cli):
    _, out, _ = cli("freeze=all", "model=mlp", "batches=2")
    assert "GFLOP (39%)" in out


AWKWARD = {
    "writes its input and needs values": "x.mul_(1.5); assert x.sum().item() < 1e9",
    "keeps tensors in a cache outside": "x = x * scale(x.shape[1])",
    "counts its calls on its class": "Net.calls = getattr(Net, 'calls', 0) + 1; x = x * Net.calls",
}


@pytest.mark.parametrize("line", AWKWARD.values(), ids=AWKWARD)
def test_no_meter_changes_a_bit_even_if_the_forward_pass_has_side_effects(line, cli):
    Path("mine.py").write_text(
        "import functools, torch, runner.training.models\n"
        "@functools.lru_cache\ndef scale(n): return torch.linspace(0, 1, n)\n"
        "class Net(runner.training.models.MLP):\n"
        f"    def forward(self, x):\n        {line}\n        return super().forward(x)\n"
    )
    tables = set()
    for cost in ("off", "count", "time"):
        where = f"hydra.run.dir={cost}"
        assert cli("model=mlp", "model.build._target_=mine.Net", "batches=9", f"cost={cost}", where)[0] == 0
        sys.modules.pop("mine")
        tables.add(Path(cost, "changes.csv").read_bytes())
    assert len(tables) == 1


def test_the_frozen_share_of_the_state_of_lbfgs_is_not_known():
    cost = run_experiment("optimizer=lbfgs", "groups=one", "freeze=backbone", "batches=2")
    assert cost.record["cost"]["frozen_optimizer_state_bytes"] is None
    assert cost.record["cost"]["optimizer_state_bytes_share"] is None
    assert any("several times; the FLOPs are of one" in note for note in cost.notes)


def test_the_truth_table_measures_no_cost():
    assert truth_table.base_config().cost.value == "off"
