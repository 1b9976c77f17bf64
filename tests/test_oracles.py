"""Slow, obvious oracles: each optimizer's rule written out, loops written by hand, and a closed form, to the last bit."""

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
from tests.measure import measure

LR = 0.1
STEPS = 6  # RAdam rectifies from its sixth step on
NODES = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in sorted((CONF / "optimizer").glob("*.yaml"))}
CLASSES = {name: getattr(torch.optim, node["_target_"].split(".")[-1], None) for name, node in NODES.items()}
OPTIMIZERS = [name for name, kind in CLASSES.items() if kind is not None]  # not custom, nor Muon in a torch older than it
FROZEN = {
    "backbone": lambda name: not name.startswith("head."),
    "head": lambda name: name.startswith("head."),
    "bias": lambda name: name.endswith("bias"),
}

pytestmark = pytest.mark.usefixtures("one_thread")


class Matrices(nn.Module):
    """Parameters of two dimensions alone, for Muon."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 16, bias=False), nn.Linear(16, 10, bias=False)

    def forward(self, x):
        return self.head(self.body(x).tanh())


class Tables(nn.Module):
    """Parameters with sparse gradients alone, for SparseAdam; a sample's bits are its indices."""

    def __init__(self):
        super().__init__()
        self.body, self.head = (nn.Embedding(70, 10, sparse=True) for _ in range(2))

    def forward(self, x):
        places = torch.arange(64) + (x > 1)  # some rows are never looked up
        return (self.body(places) * self.head(places)).sum(1)


def own_model(kind):
    target = f"model.build._target_={__name__}.{kind.__name__}"
    return "model=custom", target, "model.head=head", "model.input=[64]", "model.classes=10"


MODELS = {"muon": Matrices, "sparse_adam": Tables}
MORE = {"lbfgs": ("groups=one",), **{name: own_model(kind) for name, kind in MODELS.items()}}


# The rules, from torch's documentation: `w` after the step `n` (from 1) with the gradient `g`; `m` is a parameter's memory,
# zeros at first, `o` the options. `add(alpha=)`, `addcmul`, `addcdiv` and `lerp` are the sums and products that they say,
# rounded as torch's own loop rounds them: that makes the bits equal.


def decayed(o, w, g):
    return g.add(w, alpha=o.weight_decay)


def moments(o, g, m):
    m["mean"] = m["mean"].lerp(g, 1 - o.betas[0])
    m["square"] = (o.betas[1] * m["square"]).addcmul(g, g, value=1 - o.betas[1])
    return m["mean"], m["square"]


def sgd(o, n, w, g, m):
    m["velocity"] = o.momentum * m["velocity"] + decayed(o, w, g)
    return w.add(m["velocity"], alpha=-o.lr)


def normed(o, n, w, g, m):
    mean, square = moments(o, g, m)
    scale = square.sqrt() / (1 - o.betas[1] ** n) ** 0.5 + o.eps
    return w.addcdiv(mean, scale, value=-o.lr / (1 - o.betas[0] ** n))


def adam(o, n, w, g, m):
    return normed(o, n, w, decayed(o, w, g), m)


def adamw(o, n, w, g, m):
    return normed(o, n, w * (1 - o.lr * o.weight_decay), g, m)


def adamax(o, n, w, g, m):
    g = decayed(o, w, g)
    m["mean"] = m["mean"].lerp(g, 1 - o.betas[0])
    m["largest"] = torch.maximum(o.betas[1] * m["largest"], g.abs() + o.eps)
    return w.addcdiv(m["mean"], m["largest"], value=-o.lr / (1 - o.betas[0] ** n))


def nadam(o, n, w, g, m):
    g = decayed(o, w, g)
    mu, mu_next = (o.betas[0] * (1 - 0.5 * 0.96 ** (step * o.momentum_decay)) for step in (n, n + 1))
    m["product"] = torch.tensor(mu) if n == 1 else m["product"] * mu  # a float32, as torch keeps it
    product = m["product"].item()
    mean, square = moments(o, g, m)
    scale = (square / (1 - o.betas[1] ** n)).sqrt() + o.eps
    w = w.addcdiv(g, scale, value=-o.lr * (1 - mu) / (1 - product))
    return w.addcdiv(mean, scale, value=-o.lr * mu_next / (1 - product * mu_next))


