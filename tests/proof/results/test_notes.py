"""Sentences of an audit where its rows alone would leave a user without an answer."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from runner import audit, select

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def net(*between):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), *between, nn.Linear(4, 2))


def train(model, *optimizers, steps=2):
    for _ in range(steps):
        model.zero_grad()
        model(X).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def row_of(report, name):
    return next(row for row in report.rows if row["name"] == name)


def notes_of(model, *patterns, steps=2):
    """Audit a short training with the layers of these names frozen by their flags, and return the notes."""
    for pattern in patterns:
        model.get_submodule(pattern).requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, list(patterns), optimizer) as report:
        train(model, optimizer, steps=steps)
    return report.notes


# Flags


def test_a_flag_that_is_set_on_a_module_is_named():
    model = net()
    model[0].requires_grad = False
    assert notes_of(model) == [
        "0.requires_grad = False freezes nothing: it is an attribute of a Linear; call 0.requires_grad_(False)"
    ]


def test_a_flag_that_is_set_on_the_model_is_named():
    model = net()
    model.requires_grad = False
    assert notes_of(model)[0].startswith("model.requires_grad = False freezes nothing: it is an attribute of a Sequential")


@pytest.mark.parametrize("name", ["require_grad", "requires_grads", "required_grad", "requiresgrad", "requires_gard"])
def test_a_mistyped_flag_is_named(name):
    model = net()
    setattr(model[0].weight, name, False)
    assert notes_of(model) == [f"0.weight.{name} = False freezes nothing: the flag is requires_grad"]


def test_an_attribute_with_another_name_or_value_is_no_mistyped_flag():
    model = net()
    model[0].requires_grad, model[0].weight.require_grad, model[0].use_bias, model[0].weight.frozen = (
        True,
        True,
        False,
        False,
    )
    assert notes_of(model) == []


def test_an_attribute_of_the_modules_own_is_no_mistyped_flag():
    model = net()
    model[0]._requires_grad = False  # as modules of transformers have, which freeze their parameters besides
    assert notes_of(model) == []


def test_a_flag_set_in_the_block_is_named_too():
    model = net()
    with audit(model, []) as report:
        model[0].requires_grad = False
    assert len(report.notes) == 1


def test_flags_that_freeze_nothing_are_said():
    with audit(net()) as report:
        pass
    assert report.notes == ["no parameter was frozen (requires_grad=False) on entry: give patterns"]


# Train mode


def test_active_dropout_and_batch_norm_in_frozen_modules_are_said():
    body = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.BatchNorm1d(4), nn.Dropout(0.0))
    assert notes_of(nn.Sequential(body, nn.Linear(4, 2)), "0") == [
        "in frozen modules 1 BatchNorm1d normalise by the batch and 1 Dropout drop values, because they are in train mode"
    ]


def test_frozen_modules_in_eval_mode_need_no_sentence_and_a_later_eval_does_not_hide_train_mode():
    body = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.BatchNorm1d(4))
    model = nn.Sequential(body, nn.Linear(4, 2))
    body.requires_grad_(False).eval()
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, ["0"], optimizer) as report:
        train(model, optimizer)
        model.train()
    assert report.notes == []
    with audit(model, ["0"], optimizer) as report:
        train(model, optimizer)
        model.eval()
    assert len(report.notes) == 1


def test_dropout_beside_frozen_modules_is_not_theirs():
    assert notes_of(net(nn.Dropout(0.5)), "0") == []


def test_the_dropout_that_an_attention_does_itself_counts():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.attention(x[None], x[None], x[None])[0])

    assert "1 MultiheadAttention drop values" in notes_of(Attends(), "attention")[0]


# What is computed from a frozen tensor


@pytest.mark.parametrize(
    ("norm", "weight"),
    [
        (torch.nn.utils.parametrizations.spectral_norm, "0.parametrizations.weight.original"),
        (torch.nn.utils.spectral_norm, "0.weight_orig"),
    ],
    ids=["parametrization", "hook"],
)
def test_a_frozen_weight_whose_effect_changes_by_a_power_iteration_is_said(norm, weight):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    (note,) = [note for note in notes_of(model, "0", steps=3) if "computed" in note]
    assert note.startswith(f"{weight} held, but 0.weight changed: it is computed with ")


def test_a_frozen_weight_norm_has_no_such_sentence():
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    assert notes_of(model, "0") == []


# Another dtype or shape


def test_both_dtypes_and_both_shapes_are_said_and_the_norms_of_the_change_are_empty():
    model = net()
    with audit(model, ["0", "1.bias"]) as report:
        model[0].weight.data = model[0].weight.data.bfloat16()
        model[1].bias.data = torch.zeros(5)
    assert report.notes == [
        "0.weight: the dtype changed from float32 to bfloat16",
        "1.bias: the shape changed from 2 to 5",
    ]
    assert (row_of(report, "0.weight")["cause"], row_of(report, "0.weight")["change_l2"]) == ("dtype_changed", None)
    row = row_of(report, "1.bias")
    assert (row["verdict"], row["change_l2"], row["change_rel"], row["change_max"]) == ("leaked", None, None, None)


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch does not have the dtype")
def test_a_frozen_tensor_of_a_dtype_without_arithmetic_has_a_verdict():
    model = net()
    model.register_buffer("codes", torch.arange(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2))
    optimizer = SGD(model.parameters(), lr=0.1)
    with audit(model, [], optimizer) as report:
        train(model, optimizer)
        model.codes.view(torch.uint8)[2] = 9
    row = row_of(report, "codes")
    assert (row["verdict"], row["moved_elements"], row["initial_l2"], row["change_l2"]) == ("drifted", 1, None, None)
    assert report.notes == ["codes: float4_e2m1fn_x2 has no arithmetic, so bits are compared and norms are empty"]


# Gradients that are not finite


def test_an_optimizer_whose_every_step_a_grad_scaler_skips_is_said():
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    with audit(model, [], optimizer) as report:
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(model(X * 1e30).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    reason = "gradients are infinite or NaN, so that a GradScaler may have skipped every step"
    assert report.notes[0] == f"SGD, which was given, made no step: {reason}"
    assert {row["cause"] for row in report.rows} == {"unknown"}


def test_a_step_that_skips_itself_on_infinite_gradients_is_not_called_rounding():
    class SkipsInfinite(SGD):
        def step(self, closure=None):
            if all(p.grad.isfinite().all() for group in self.param_groups for p in group["params"]):
                super().step(closure)

    model = net()
    optimizer = SkipsInfinite(model.parameters(), lr=0.1)
    with audit(model, [], optimizer) as report:
        for _ in range(3):
            optimizer.zero_grad()
            (model(X).square().mean() * float("inf")).backward()
            optimizer.step()
    assert {row["cause"] for row in report.rows} == {"unknown"}
    (note,) = report.notes
    assert note.endswith("gradients are infinite or NaN and no bit changed; a GradScaler may have skipped the steps")


# Copies of higher precision


def masters_of(model):
    return [p.detach().float().clone().requires_grad_() for p in model.parameters()]


def train_masters(model, masters, optimizer, steps=3):
    for _ in range(steps):
        model.zero_grad()
        model(X.bfloat16()).square().mean().backward()
        for parameter, master in zip(model.parameters(), masters, strict=True):
            master.grad = parameter.grad.float()
        optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(model.parameters(), masters, strict=True):
                parameter.copy_(master)


def test_a_parameter_whose_float32_master_moves_by_less_than_it_can_hold_is_rounded_away():
    model = net().bfloat16()
    masters = masters_of(model)
    optimizer = AdamW(masters, lr=1e-6, weight_decay=0)
    with audit(model, [], optimizer) as report:
        train_masters(model, masters, optimizer)
    assert {row["cause"] for row in report.rows} == {"rounded_away"}


def test_a_parameter_that_no_optimizer_steps_is_not_rounded_away_because_another_tensor_has_equal_values():
    model, other = net().bfloat16(), nn.Linear(4, 2)
    nn.init.zeros_(other.bias)
    nn.init.zeros_(model[1].bias)
    optimizer = SGD([*model[0].parameters(), other.bias], lr=0.1)
    with audit(model, [], optimizer) as report:
        for _ in range(2):
            model.zero_grad()
            model(X.bfloat16()).square().mean().backward()
            optimizer.step()
    assert row_of(report, "1.bias")["cause"] == "not_in_optimizer"


def test_a_tensor_that_a_model_keeps_as_an_attribute_does_not_make_statistics_part_of_a_computed_weight():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model.features = torch.zeros(3)
    assert not [note for note in notes_of(model, "0") if "computed" in note]


def test_a_head_that_is_a_guess_is_said_to_be_one():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    with audit(model, ["@head"]) as report:
        pass
    assert report.notes[0] == (
        "@head is taken to be 1, the last layer with an output size: a guess; give select(..., batch=...)"
    )
    with audit(model, select(model, ["@head"], batch=torch.ones(1, 2))) as report:
        pass
    assert not any("guess" in note for note in report.notes)
