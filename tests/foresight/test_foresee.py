"""What `foresee` says: each cause with its names, a sentence and the line to change; and "unknown" where it cannot know."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from runner import audit, foresee
from tests.conftest import ROOT
from tests.foresight.loops import CLASSES, FEATURES, OddlyNamed, training_of

BATCH = (torch.randn(6, FEATURES, generator=torch.Generator().manual_seed(0)), torch.arange(6) % CLASSES)
WEIGHTS = ("weight", "bias")


class Net(nn.Module):
    """A body, a side layer that a method of a subclass computes with, and a head."""

    def __init__(self):
        super().__init__()
        self.body, self.side, self.head = nn.Linear(FEATURES, 6), nn.Linear(FEATURES, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)) + self.beside(x))

    def beside(self, x):
        return self.side(x)


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1} | options)


def hazards_of(model, optimizer=None, frozen=(), **options):
    return foresee(model, optimizer or sgd(model), BATCH, frozen=list(frozen), **options)


def only(hazards):
    (hazard,) = hazards
    return hazard


def words(hazard):
    return hazard.verdict, hazard.cause, hazard.names


def names(*modules):
    return tuple(f"{module}.{name}" for module in modules for name in WEIGHTS)


def mended(hazard, model, optimizer):
    """Do what the line says, and return the optimizer."""
    after = {"model": model, "optimizer": optimizer, "torch": torch}
    exec(hazard.line, after)
    return after["optimizer"]


# Idle


class Detached(Net):
    def beside(self, x):
        return self.side(x).detach()


class WithoutGrad(Net):
    def beside(self, x):
        with torch.no_grad():
            return self.side(x)


class Unused(Net):
    def beside(self, x):
        self.side(x)
        return 0


class Uncalled(Net):
    def beside(self, x):
        return 0


DETACHED = "what its module returns is detached, there or later, or the loss does not use it"


@pytest.mark.parametrize(
    ("net", "reason", "line"),
    [
        (Detached, DETACHED, "return self.side(x).detach()"),
        (Unused, DETACHED, "self.side(x)"),
        (WithoutGrad, "its module is called under no_grad", "return self.side(x)"),
        (Uncalled, "the forward pass does not call its module", ""),
    ],
)
def test_without_a_gradient_the_reason_and_the_line_of_the_user_are_given(net, reason, line):
    hazard = only(hazards_of(net()))
    assert words(hazard) == ("idle", "no_gradient", names("side"))
    assert hazard.sentence == f"side.weight and side.bias would stay idle: {reason}"
    assert re.fullmatch(rf"test_foresee.py, line \d+: {re.escape(line)}" if line else "", hazard.line)
    assert str(hazard) == (f"{hazard.sentence}; change: {hazard.line}" if line else hazard.sentence)


def test_of_layers_in_a_detached_module_the_line_is_where_that_module_is_called():
    class Deep(Net):
        def __init__(self):
            super().__init__()
            self.side = nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, 6))

        def beside(self, x):
            found = self.side(x)
            return found.detach()

    hazard = only(hazards_of(Deep()))
    assert hazard.names == names("side.0", "side.2")
    assert hazard.line.endswith(": found = self.side(x)")


def test_layers_that_are_detached_in_different_lines_are_hazards_of_their_own():
    class Both(Net):
        def forward(self, x):
            first = self.body(x).detach()
            return self.head(first + self.side(x).detach())

    one, other = hazards_of(Both())
    assert (one.names, other.names) == (names("body"), names("side"))
    assert one.line.endswith(": first = self.body(x).detach()")
    assert other.line.endswith(": return self.head(first + self.side(x).detach())")


def test_of_an_output_that_is_detached_in_a_later_line_the_line_is_where_its_module_is_called():
    class Later(Net):
        def forward(self, x):
            first = self.body(x)
            return self.head(first.detach() + self.side(x))

    hazard = only(hazards_of(Later()))
    assert (hazard.names, hazard.sentence.partition(": ")[2]) == (names("body"), DETACHED)
    assert hazard.line.endswith(": first = self.body(x)")


def test_if_the_task_detaches_all_the_line_is_that_of_the_task():
    def task(model, batch):
        scores = model(batch[0]).detach()
        return functional.cross_entropy(scores, batch[1])

    hazard = only(hazards_of(Net(), task=task))
    assert hazard.names == names("body", "side", "head")
    assert hazard.line.endswith(": scores = model(batch[0]).detach()")
    without_task = only(hazards_of(type("Cut", (Net,), {"forward": lambda self, x: Net.forward(self, x).detach()})()))
    assert without_task.line == ""  # the model is called by the runner


def test_a_parameter_that_lost_its_flag_and_is_not_declared_frozen_stays_idle():
    model = Net()
    model.body.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    hazard = only(hazards_of(model))
    assert words(hazard) == ("idle", "no_gradient", (*names("body"), "head.bias"))
    assert hazard.line == "for part in (model.body, model.head.bias): part.requires_grad_(True)"
    mended(hazard, model, None)
    assert hazards_of(model) == []


def test_a_layer_that_was_replaced_after_the_optimizer_was_built_stays_idle_and_the_optimizer_holds_the_old_one():
    model = Net()
    optimizer = sgd(model)
    model.head = nn.Linear(6, CLASSES)
    missing, absent = hazards_of(model, optimizer)
    assert words(missing) == ("idle", "not_in_optimizer", names("head"))
    assert missing.line == "optimizer.add_param_group({'params': [*model.head.parameters()]})"
    assert words(absent) == ("idle", "not_in_optimizer", ())
    assert absent.sentence.startswith("SGD holds 2 tensors that the model does not have (3x6 and 3): a layer was replaced")
    mended(missing, model, optimizer)
    assert hazards_of(model, optimizer) == [absent]


def test_to_an_optimizer_that_takes_one_group_parameters_are_added_by_building_it_anew():
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    model.head = nn.Linear(6, CLASSES)
    missing, absent = hazards_of(model, optimizer)
    new = "type(optimizer)([*optimizer.param_groups[0]['params'], *model.head.parameters()], **optimizer.defaults)"
    assert (words(missing), missing.line) == (("idle", "not_in_optimizer", names("head")), f"optimizer = {new}")
    mended(missing, model, optimizer).step(lambda: functional.cross_entropy(model(BATCH[0]), BATCH[1]))
    assert hazards_of(model, mended(missing, model, optimizer)) == [absent]


@pytest.mark.parametrize("keys", [("policy",), ("policy", "reference")])
def test_an_lbfgs_with_state_is_built_anew_with_what_it_had_and_what_is_not_frozen(keys):
    models = {key: Net() for key in keys}
    optimizer = torch.optim.LBFGS([p for net in models.values() for p in (*net.body.parameters(), *net.head.parameters())])

    def task(models, batch):
        return sum(functional.cross_entropy(net(batch[0]), batch[1]) for net in models.values())

    def closure():
        optimizer.zero_grad()
        loss = task(models, BATCH)
        loss.backward()
        return loss

    def foreseen(optimizer):
        return [
            each for each in foresee(models, optimizer, BATCH, frozen=["**.body"], task=task) if each.verdict == "leaked"
        ]

    optimizer.step(closure)
    for net in models.values():
        net.body.requires_grad_(False)
    hazard = only(foreseen(optimizer))
    assert (hazard.cause, hazard.sentence.rpartition("would leak")[2]) == ("optimizer_state", "")
    assert foreseen(new := mended(hazard, models, optimizer)) == []
    assert {id(p) for p in new.param_groups[0]["params"]} == {
        id(p) for net in models.values() for p in net.head.parameters()
    }


def test_with_a_scheduler_parameters_are_added_to_a_group_that_it_knows():
    model = Net()
    groups = [{"params": [*model.body.parameters()], "lr": 0.0}, {"params": [*model.head.parameters()]}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 1.0, lambda step: 1.0])
    hazard = only(hazards_of(model, optimizer, frozen=["body"], scheduler=scheduler))
    assert hazard.line == "optimizer.param_groups[1]['params'] += [*model.side.parameters()]"
    mended(hazard, model, optimizer)
    assert hazards_of(model, optimizer, frozen=["body"], scheduler=scheduler) == []


def test_single_parameters_can_be_added_to_the_optimizer():
    model = Net()
    optimizer = torch.optim.SGD([*model.body.parameters(), *model.side.parameters(), model.head.weight], lr=0.1)
    hazard = only(hazards_of(model, optimizer))
    assert hazard.line == "optimizer.add_param_group({'params': [model.head.bias]})"
    mended(hazard, model, optimizer)
    assert hazards_of(model, optimizer) == []


def test_a_flat_copy_that_the_optimizer_steps_in_place_of_the_model_is_no_hazard():
    model = Net()
    masters = [p.detach().clone().requires_grad_() for p in model.parameters()]

    class Masters(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            for master, parameter in zip(masters, model.parameters(), strict=True):
                master.grad, parameter.grad = parameter.grad, None
            super().step()
            for master, parameter in zip(masters, model.parameters(), strict=True):
                parameter.copy_(master)

    assert hazards_of(model, Masters(masters, lr=0.1)) == []


def test_a_rate_of_0_keeps_parameters_idle():
    model = Net()
    groups = [{"params": model.body.parameters(), "lr": 0.0}, {"params": model.head.parameters()}]
    optimizer = torch.optim.Adam(groups, lr=0.00123456789)
    model.side.requires_grad_(False)
    hazard = only(hazards_of(model, optimizer, frozen=["side"]))
    assert words(hazard) == ("idle", "lr_zero", names("body"))
    assert hazard.line == "optimizer.param_groups[0]['lr'] = 0.00123456789"
    mended(hazard, model, optimizer)
    assert hazards_of(model, optimizer, frozen=["side"]) == []


def test_a_warm_up_that_begins_at_0_is_unknown_without_its_scheduler_and_no_hazard_with_it():
    model = Net()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 50, 1))
    hazard = only(hazards_of(model, optimizer))
    assert words(hazard) == ("unknown", "unknown", names("body", "side", "head"))
    assert hazard.sentence.endswith("now 0: whether it rises is not known")
    assert hazards_of(model, optimizer, scheduler=scheduler) == []


def test_updates_that_a_small_dtype_rounds_away_keep_a_parameter_idle():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.head = nn.Parameter(torch.ones(FEATURES, dtype=torch.bfloat16)), nn.Linear(FEATURES, CLASSES)

        def forward(self, x):
            return self.head(x * self.scale)

    model = Scaled()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    hazard = only(hazards_of(model, optimizer))
    assert words(hazard) == ("idle", "rounded_away", ("scale",))
    assert hazard.line == "model.scale.data = model.scale.data.float()  # with torch.autocast"
    mended(hazard, model, optimizer)
    assert hazards_of(model, torch.optim.AdamW(model.parameters())) == []


def test_a_dead_layer_has_gradients_of_0_and_no_line_is_known():
    model = training_of("adapted", "sgd", "declaring").model
    hazard = only(hazards_of(model))
    assert words(hazard) == ("idle", "zero_gradient", names("dead"))
    assert hazard.line == ""


# Frozen


def test_frozen_batchnorms_drift_and_leak_if_their_buffers_are_declared_frozen():
    model = nn.Sequential()
    model.add_module("norms", nn.Sequential(*(nn.BatchNorm1d(FEATURES) for _ in range(4))))
    model.add_module("head", nn.Linear(FEATURES, CLASSES))
    model.norms.requires_grad_(False)
    statistics = [f"norms.{n}.{name}" for n in range(4) for name in ("running_mean", "running_var", "num_batches_tracked")]
    hazard = only(foresee(model, sgd(model), BATCH))
    assert words(hazard) == ("drifted", "forward_write", tuple(statistics))
    leak = only(foresee(model, sgd(model), BATCH, frozen=["norms"], buffers="frozen"))
    assert words(leak) == ("leaked", "forward_write", tuple(statistics))
    every = "[part.eval() for part in model.modules() if type(part).__name__ == 'BatchNorm1d']  # after each model.train()"
    assert hazard.line == leak.line == every
    mended(hazard, model, None)
    assert foresee(model, sgd(model), BATCH, frozen=["norms"], buffers="frozen") == []


@pytest.mark.parametrize("inner", [lambda: nn.BatchNorm1d(6, affine=False), lambda: spectral_norm(nn.Linear(6, 6))])
def test_buffers_of_a_module_without_parameters_are_those_of_the_frozen_module_around_it(inner):
    model = nn.Sequential(nn.Sequential(nn.Linear(FEATURES, 6), inner()), nn.Linear(6, CLASSES))
    assert {each.verdict for each in foresee(model, sgd(model), BATCH, frozen=["1"])} == {"leaked"}
    model[0].requires_grad_(False)
    hazards = foresee(model, sgd(model), BATCH)
    assert {each.verdict for each in hazards} == {"drifted"}
    for hazard in hazards:
        mended(hazard, model, None)
    assert foresee(model, sgd(model), BATCH) == []


def test_an_embedding_that_its_forward_pass_rescales_leaks():
    model = nn.Sequential(nn.Embedding(CLASSES, 6, max_norm=0.1), nn.Flatten(), nn.Linear(6, CLASSES))
    model[0].requires_grad_(False)
    batch = (torch.arange(CLASSES)[:, None], torch.arange(CLASSES))
    hazard = only(foresee(model, sgd(model), batch))
    assert words(hazard) == ("leaked", "forward_write", ("0.weight",))
    assert hazard.line == "model[0].max_norm = None"
    mended(hazard, model, None)
    assert foresee(model, sgd(model), batch) == []


def test_a_frozen_view_of_what_trains_leaks_until_it_has_memory_of_its_own():
    model = Net()
    model.side.weight = nn.Parameter(model.body.weight.detach(), requires_grad=False)
    hazard = only(foresee(model, sgd(model), BATCH))
    assert words(hazard) == ("leaked", "shared_tensor", ("side.weight",))
    mended(hazard, model, None)
    assert foresee(model, sgd(model), BATCH) == []


class TiedNet(nn.Module):
    """A token model whose embedding is the weight of its head."""

    def __init__(self, order=("body", "head")):
        super().__init__()
        for name in order:
            self.add_module(name, nn.Embedding(CLASSES, 6) if name == "body" else nn.Linear(6, CLASSES, bias=False))
        self.head.weight, self.mix = self.body.weight, nn.Linear(6, 6)

    def forward(self, x):
        return self.head(self.mix(self.body((x > 0).long()).mean(1)))


@pytest.mark.parametrize("order", [("body", "head"), ("head", "body")])
@pytest.mark.parametrize(("frozen", "other"), [("body", "head"), ("head", "body")])
def test_a_tied_weight_that_is_declared_frozen_under_one_name_leaks_until_the_other_has_a_copy(order, frozen, other):
    model = TiedNet(order)
    optimizer = sgd(model)
    hazard = only(hazards_of(model, optimizer, frozen=[frozen]))
    assert words(hazard) == ("leaked", "gradient", (f"{order[0]}.weight",))
    tied = f"not declared frozen: {other}.weight, the same tensor as {frozen}.weight"
    assert hazard.sentence.endswith(f"{order[0]}.weight would leak ({tied})")
    both = f"model.{frozen}.requires_grad_(False)"
    assert hazard.line.endswith(f"  # unties them; to freeze all names: {both}")
    mended(hazard, model, optimizer)
    assert hazards_of(model, optimizer, frozen=[frozen]) == []
    with audit(model, [frozen], optimizer) as report:
        functional.cross_entropy(model(BATCH[0]), BATCH[1]).backward()
        optimizer.step()
    verdicts = {row["name"]: row["verdict"] for row in report.rows}
    assert (verdicts[f"{frozen}.weight"], verdicts[f"{other}.weight"]) == ("held", "trained")


def test_a_tied_weight_that_is_declared_frozen_under_all_its_names_is_frozen_by_one_line():
    model = TiedNet()
    hazard = only(hazards_of(model, frozen=["body", "head"]))
    assert (hazard.line, hazard.sentence.rpartition("would leak")[2]) == ("model.body.requires_grad_(False)", "")


def test_a_name_that_is_frozen_only_through_a_tie_stays_idle():
    model = TiedNet()
    model.body.requires_grad_(False)
    optimizer = sgd(model)
    hazard = only(hazards_of(model, optimizer, frozen=["body"]))
    assert words(hazard) == ("idle", "shared_tensor", ("head.weight",))
    assert hazard.sentence.endswith("would stay idle: the same tensor as body.weight, which is declared frozen")
    mended(hazard, model, optimizer)
    assert hazards_of(model, optimizer, frozen=["body"]) == []
    by_flags = TiedNet()
    by_flags.body.requires_grad_(False)
    assert foresee(by_flags, sgd(by_flags), BATCH) == []


class Twice(nn.Module):
    """A layer that stands at two names, the second of which is none that Python can write."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Sequential(nn.Linear(FEATURES, FEATURES)), nn.Linear(FEATURES, CLASSES)
        self.add_module("my second", self.first)

    def forward(self, x):
        return self.head(getattr(self, "my second")(torch.tanh(self.first(x))))