def radam(o, n, w, g, m):
    mean, square = moments(o, decayed(o, w, g), m)
    left = 1 - o.betas[1] ** n
    limit = 2 / (1 - o.betas[1]) - 1
    length = limit - 2 * n * o.betas[1] ** n / left
    step = mean / (1 - o.betas[0] ** n) * o.lr
    if length > 5:
        rectified = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
        step = step * (left**0.5 / (square.sqrt() + o.eps)) * rectified**0.5
    return w - step


def adagrad(o, n, w, g, m):
    g = decayed(o, w, g)
    m["sum"] = m["sum"].addcmul(g, g)
    return w.addcdiv(g, m["sum"].sqrt() + o.eps, value=-o.lr / (1 + (n - 1) * o.lr_decay))


def adadelta(o, n, w, g, m):
    g = decayed(o, w, g)
    m["square"] = (o.rho * m["square"]).addcmul(g, g, value=1 - o.rho)
    step = (m["steps"] + o.eps).sqrt() / (m["square"] + o.eps).sqrt() * g
    m["steps"] = (o.rho * m["steps"]).addcmul(step, step, value=1 - o.rho)
    return w.add(step, alpha=-o.lr)


def rmsprop(o, n, w, g, m):
    g = decayed(o, w, g)
    m["square"] = (o.alpha * m["square"]).addcmul(g, g, value=1 - o.alpha)
    return w.addcdiv(g, m["square"].sqrt() + o.eps, value=-o.lr)


def asgd(o, n, w, g, m):
    rate = torch.tensor(o.lr / (1 + o.lambd * o.lr * (n - 1)) ** o.alpha).item()  # a float32, as torch keeps it
    return (w * (1 - o.lambd * rate)).add(decayed(o, w, g), alpha=-rate)


def rprop(o, n, w, g, m):
    size, agree = m["size"] if n > 1 else torch.full_like(w, o.lr), g * m["before"]
    size = torch.where(agree > 0, size * o.etas[1], torch.where(agree < 0, size * o.etas[0], size))
    m["size"] = size.clamp(*o.step_sizes)
    m["before"] = torch.where(agree < 0, 0, g)
    return w - m["before"].sign() * m["size"]


def adafactor(o, n, w, g, m):
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


def takes(name, option):
    return option in signature(CLASSES[name]).parameters


DECAYS = [
    pytest.param(name, options, id=f"{name}-{'decayed' if options.get('weight_decay') else 'not_decayed'}")
    for name in RULES
    for options in ([{"weight_decay": 0.0}, {"weight_decay": 0.1}] if takes(name, "weight_decay") else [{}])
]
VARIANTS = [
    pytest.param(name, variant, id=f"{name}-{variant}")
    for name in OPTIMIZERS
    for variant in ("foreach", "fused")
    if takes(name, variant)
]


def started(kind, freeze):
    """The model as the runner seeds it, with `requires_grad` False on what is frozen."""
    torch.manual_seed(0)
    model = kind([64]) if kind is MLP else kind()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not FROZEN[freeze](name))
    return model


def batches():
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        yield torch.randn(4, 64, generator=generator), torch.randint(10, (4,), generator=generator)


def trained_by_rule(name, freeze, **options):
    """The optimizer's rule, written out, a parameter at a time."""
    defaults = {key: option.default for key, option in signature(CLASSES[name]).parameters.items()}
    o = SimpleNamespace(**{**defaults, **NODES[name], **options})
    model = started(MLP, freeze).train()
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    memories = [defaultdict(partial(torch.zeros_like, parameter, requires_grad=False)) for parameter in moving]
    for n, (x, y) in enumerate(batches(), 1):
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for parameter, m in zip(moving, memories, strict=True):
                parameter.copy_(RULES[name](o, n, parameter, parameter.grad, m))
    return model


