"""Frozen names at which another tensor stands, tensors that move to another name, and tensors that appear."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from runner import audit, select

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def two_layers():
    """Return a model of two layers, `enc` (frozen) and `dec`."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"enc": nn.Linear(4, 4), "dec": nn.Linear(4, 4)})
    model["enc"].requires_grad_(False)
    return model


def train(model, *optimizers, steps=3):
    for _ in range(steps):
        model.zero_grad()
        model["dec"](model["enc"](X)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def rows_of(report):
    """Return {name: (frozen, verdict, cause)}."""
    return {row["name"]: (row["frozen"], row["verdict"], row["cause"]) for row in report.rows}


def row_named(report, name):
    return next(row for row in report.rows if row["name"] == name)


def test_a_name_that_is_untied_and_trained_leaked_by_its_gradient_and_the_other_name_is_judged_as_trainable():
    model = two_layers()
    model["dec"].weight = model["enc"].weight
    optimizer = sgd(model)
    with audit(model, ["dec.weight"], optimizer) as report:
        model["dec"].weight = nn.Parameter(model["dec"].weight.detach().clone())
        optimizer.add_param_group({"params": [model["dec"].weight]})
        train(model, optimizer)
    assert rows_of(report)["dec.weight"] == (True, "leaked", "gradient")
    assert rows_of(report)["enc.weight"] == (False, "idle", "no_gradient")
    assert row_named(report, "dec.weight")["group"] == "1"


def test_a_name_that_is_untied_without_being_trained_held():
    model = two_layers()
    model["dec"].weight = model["enc"].weight
    optimizer = sgd(model)
    with audit(model, ["dec.weight", "enc.weight"], optimizer) as report:
        model["dec"].weight = nn.Parameter(model["dec"].weight.detach().clone(), requires_grad=False)
        train(model, optimizer)
    assert rows_of(report)["dec.weight"] == rows_of(report)["enc.weight"] == (True, "held", "")


def test_frozen_tensors_with_equal_bits_that_are_tied_in_the_block_held_with_norms():
    model = two_layers().requires_grad_(False)
    model["dec"].weight.copy_(model["enc"].weight)
    model["dec"].bias.requires_grad_(True)
    optimizer = sgd(model)
    with audit(model, ["enc.weight", "dec.weight"], optimizer) as report:
        model["dec"].weight = model["enc"].weight
        train(model, optimizer)
    row = row_named(report, "dec.weight")
    assert (row["verdict"], row["change_l2"], row["aliases"]) == ("held", 0.0, "enc.weight")


def test_a_frozen_layer_that_is_replaced_leaked_also_if_the_old_one_lives_on_under_another_name():
    model = two_layers()
    optimizer = sgd(model)
    with audit(model, ["enc"], optimizer) as report:
        model["old"] = model["enc"]
        model["enc"] = nn.Linear(4, 4)
        train(model, optimizer)
    assert rows_of(report)["enc.weight"] == rows_of(report)["enc.bias"] == (True, "leaked", "replaced")
    assert rows_of(report)["old.weight"] == (False, "idle", "no_gradient")


def test_a_frozen_buffer_that_is_replaced_leaked():
    model = nn.ModuleDict({"enc": nn.BatchNorm1d(4).eval(), "dec": nn.Linear(4, 4)})
    with audit(model, select(model, ["enc"], buffers="frozen"), sgd(model)) as report:
        train(model, sgd(model))
        model["enc"].running_mean = torch.ones(4)
    assert rows_of(report)["enc.running_mean"] == (True, "leaked", "replaced")
    assert rows_of(report)["enc.running_var"] == (True, "held", "")


class Adapter(nn.Module):
    """A layer with a small trainable one beside it."""

    def __init__(self, base):
        super().__init__()
        self.base, self.added = base, nn.Linear(4, 4)

    def forward(self, x):
        return self.base(x) + self.added(x)


def wrap(model):
    model["enc"] = Adapter(model["enc"])


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


MOVES = {
    "adapter": (wrap, "enc.base.weight"),
    "pruning": (lambda model: prune.l1_unstructured(model["enc"], "weight", 0.5), "enc.weight_orig"),
    "parametrization": (
        lambda model: parametrize.register_parametrization(model["enc"], "weight", Doubled()),
        "enc.parametrizations.weight.original",
    ),
}


@pytest.mark.parametrize(("move", "name_now"), MOVES.values(), ids=MOVES)
def test_a_frozen_tensor_that_moves_to_another_name_held(move, name_now):
    model = two_layers()
    optimizer = sgd(model)
    with audit(model, ["enc"], optimizer) as report:
        train(model, optimizer)
        move(model)
        train(model, optimizer)
    assert rows_of(report)["enc.weight"] == (True, "held", "")
    assert row_named(report, "enc.weight")["aliases"] == name_now
    assert report.notes == []


def test_what_appears_in_the_block_has_rows_and_is_idle_if_no_optimizer_has_it():
    model = two_layers()
    optimizer = sgd(model)
    with audit(model, ["enc"], optimizer) as report:
        wrap(model)
        optimizer.add_param_group({"params": [model["enc"].added.bias], "name": "added"})
        train(model, optimizer)
    assert rows_of(report)["enc.added.weight"] == (False, "idle", "not_in_optimizer")
    assert rows_of(report)["enc.added.bias"] == (False, "trained", "")
    assert row_named(report, "enc.added.bias")["group"] == "added"


def test_a_frozen_layer_that_is_removed_held_and_a_note_says_that_it_is_gone():
    model = two_layers()
    optimizer = sgd(model)
    with audit(model, ["enc"], optimizer) as report:
        model["enc"] = nn.Identity()
        train(model, optimizer)
    assert rows_of(report)["enc.weight"] == (True, "held", "")
    assert "no longer in the model: enc.weight and enc.bias" in report.notes


def test_a_model_that_is_converted_leaked_by_dtype_changed():
    model = two_layers()
    with audit(model, ["enc"], sgd(model)) as report:
        model.double()
    assert rows_of(report)["enc.weight"] == (True, "leaked", "dtype_changed")


def test_a_frozen_layer_that_is_replaced_by_one_of_another_dtype_is_replaced():
    model = two_layers()
    with audit(model, ["enc"], sgd(model)) as report:
        model["enc"] = nn.Linear(4, 4, dtype=torch.float64)
    assert rows_of(report)["enc.weight"] == (True, "leaked", "replaced")


def test_a_row_has_the_group_of_the_tensor_that_was_assigned():
    model = two_layers()
    optimizer = sgd(model)
    with audit(model, ["enc"], optimizer) as report:
        model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
        train(model, optimizer)
    assert rows_of(report)["enc.weight"] == (True, "held", "")
    assert (row_named(report, "dec.weight")["group"], row_named(report, "dec.weight")["cause"]) == ("", "not_in_optimizer")
    assert "SGD steps 4 tensors the model does not have" in report.notes


def test_a_name_that_was_untied_and_tied_again_is_one_row_that_returned():
    model = two_layers()
    model["dec"].weight = model["enc"].weight
    tied, optimizer = model["enc"].weight, sgd(model)
    with audit(model, ["dec.weight"], optimizer) as report:
        model["dec"].weight = nn.Parameter(torch.zeros(4, 4), requires_grad=False)
        train(model, optimizer)
        model["dec"].weight = tied
    assert rows_of(report)["enc.weight"] == (True, "returned", "")
    assert "dec.weight" not in rows_of(report)


@pytest.mark.parametrize(
    "lose",
    [
        lambda model: setattr(model["enc"], "weight", nn.Parameter(torch.empty(4, 4, device="meta"), requires_grad=False)),
        lambda model: model["enc"].to_empty(device="meta"),
        lambda model: model["enc"].weight.untyped_storage().resize_(0),
    ],
    ids=["put on the meta device", "moved to the meta device", "memory freed"],
)
@pytest.mark.parametrize("until", [None, 1])
def test_a_frozen_tensor_whose_values_are_gone_has_leaked_and_a_note_says_so(lose, until):
    model = two_layers()
    optimizer = sgd(model)
    with audit(model, ["enc"], optimizer, until=until) as report:
        train(model, optimizer)
        lose(model)
    row = row_named(report, "enc.weight")
    assert (row["verdict"], row["change_l2"]) == ("leaked", None)
    assert until or "enc.weight" in report.notes[-1].split(": it has no values any more")[0]


def test_a_frozen_tensor_that_is_replaced_by_a_sparse_one_has_leaked():
    model = two_layers()
    optimizer = sgd(model)
    with audit(model, ["enc"], optimizer) as report:
        train(model, optimizer)
        model["enc"].weight = nn.Parameter(model["enc"].weight.detach().to_sparse(), requires_grad=False)
    assert rows_of(report)["enc.weight"] == (True, "leaked", "replaced")


@pytest.mark.parametrize("every", [None, 1])
def test_a_layer_that_is_replaced_before_the_first_step_and_then_trained_was_replaced(every):
    model = two_layers()
    with audit(model, ["enc"], every=every) as report:
        model["enc"] = nn.Linear(4, 4)
        train(model, sgd(model), steps=4)
    assert rows_of(report)["enc.weight"] == (True, "leaked", "replaced")


@pytest.mark.parametrize("every", [None, 1])
def test_a_frozen_name_that_is_tied_to_a_trained_tensor_was_replaced(every):
    model = two_layers()
    optimizer = sgd(model)
    with audit(model, ["enc.weight"], optimizer, every=every) as report:
        train(model, optimizer, steps=2)
        model["enc"].weight = model["dec"].weight
        train(model, optimizer, steps=4)
    assert rows_of(report)["enc.weight"] == (True, "leaked", "replaced")


@pytest.mark.long
@pytest.mark.parametrize("every", [None, 1])
def test_a_live_buffer_that_is_assigned_a_new_tensor_in_each_forward_pass_drifted_and_no_old_tensor_is_kept(every):
    class Averages(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("average", torch.zeros(4, 333))

        def forward(self, x):
            self.average = self.average * 0.9 + 1
            return self.layer(x)

    model = Averages()
    optimizer = sgd(model)
    with audit(model, ["layer.bias"], optimizer, every=every) as report:
        for _ in range(20):
            model.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
        gc.collect()
        assert sum(issubclass(type(each), torch.Tensor) and each.shape == (4, 333) for each in gc.get_objects()) <= 4
    row = row_named(report, "average")
    assert (row["verdict"], row["moved"], row["seen_at"]) == ("drifted", True, 1)
    assert row["change_l2"] == pytest.approx(model.average.norm().item())


def test_a_lazy_layer_that_is_added_in_the_block_has_rows_once_it_is_initialised():
    model = two_layers()
    optimizer = sgd(model)
    with audit(model, ["enc"], optimizer) as report:
        model["lazy"] = nn.LazyLinear(2)
        train(model, optimizer)
        model["never"] = nn.LazyLinear(2)
        model["lazy"](X)
    assert rows_of(report)["lazy.weight"] == (False, "idle", "not_in_optimizer")
    assert "never.weight" not in rows_of(report)
    assert report.leaks == []


@pytest.mark.parametrize("until", [None, 1])
def test_a_selection_of_another_model_is_found_by_name_or_refused(until):
    model, other = two_layers(), nn.Linear(4, 4)
    with pytest.raises(ValueError, match="no tensor of this Selection is in the model"), audit(model, select(other, ["**"])):
        pass
    optimizer = sgd(model)
    with audit(model, [], optimizer, until=until) as report:
        train(model, optimizer, steps=2)
        report.freeze(select(two_layers(), ["dec"]))
        train(model, optimizer, steps=2)
    assert report.leaks == ["dec.weight", "dec.bias"]
