"""The cost of a run: compared with independent counts, measured without changing a bit, empty with a reason if unknown."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from runner import truth_table
from runner.assemble.setup import assembled
from runner.contract import COSTS
from runner.cost.flops import META, REAL
from runner.experiment import TrainingState, training_steps
from runner.proof.audit import audit
from runner.tensors import same_bits
from runner.training.models import MLP
from tests.conftest import read_table
from tests.in_memory import config_with, run_experiment


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
    "custom function": ("x = Double.apply(x)", REAL),
    "has side effects": ("self.calls = getattr(self, 'calls', 0) + 1; assert self.calls < 9", REAL),
    "cannot be copied once it has run": ("self.lock = threading.Lock()", REAL),
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
    code, out, _ = cli("model=mlp", "model.build._target_=mine.Net", "batches=3", "hydra.run.dir=run", "verbose=true")
    record = json.loads(Path("run/run.json").read_text())
    assert (code, record["status"]) == (0, "finished")
    assert record["cost"]["flops_counted_on"] == on
    assert record["cost"]["gradient_bytes"] > 0
    if on is None:
        assert record["cost"]["flops_forward"] is None
        assert "note: cost: FLOPs and saved bytes are not known: " in out


@pytest.mark.long
@pytest.mark.parametrize("method", ["requires_grad", "detach", "to_buffer"])
def test_a_large_model_that_needs_values_has_the_shares_of_one_that_does_not(method, cli):
    Path("mine.py").write_text(
        "import runner.training.models\n"
        "class Plain(runner.training.models.MLP): pass\n"
        "class NeedsValues(runner.training.models.MLP):\n"
        "    def forward(self, x): return super().forward(x) if x.sum().item() < 1e9 else None\n"
    )
    costs = []
    for name in ("Plain", "NeedsValues"):
        grid = (f"method={method}", "freeze=backbone", "model=mlp", f"model.build._target_=mine.{name}", "batches=2")
        assert cli(*grid, "model.build.width=2100", f"hydra.run.dir={name}")[0] == 0
        costs.append(json.loads(Path(name, "run.json").read_text())["cost"])
    assert [cost.pop("flops_counted_on") for cost in costs] == [META, REAL]
    assert costs[0] == costs[1]
    assert 0 < costs[1]["flops_share"] < 0.5


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
    _, out, _ = cli("freeze=head", "model=mlp", "batches=2", "verbose=true")
    assert "little is saved: the frozen part is at the end: backward still runs through it" in out
    assert " of training everything)" in out
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


@pytest.mark.long
def test_a_sweep_counts_once_per_model_input_and_frozen_set(cli):
    Path("mine.py").write_text(
        "from pathlib import Path\nimport torch, runner.training.models\n"
        "class Net(runner.training.models.MLP):\n"
        "    def __init__(self, **options):\n"
        "        super().__init__(**options)\n"
        "        self.register_buffer('large', torch.zeros(2**23))  # it is then counted without values\n"
        "    def forward(self, x):\n"
        "        if torch.utils._python_dispatch._get_current_dispatch_mode():\n"
        "            with Path('counted').open('a') as file: file.write('x')\n"
        "        return super().forward(x)\n"
    )
    grid = ("model=mlp", "model.build._target_=mine.Net", "batches=2", "seed=0,1,2", "hydra.sweep.dir=sweep")
    assert cli("-m", "method=zero_lr,requires_grad", *grid)[0] == 0
    assert Path("counted").read_text() == "x" * 3  # two methods and the unfrozen baseline, once for all three seeds


@pytest.mark.long
def test_the_baseline_trains_what_a_builder_has_frozen_too(cli):
    Path("mine.py").write_text(
        "import runner.training.models\nclass Halved(runner.training.models.MLP):\n"
        "    def __init__(self, **options):\n        super().__init__(**options)\n        self.body.requires_grad_(False)\n"
    )

    def share(target, *overrides):
        where = f"hydra.run.dir={target}{len(overrides)}"
        assert cli("model=mlp", f"model.build._target_={target}", "batches=2", where, *overrides)[0] == 0
        return json.loads(Path(where.partition("=")[2], "run.json").read_text())["cost"]["flops_share"]

    built = share("mine.Halved", "freeze=none")
    assert built == share("runner.training.models.MLP", "freeze.patterns=[body]") < 0.9
    assert (
        cli(
            "-m",
            "model=mlp",
            "model.build._target_=mine.Halved",
            "batches=2",
            "method=none,requires_grad",
            "freeze=all",
            "hydra.sweep.dir=sweep",
        )[0]
        == 0
    )
    shares = {row["method"]: row["flops_share"] for row in read_table(Path("sweep/comparison.csv"))}
    assert float(shares["none"]) == built


def test_modules_skipped_by_cached_prefix_are_not_counted_in_the_mean_step():
    frozen_part = ("freeze=backbone", "freeze={patterns: ['**'], keep: ['@head'], buffers: frozen}", "batches=4")
    once = run_experiment("method=cached_prefix", *frozen_part).record["cost"]["flops_forward"]
    twice = run_experiment("method=cached_prefix", *frozen_part, "data.epochs=2").record["cost"]["flops_forward"]
    head = 2 * 4 * 32 * 10
    assert once == run_experiment("method=requires_grad", *frozen_part).record["cost"]["flops_forward"]
    assert 2 * twice == once + head


def test_the_terminal_shows_the_cost_of_freezing_everything(cli):
    _, out, _ = cli("freeze=all", "model=mlp", "batches=2")
    assert "FLOP (39% of training everything)" in out


AWKWARD = {
    "writes its input and needs values": "x.mul_(1.5); assert x.sum().item() < 1e9",
    "keeps tensors in a cache outside": "x = x * scale(x.shape[1])",
    "counts its calls on its class": "Net.calls = getattr(Net, 'calls', 0) + 1; x = x * Net.calls",
}


@pytest.mark.long
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


def test_the_cost_of_a_step_is_the_mean_over_the_shapes_that_were_fed(cli):
    Path("mine.py").write_text(
        "import torch\nclass Data:\n    def __init__(self, sizes): self.sizes = sizes\n"
        "    def __iter__(self):\n"
        "        for size in self.sizes: yield torch.randn(size, 64), torch.randint(10, (size,))\n"
    )

    def run(sizes):
        where = f"hydra.run.dir=run{len(sizes)}{sizes[0]}"
        data = ("data=custom", "data._target_=mine.Data", f"++data.sizes={sizes}".replace(" ", ""), f"batches={len(sizes)}")
        assert cli("model=mlp", "freeze=backbone", *data, where)[0] == 0
        return json.loads(Path(where.partition("=")[2], "run.json").read_text())

    small, large = run([2]), run([6])
    mixed = run([2, 6, 6, 6])
    for key in ("flops_forward", "flops_backward", "saved_bytes"):
        assert mixed["cost"][key] == (small["cost"][key] + 3 * large["cost"][key]) / 4
    assert mixed["cost"]["peak_memory_bytes"] == pytest.approx(large["cost"]["peak_memory_bytes"], rel=0.1)
    assert mixed["cost"]["flops_share"] == small["cost"]["flops_share"]
    assert "cost: a step is the mean over the 2 shapes of batches that were fed" in mixed["notes"]
    assert not any("shapes" in note for note in small["notes"])


def test_flops_are_not_known_if_an_operator_has_no_formula_and_a_note_names_it(cli):
    Path("mine.py").write_text(
        "import torch, runner.training.models\nclass Net(runner.training.models.MLP):\n    def forward(self, x):\n"
        "        return super().forward(x @ torch.linalg.matrix_exp(torch.eye(x.shape[1])))\n"
    )
    code, out, _ = cli("model=mlp", "model.build._target_=mine.Net", "batches=2", "hydra.run.dir=run", "verbose=true")
    cost = json.loads(Path("run/run.json").read_text())["cost"]
    assert code == 0
    assert [cost[key] for key in ("flops_forward", "flops_backward", "flops_share")] == [None, None, None]
    assert cost["saved_bytes_share"] is not None
    assert "cost: FLOPs are not known: no formula for aten::linalg_matrix_exp" in " ".join(out.split())
    assert "Traceback" not in out


STATEFUL = {
    "built in eval mode": ("self.eval()", "if not self.training: x = x @ torch.eye(x.shape[1])"),
    "caches in its first forward pass": (
        "self.cache = None",
        "self.cache = torch.ones(64, 64) @ torch.ones(64, 64) if self.cache is None else self.cache",
    ),
    "counts its steps": ("self.steps = 0", "self.steps += 1; [x @ torch.eye(64) for _ in range(self.steps)]"),
}


@pytest.mark.parametrize("large", [0, 2**23])
@pytest.mark.parametrize("kind", STATEFUL)
def test_a_run_that_freezes_nothing_costs_as_much_as_training_everything(kind, large, cli):
    init, forward = STATEFUL[kind]
    Path("mine.py").write_text(
        "import torch, runner.training.models\n"
        "class Net(runner.training.models.MLP):\n"
        "    def __init__(self, **options):\n"
        "        super().__init__(**options)\n"
        f"        self.register_buffer('large', torch.zeros({large}))\n"
        f"        {init}\n"
        f"    def forward(self, x):\n        {forward}\n        return super().forward(x)\n"
    )
    assert cli("model=mlp", "model.build._target_=mine.Net", "freeze=none", "batches=4", "hydra.run.dir=run")[0] == 0
    cost = json.loads(Path("run/run.json").read_text())["cost"]
    assert [cost[key] for key in ("flops_share", "saved_bytes_share", "gradient_bytes_share")] == [1, 1, 1]
    assert cost["flops_counted_on"] == (META if large else REAL)


@pytest.mark.long
def test_flops_that_depend_on_values_do_not_depend_on_the_order_of_a_sweep_and_a_note_says_so(cli):
    Path("mine.py").write_text(
        "import torch, runner.training.models\n"
        "class Net(runner.training.models.MLP):\n"
        "    def forward(self, x):\n"
        "        for _ in range(int(10 * x[0, 0].abs())):\n"
        "            x = x @ torch.eye(64)\n"
        "        return super().forward(x)\n"
    )
    flops = []
    for name, seeds in (("forth", "0,1,2"), ("back", "2,1,0")):
        model = ("model=mlp", "model.build._target_=mine.Net", "batches=2")
        assert cli("-m", *model, f"seed={seeds}", f"hydra.sweep.dir={name}")[0] == 0
        flops.append({row["seed"]: row["flops_forward"] for row in read_table(Path(name, "comparison.csv"))})
    assert flops[0] == flops[1]
    assert len(set(flops[0].values())) > 1
    record = json.loads(next(Path("forth").glob("*/run.json")).read_text())
    assert any("other batches may take other FLOPs" in note for note in record["notes"])


def test_the_peak_memory_does_not_depend_on_the_order_of_the_batches(cli):
    Path("mine.py").write_text(
        "import torch\nclass Data:\n    def __init__(self, sizes): self.sizes = sizes\n"
        "    def __iter__(self):\n"
        "        for size in self.sizes: yield torch.randn(size, 64), torch.randint(10, (size,))\n"
    )
    peaks = []
    for name, sizes in {"up": "[2,400]", "down": "[400,2]", "one": "[400]"}.items():
        data = ("data=custom", "data._target_=mine.Data", f"++data.sizes={sizes}", f"batches={sizes.count(',') + 1}")
        assert cli("model=mlp", "freeze=none", *data, f"hydra.run.dir={name}")[0] == 0
        peaks.append(json.loads(Path(name, "run.json").read_text())["cost"]["peak_memory_bytes"])
    assert len(set(peaks)) == 1


def test_what_a_recurrent_layer_keeps_for_backward_is_measured_or_not_known(cli):
    Path("mine.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, width):\n"
        "        super().__init__()\n"
        "        self.lstm, self.head = torch.nn.LSTM(8, width, batch_first=True), torch.nn.Linear(width, 4)\n"
        "    def forward(self, x): return self.head(self.lstm(x)[0][:, -1])\n"
    )

    def run(width):
        model = ("model=custom", "model.build._target_=mine.Net", f"++model.build.width={width}")
        settings = (*model, "model.input=[5,8]", "model.classes=4", "freeze=none", "batches=1")
        assert cli(*settings, f"hydra.run.dir=run{width}")[0] == 0
        return json.loads(Path(f"run{width}/run.json").read_text())

    small, large = run(16), run(1200)
    assert small["cost"]["flops_counted_on"] == REAL
    assert large["cost"]["flops_counted_on"] == META
    for record in (small, large):
        assert record["cost"]["flops_share"] == 1
    assert small["cost"]["saved_bytes"] > 4 * 5 * 5 * 16 * 4  # four gates, and the states, of each position
    assert [large["cost"][key] for key in ("saved_bytes", "saved_bytes_share", "peak_memory_bytes")] == [None, None, None]
    assert any("saved bytes and peak memory are not known: what aten::mkldnn_rnn_layer" in note for note in large["notes"])
