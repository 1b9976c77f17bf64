"""The audit and the methods in situations where `requires_grad=False` is not enough or the values are special."""

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
from runner.methods.base import Example
from runner.methods.restore import Restore
from runner.proof.audit import audit
from runner.proof.changes import snapshot
from tests.in_memory import run_experiment

LR, MOMENTUM = 0.1, 0.9
STATISTICS = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
NORM = {"norm.weight", "norm.bias", *STATISTICS}


def sequential(**modules):
    """Return a Sequential of named modules."""
    return nn.Sequential(OrderedDict(modules))


def net():
    """Return a model of three linear layers with a BatchNorm between the first two."""
    torch.manual_seed(0)
    return sequential(
        first=nn.Linear(3, 4), act=nn.Tanh(), norm=nn.BatchNorm1d(4), middle=nn.Linear(4, 4), bend=nn.Tanh(),
        last=nn.Linear(4, 2),
    )  # fmt: skip


def batch(number):
    """Return the inputs of the batch with this number; always the same."""
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(number))


def sgd(params, **options):
    """Return an SGD optimizer with the learning rate LR."""
    return torch.optim.SGD(params, lr=LR, **options)


def train(model, *optimizers, steps=4, to_none=True, accumulate=1, batches=batch):
    """Train in a plain loop that calls `model.train()` before each batch; several optimizers step in turn."""
    for number in range(steps * accumulate):
        model.train()
        if number % accumulate == 0:
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=to_none)
        model(batches(number)).square().mean().backward()
        if number % accumulate == accumulate - 1:
            optimizers[number // accumulate % len(optimizers)].step()


def freeze(module):
    """Set `requires_grad=False` for all parameters of the module; return the module."""
    return module.requires_grad_(False)


def fill(tensor, value):
    """Set the values of a tensor in place."""
    with torch.no_grad():
        tensor.copy_(torch.as_tensor(value))


def raw_bytes(tensor):
    """Return the bytes of a tensor."""
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def copies(model):
    """Return a copy of each parameter and buffer by name."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def moved(model, before):
    """Return the names of all tensors of which a byte has changed; uses no code of the audit."""
    return {name for name, tensor in model.state_dict().items() if raw_bytes(tensor) != raw_bytes(before[name])}


@contextmanager
def watched(model, frozen=None, *optimizers, every=None):
    """Audit the training in this block, and assert that the column `moved` agrees with a comparison of bytes."""
    before = copies(model)
    with audit(model, frozen, optimizers, every) as report:
        yield report
    assert {row["name"] for row in report.rows if row["moved"]} == moved(model, before)


def with_verdict(report, *verdicts):
    """Return the names of the tensors with one of these verdicts."""
    return {row["name"] for row in report.rows if row["verdict"] in verdicts}


def row_of(report, name):
    """Return the row of one tensor."""
    (row,) = [row for row in report.rows if row["name"] == name]
    return row


def causes_of_idle(report):
    """Return the causes of all idle parameters by name."""
    return {row["name"]: row["cause"] for row in report.rows if row["verdict"] == "idle"}


def names_in(model, *modules):
    """Return the names of the parameters and buffers in these top-level modules."""
    return {name for name in model.state_dict() if name.split(".")[0] in modules}


def build_method(name):
    """Return the method of `conf/method/NAME.yaml` with its default options, and the first batch as its example."""
    node = OmegaConf.create({"method": OmegaConf.load(CONF / "method" / f"{name}.yaml")})
    method = build(OmegaConf.to_container(node, resolve=True)["method"], "method")
    method.example = Example(lambda model, x: model(x).square().mean(), batch(0))
    return method


METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
HOLDING_METHODS = [name for name in METHODS if "any_step" not in build_method(name).leaks_under]
ANY_PART_METHODS = [name for name in HOLDING_METHODS if name != "detach"]  # detach works only with a frozen prefix


@contextmanager
def frozen_by(name, model, selection):
    """Freeze the model by a method as the runner does; yield the optimizer and the report of the audit."""
    method, before, initial_values = build_method(name), snapshot(model), copies(model)
    with ExitStack() as undo:
        assert method.skip(model, selection) is None
        force_eval_mode(selection, undo)
        prepared = method.prepare(model, selection, undo)
        optimizer = sgd(drop_empty_groups(method.groups(by_role(prepared, selection), selection)))
        with audit(prepared, selection, optimizer, before=before) as report:
            method.attach(optimizer, selection, undo)
            yield optimizer, report
        assert {row["name"] for row in report.rows if row["moved"]} == moved(model, initial_values)


def state_without_values(model):
    """Return flags, hooks, modes and attributes, and the identity and order of everything that is registered."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    kinds = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return (
        [(name, id(t), t.requires_grad, *(len(getattr(t, kind) or ()) for kind in kinds)) for name, t in tensors],
        [
            (name, id(module), module.training, list(vars(module)), list(module._parameters), list(module._buffers))
            for name, module in model.named_modules(remove_duplicate=False)
        ],
        [len(hooks) for module in model.modules() for key, hooks in vars(module).items() if key.endswith("_hooks")],
    )