@pytest.mark.parametrize("build", [sgd, lambda model: torch.optim.LBFGS(model.parameters(), max_iter=2)])
@pytest.mark.parametrize("frozen", ["first", "my second"])
def test_of_a_module_that_stands_at_two_names_one_gets_a_copy(frozen, build):
    model = Twice()
    optimizer = build(model)
    hazard = only(hazards_of(model, optimizer, frozen=[frozen]))
    assert words(hazard) == ("leaked", "gradient", names("first.0"))
    optimizer = mended(hazard, model, optimizer)
    assert hazards_of(model, optimizer, frozen=[frozen]) == []
    assert model.first is not getattr(model, "my second")


def test_the_sentence_of_a_scheduler_has_the_group_the_rate_and_the_step():
    model = Net()
    groups = [{"params": model.body.parameters(), "lr": 0.0, "name": "frozen"}, {"params": model.head.parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    model.side.requires_grad_(False)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=0.05)
    hazard = only(hazards_of(model, optimizer, frozen=["body", "side"], scheduler=scheduler))
    assert words(hazard) == ("leaked", "scheduler", names("body"))
    sentence = "the loop with CosineAnnealingLR: the learning rate of the group frozen becomes 0.05 at step 21: body.weight"
    assert hazard.sentence.startswith(sentence)
    assert hazard.line == "model.body.requires_grad_(False)"


def test_a_scheduler_for_a_number_of_steps_is_followed_to_its_end():
    model = Net()
    optimizer = torch.optim.SGD(
        [{"params": [*model.body.parameters()], "lr": 0.0}, {"params": [*model.head.parameters()]}], lr=0.1
    )
    model.side.requires_grad_(False)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.0, 0.1], total_steps=30)
    assert hazards_of(model, optimizer, frozen=["body", "side"], scheduler=scheduler) == []
    assert scheduler.last_epoch == 0
    for _ in range(30):
        optimizer.step()
        scheduler.step()
    hazard = only(hazards_of(model, optimizer, frozen=["body", "side"], scheduler=scheduler))
    assert "Tried to step 31 times" in hazard.sentence


