"""Runs agree bit by bit with independent implementations: optimizer rules, a plain PyTorch loop, and a closed form."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from inspect import signature
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from runner import audit
from runner.config.schema import CONF
from runner.training.models import MLP
from tests.in_memory import run_experiment

LR = 0.1
STEPS = 6  # the sixth step is the first one in which RAdam rectifies
NODES = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in sorted((CONF / "optimizer").glob("*.yaml"))}
# By name: the class in torch.optim; None for `custom`, and for Muon in an older torch.
CLASSES = {name: getattr(torch.optim, node["_target_"].split(".")[-1], None) for name, node in NODES.items()}
OPTIMIZERS = [name for name, optimizer_class in CLASSES.items() if optimizer_class is not None]
# For each choice of `freeze`, whether a parameter of this name is frozen.
IS_FROZEN = {
    "backbone": lambda name: not name.startswith("head."),
    "head": lambda name: name.startswith("head."),
    "bias": lambda name: name.endswith("bias"),
}


class Matrices(nn.Module):
    """A model that has only matrices, for Muon."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 16, bias=False), nn.Linear(16, 10, bias=False)

    def forward(self, x):
        return self.head(self.body(x).tanh())


class Tables(nn.Module):
    """A model whose gradients are all sparse, for SparseAdam. Each value of a sample selects one of two adjacent rows."""

    def __init__(self):
        super().__init__()
        self.body, self.head = (nn.Embedding(70, 10, sparse=True) for _ in range(2))

    def forward(self, x):
        indices = torch.arange(64) + (x > 1)  # some rows are never looked up
        return (self.body(indices) * self.head(indices)).sum(1)


def model_overrides(model_class):
    """Return the overrides that use a model of this file."""
    target = f"model.build._target_={__name__}.{model_class.__name__}"
    return "model=custom", target, "model.head=head", "model.input=[64]", "model.classes=10"


# The models and overrides of the optimizers that cannot train the MLP with default groups.
MODELS = {"muon": Matrices, "sparse_adam": Tables}
OVERRIDES = {"lbfgs": ("groups=one",), **{name: model_overrides(each) for name, each in MODELS.items()}}


# The update rules, from torch's documentation. Each function returns the parameter after step `n` (counted from 1).
# `o`: the options; `w`: the parameter before the step; `g`: its gradient; `m`: its optimizer state, which is zero at first.
# The functions `add(alpha=)`, `addcmul`, `addcdiv` and `lerp` are used because they round as torch's optimizers do.


def with_weight_decay(o, w, g):
    """Return the gradient plus the weight decay."""
    return g.add(w, alpha=o.weight_decay)


def update_moments(o, g, m):
    """Update and return the running means of the gradient and of its square."""
    m["mean"] = m["mean"].lerp(g, 1 - o.betas[0])
    m["square"] = (o.betas[1] * m["square"]).addcmul(g, g, value=1 - o.betas[1])
    return m["mean"], m["square"]


def sgd(o, n, w, g, m):
    """Return the parameter after a step of SGD with momentum."""
    m["velocity"] = o.momentum * m["velocity"] + with_weight_decay(o, w, g)
    return w.add(m["velocity"], alpha=-o.lr)


def adam_step(o, n, w, g, m):
    """Return the parameter after a step of Adam without weight decay."""
    mean, square = update_moments(o, g, m)
    scale = square.sqrt() / (1 - o.betas[1] ** n) ** 0.5 + o.eps
    return w.addcdiv(mean, scale, value=-o.lr / (1 - o.betas[0] ** n))


def adam(o, n, w, g, m):
    """Return the parameter after a step of Adam."""
    return adam_step(o, n, w, with_weight_decay(o, w, g), m)


def adamw(o, n, w, g, m):
    """Return the parameter after a step of AdamW."""
    return adam_step(o, n, w * (1 - o.lr * o.weight_decay), g, m)