# BatchNorm


def test_a_batchnorm_forced_into_eval_mode_keeps_every_bit_though_train_is_called_on_its_parent():
    model = net()
    freeze(model.norm)
    selection, optimizer, before = select(model, ["norm"], buffers="frozen"), sgd(model.parameters()), copies(model)
    with ExitStack() as undo, watched(model, selection, optimizer) as report:
        force_eval_mode(selection, undo)
        train(model, optimizer)
        assert model.training
    assert with_verdict(report, "held") == NORM
    assert with_verdict(report, "trained") == names_in(model, "first", "middle", "last")
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in NORM)


@pytest.mark.parametrize(("buffers", "verdict"), [("live", "drifted"), ("frozen", "leaked")])
def test_requires_grad_false_alone_holds_the_weights_of_a_batchnorm_but_not_its_statistics(buffers, verdict):
    model = net()
    freeze(model.norm)
    optimizer = sgd(model.parameters())
    with watched(model, select(model, ["norm"], buffers=buffers), optimizer) as report:
        train(model, optimizer)
    assert not any(parameter.requires_grad for parameter in model.norm.parameters())
    assert with_verdict(report, verdict) == STATISTICS
    assert with_verdict(report, "held") == NORM - STATISTICS
    assert model.norm.num_batches_tracked == 4


@pytest.mark.parametrize(("after_train", "verdict"), [(False, "leaked"), (True, "held")], ids=["once before", "after each"])
def test_eval_holds_a_batchnorm_only_if_train_is_not_called_on_its_parent_afterwards(after_train, verdict):
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
    assert with_verdict(report, verdict) >= STATISTICS


def test_a_batchnorm_with_momentum_0_still_counts_its_batches():
    model = net()
    model.norm = nn.BatchNorm1d(4, momentum=0.0)
    optimizer = sgd(freeze(model).parameters())
    with watched(model, select(model, ["norm"], buffers="frozen"), optimizer) as report, torch.no_grad():
        model(batch(0))
    assert report.leaks == ["norm.num_batches_tracked"]


def test_a_batchnorm_that_was_frozen_changes_again_after_it_is_unfrozen():
    model = net()
    selection, before = select(model, ["norm"], buffers="frozen"), copies(model)
    with frozen_by("requires_grad", model, selection) as (optimizer, _):
        train(model, optimizer)
    assert not moved(model, before) & NORM
    train(model, sgd(model.parameters()))
    assert moved(model, before) >= NORM


@pytest.mark.parametrize("buffers", ["live", "frozen"])
def test_a_frozen_batchnorm_has_its_initial_bits_after_a_run_if_buffers_are_frozen(buffers):
    result = run_experiment("freeze=batchnorm", f"freeze.buffers={buffers}")
    norm, fresh = result.model.norm.state_dict(), nn.BatchNorm1d(32).state_dict()
    unchanged = {f"norm.{name}" for name in fresh if torch.equal(norm[name], fresh[name])}
    assert unchanged == (NORM if buffers == "frozen" else NORM - STATISTICS)
    assert {row["name"] for row in result.rows if row["name"] in NORM and not row["moved"]} == unchanged