def test_a_function_that_builds_the_scheduler_shows_what_building_it_does():
    model = Net()
    groups = [
        {"params": model.body.parameters(), "lr": 0.0},
        {"params": [*model.head.parameters(), *model.side.parameters()]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    before = [{**group} for group in optimizer.param_groups], dict(vars(optimizer))

    def build(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=30)

    hazard = only(hazards_of(model, optimizer, frozen=["body"], scheduler=build))
    assert words(hazard) == ("leaked", "scheduler", names("body"))
    assert (optimizer.param_groups, vars(optimizer)) == before
    assert words(only(hazards_of(model, optimizer, frozen=["body"], scheduler=build(optimizer))))[1] == "gradient"


def test_a_scheduler_that_needs_the_loss_is_called_with_it():
    model = Net()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    assert hazards_of(model, optimizer, scheduler=scheduler) == []


class Odd(nn.Module):
    """Parts whose names need an index, a key or a method to be reached."""

    def __init__(self):
        super().__init__()
        self.list, self.dict = nn.ModuleList([nn.Linear(FEATURES, FEATURES)]), nn.ModuleDict({"a-b": nn.Linear(FEATURES, 3)})
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(FEATURES))])

    def forward(self, x):
        return self.dict["a-b"](self.list[0](x) * self.scales[0])


