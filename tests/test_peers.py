"""What tools that freeze tend to check by flags alone, checked here by bits: traps of layers, steps, values and loops."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack, contextmanager

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn.utils import parametrizations

from runner.config.build import build
from runner.config.schema import CONF
from runner.freezing.eval_mode import force_eval_mode
from runner.freezing.groups import all_in_one, by_role, drop_empty_groups, split_by_frozen
from runner.freezing.selection import select
from runner.methods.restore import Restore
from runner.proof.audit import audit
from runner.proof.changes import snapshot
from tests.measure import measure

pytestmark = pytest.mark.usefixtures("one_thread")

LR, MOMENTUM = 0.1, 0.9
STATISTICS = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
NORM = {"norm.weight", "norm.bias", *STATISTICS}


def layers(**modules):
    return nn.Sequential(OrderedDict(modules))


def net():
    """Three layers and, between the first two, a BatchNorm."""
    torch.manual_seed(0)
    return layers(
        first=nn.Linear(3, 4), act=nn.Tanh(), norm=nn.BatchNorm1d(4), middle=nn.Linear(4, 4), bend=nn.Tanh(),
        last=nn.Linear(4, 2),
    )  # fmt: skip


def batch(number):
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(number))


def sgd(params, **options):
    return torch.optim.SGD(params, lr=LR, **options)


def train(model, *optimizers, steps=4, to_none=True, accumulate=1, batches=batch):
    """A plain loop that calls `model.train()` before each batch, as most do; several optimizers take turns."""
    for number in range(steps * accumulate):
        model.train()
        if number % accumulate == 0:
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=to_none)
        model(batches(number)).square().mean().backward()
        if number % accumulate == accumulate - 1:
            optimizers[number // accumulate % len(optimizers)].step()


def freeze(module):
    return module.requires_grad_(False)


def fill(tensor, value):
    with torch.no_grad():
        tensor.copy_(torch.as_tensor(value))


def raw(tensor):
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def copies(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def moved(model, before):
    """The names of all tensors of which a byte is not what it was: slow and obvious, and none of the audit's own code."""
    return {name for name, tensor in model.state_dict().items() if raw(tensor) != raw(before[name])}


@contextmanager
def watched(model, frozen=None, *optimizers, every=None):
    """The audit, with what its rows say has moved held against the bytes of before and after."""
    before = copies(model)
    with audit(model, frozen, optimizers, every) as report:
        yield report
    assert {row["name"] for row in report.rows if row["moved"]} == moved(model, before)


def those(report, *words):
    return {row["name"] for row in report.rows if row["verdict"] in words}


def row_of(report, name):
    (row,) = [row for row in report.rows if row["name"] == name]
    return row


def causes(report):
    return {row["name"]: row["cause"] for row in report.rows if row["verdict"] == "idle"}


def names(model, *modules):
    return {name for name in model.state_dict() if name.split(".")[0] in modules}


def build_method(name):
    node = OmegaConf.create({"model": {"input": [3]}, "method": OmegaConf.load(CONF / "method" / f"{name}.yaml")})
    return build(OmegaConf.to_container(node, resolve=True)["method"], "method")


METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
HOLDING = [name for name in METHODS if "any_step" not in build_method(name).leaks_under]
ANYWHERE = [name for name in HOLDING if name != "detach"]  # which serves a frozen prefix alone


@contextmanager
def frozen_by(name, model, selection):
    """A model frozen by a method, as the runner does it: the optimizer, and the report of what was watched meanwhile."""
    method, before, was = build_method(name), snapshot(model), copies(model)
    with ExitStack() as undo:
        assert method.skip(model, selection) is None
        force_eval_mode(selection, undo)
        trained = method.prepare(model, selection, undo)
        optimizer = sgd(drop_empty_groups(method.groups(by_role(trained, selection), selection)))
        with audit(trained, selection, optimizer, before=before) as report:
            method.attach(optimizer, selection, undo)
            yield optimizer, report
        assert {row["name"] for row in report.rows if row["moved"]} == moved(model, was)
    assert not optimizer._optimizer_step_post_hooks