# Freezing twice, and unfreezing


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("buffers", ["live", "frozen"])
def test_freezing_and_unfreezing_twice_holds_each_time_and_trains_again_each_time(method, buffers):
    model = net()
    initial_state = state_without_values(model)
    prefix = names_in(model, "first", "norm") - (STATISTICS if buffers == "live" else set())
    for _ in range(2):
        before = copies(model)
        with frozen_by(method, model, select(model, ["first", "norm"], buffers=buffers)) as (optimizer, report):
            train(model, optimizer)
            moved_names = moved(model, before)
        assert moved_names & prefix == ((prefix - STATISTICS) if method not in HOLDING_METHODS else set())
        assert moved_names >= names_in(model, "middle", "last")
        assert bool(report.leaks) == (method not in HOLDING_METHODS)
        assert state_without_values(model) == initial_state
        before = copies(model)
        train(model, sgd(model.parameters()))
        assert moved(model, before) == set(before)
        assert state_without_values(model) == initial_state


@pytest.mark.parametrize("method", METHODS)
def test_undoing_a_second_freeze_of_frozen_parameters_keeps_them_frozen(method):
    model = net()
    selection, before = select(model, ["first"]), copies(model)
    unfrozen_state = state_without_values(model)
    with frozen_by("requires_grad", model, selection):
        frozen_state = state_without_values(model)
        with frozen_by(method, model, selection) as (optimizer, _):
            train(model, optimizer)
        assert state_without_values(model) == frozen_state
        train(model, sgd(model.parameters()))
        assert not moved(model, before) & names_in(model, "first")
    assert state_without_values(model) == unfrozen_state
    train(model, sgd(model.parameters()))
    assert moved(model, before) >= names_in(model, "first")


# Freezing after the optimizer has stepped


OPTIMIZERS = {
    "adam": lambda params: torch.optim.Adam(params, lr=LR),
    "adamw without decay": lambda params: torch.optim.AdamW(params, lr=LR, weight_decay=0.0),
    "sgd with momentum": lambda params: sgd(params, momentum=MOMENTUM),
    "sgd with decay": lambda params: sgd(params, weight_decay=0.1),
    "sgd": sgd,
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=LR),
}
HELD_ON_ZERO_GRADIENTS = {"sgd", "rmsprop"}  # without weight decay and momentum a zero gradient changes nothing