@pytest.mark.parametrize(
    ("frozen", "path"),
    [
        ("list", "model.list"),
        ("list.0", "model.list"),
        ("list.0.bias", "model.list[0].bias"),
        ("dict.a-b.bias", "model.get_parameter('dict.a-b.bias')"),
        ("scales.0", "model.scales"),
        ("**", "model"),
    ],
)
def test_a_line_names_the_largest_module_of_which_all_is_meant(frozen, path):
    model = Odd()
    hazard = only(each for each in hazards_of(model, frozen=[frozen]) if each.verdict == "leaked")
    assert hazard.line == f"{path}.requires_grad_(False)"
    mended(hazard, model, None)
    assert "leaked" not in {each.verdict for each in hazards_of(model, frozen=[frozen])}


def test_a_line_reaches_a_module_of_any_name():
    for name in OddlyNamed.names:
        model = OddlyNamed()
        for hazard in hazards_of(model, frozen=[name]):
            if hazard.verdict == "leaked":
                mended(hazard, model, None)
        assert "leaked" not in {each.verdict for each in hazards_of(model, frozen=[name])}


# Unknown


def test_an_optimizer_that_raises_is_unknown_and_put_back():
    class Two(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            raise RuntimeError("call first_step and second_step")

    model = Net()
    before = model.head.weight.detach().clone()
    hazard = only(hazards_of(model, Two(model.parameters(), lr=0.1)))
    assert words(hazard) == ("unknown", "unknown", ())
    assert hazard.sentence == "what would change cannot be foreseen: RuntimeError: call first_step and second_step"
    assert torch.equal(model.head.weight, before)


def zero_grad_last(model, optimizer):
    functional.cross_entropy(model(BATCH[0]), BATCH[1]).backward()
    optimizer.step()
    optimizer.zero_grad()


def decayed(model):
    return torch.optim.AdamW(model.parameters(), weight_decay=0.1)


@pytest.mark.parametrize(
    ("build", "gradient", "cause", "why"),
    [
        (sgd, torch.ones_like, "gradient", "the loop leaves gradients for SGD"),
        (decayed, torch.ones_like, "gradient", "the loop leaves gradients for AdamW"),
        (decayed, torch.zeros_like, "weight_decay", "AdamW applies weight decay at gradient 0"),
    ],
)
def test_a_gradient_that_is_left_in_a_frozen_parameter_is_said_and_leaks_in_some_loops(build, gradient, cause, why):
    for mends in (False, True):
        model = Net()
        optimizer = build(model)
        model.body.requires_grad_(False)
        for parameter in model.body.parameters():
            parameter.grad = gradient(parameter)
        hazard = only(foresee(model, optimizer, BATCH))
        assert words(hazard) == ("unknown", cause, names("body"))
        told = "if the loop calls zero_grad only after the step, gradients that are there now count"
        assert str(hazard) == f"{told}: {why}: body.weight and body.bias would leak; change: optimizer.zero_grad()"
        assert foresee(model, optimizer, BATCH, zero_grad="before") == []
        leak = only(foresee(model, optimizer, BATCH, zero_grad="after"))
        assert (words(leak), leak.line) == (("leaked", cause, names("body")), "optimizer.zero_grad(set_to_none=True)")
        if mends:
            mended(hazard, model, optimizer)
            assert foresee(model, optimizer, BATCH) == foresee(model, optimizer, BATCH, zero_grad="after") == []
        with audit(model, None, optimizer) as report:
            zero_grad_last(model, optimizer)
        assert report.leaks == ([] if mends else list(names("body")))


def test_a_gradient_that_no_step_would_apply_is_no_hazard():
    model = Net()
    model.body.requires_grad_(False)
    for parameter in model.body.parameters():
        parameter.grad = torch.zeros_like(parameter)
    without_body = torch.optim.AdamW([*model.side.parameters(), *model.head.parameters()])
    assert foresee(model, sgd(model), BATCH) == foresee(model, without_body, BATCH) == []


def test_a_layer_that_is_frozen_in_a_loop_which_sets_gradients_to_0_leaks():
    model = Net()
    optimizer = decayed(model)
    for _ in range(3):
        functional.cross_entropy(model(BATCH[0]), BATCH[1]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    model.body.requires_grad_(False)
    hazard = only(foresee(model, optimizer, BATCH, set_to_none=False))
    assert words(hazard) == ("leaked", "weight_decay|optimizer_state", names("body"))
    mended(hazard, model, optimizer)
    assert foresee(model, optimizer, BATCH, set_to_none=False) == []


def test_within_an_audit_it_is_called_while_the_audit_is_paused():
    model = Net()
    model.body.requires_grad_(False)
    optimizer = sgd(model)
    with audit(model, None, optimizer, every=1) as report:
        for _ in range(2):
            with report.paused():
                assert foresee(model, optimizer, BATCH) == []
            zero_grad_last(model, optimizer)
    assert (report.leaks, report.looks) == ([], [1, 2])


def test_a_flag_that_is_set_on_a_module_freezes_nothing_and_is_said():
    model = Net()
    model.body.requires_grad = False
    hazard = only(hazards_of(model))
    assert hazard.verdict == "unknown"
    assert hazard.sentence.startswith("body.requires_grad = False freezes nothing")


def test_a_loss_that_is_not_finite_is_said():
    hazard = only(hazards_of(Net(), task=lambda model, batch: model(batch[0]).square().sum() * torch.inf))
    assert hazard.sentence == "the loss is inf at step 1: what trains becomes NaN or infinite"


def test_a_model_in_eval_mode_with_buffers_is_said():
    model = nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, CLASSES)).eval()
    model[0].requires_grad_(False)
    hazard = only(foresee(model, sgd(model), BATCH))
    assert (hazard.verdict, hazard.line) == ("unknown", "model.train()")
    mended(hazard, model, None)
    assert [each.verdict for each in foresee(model, sgd(model), BATCH)] == ["drifted"]


