"""Small training loops of all kinds: models, optimizers, and ways to freeze a part of a model; for tests of `foresee`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

CLASSES, FEATURES = 3, 4


class Mixed(nn.Module):
    """A body with BatchNorm and dropout, a branch that is detached, a layer that is not called, and a head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2))
        self.side, self.uncalled, self.head = nn.Linear(FEATURES, 6), nn.Linear(2, 2), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.head(self.body(x) + self.side(x).detach())


class Tied(nn.Module):
    """A token model whose embedding is the weight of its head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Embedding(CLASSES, 6)
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.head.weight = self.body.weight

    def forward(self, x):
        return self.head(torch.tanh(self.mix(self.body((x > 0).long()[:, :1]).mean(1))))


class Adapted(nn.Module):
    """A body with an adapter whose second matrix begins at 0, a dead layer, and a head."""

    def __init__(self):
        super().__init__()
        self.body, self.down, self.up = nn.Linear(FEATURES, 6), nn.Linear(FEATURES, 2), nn.Linear(2, 6)
        self.dead, self.head = nn.Linear(FEATURES, 6), nn.Linear(6, CLASSES)
        nn.init.zeros_(self.up.weight)
        nn.init.constant_(self.dead.bias, -100.0)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x) + self.up(self.down(x)) + functional.relu(self.dead(x))))


class Named(nn.Module):
    """Layers, a norm, a parameter, a buffer and a head, all called as the names say."""

    names = ("layer", "second", "third", "norm", "scale", "offset", "last")

    def __init__(self):
        super().__init__()
        *layers, norm, scale, offset, head = self.names
        for name in layers:
            self.add_module(name, nn.Linear(FEATURES, FEATURES))
        self.add_module(norm, nn.BatchNorm1d(FEATURES))
        self.register_parameter(scale, nn.Parameter(torch.ones(FEATURES)))
        self.register_buffer(offset, torch.ones(FEATURES))
        self.add_module(head, nn.Linear(FEATURES, CLASSES))

    def forward(self, x):
        *layers, norm, scale, offset, head = (getattr(self, name) for name in self.names)
        for layer in layers:
            x = torch.tanh(layer(x))
        return head(norm(x) * scale + offset)


class OddlyNamed(Named):
    """The same with names that no attribute has in Python: a slash, spaces, other letters, a digit in front, a keyword."""

    names = ("a/b", "my layer", "größe-层", "1st", "norm/", "x=y,z", "class")


MODELS: dict[str, Callable[[], nn.Module]] = {"mixed": Mixed, "tied": Tied, "adapted": Adapted}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.01),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.1),
    "asgd": lambda groups: torch.optim.ASGD(groups, lr=0.1),
    "rprop": lambda groups: torch.optim.Rprop(groups, lr=0.01),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, momentum=0.9),
    "lbfgs": lambda groups: torch.optim.LBFGS(groups, lr=0.1, max_iter=3),
}


@dataclass
class Training:
    """A training loop of anyone's, before its next step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    frozen: list[str] | None
    scheduler: Any = None
    set_to_none: bool = True
    zero_grad: str = "before"
    batches: list[Any] = field(default_factory=list)

    def backward(self, number: int) -> torch.Tensor:
        """Add the gradients of the batch of this number, and return its loss."""
        x, y = self.batches[number]
        loss = functional.cross_entropy(self.model(x), y)
        loss.backward()
        return loss

    def step(self, number: int) -> None:
        """Make a training step with the batch of this number."""
        is_before = self.zero_grad == "before" or isinstance(self.optimizer, torch.optim.LBFGS)

        def closure():
            if is_before:
                self.optimizer.zero_grad(set_to_none=self.set_to_none)
            return self.backward(number)

        self.optimizer.step(closure)
        if not is_before:
            self.optimizer.zero_grad(set_to_none=self.set_to_none)
        if self.scheduler is not None:
            self.scheduler.step()

    @property
    def foreseen_by(self) -> dict[str, Any]:
        """The keywords of `foresee`."""
        return {"scheduler": self.scheduler, "set_to_none": self.set_to_none, "frozen": self.frozen}


def by_flag(model, build):
    model.body.requires_grad_(False)
    return Training(model, build(list(model.parameters())), None)


def by_flag_with_zeros(model, build):
    return Training(model, build(list(model.parameters())), ["body"], set_to_none=False)


def by_declaring(model, build):
    return Training(model, build(list(model.parameters())), ["body"])


def by_exclusion(model, build):
    frozen = set(model.body.parameters())
    return Training(model, build([p for p in model.parameters() if p not in frozen]), ["body"])


def groups_of(model) -> list[dict[str, Any]]:
    """Return two groups: the body at rate 0, and the rest."""
    frozen = set(model.body.parameters())
    return [
        {"params": list(model.body.parameters()), "lr": 0.0},
        {"params": [p for p in model.parameters() if p not in frozen]},
    ]


def by_rate(model, build):
    return Training(model, build(groups_of(model)), ["body"])


def by_rate_and_scheduler(model, build):
    training = by_rate(model, build)
    training.scheduler = torch.optim.lr_scheduler.LambdaLR(training.optimizer, [lambda step: 0.0, lambda step: 0.5])
    return training


def by_rate_that_rises(model, build):
    training = by_rate(model, build)
    cycle = torch.optim.lr_scheduler.CosineAnnealingLR(training.optimizer, 3, eta_min=0.05)
    training.scheduler = torch.optim.lr_scheduler.SequentialLR(
        training.optimizer, [torch.optim.lr_scheduler.ConstantLR(training.optimizer, 1.0), cycle], [4]
    )
    return training


def by_zeroing_hooks(model, build):
    for parameter in model.body.parameters():
        parameter.register_hook(torch.zeros_like)
    return Training(model, build(list(model.parameters())), ["body"])


def by_dropping_gradients(model, build):
    for parameter in model.body.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    return Training(model, build(list(model.parameters())), ["body"])


def by_step_hook(model, build):
    training = by_declaring(model, build)
    values = [(p, p.detach().clone()) for p in model.body.parameters()]

    @torch.no_grad()
    def restore(*_):
        for parameter, value in values:
            parameter.copy_(value)

    training.optimizer.register_step_post_hook(restore)
    return training


METHODS = {name.removeprefix("by_"): function for name, function in dict(globals()).items() if name.startswith("by_")}


def takes(optimizer: str, method: str) -> bool:
    """Return whether an optimizer takes the groups that a method needs; LBFGS takes one."""
    return optimizer != "lbfgs" or not method.startswith("rate")


def training_of(model: str, optimizer: str, method: str, *, steps_before: int = 0, left: str = "") -> Training:
    """Return a training loop, with the same values at each call; `steps_before` were made before the freezing.

    `left`: the gradients that are there from before the freezing: "zeros", those of the last "batch", or as the loop does.
    """
    torch.manual_seed(0)
    built = MODELS[model]()
    batches = [(torch.randn(6, FEATURES), torch.randint(CLASSES, (6,))) for _ in range(16)]
    training = METHODS[method](built, OPTIMIZERS[optimizer])
    training.batches = batches
    if steps_before or left:
        flags = [(parameter, parameter.requires_grad) for parameter in built.parameters()]
        built.requires_grad_(True)
        for number in range(steps_before):
            training.step(number)
        if left and not steps_before:
            training.backward(0)
        if left != "batch":
            training.optimizer.zero_grad(set_to_none=training.set_to_none and left != "zeros")
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        if method == "flag_with_zeros":
            built.body.requires_grad_(False)
    return training