@pytest.mark.parametrize("to_none", [False, True], ids=["gradients kept as zeros", "gradients set to None"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_frozen_in_mid_run_leak_by_state_or_weight_decay_unless_gradients_are_none(name, to_none):
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, to_none=to_none)
    freeze(model.middle)
    with watched(model, None, optimizer) as report:
        train(model, optimizer, to_none=to_none)
    holds = to_none or name in HELD_ON_ZERO_GRADIENTS
    assert with_verdict(report, "held" if holds else "leaked") == names_in(model, "middle")
    assert with_verdict(report, "trained") == names_in(model, "first", "last") | (NORM - STATISTICS)


@pytest.mark.parametrize(("to_none", "cause"), [(False, "zero_gradient"), (True, "no_gradient")], ids=["zeros", "None"])
def test_weights_frozen_in_mid_run_but_not_declared_frozen_are_idle_without_a_gradient(to_none, cause):
    model = net()
    optimizer = sgd(model.parameters())
    train(model, optimizer, to_none=to_none)
    freeze(model.middle)
    with watched(model, [], optimizer) as report:
        train(model, optimizer, to_none=to_none)
    assert causes_of_idle(report) == dict.fromkeys(names_in(model, "middle"), cause)


def test_momentum_moves_frozen_weights_exactly_by_the_momentum_buffer():
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


def test_changes_before_the_audit_began_are_not_leaks():
    model = net()
    optimizer = sgd(model.parameters())
    before = copies(model)
    train(model, optimizer)
    freeze(model.middle)
    with watched(model, None, optimizer) as report:
        train(model, optimizer)
    assert moved(model, before) >= names_in(model, "middle")
    assert report.leaks == []


# Equal values


def two_norms():
    """Return a model with two BatchNorms of equal values."""
    torch.manual_seed(0)
    return sequential(
        body=nn.Linear(3, 4), one=nn.BatchNorm1d(4), act=nn.Tanh(), other=nn.BatchNorm1d(4), head=nn.Linear(4, 2)
    )


def two_linears():
    """Return a model with two linear layers of equal values."""
    torch.manual_seed(0)
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.load_state_dict(one.state_dict())
    return sequential(body=nn.Linear(3, 3), one=one, act=nn.Tanh(), other=other, head=nn.Linear(3, 2))


@pytest.mark.parametrize("build_model", [two_norms, two_linears])
@pytest.mark.parametrize(("frozen", "trainable"), [("one", "other"), ("other", "one")])
def test_of_two_layers_with_equal_values_only_the_named_one_is_frozen(build_model, frozen, trainable):
    model = build_model()
    assert all(torch.equal(*pair) for pair in zip(model.one.parameters(), model.other.parameters(), strict=True))
    freeze(model.get_submodule(frozen))
    optimizer = sgd(model.parameters())
    with watched(model, [frozen], optimizer) as report:
        train(model, optimizer)
    weights = ("weight", "bias")
    assert with_verdict(report, "held") == {f"{frozen}.{name}" for name in weights}
    assert with_verdict(report, "trained") >= {f"{trainable}.{name}" for name in weights}
    assert {row["name"] for row in report.rows if row["frozen"]} == {f"{frozen}.{name}" for name in weights}


@pytest.mark.parametrize("method", ANY_PART_METHODS)
@pytest.mark.parametrize("build_model", [two_norms, two_linears])
def test_no_method_freezes_another_layer_with_equal_values(method, build_model):
    model = build_model()
    with frozen_by(method, model, select(model, ["other"])) as (optimizer, report):
        train(model, optimizer)
    assert with_verdict(report, "held", "returned") == {"other.weight", "other.bias"}
    assert with_verdict(report, "trained") >= {"one.weight", "one.bias"}


@pytest.mark.parametrize("build_model", [two_norms, two_linears])
def test_groups_are_divided_by_identity_and_not_by_value(build_model):
    model = build_model()
    selection = select(model, ["one"])
    divisions = by_role(model, selection), split_by_frozen(all_in_one(model, selection), selection)
    for group in (divisions[0][0], divisions[1][1]):
        assert [id(parameter) for parameter in group["params"]] == [id(model.one.weight), id(model.one.bias)]


@pytest.mark.parametrize("build_model", [two_norms, two_linears])
def test_layers_with_equal_values_that_are_swapped_during_the_audit_are_judged_by_what_stands_at_their_names(build_model):
    model = build_model()
    freeze(model.one)
    optimizer = sgd(model.parameters())
    with audit(model, ["one"], optimizer) as report:
        frozen, trainable = model.one, model.other
        model.one, model.other = trainable, frozen
        train(model, optimizer)
    assert with_verdict(report, "leaked") == {"one.weight", "one.bias"}
    assert {row["cause"] for row in report.rows if row["frozen"]} == {"gradient"}
    assert with_verdict(report, "idle") >= {"other.weight", "other.bias"}
    assert not any(torch.equal(*pair) for pair in zip(frozen.parameters(), trainable.parameters(), strict=True))


# Embedding with max_norm


def embedding():
    """Return a model with an embedding of `max_norm=1`, whose first row is longer than that."""
    torch.manual_seed(0)
    table = nn.Embedding(4, 2, max_norm=1.0)
    fill(table.weight, [[3.0, 4.0], [0.5, 0.0], [-0.25, 0.5], [0.0, 0.0]])
    return sequential(table=table, head=nn.Linear(2, 2))


def looking_up(*rows):
    """Return a function for `batches` of `train` that always returns these row numbers."""
    return lambda number: torch.tensor(rows)


@pytest.mark.parametrize("buffers", ["live", "frozen"])
def test_a_forward_pass_rewrites_the_long_rows_that_it_looks_up_in_a_frozen_embedding(buffers):
    model = embedding()
    freeze(model.table)
    selection, optimizer, before = select(model, ["table"], buffers=buffers), sgd(model.parameters()), copies(model)
    with ExitStack() as undo, watched(model, selection, optimizer) as report:
        force_eval_mode(selection, undo)
        train(model, optimizer, batches=looking_up(0, 1, 2))
    assert report.leaks == ["table.weight"]
    assert not torch.equal(model.table.weight[0], before["table.weight"][0])
    assert torch.equal(model.table.weight[1:], before["table.weight"][1:])


def test_a_forward_pass_rewrites_long_rows_also_without_gradients_and_steps():
    model = freeze(embedding()).eval()
    with watched(model) as report, torch.no_grad():
        model(torch.tensor([0]))
    assert report.leaks == ["table.weight"]


def test_a_frozen_embedding_is_held_if_no_long_row_is_looked_up():
    model = embedding()
    freeze(model.table)
    optimizer, before = sgd(model.parameters()), copies(model)
    with watched(model, None, optimizer) as report:
        train(model, optimizer, batches=looking_up(1, 2, 3))
    assert with_verdict(report, "held") == {"table.weight"}
    assert torch.equal(model.table.weight, before["table.weight"])


def test_rows_that_a_forward_pass_rewrites_return_if_they_are_restored_after_each_step():
    model = embedding()
    selection, optimizer = select(model, ["table"]), sgd(model.parameters())
    with ExitStack() as undo, watched(model, selection, optimizer) as report:
        Restore().attach(optimizer, selection, undo)
        train(model, optimizer, batches=looking_up(0, 1))
    assert with_verdict(report, "returned") == {"table.weight"}


# Reparametrized weights


def layer():
    """Return a layer whose singular values are close, so that power iteration has not converged after some steps."""
    torch.manual_seed(0)
    linear = nn.Linear(3, 3)
    fill(linear.weight, torch.diag(torch.tensor([1.0, 0.95, 0.9])))
    return linear


def reparametrized(wrap):
    """Return a model whose module `body` is `wrap(layer())`."""
    return sequential(body=wrap(layer()), act=nn.Tanh(), head=nn.Linear(3, 2))


@torch.no_grad()
def effective_weight(module):
    """Return the transposed weight that a layer multiplies by; computed in eval mode, which changes nothing."""
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
def test_a_frozen_spectral_norm_in_train_mode_holds_its_parameter_while_its_buffers_drift(wrap, prefix, tensors):
    model = reparametrized(wrap)
    freeze(model.body)
    weight, *vectors = (f"body.{prefix}{name}" for name in tensors)
    optimizer, initial_weight = sgd(model.parameters()), effective_weight(model.body)
    with watched(model, ["body"], optimizer) as report:
        train(model, optimizer)
    assert with_verdict(report, "held") == {weight, "body.bias"}
    assert with_verdict(report, "drifted") == set(vectors)
    assert not torch.equal(effective_weight(model.body), initial_weight)


@pytest.mark.parametrize("method", ANY_PART_METHODS)
@pytest.mark.parametrize(("wrap", "prefix", "tensors"), SPECTRAL)
def test_a_frozen_spectral_norm_in_eval_mode_keeps_every_bit_and_its_effective_weight(wrap, prefix, tensors, method):
    model = reparametrized(wrap)
    initial_weight = effective_weight(model.body)
    with frozen_by(method, model, select(model, ["body"], buffers="frozen")) as (optimizer, report):
        train(model, optimizer)
    assert with_verdict(report, "held", "returned") == {"body.bias", *(f"body.{prefix}{name}" for name in tensors)}
    assert with_verdict(report, "trained") == names_in(model, "head")
    assert torch.equal(effective_weight(model.body), initial_weight)


@pytest.mark.parametrize(("wrap", "prefix", "tensors"), SPECTRAL)
def test_the_buffers_of_a_spectral_norm_that_are_declared_frozen_leak_without_eval_mode(wrap, prefix, tensors):
    model = reparametrized(wrap)
    freeze(model.body)
    optimizer = sgd(model.parameters())
    with watched(model, select(model, ["body"], buffers="frozen"), optimizer) as report:
        train(model, optimizer)
    assert set(report.leaks) == {f"body.{prefix}{name}" for name in tensors[1:]}


@pytest.mark.parametrize("method", ANY_PART_METHODS)
@pytest.mark.parametrize(("wrap", "magnitude", "direction"), WEIGHT_NORM)
def test_freezing_a_module_with_weight_norm_freezes_magnitude_and_direction(wrap, magnitude, direction, method):
    model = reparametrized(wrap)
    selection, initial_weight = select(model, ["body"]), effective_weight(model.body)
    assert set(selection.parameters) == {"body.bias", f"body.{magnitude}", f"body.{direction}"}
    with frozen_by(method, model, selection) as (optimizer, report):
        train(model, optimizer)
    assert with_verdict(report, "held", "returned") == set(selection.parameters)
    assert with_verdict(report, "trained") == names_in(model, "head")
    assert torch.equal(effective_weight(model.body), initial_weight)


@pytest.mark.parametrize(("wrap", "magnitude", "direction"), WEIGHT_NORM)
@pytest.mark.parametrize("frozen", ["magnitude", "direction"])
def test_the_effective_weight_moves_if_only_one_half_of_a_weight_norm_is_frozen(wrap, magnitude, direction, frozen):
    model = reparametrized(wrap)
    names_of = {"magnitude": f"body.{magnitude}", "direction": f"body.{direction}"}
    initial_weight = effective_weight(model.body)
    with frozen_by("requires_grad", model, select(model, [names_of[frozen]])) as (optimizer, report):
        train(model, optimizer)
    assert with_verdict(report, "held") == {names_of[frozen]}
    assert with_verdict(report, "trained") >= set(names_of.values()) - {names_of[frozen]}
    assert not torch.equal(effective_weight(model.body), initial_weight)


# A frozen part in the middle, and at the end


@pytest.mark.parametrize("method", ANY_PART_METHODS)
@pytest.mark.parametrize("part", ["middle", "last"])
def test_layers_before_a_frozen_part_train_with_every_method(method, part):
    model = net()
    with frozen_by(method, model, select(model, [part])) as (optimizer, report):
        train(model, optimizer)
    assert with_verdict(report, "held", "returned") == names_in(model, part)
    assert with_verdict(report, "trained") == names_in(model, "first", "norm", "middle", "last") - STATISTICS - names_in(
        model, part
    )


@pytest.mark.parametrize("part", ["middle", "last"])
def test_freezing_a_part_does_not_change_a_bit_of_the_other_parameters_in_a_step(part):
    models = [net(), net()]
    freeze(models[1].get_submodule(part))
    for model in models:
        train(model, sgd(model.parameters()), steps=1)
    trained, frozen = (dict(model.named_parameters()) for model in models)
    assert {name for name in trained if torch.equal(trained[name], frozen[name])} == set(trained) - names_in(net(), part)
    assert {name for name, parameter in frozen.items() if parameter.grad is None} == names_in(net(), part)


@pytest.mark.parametrize("part", ["middle", "last"])
def test_detach_is_skipped_for_a_part_in_the_middle_or_at_the_end(part):
    model = net()
    assert f"{part}.weight is frozen" in build_method("detach").skip(model, select(model, [part]))


@pytest.mark.parametrize("pattern", ["norm", "there", "head"])
def test_a_run_trains_the_layers_before_a_frozen_part(pattern):
    rows = [row for row in run_experiment(f"freeze.patterns=[{pattern}]").rows if row["kind"] == "parameter"]
    rows = [row for row in rows if row["name"] != "body.bias"]  # the BatchNorm after it cancels it except for rounding
    assert {row["name"]: row["verdict"] for row in rows} == {
        row["name"]: "held" if row["name"].startswith(pattern) else "trained" for row in rows
    }


# NaN


NAN = float("nan")


def is_nan(*values):
    """Return whether all values are NaN."""
    return all(value != value for value in values)


def test_a_frozen_embedding_that_contains_nan_is_held_while_the_other_parameters_train():
    model = embedding()
    fill(model.table.weight, [[NAN, 1.0], [0.5, 0.0], [-0.25, 0.5], [0.0, NAN]])
    freeze(model.table)
    optimizer, before = sgd(model.parameters()), raw_bytes(model.table.weight)
    with watched(model, None, optimizer) as report:
        train(model, optimizer, batches=looking_up(1, 2))
    row = row_of(report, "table.weight")
    assert (row["verdict"], row["moved"], row["change_l2"], row["change_max"]) == ("held", False, 0.0, 0.0)
    assert is_nan(row["initial_l2"])
    assert raw_bytes(model.table.weight) == before
    assert with_verdict(report, "trained") == names_in(model, "head")


@pytest.mark.parametrize("frozen", [["middle"], []], ids=["declared frozen only", "trainable"])
def test_the_change_of_weights_that_became_nan_is_nan(frozen):
    model = net()
    optimizer = sgd(model.parameters())
    with watched(model, frozen, optimizer) as report:
        train(model, optimizer, steps=2, batches=lambda number: batch(number) * NAN)
    assert set(report.leaks) == (names_in(model, "middle") if frozen else set())
    for name in names_in(model, "middle"):
        row = row_of(report, name)
        assert is_nan(row["change_l2"], row["change_rel"], row["change_max"])
        assert not is_nan(row["initial_l2"])


def test_a_frozen_part_is_held_while_all_other_parameters_become_nan():
    model = net()
    freeze(model.middle)
    optimizer, before = sgd(model.parameters()), copies(model)
    with watched(model, None, optimizer) as report:
        train(model, optimizer, batches=lambda number: batch(number) * NAN)
    assert with_verdict(report, "held") == names_in(model, "middle")
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in names_in(model, "middle"))
    assert all(is_nan(row_of(report, name)["change_l2"]) for name in names_in(model, "first", "last"))