def trained_by_hand(name, freeze):
    """A loop as anyone writes it, with torch.optim and nothing of this project but the model; with its losses."""
    model = started(MODELS.get(name, MLP), freeze)
    numbers = {key: value for key, value in NODES[name].items() if key != "_target_"}
    optimizer = CLASSES[name](model.parameters(), **numbers)
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


def run(name, freeze, **options):
    """The runner's own; the oracles are computed on a CPU, so this is."""
    chosen = (f"optimizer={name}", f"freeze={freeze}", f"batches={STEPS}", "device=cpu", *MORE.get(name, ()))
    return measure(*chosen, *(f"optimizer.{key}={value}" for key, value in options.items()))


def verdicts(rows):
    return {row["name"]: row["verdict"] for row in rows if row["kind"] == "parameter"}


def assert_agree(result, oracle, freeze):
    """The same bits, buffers too; what is frozen is as at the start; each parameter's verdict is what its bits say."""
    ours, theirs = result.model.state_dict(), oracle.state_dict()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    start, expected = dict(started(type(oracle), freeze).named_parameters()), {}
    for name, parameter in result.model.named_parameters():
        moved = not torch.equal(parameter, start[name])
        assert not (moved and FROZEN[freeze](name)), name
        expected[name] = "held" if FROZEN[freeze](name) else "trained" if moved else "idle"
    assert verdicts(result.rows) == expected


def test_every_dense_optimizer_has_its_rule_here():
    assert set(RULES) == set(NODES) - {"custom", "lbfgs", "muon", "sparse_adam"}


@pytest.mark.parametrize("freeze", ["backbone", "bias"])
@pytest.mark.parametrize(("name", "options"), DECAYS)
def test_a_run_is_the_optimizers_rule_written_out_bit_by_bit(name, options, freeze):
    assert_agree(run(name, freeze, **options), trained_by_rule(name, freeze, **options), freeze)


@pytest.mark.parametrize("freeze", ["backbone", "head"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_is_a_loop_by_hand_with_torchs_optimizer_bit_by_bit(name, freeze):
    result = run(name, freeze)
    oracle, losses = trained_by_hand(name, freeze)
    assert result.losses == losses
    assert_agree(result, oracle, freeze)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_foreach_and_fused_give_the_verdicts_of_the_plain_loop_and_nearly_its_numbers(name, variant):
    plain, other = (run(name, "backbone", **{variant: flag}) for flag in (False, True))
    parameters = dict(plain.model.named_parameters())
    declared = {key: "held" if FROZEN["backbone"](key) else "trained" for key in parameters}
    assert verdicts(other.rows) == verdicts(plain.rows) == declared
    for key, parameter in other.model.named_parameters():
        assert torch.allclose(parameter, parameters[key], rtol=0, atol=1e-6)  # the same products, associated otherwise


@pytest.mark.parametrize("steps", [1, 8, 100])
@pytest.mark.parametrize("frozen", ["bias", "weight", "nothing"])
def test_sgd_on_least_squares_is_its_closed_form(frozen, steps):
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

    columns = torch.cat([x, torch.ones(30, 1, dtype=torch.float64)], dim=1)
    moves = torch.tensor([frozen != "weight"] * 4 + [frozen != "bias"])
    seen, target = columns[:, moves], y - columns[:, ~moves] @ start[~moves]
    hessian, best = 2 / 30 * seen.T @ seen, torch.linalg.lstsq(seen, target).solution
    shrinks = torch.matrix_power(torch.eye(len(hessian), dtype=torch.float64) - LR * hessian, steps)
    expected = start.clone()
    expected[moves] = best + shrinks @ (start[moves] - best)

    ended = torch.cat([model.weight.detach().T, model.bias.detach()[None]])
    assert torch.equal(ended[~moves], start[~moves])
    assert torch.allclose(ended, expected, rtol=0, atol=1e-10)
    assert verdicts(report.rows) == {name: "held" if name == frozen else "trained" for name in ("weight", "bias")}
    assert report.leaks == []