def test_that_nothing_would_be_trained_is_said():
    model = Net().requires_grad_(False)
    hazard = only(foresee(model, sgd(model), BATCH))
    assert (hazard.verdict, hazard.sentence) == ("idle", "nothing would be trained: every parameter is declared frozen")


def test_that_nothing_is_frozen_is_said_if_the_flags_were_to_say_what_is():
    model = Net()
    assert "nothing is declared frozen" in only(foresee(model, sgd(model), BATCH)).sentence
    assert foresee(model, sgd(model), BATCH, frozen=[]) == []


# The page


def test_the_example_of_the_page_prints_what_the_page_shows(capsys):
    code, shown = re.findall(r"```(?:python|text)\n(.*?)```", (ROOT / "docs" / "foresee.md").read_text(), re.S)
    exec(code, {})
    assert capsys.readouterr().out == shown


# Arguments


def test_a_loss_and_a_task_give_the_same_hazards():
    model = Net()
    by_default, by_loss, by_task = (
        foresee(model, sgd(model), BATCH, **given)
        for given in (
            {"frozen": ["body"]},
            {"loss": nn.CrossEntropyLoss(), "frozen": ["body"]},
            {"task": lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1]), "frozen": ["body"]},
        )
    )
    assert by_default == by_loss == by_task
    assert words(only(by_default)) == ("leaked", "gradient", names("body"))