@pytest.mark.parametrize("other", [0x7FC00001, -0x400000], ids=["another payload", "another sign"])
def test_a_nan_that_becomes_a_nan_with_other_bits_has_leaked(other):
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
def test_a_zero_that_changes_its_sign_has_leaked_with_a_change_of_0(start, write):
    model = freeze(nn.Linear(2, 2))
    fill(model.bias, start)
    before = model.bias.clone()
    with watched(model) as report:
        write(model.bias)
    assert torch.equal(model.bias, before)  # torch.equal compares values
    row = row_of(report, "bias")
    assert (row["verdict"], row["moved"], row["change_l2"], row["change_max"]) == ("leaked", True, 0.0, 0.0)
    assert row["change_rel"] == (0.0 if any(start) else None)


def test_a_frozen_negative_zero_stays_negative_if_the_optimizer_does_not_step_it():
    model = net()
    fill(model.middle.bias, -0.0)
    freeze(model.middle)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    with watched(model, None, optimizer) as report:
        train(model, optimizer)
    assert with_verdict(report, "held") == names_in(model, "middle")
    assert model.middle.bias.signbit().all()


def test_a_step_with_a_gradient_of_negative_zero_makes_a_negative_zero_positive():
    model = nn.Linear(2, 2)
    fill(model.bias, -0.0)
    model.bias.grad = torch.full((2,), -0.0)
    optimizer = sgd(model.parameters())
    with watched(model, ["bias"], optimizer) as report:
        optimizer.step()
    assert report.leaks == ["bias"]
    assert not model.bias.signbit().any()