def adamax(o, n, w, g, m):
    """Return the parameter after a step of Adamax."""
    g = with_weight_decay(o, w, g)
    m["mean"] = m["mean"].lerp(g, 1 - o.betas[0])
    m["largest"] = torch.maximum(o.betas[1] * m["largest"], g.abs() + o.eps)
    return w.addcdiv(m["mean"], m["largest"], value=-o.lr / (1 - o.betas[0] ** n))


def nadam(o, n, w, g, m):
    """Return the parameter after a step of NAdam."""
    g = with_weight_decay(o, w, g)
    mu, mu_next = (o.betas[0] * (1 - 0.5 * 0.96 ** (step * o.momentum_decay)) for step in (n, n + 1))
    m["product"] = torch.tensor(mu) if n == 1 else m["product"] * mu  # a float32, as in torch
    product = m["product"].item()
    mean, square = update_moments(o, g, m)
    scale = (square / (1 - o.betas[1] ** n)).sqrt() + o.eps
    w = w.addcdiv(g, scale, value=-o.lr * (1 - mu) / (1 - product))
    return w.addcdiv(mean, scale, value=-o.lr * mu_next / (1 - product * mu_next))


def radam(o, n, w, g, m):
    """Return the parameter after a step of RAdam."""
    mean, square = update_moments(o, with_weight_decay(o, w, g), m)
    correction = 1 - o.betas[1] ** n
    rho_infinity = 2 / (1 - o.betas[1]) - 1
    rho = rho_infinity - 2 * n * o.betas[1] ** n / correction
    step = mean / (1 - o.betas[0] ** n) * o.lr
    if rho > 5:
        rectification = (rho - 4) * (rho - 2) * rho_infinity / ((rho_infinity - 4) * (rho_infinity - 2) * rho)
        step = step * (correction**0.5 / (square.sqrt() + o.eps)) * rectification**0.5
    return w - step


def adagrad(o, n, w, g, m):
    """Return the parameter after a step of Adagrad."""
    g = with_weight_decay(o, w, g)
    m["sum"] = m["sum"].addcmul(g, g)
    return w.addcdiv(g, m["sum"].sqrt() + o.eps, value=-o.lr / (1 + (n - 1) * o.lr_decay))


def adadelta(o, n, w, g, m):
    """Return the parameter after a step of Adadelta."""
    g = with_weight_decay(o, w, g)
    m["square"] = (o.rho * m["square"]).addcmul(g, g, value=1 - o.rho)
    step = (m["steps"] + o.eps).sqrt() / (m["square"] + o.eps).sqrt() * g
    m["steps"] = (o.rho * m["steps"]).addcmul(step, step, value=1 - o.rho)
    return w.add(step, alpha=-o.lr)


def rmsprop(o, n, w, g, m):
    """Return the parameter after a step of RMSprop."""
    g = with_weight_decay(o, w, g)
    m["square"] = (o.alpha * m["square"]).addcmul(g, g, value=1 - o.alpha)
    return w.addcdiv(g, m["square"].sqrt() + o.eps, value=-o.lr)


def asgd(o, n, w, g, m):
    """Return the parameter after a step of ASGD."""
    rate = torch.tensor(o.lr / (1 + o.lambd * o.lr * (n - 1)) ** o.alpha).item()  # rounded to float32, as in torch
    return (w * (1 - o.lambd * rate)).add(with_weight_decay(o, w, g), alpha=-rate)


def rprop(o, n, w, g, m):
    """Return the parameter after a step of Rprop."""
    size, sign = m["size"] if n > 1 else torch.full_like(w, o.lr), g * m["gradient"]
    size = torch.where(sign > 0, size * o.etas[1], torch.where(sign < 0, size * o.etas[0], size))
    m["size"] = size.clamp(*o.step_sizes)
    m["gradient"] = torch.where(sign < 0, 0, g)
    return w - m["gradient"].sign() * m["size"]