def test_several_models_are_named_by_their_keys():
    policy, reference = Net(), Net()
    models = {"policy": policy, "reference": reference}
    optimizer = torch.optim.SGD([*policy.parameters(), *reference.parameters()], lr=0.1)

    def task(models, batch):
        return (models["policy"](batch[0]) - models["reference"](batch[0])).square().mean()

    hazard = only(foresee(models, optimizer, BATCH, frozen=["reference"], task=task))
    assert hazard.names == tuple(f"reference.{name}" for name in names("body", "side", "head"))
    assert hazard.line == "model['reference'].requires_grad_(False)"
    mended(hazard, models, optimizer)
    assert foresee(models, optimizer, BATCH, task=task) == []
    with audit(models, None, optimizer) as report:
        task(models, BATCH).backward()
        optimizer.step()
    assert report.leaks == []


def test_the_head_is_found_by_the_batch():
    hazard = only(hazards_of(Net(), frozen=["@head"]))
    assert words(hazard) == ("leaked", "gradient", names("head"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: foresee(model, [sgd(model)], BATCH), "optimizer is a list; give one torch optimizer"),
        (
            lambda model: foresee(model, sgd(model), BATCH, ["body"]),
            r"loss is \['body'\]; give a function \(output, target\)",
        ),
        (lambda model: foresee(model, sgd(model), BATCH, nn.MSELoss(), task=len), "not both"),
        (lambda model: foresee(model, sgd(model), BATCH, zero_grad=False), "zero_grad is False; give 'before' or 'after'"),
        (lambda model: foresee(model, sgd(model), BATCH, task="mse"), r"task is 'mse'; give a function"),
        (lambda model: hazards_of(model, task=lambda model, batch: model(batch[0])), "the task returned a tensor of shape"),
        (lambda model: hazards_of(model, scheduler=torch.optim.lr_scheduler.StepLR), "give a scheduler, or a function"),
        (lambda model: hazards_of(model, frozen=["boby"]), "did you mean body"),
        (lambda model: foresee(model, sgd(model), BATCH, frozen="body"), "frozen is 'body'; give a list of patterns"),
        (lambda model: foresee([model], sgd(model), BATCH), "model is a list; give a torch.nn.Module"),
    ],
)
def test_a_wrong_argument_is_refused_with_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(Net())
    assert "\n" not in str(caught.value)