# bfloat16


def linear_of_ones(dtype):
    """Return a linear layer whose values are all 1."""
    model = nn.Linear(3, 2).to(dtype)
    fill(model.weight, 1.0)
    fill(model.bias, 1.0)
    return model


@pytest.mark.parametrize("frozen", [[], ["**"]], ids=["trainable", "declared frozen only"])
@pytest.mark.parametrize(
    ("dtype", "lr", "moves"),
    [(torch.bfloat16, 1e-3, False), (torch.bfloat16, 1e-2, True), (torch.float32, 1e-3, True)],
    ids=["bfloat16", "bfloat16 with a larger learning rate", "float32"],
)
def test_bfloat16_weights_of_1_do_not_move_if_the_step_of_adamw_is_rounded_away(dtype, lr, moves, frozen):
    model = linear_of_ones(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    with watched(model, frozen, optimizer) as report:
        train(model, optimizer, steps=9, batches=lambda number: torch.ones(4, 3, dtype=dtype))
    verdict = ("leaked" if moves else "held") if frozen else ("trained" if moves else "idle")
    assert with_verdict(report, verdict) == {"weight", "bias"}
    assert torch.equal(model.weight, torch.ones(2, 3, dtype=dtype)) is not moves
    assert set(causes_of_idle(report).values()) == ({"rounded_away"} if verdict == "idle" else set())
    assert all(parameter.requires_grad and parameter.grad.any() for parameter in model.parameters())


# Gradient accumulation


@pytest.mark.parametrize(("every", "looks"), [(None, [1, 2, 3]), (1, [1, 2, 3]), (2, [2, 3])])
def test_looks_are_numbers_of_optimizer_steps_and_not_of_batches(every, looks):
    model = net()
    freeze(model.middle)
    optimizer = sgd(model.parameters(), momentum=MOMENTUM)
    with watched(model, None, optimizer, every=every) as report:
        train(model, optimizer, steps=3, accumulate=4)
    assert model.norm.num_batches_tracked == 12
    assert report.looks == looks
    assert with_verdict(report, "held") == names_in(model, "middle")


@pytest.mark.parametrize("method", ANY_PART_METHODS)
def test_a_frozen_part_is_held_with_accumulated_gradients_with_every_method(method):
    model = net()
    with frozen_by(method, model, select(model, ["middle"])) as (optimizer, report):
        train(model, optimizer, steps=2, accumulate=4)
    assert with_verdict(report, "held", "returned") == names_in(model, "middle")
    assert with_verdict(report, "trained") == names_in(model, "first", "last") | (NORM - STATISTICS)


@pytest.mark.parametrize("clear", [False, True], ids=["kept", "cleared"])
def test_gradients_accumulated_before_freezing_move_frozen_weights_unless_they_are_cleared(clear):
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
    assert with_verdict(report, "held" if clear else "leaked") == names_in(model, "middle")
    assert torch.equal(weight, before if clear else before.add(gradient, alpha=-LR))


def test_backward_passes_without_a_step_move_only_the_statistics():
    model = net()
    freeze(model.middle)
    optimizer = sgd(model.parameters())
    with watched(model, None, optimizer) as report:
        for number in range(3):
            model(batch(number)).square().mean().backward()
    assert report.looks == []
    assert with_verdict(report, "held") == names_in(model, "middle")
    assert with_verdict(report, "idle") == names_in(model, "first", "last") | (NORM - STATISTICS)
    assert with_verdict(report, "drifted") == STATISTICS


# Two optimizers


def backbone(model):
    """Return the parameters of all layers except the last one."""
    return [*model.first.parameters(), *model.norm.parameters(), *model.middle.parameters()]


def test_the_groups_of_two_optimizers_are_numbered_and_a_part_frozen_in_one_is_held():
    model = net()
    freeze(model.first)
    one, other = sgd(backbone(model)), torch.optim.Adam(model.last.parameters(), lr=0.25)
    with watched(model, None, one, other) as report:
        train(model, one, other, steps=6)
    assert report.looks == [1, 2, 3]
    assert with_verdict(report, "held") == names_in(model, "first")
    assert with_verdict(report, "trained") == names_in(model, "middle", "last") | (NORM - STATISTICS)
    groups = {row["name"]: (row["group"], row["lr"]) for row in report.rows if row["kind"] == "parameter"}
    assert groups == {name: ("1.0", 0.25) if name.startswith("last") else ("0.0", LR) for name in groups}


@pytest.mark.parametrize(("leaking", "index"), [("middle", 0), ("last", 1)], ids=["the first", "the second"])
def test_a_leak_by_one_of_two_optimizers_is_found(leaking, index):
    model = net()
    freeze(model.first)
    optimizers = [sgd(backbone(model)), sgd(model.last.parameters())]
    with watched(model, ["first", leaking], *optimizers) as report:
        train(model, optimizers[index], steps=3)
    assert report.looks == [1, 2, 3]
    assert set(report.leaks) == names_in(model, leaking)
    assert with_verdict(report, "held") == names_in(model, "first")


@pytest.mark.parametrize("with_momentum", ["one", "other"])
def test_only_the_optimizer_with_momentum_moves_parameters_frozen_in_mid_run(with_momentum):
    model = net()
    options = {"one": {}, "other": {}, with_momentum: {"momentum": MOMENTUM}}
    one, other = sgd(backbone(model), **options["one"]), sgd(model.last.parameters(), **options["other"])
    train(model, one, other, to_none=False)
    freeze(model.middle)
    freeze(model.last)
    with watched(model, None, one, other) as report:
        train(model, one, other, to_none=False)
    leaking, holding = ("middle", "last") if with_momentum == "one" else ("last", "middle")
    assert set(report.leaks) == names_in(model, leaking)
    assert with_verdict(report, "held") == names_in(model, holding)


def test_a_parameter_with_lr_0_in_one_optimizer_leaks_by_another_optimizer_that_contains_it():
    model = net()
    one = torch.optim.SGD([{"params": backbone(model)[:4]}, {"params": model.middle.parameters(), "lr": 0.0}], lr=LR)
    other = sgd([*model.middle.parameters(), *model.last.parameters()])
    with watched(model, ["middle"], one, other) as report_of_one:
        train(model, one, steps=2)
    with watched(model, ["middle"], one, other) as report_of_both:
        train(model, one, other, steps=2)
    assert (report_of_one.leaks, set(report_of_both.leaks)) == ([], names_in(model, "middle"))


def test_parameters_in_neither_of_two_optimizers_are_idle_because_of_that():
    model = net()
    one, other = sgd(model.first.parameters()), sgd(model.last.parameters())
    with watched(model, [], one, other) as report:
        train(model, one, other)
    assert causes_of_idle(report) == dict.fromkeys(names_in(model, "middle") | (NORM - STATISTICS), "not_in_optimizer")