def adafactor(o, n, w, g, m):
    """Return the parameter after a step of Adafactor."""
    eps1, eps2 = o.eps[0] or torch.finfo(w.dtype).eps, o.eps[1]
    rate = max(eps2, w.norm().item() / w.numel() ** 0.5) * min(o.lr, n**-0.5)
    w = w * (1 - o.lr * o.weight_decay)
    if g.dim() > 1:
        for key, dim in (("rows", -1), ("columns", -2)):
            average = g.norm(dim=dim, keepdim=True).square() / g.shape[dim]
            m[key] = (m[key] if n > 1 else torch.zeros_like(average)).lerp(average, n**o.beta2_decay)
        square = m["rows"] @ m["columns"] / m["rows"].mean(-2, keepdim=True).clamp(min=eps1)
    else:
        m["square"] = m["square"].lerp(g * g, n**o.beta2_decay)
        square = m["square"]
    step = square.clamp(min=eps1**2).rsqrt() * g
    return w.add(step, alpha=-rate / max(1, step.norm().item() / (step.numel() ** 0.5 * o.d)))


RULES = {
    rule.__name__: rule
    for rule in (adadelta, adafactor, adagrad, adam, adamax, adamw, asgd, nadam, radam, rmsprop, rprop, sgd)
}


def has_option(name, option):
    """Return whether the optimizer has this option."""
    return option in signature(CLASSES[name]).parameters


RULES_WITH_OPTIONS = [
    pytest.param(name, options, id=f"{name}-{'decay' if options.get('weight_decay') else 'no_decay'}")
    for name in RULES
    for options in ([{"weight_decay": 0.0}, {"weight_decay": 0.1}] if has_option(name, "weight_decay") else [{}])
]
IMPLEMENTATIONS = [
    pytest.param(name, implementation, id=f"{name}-{implementation}")
    for name in OPTIMIZERS
    for implementation in ("foreach", "fused")
    if has_option(name, implementation)
]


def initial_model(model_class, freeze):
    """Return the model as the runner builds it with seed 0, with `requires_grad=False` for frozen parameters."""
    torch.manual_seed(0)
    model = model_class([64]) if model_class is MLP else model_class()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not IS_FROZEN[freeze](name))
    return model


def batches():
    """Yield the batches that the runner generates with seed 0."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        yield torch.randn(4, 64, generator=generator), torch.randint(10, (4,), generator=generator)


def trained_by_rule(name, freeze, **options):
    """Return the model trained by the optimizer's rule, parameter by parameter."""
    defaults = {key: option.default for key, option in signature(CLASSES[name]).parameters.items()}
    o = SimpleNamespace(**{**defaults, **NODES[name], **options})
    model = initial_model(MLP, freeze).train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    states = [defaultdict(partial(torch.zeros_like, parameter, requires_grad=False)) for parameter in trainable]
    for n, (x, y) in enumerate(batches(), 1):
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for parameter, m in zip(trainable, states, strict=True):
                parameter.copy_(RULES[name](o, n, parameter, parameter.grad, m))
    return model


def trained_by_hand(name, freeze):
    """Return the model trained by a plain loop with torch's optimizer, and the losses."""
    model = initial_model(MODELS.get(name, MLP), freeze)
    options = {key: value for key, value in NODES[name].items() if key != "_target_"}
    optimizer = CLASSES[name](model.parameters(), **options)
    losses = []
    model.train()
    for x, y in batches():

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    return model, losses


def trained_by_runner(name, freeze, **options):
    """Return the outcome of a run on the CPU."""
    overrides = (f"optimizer={name}", f"freeze={freeze}", f"batches={STEPS}", "device=cpu", *OVERRIDES.get(name, ()))
    return run_experiment(*overrides, *(f"optimizer.{key}={value}" for key, value in options.items()))


def verdicts(rows):
    """Return the verdict of each parameter by name."""
    return {row["name"]: row["verdict"] for row in rows if row["kind"] == "parameter"}