def setup_of(model):
    """All but the values: flags, hooks, modes, attributes, and everything registered, by identity and in order."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    hooks = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return (
        [(name, id(t), t.requires_grad, *(len(getattr(t, hook) or ()) for hook in hooks)) for name, t in tensors],
        [
            (name, id(module), module.training, list(vars(module)), list(module._parameters), list(module._buffers))
            for name, module in model.named_modules(remove_duplicate=False)
        ],
        [len(kept) for module in model.modules() for key, kept in vars(module).items() if key.endswith("_hooks")],
    )


# BatchNorm


def test_a_frozen_batchnorm_that_is_held_keeps_every_bit_while_its_parent_calls_train():
    model = net()
    freeze(model.norm)
    selection, optimizer, before = select(model, ["norm"], buffers="frozen"), sgd(model.parameters()), copies(model)
    with ExitStack() as undo, watched(model, selection, optimizer) as report:
        force_eval_mode(selection, undo)
        train(model, optimizer)
        assert model.training
    assert those(report, "held") == NORM
    assert those(report, "trained") == names(model, "first", "middle", "last")
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in NORM)


@pytest.mark.parametrize(("buffers", "word"), [("live", "drifted"), ("frozen", "leaked")])
def test_requires_grad_false_alone_holds_a_batchnorms_weights_and_not_its_statistics(buffers, word):
    model = net()
    freeze(model.norm)
    optimizer = sgd(model.parameters())
    with watched(model, select(model, ["norm"], buffers=buffers), optimizer) as report:
        train(model, optimizer)
    assert not any(parameter.requires_grad for parameter in model.norm.parameters())
    assert those(report, word) == STATISTICS
    assert those(report, "held") == NORM - STATISTICS
    assert model.norm.num_batches_tracked == 4


@pytest.mark.parametrize(("after_train", "word"), [(False, "leaked"), (True, "held")], ids=["once before", "after each"])
def test_calling_eval_by_hand_holds_a_batchnorm_only_where_no_train_of_the_parent_follows(after_train, word):
    model = net()
    freeze(model.norm).eval()
    optimizer = sgd(model.parameters())
    with watched(model, select(model, ["norm"], buffers="frozen"), optimizer) as report:
        for number in range(3):
            model.train()
            if after_train:
                model.norm.eval()
            optimizer.zero_grad()
            model(batch(number)).square().mean().backward()
            optimizer.step()
    assert those(report, word) >= STATISTICS


def test_a_batchnorm_that_averages_nothing_in_still_counts_its_batches():
    model = net()
    model.norm = nn.BatchNorm1d(4, momentum=0.0)
    optimizer = sgd(freeze(model).parameters())
    with watched(model, select(model, ["norm"], buffers="frozen"), optimizer) as report, torch.no_grad():
        model(batch(0))
    assert report.leaks == ["norm.num_batches_tracked"]


def test_a_batchnorm_that_was_held_drifts_and_trains_again_once_it_is_let_go():
    model = net()
    selection, before = select(model, ["norm"], buffers="frozen"), copies(model)
    with frozen_by("requires_grad", model, selection) as (optimizer, _):
        train(model, optimizer)
    assert not moved(model, before) & NORM
    train(model, sgd(model.parameters()))
    assert moved(model, before) >= NORM


@pytest.mark.parametrize("buffers", ["live", "frozen"])
def test_the_runner_leaves_a_frozen_batchnorm_as_fresh_as_it_was_built_where_buffers_are_frozen(buffers):
    result = measure("freeze=batchnorm", f"freeze.buffers={buffers}")
    norm, fresh = result.model.norm.state_dict(), nn.BatchNorm1d(32).state_dict()
    stayed = {f"norm.{name}" for name in fresh if torch.equal(norm[name], fresh[name])}
    assert stayed == (NORM if buffers == "frozen" else NORM - STATISTICS)
    assert {row["name"] for row in result.rows if row["name"] in NORM and not row["moved"]} == stayed


# Freezing twice, and thawing


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("buffers", ["live", "frozen"])
def test_what_is_frozen_twice_stays_each_time_and_trains_again_each_time_it_is_thawed(method, buffers):
    model = net()
    at_first = setup_of(model)
    prefix = names(model, "first", "norm") - (STATISTICS if buffers == "live" else set())
    for _ in range(2):
        before = copies(model)
        with frozen_by(method, model, select(model, ["first", "norm"], buffers=buffers)) as (optimizer, report):
            train(model, optimizer)
            while_frozen = moved(model, before)
        assert while_frozen & prefix == ((prefix - STATISTICS) if method not in HOLDING else set())
        assert while_frozen >= names(model, "middle", "last")
        assert bool(report.leaks) == (method not in HOLDING)
        assert setup_of(model) == at_first
        before = copies(model)
        train(model, sgd(model.parameters()))
        assert moved(model, before) == set(before)
        assert setup_of(model) == at_first


@pytest.mark.parametrize("method", METHODS)
def test_freezing_what_is_frozen_already_and_leaving_keeps_it_frozen(method):
    model = net()
    selection, before = select(model, ["first"]), copies(model)
    thawed = setup_of(model)
    with frozen_by("requires_grad", model, selection):
        frozen = setup_of(model)
        with frozen_by(method, model, selection) as (optimizer, _):
            train(model, optimizer)
        assert setup_of(model) == frozen
        train(model, sgd(model.parameters()))
        assert not moved(model, before) & names(model, "first")
    assert setup_of(model) == thawed
    train(model, sgd(model.parameters()))
    assert moved(model, before) >= names(model, "first")


# Freezing after the optimizer has stepped


OPTIMIZERS = {
    "adam": lambda params: torch.optim.Adam(params, lr=LR),
    "adamw without decay": lambda params: torch.optim.AdamW(params, lr=LR, weight_decay=0.0),
    "sgd with momentum": lambda params: sgd(params, momentum=MOMENTUM),
    "sgd with decay": lambda params: sgd(params, weight_decay=0.1),
    "sgd": sgd,
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=LR),
}
STILL_ON_ZEROS = {"sgd", "rmsprop"}  # neither decay nor a momentum: a step on a zero gradient is none


@pytest.mark.parametrize("to_none", [False, True], ids=["gradients kept as zeros", "gradients set to None"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_frozen_after_steps_were_taken_leak_by_state_or_decay_unless_gradients_are_none(optimizer, to_none):
    model = net()
    stepping = OPTIMIZERS[optimizer](model.parameters())
    train(model, stepping, to_none=to_none)
    freeze(model.middle)
    with watched(model, None, stepping) as report:
        train(model, stepping, to_none=to_none)
    holds = to_none or optimizer in STILL_ON_ZEROS
    assert those(report, "held" if holds else "leaked") == names(model, "middle")
    assert those(report, "trained") == names(model, "first", "last") | (NORM - STATISTICS)


@pytest.mark.parametrize(("to_none", "cause"), [(False, "zero_gradient"), (True, "no_gradient")], ids=["zeros", "None"])
def test_what_is_frozen_late_and_not_declared_so_is_idle_for_want_of_a_gradient(to_none, cause):
    model = net()
    optimizer = sgd(model.parameters())
    train(model, optimizer, to_none=to_none)
    freeze(model.middle)
    with watched(model, [], optimizer) as report:
        train(model, optimizer, to_none=to_none)
    assert causes(report) == dict.fromkeys(names(model, "middle"), cause)


def test_momentum_moves_frozen_weights_by_just_what_it_had_gathered():
    model = net()
    optimizer = sgd(model.parameters(), momentum=MOMENTUM)
    train(model, optimizer, to_none=False)
    weight = freeze(model.middle).weight
    expected, velocity = weight.clone(), optimizer.state[weight]["momentum_buffer"].clone()
    train(model, optimizer, steps=3, to_none=False)
    for _ in range(3):
        velocity = velocity.mul(MOMENTUM)
        expected = expected.add(velocity, alpha=-LR)
    assert torch.equal(weight, expected)


def test_what_leaked_before_the_freezing_moment_is_not_held_against_it():
    model = net()
    optimizer = sgd(model.parameters())
    before = copies(model)
    train(model, optimizer)
    freeze(model.middle)
    with watched(model, None, optimizer) as report:
        train(model, optimizer)
    assert moved(model, before) >= names(model, "middle")
    assert report.leaks == []


# Equal values


def norms():
    torch.manual_seed(0)
    return layers(body=nn.Linear(3, 4), one=nn.BatchNorm1d(4), act=nn.Tanh(), other=nn.BatchNorm1d(4), head=nn.Linear(4, 2))


def linears():
    torch.manual_seed(0)
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.load_state_dict(one.state_dict())
    return layers(body=nn.Linear(3, 3), one=one, act=nn.Tanh(), other=other, head=nn.Linear(3, 2))


@pytest.mark.parametrize("model_of", [norms, linears])
@pytest.mark.parametrize(("frozen", "free"), [("one", "other"), ("other", "one")])
def test_of_two_layers_of_equal_values_only_the_one_that_is_named_is_frozen(model_of, frozen, free):
    model = model_of()
    assert all(torch.equal(*pair) for pair in zip(model.one.parameters(), model.other.parameters(), strict=True))
    freeze(model.get_submodule(frozen))
    optimizer = sgd(model.parameters())
    with watched(model, [frozen], optimizer) as report:
        train(model, optimizer)
    weights = ("weight", "bias")
    assert those(report, "held") == {f"{frozen}.{name}" for name in weights}
    assert those(report, "trained") >= {f"{free}.{name}" for name in weights}
    assert {row["name"] for row in report.rows if row["frozen"]} == {f"{frozen}.{name}" for name in weights}


@pytest.mark.parametrize("method", ANYWHERE)
@pytest.mark.parametrize("model_of", [norms, linears])
def test_no_method_takes_a_layer_of_equal_values_for_the_frozen_one(method, model_of):
    model = model_of()
    with frozen_by(method, model, select(model, ["other"])) as (optimizer, report):
        train(model, optimizer)
    assert those(report, "held", "returned") == {"other.weight", "other.bias"}
    assert those(report, "trained") >= {"one.weight", "one.bias"}


@pytest.mark.parametrize("model_of", [norms, linears])
def test_groups_are_cut_by_identity_and_not_by_value(model_of):
    model = model_of()
    selection = select(model, ["one"])
    cuts = by_role(model, selection), split_by_frozen(all_in_one(model, selection), selection)
    for group in (cuts[0][0], cuts[1][1]):
        assert [id(parameter) for parameter in group["params"]] == [id(model.one.weight), id(model.one.bias)]


@pytest.mark.parametrize("model_of", [norms, linears])
def test_layers_of_equal_values_that_change_places_keep_their_rows(model_of):
    model = model_of()
    freeze(model.one)
    optimizer = sgd(model.parameters())
    with audit(model, ["one"], optimizer) as report:
        frozen, free = model.one, model.other
        model.one, model.other = free, frozen
        train(model, optimizer)
    assert those(report, "held") == {"one.weight", "one.bias"}
    assert those(report, "trained") >= {"other.weight", "other.bias"}
    assert not any(torch.equal(*pair) for pair in zip(frozen.parameters(), free.parameters(), strict=True))


# Embedding with max_norm


def embedding():
    """Rows within the norm of 1, but for the first, which is beyond it."""
    torch.manual_seed(0)
    table = nn.Embedding(4, 2, max_norm=1.0)
    fill(table.weight, [[3.0, 4.0], [0.5, 0.0], [-0.25, 0.5], [0.0, 0.0]])
    return layers(table=table, head=nn.Linear(2, 2))


def looking_up(*rows):
    return lambda number: torch.tensor(rows)


@pytest.mark.parametrize("buffers", ["live", "frozen"])
def test_a_frozen_embedding_whose_long_rows_are_looked_up_is_rewritten_by_the_forward_pass(buffers):
    model = embedding()
    freeze(model.table)
    selection, optimizer, before = select(model, ["table"], buffers=buffers), sgd(model.parameters()), copies(model)
    with ExitStack() as undo, watched(model, selection, optimizer) as report:
        force_eval_mode(selection, undo)
        train(model, optimizer, batches=looking_up(0, 1, 2))
    assert report.leaks == ["table.weight"]
    assert not torch.equal(model.table.weight[0], before["table.weight"][0])
    assert torch.equal(model.table.weight[1:], before["table.weight"][1:])


def test_a_forward_pass_without_gradients_and_without_any_step_rewrites_it_too():
    model = freeze(embedding()).eval()
    with watched(model) as report, torch.no_grad():
        model(torch.tensor([0]))
    assert report.leaks == ["table.weight"]


def test_a_frozen_embedding_whose_rows_are_within_the_norm_wherever_they_are_looked_up_held():
    model = embedding()
    freeze(model.table)
    optimizer, before = sgd(model.parameters()), copies(model)
    with watched(model, None, optimizer) as report:
        train(model, optimizer, batches=looking_up(1, 2, 3))
    assert those(report, "held") == {"table.weight"}
    assert torch.equal(model.table.weight, before["table.weight"])


def test_what_the_forward_pass_rewrites_returns_where_it_is_put_back_after_each_step():
    model = embedding()
    selection, optimizer = select(model, ["table"]), sgd(model.parameters())
    with ExitStack() as undo, watched(model, selection, optimizer) as report:
        Restore().attach(optimizer, selection, undo)
        train(model, optimizer, batches=looking_up(0, 1))
    assert those(report, "returned") == {"table.weight"}


# Reparametrised weights


def layer():
    """Singular values so close that the power iteration of a spectral norm is still on its way after some steps."""
    torch.manual_seed(0)
    made = nn.Linear(3, 3)
    fill(made.weight, torch.diag(torch.tensor([1.0, 0.95, 0.9])))
    return made


def reparametrised(wrap):
    return layers(body=wrap(layer()), act=nn.Tanh(), head=nn.Linear(3, 2))


@torch.no_grad()
def effective(module):
    """The weight that a layer multiplies by, whatever it is computed from; asked in eval mode, which moves nothing."""
    mode = module.training
    weight = module.eval()(torch.eye(3)) - module.bias
    module.train(mode)
    return weight


SPECTRAL = [
    pytest.param(
        parametrizations.spectral_norm, "parametrizations.weight.", ("original", "0._u", "0._v"), id="parametrization"
    ),
    pytest.param(nn.utils.spectral_norm, "weight_", ("orig", "u", "v"), id="hook"),
]
WEIGHT_NORM = [
    pytest.param(parametrizations.weight_norm, "parametrizations.weight.original0", "parametrizations.weight.original1",
                 id="parametrization"),
    pytest.param(nn.utils.weight_norm, "weight_g", "weight_v", id="hook",
                 marks=pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")),
]  # fmt: skip


@pytest.mark.parametrize(("wrap", "prefix", "tensors"), SPECTRAL)
def test_a_frozen_spectral_norm_in_train_mode_keeps_its_parameter_and_drifts_in_its_buffers(wrap, prefix, tensors):
    model = reparametrised(wrap)
    freeze(model.body)
    weight, *vectors = (f"body.{prefix}{name}" for name in tensors)
    optimizer, was = sgd(model.parameters()), effective(model.body)
    with watched(model, ["body"], optimizer) as report:
        train(model, optimizer)
    assert those(report, "held") == {weight, "body.bias"}
    assert those(report, "drifted") == set(vectors)
    assert not torch.equal(effective(model.body), was)


@pytest.mark.parametrize("method", ANYWHERE)
@pytest.mark.parametrize(("wrap", "prefix", "tensors"), SPECTRAL)
def test_a_frozen_spectral_norm_in_inference_mode_keeps_every_bit_and_its_effective_weight(wrap, prefix, tensors, method):
    model = reparametrised(wrap)
    was = effective(model.body)
    with frozen_by(method, model, select(model, ["body"], buffers="frozen")) as (optimizer, report):
        train(model, optimizer)
    assert those(report, "held", "returned") == {"body.bias", *(f"body.{prefix}{name}" for name in tensors)}
    assert those(report, "trained") == names(model, "head")
    assert torch.equal(effective(model.body), was)


@pytest.mark.parametrize(("wrap", "prefix", "tensors"), SPECTRAL)
def test_the_buffers_of_a_spectral_norm_declared_frozen_and_not_held_leak(wrap, prefix, tensors):
    model = reparametrised(wrap)
    freeze(model.body)
    optimizer = sgd(model.parameters())
    with watched(model, select(model, ["body"], buffers="frozen"), optimizer) as report:
        train(model, optimizer)
    assert set(report.leaks) == {f"body.{prefix}{name}" for name in tensors[1:]}


@pytest.mark.parametrize("method", ANYWHERE)
@pytest.mark.parametrize(("wrap", "magnitude", "direction"), WEIGHT_NORM)
def test_freezing_a_module_with_weight_norm_freezes_magnitude_and_direction(wrap, magnitude, direction, method):
    model = reparametrised(wrap)
    selection, was = select(model, ["body"]), effective(model.body)
    assert set(selection.parameters) == {"body.bias", f"body.{magnitude}", f"body.{direction}"}
    with frozen_by(method, model, selection) as (optimizer, report):
        train(model, optimizer)
    assert those(report, "held", "returned") == set(selection.parameters)
    assert those(report, "trained") == names(model, "head")
    assert torch.equal(effective(model.body), was)


@pytest.mark.parametrize(("wrap", "magnitude", "direction"), WEIGHT_NORM)
@pytest.mark.parametrize("frozen", ["magnitude", "direction"])
def test_freezing_one_half_of_a_weight_norm_lets_the_effective_weight_move(wrap, magnitude, direction, frozen):
    model = reparametrised(wrap)
    halves = {"magnitude": f"body.{magnitude}", "direction": f"body.{direction}"}
    was = effective(model.body)
    with frozen_by("requires_grad", model, select(model, [halves[frozen]])) as (optimizer, report):
        train(model, optimizer)
    assert those(report, "held") == {halves[frozen]}
    assert those(report, "trained") >= set(halves.values()) - {halves[frozen]}
    assert not torch.equal(effective(model.body), was)


# A frozen part in the middle, and at the end


@pytest.mark.parametrize("method", ANYWHERE)
@pytest.mark.parametrize("part", ["middle", "last"])
def test_what_lies_before_a_frozen_part_still_trains_under_every_method(method, part):
    model = net()
    with frozen_by(method, model, select(model, [part])) as (optimizer, report):
        train(model, optimizer)
    assert those(report, "held", "returned") == names(model, part)
    assert those(report, "trained") == names(model, "first", "norm", "middle", "last") - STATISTICS - names(model, part)


@pytest.mark.parametrize("part", ["middle", "last"])
def test_the_gradients_that_flow_through_a_frozen_part_are_the_same_to_the_bit(part):
    models = [net(), net()]
    freeze(models[1].get_submodule(part))
    for model in models:
        train(model, sgd(model.parameters()), steps=1)
    free, frozen = (dict(model.named_parameters()) for model in models)
    assert {name for name in free if torch.equal(free[name], frozen[name])} == set(free) - names(net(), part)
    assert {name for name, parameter in frozen.items() if parameter.grad is None} == names(net(), part)


@pytest.mark.parametrize("part", ["middle", "last"])
def test_detach_says_that_it_serves_no_part_in_the_middle_or_at_the_end(part):
    model = net()
    assert f"{part}.weight is frozen" in build_method("detach").skip(model, select(model, [part]))


@pytest.mark.parametrize("pattern", ["norm", "there", "head"])
def test_the_runner_trains_what_lies_before_a_frozen_part(pattern):
    rows = [row for row in measure(f"freeze.patterns=[{pattern}]").rows if row["kind"] == "parameter"]
    rows = [row for row in rows if row["name"] != "body.bias"]  # the BatchNorm behind it cancels it but for its rounding
    assert {row["name"]: row["verdict"] for row in rows} == {
        row["name"]: "held" if row["name"].startswith(pattern) else "trained" for row in rows
    }


# NaN


NAN = float("nan")


def is_nan(*values):
    return all(value != value for value in values)


def test_a_frozen_table_that_holds_nan_and_keeps_its_bits_held_while_the_rest_trains():
    model = embedding()
    fill(model.table.weight, [[NAN, 1.0], [0.5, 0.0], [-0.25, 0.5], [0.0, NAN]])
    freeze(model.table)
    optimizer, before = sgd(model.parameters()), raw(model.table.weight)
    with watched(model, None, optimizer) as report:
        train(model, optimizer, batches=looking_up(1, 2))
    row = row_of(report, "table.weight")
    assert (row["verdict"], row["moved"], row["change_l2"], row["change_max"]) == ("held", False, 0.0, 0.0)
    assert is_nan(row["initial_l2"])
    assert raw(model.table.weight) == before
    assert those(report, "trained") == names(model, "head")


@pytest.mark.parametrize("frozen", [["middle"], []], ids=["frozen in name only", "trainable"])
def test_weights_that_a_step_on_a_nan_gradient_turned_into_nan_have_moved_by_nan(frozen):
    model = net()
    optimizer = sgd(model.parameters())
    with watched(model, frozen, optimizer) as report:
        train(model, optimizer, steps=2, batches=lambda number: batch(number) * NAN)
    assert set(report.leaks) == (names(model, "middle") if frozen else set())
    for name in names(model, "middle"):
        row = row_of(report, name)
        assert is_nan(row["change_l2"], row["change_rel"], row["change_max"])
        assert not is_nan(row["initial_l2"])


def test_a_frozen_part_holds_while_all_that_trains_around_it_turns_into_nan():
    model = net()
    freeze(model.middle)
    optimizer, before = sgd(model.parameters()), copies(model)
    with watched(model, None, optimizer) as report:
        train(model, optimizer, batches=lambda number: batch(number) * NAN)
    assert those(report, "held") == names(model, "middle")
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in names(model, "middle"))
    assert all(is_nan(row_of(report, name)["change_l2"]) for name in names(model, "first", "last"))


@pytest.mark.parametrize("other", [0x7FC00001, -0x400000], ids=["another payload", "another sign"])
def test_one_nan_that_becomes_another_nan_has_leaked(other):
    model = freeze(nn.Linear(2, 2))
    fill(model.bias, NAN)
    assert model.bias.view(torch.int32).tolist() == [0x7FC00000, 0x7FC00000]
    with watched(model) as report:
        model.bias.view(torch.int32)[1] = other
    assert model.bias.isnan().all()
    assert report.leaks == ["bias"]
    assert is_nan(row_of(report, "bias")["change_l2"])


# Negative zero


@pytest.mark.parametrize(
    ("start", "write"),
    [([0.0, 0.0], torch.Tensor.neg_), ([-0.0, 1.0], lambda tensor: tensor.add_(0.0))],
    ids=["0.0 negated", "0.0 added to -0.0"],
)
def test_a_zero_that_changes_its_sign_has_leaked_by_a_change_of_nothing(start, write):
    model = freeze(nn.Linear(2, 2))
    fill(model.bias, start)
    before = model.bias.clone()
    with watched(model) as report:
        write(model.bias)
    assert torch.equal(model.bias, before)  # which compares values
    row = row_of(report, "bias")
    assert (row["verdict"], row["moved"], row["change_l2"], row["change_max"]) == ("leaked", True, 0.0, 0.0)
    assert row["change_rel"] == (0.0 if any(start) else None)


def test_a_frozen_negative_zero_stays_negative_under_an_optimizer_that_passes_it_over():
    model = net()
    fill(model.middle.bias, -0.0)
    freeze(model.middle)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    with watched(model, None, optimizer) as report:
        train(model, optimizer)
    assert those(report, "held") == names(model, "middle")
    assert model.middle.bias.signbit().all()


def test_a_step_on_a_gradient_of_negative_zero_gives_a_negative_zero_its_sign_back():
    model = nn.Linear(2, 2)
    fill(model.bias, -0.0)
    model.bias.grad = torch.full((2,), -0.0)
    optimizer = sgd(model.parameters())
    with watched(model, ["bias"], optimizer) as report:
        optimizer.step()
    assert report.leaks == ["bias"]
    assert not model.bias.signbit().any()


# bfloat16


def ones(dtype):
    model = nn.Linear(3, 2).to(dtype)
    fill(model.weight, 1.0)
    fill(model.bias, 1.0)
    return model


@pytest.mark.parametrize("frozen", [[], ["**"]], ids=["trainable", "frozen in name only"])
@pytest.mark.parametrize(
    ("dtype", "lr", "moves"),
    [(torch.bfloat16, 1e-3, False), (torch.bfloat16, 1e-2, True), (torch.float32, 1e-3, True)],
    ids=["bfloat16", "bfloat16 at a larger rate", "float32"],
)
def test_bfloat16_weights_of_one_stay_where_adamws_step_is_rounded_away(dtype, lr, moves, frozen):
    model = ones(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    with watched(model, frozen, optimizer) as report:
        train(model, optimizer, steps=9, batches=lambda number: torch.ones(4, 3, dtype=dtype))
    word = ("leaked" if moves else "held") if frozen else ("trained" if moves else "idle")
    assert those(report, word) == {"weight", "bias"}
    assert torch.equal(model.weight, torch.ones(2, 3, dtype=dtype)) is not moves
    assert set(causes(report).values()) == ({"rounded_away"} if word == "idle" else set())
    assert all(parameter.requires_grad and parameter.grad.any() for parameter in model.parameters())


# Gradient accumulation


@pytest.mark.parametrize(("every", "looks"), [(None, [1, 2, 3]), (1, [1, 2, 3]), (2, [2, 3])])
def test_looks_count_steps_of_the_optimizer_and_not_batches(every, looks):
    model = net()
    freeze(model.middle)
    optimizer = sgd(model.parameters(), momentum=MOMENTUM)
    with watched(model, None, optimizer, every=every) as report:
        train(model, optimizer, steps=3, accumulate=4)
    assert model.norm.num_batches_tracked == 12
    assert report.looks == looks
    assert those(report, "held") == names(model, "middle")


@pytest.mark.parametrize("method", ANYWHERE)
def test_what_is_frozen_stays_through_accumulated_gradients_under_every_method(method):
    model = net()
    with frozen_by(method, model, select(model, ["middle"])) as (optimizer, report):
        train(model, optimizer, steps=2, accumulate=4)
    assert those(report, "held", "returned") == names(model, "middle")
    assert those(report, "trained") == names(model, "first", "last") | (NORM - STATISTICS)


@pytest.mark.parametrize("clear", [False, True], ids=["kept", "cleared"])
def test_gradients_accumulated_before_the_freeze_move_what_is_frozen_unless_they_are_cleared(clear):
    model = net()
    optimizer = sgd(model.parameters())
    for number in range(2):
        model(batch(number)).square().mean().backward()
    weight = freeze(model.middle).weight
    before, gradient = weight.clone(), weight.grad.clone()
    if clear:
        model.middle.zero_grad()
    with watched(model, None, optimizer) as report:
        for number in range(2, 4):
            model(batch(number)).square().mean().backward()
        optimizer.step()
        train(model, optimizer, steps=2, accumulate=4)
    assert those(report, "held" if clear else "leaked") == names(model, "middle")
    assert torch.equal(weight, before if clear else before.add(gradient, alpha=-LR))


def test_backward_passes_without_a_step_move_statistics_alone():
    model = net()
    freeze(model.middle)
    optimizer = sgd(model.parameters())
    with watched(model, None, optimizer) as report:
        for number in range(3):
            model(batch(number)).square().mean().backward()
    assert report.looks == []
    assert those(report, "held") == names(model, "middle")
    assert those(report, "idle") == names(model, "first", "last") | (NORM - STATISTICS)
    assert those(report, "drifted") == STATISTICS


# Two optimizers


def backbone(model):
    return [*model.first.parameters(), *model.norm.parameters(), *model.middle.parameters()]


def test_two_optimizers_that_take_turns_have_the_groups_of_both_and_what_is_frozen_in_one_held():
    model = net()
    freeze(model.first)
    one, other = sgd(backbone(model)), torch.optim.Adam(model.last.parameters(), lr=0.25)
    with watched(model, None, one, other) as report:
        train(model, one, other, steps=6)
    assert report.looks == [1, 2, 3]
    assert those(report, "held") == names(model, "first")
    assert those(report, "trained") == names(model, "middle", "last") | (NORM - STATISTICS)
    placed = {row["name"]: (row["group"], row["lr"]) for row in report.rows if row["kind"] == "parameter"}
    assert placed == {name: ("1.0", 0.25) if name.startswith("last") else ("0.0", LR) for name in placed}


@pytest.mark.parametrize(("leaking", "number"), [("middle", 0), ("last", 1)], ids=["the first", "the second"])
def test_a_leak_in_either_optimizer_is_found_though_the_other_holds(leaking, number):
    model = net()
    freeze(model.first)
    optimizers = [sgd(backbone(model)), sgd(model.last.parameters())]
    with watched(model, ["first", leaking], *optimizers) as report:
        train(model, optimizers[number], steps=3)
    assert report.looks == [1, 2, 3]
    assert set(report.leaks) == names(model, leaking)
    assert those(report, "held") == names(model, "first")


@pytest.mark.parametrize("stale", ["one", "other"])
def test_momentum_of_either_optimizer_moves_what_was_frozen_after_both_had_stepped(stale):
    model = net()
    options = {"one": {}, "other": {}, stale: {"momentum": MOMENTUM}}
    one, other = sgd(backbone(model), **options["one"]), sgd(model.last.parameters(), **options["other"])
    train(model, one, other, to_none=False)
    freeze(model.middle)
    freeze(model.last)
    with watched(model, None, one, other) as report:
        train(model, one, other, to_none=False)
    leaking, holding = ("middle", "last") if stale == "one" else ("last", "middle")
    assert set(report.leaks) == names(model, leaking)
    assert those(report, "held") == names(model, holding)


def test_a_parameter_at_rate_zero_in_one_optimizer_leaks_by_the_other_that_holds_it_too():
    model = net()
    one = torch.optim.SGD([{"params": backbone(model)[:4]}, {"params": model.middle.parameters(), "lr": 0.0}], lr=LR)
    other = sgd([*model.middle.parameters(), *model.last.parameters()])
    with watched(model, ["middle"], one, other) as alone:
        train(model, one, steps=2)
    with watched(model, ["middle"], one, other) as both:
        train(model, one, other, steps=2)
    assert (alone.leaks, set(both.leaks)) == ([], names(model, "middle"))


def test_what_is_in_neither_of_two_optimizers_is_idle_and_says_so():
    model = net()
    one, other = sgd(model.first.parameters()), sgd(model.last.parameters())
    with watched(model, [], one, other) as report:
        train(model, one, other)
    assert causes(report) == dict.fromkeys(names(model, "middle") | (NORM - STATISTICS), "not_in_optimizer")