def assert_agree(result, oracle, freeze):
    """Assert that the run and the oracle have the same bits, that frozen parameters did not change, and all verdicts."""
    state, oracle_state = result.model.state_dict(), oracle.state_dict()
    assert [name for name in oracle_state if not torch.equal(state[name], oracle_state[name])] == []
    initial, expected = dict(initial_model(type(oracle), freeze).named_parameters()), {}
    for name, parameter in result.model.named_parameters():
        moved = not torch.equal(parameter, initial[name])
        assert not (moved and IS_FROZEN[freeze](name)), name
        expected[name] = "held" if IS_FROZEN[freeze](name) else "trained" if moved else "idle"
    assert verdicts(result.rows) == expected


def test_every_optimizer_for_dense_gradients_has_a_rule():
    assert set(RULES) == set(NODES) - {"custom", "lbfgs", "muon", "sparse_adam"}


@pytest.mark.parametrize("freeze", ["backbone", pytest.param("bias", marks=pytest.mark.long)])
@pytest.mark.parametrize(("name", "options"), RULES_WITH_OPTIONS)
def test_a_run_has_the_bits_of_the_optimizers_rule(name, options, freeze):
    assert_agree(trained_by_runner(name, freeze, **options), trained_by_rule(name, freeze, **options), freeze)


@pytest.mark.parametrize("freeze", ["backbone", pytest.param("head", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_has_the_bits_and_losses_of_a_plain_loop(name, freeze):
    result = trained_by_runner(name, freeze)
    oracle, losses = trained_by_hand(name, freeze)
    assert result.losses == losses
    assert_agree(result, oracle, freeze)


@pytest.mark.parametrize(("name", "implementation"), IMPLEMENTATIONS)
def test_foreach_and_fused_have_the_same_verdicts_and_nearly_the_same_values(name, implementation):
    plain, other = (trained_by_runner(name, "backbone", **{implementation: flag}) for flag in (False, True))
    parameters = dict(plain.model.named_parameters())
    expected = {key: "held" if IS_FROZEN["backbone"](key) else "trained" for key in parameters}
    assert verdicts(other.rows) == verdicts(plain.rows) == expected
    for key, parameter in other.model.named_parameters():
        assert torch.allclose(parameter, parameters[key], rtol=0, atol=1e-6)  # the same operations in another order


@pytest.mark.parametrize("steps", [1, 8, 100])
@pytest.mark.parametrize("frozen", ["bias", "weight", "nothing"])
def test_sgd_on_least_squares_agrees_with_its_closed_form(frozen, steps):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(30, width, dtype=torch.float64, generator=generator) for width in (4, 1))
    model = nn.Linear(4, 1, dtype=torch.float64)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, generator=generator).requires_grad_(name != frozen)
    start = torch.cat([model.weight.detach().T, model.bias.detach()[None]])

    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    with audit(model, optimizer=optimizer) as report:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()

    design = torch.cat([x, torch.ones(30, 1, dtype=torch.float64)], dim=1)
    is_trainable = torch.tensor([frozen != "weight"] * 4 + [frozen != "bias"])
    inputs, targets = design[:, is_trainable], y - design[:, ~is_trainable] @ start[~is_trainable]
    hessian, optimum = 2 / 30 * inputs.T @ inputs, torch.linalg.lstsq(inputs, targets).solution
    contraction = torch.matrix_power(torch.eye(len(hessian), dtype=torch.float64) - LR * hessian, steps)
    expected = start.clone()
    expected[is_trainable] = optimum + contraction @ (start[is_trainable] - optimum)

    final = torch.cat([model.weight.detach().T, model.bias.detach()[None]])
    assert torch.equal(final[~is_trainable], start[~is_trainable])
    assert torch.allclose(final, expected, rtol=0, atol=1e-10)
    assert verdicts(report.rows) == {name: "held" if name == frozen else "trained" for name in ("weight", "bias")}
    assert report.leaks == []
