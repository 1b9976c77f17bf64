"""Trainings with a known fault in what is frozen or in what should train, and sound ones, for `benchmarks.detectors`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


@dataclass
class Case:
    """A training with a known truth.

    Attributes:
        title: what is wrong, or what looks wrong and is not.
        model, optimizer: what is trained.
        frozen: the names of the layers that are to stay as they are.
        culprit: the name of the tensor that leaks or stays idle; "" if nothing does.
        causes: words, one of which must be in a message that names the cause.
        scheduler: called after each step, if there is one.
        edit_gradients: called after each backward pass.
        meddle: called before each step with its number, from 1.
        steps: how many steps the training has.
        inputs, targets: one batch.
    """

    title: str
    model: nn.Module
    optimizer: Optimizer
    frozen: list[str]
    culprit: str = ""
    causes: tuple[str, ...] = ()
    scheduler: LRScheduler | None = None
    edit_gradients: Callable[[nn.Module], object] = field(default=lambda model: None)
    meddle: Callable[[nn.Module, int], object] = field(default=lambda model, number: None)
    steps: int = 4
    inputs: Tensor = field(default_factory=lambda: torch.randn(12, 8))
    targets: Tensor = field(default_factory=lambda: torch.randint(0, 3, (12,)))

    def loss(self) -> Tensor:
        """Return the loss of the batch."""
        return functional.cross_entropy(self.model(self.inputs), self.targets)

    def step(self, number: int) -> None:
        """Do a step of a plain loop; gradients are kept as zeros, as in many older loops."""
        self.meddle(self.model, number)
        self.optimizer.zero_grad(set_to_none=False)
        self.loss().backward()
        self.edit_gradients(self.model)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()


class Net(nn.Module):
    """A body, a normalisation, an idle branch and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.branch, self.head = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.uses_branch = "yes"

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of 3 classes for inputs of 8 features."""
        x = self.norm(self.body(x))
        branch = self.branch(x)
        return self.head(
            x + {"yes": branch, "detached": branch.detach(), "dead": functional.relu(branch - 1e6)}[self.uses_branch]
        )


def zero_gradients_of_body(model: nn.Module) -> None:
    """Freeze the body by setting its gradients to zero."""
    for parameter in model.get_submodule("body").parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()


def freeze(model: nn.Module, *layers: str) -> nn.Module:
    """Freeze layers by their flags, and return the model; frozen normalisations stay in train mode."""
    for layer in layers:
        model.get_submodule(layer).requires_grad_(False)
    return model


def decay() -> Case:
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    causes = ("weight_decay", "weight decay")
    return Case("decay", model, optimizer, ["body"], "body.weight", causes, edit_gradients=zero_gradients_of_body)


def state() -> Case:
    model = Net()
    case = Case(
        "state", model, Adam(model.parameters(), lr=0.01), ["body"], "body.weight", ("optimizer_state", "momentum", "state")
    )
    case.step(1)
    freeze(model, "body")  # its gradient stays, as zeros, and so does the state of Adam
    return case


def scheduler() -> Case:
    model = Net()
    others = [parameter for name, parameter in model.named_parameters() if not name.startswith("body")]
    optimizer = SGD([{"params": model.body.parameters(), "lr": 0.0}, {"params": others}], lr=0.1)
    raised = LambdaLR(optimizer, lambda step: 1.0)
    raised.base_lrs = [0.05, 0.1]
    return Case("scheduler", model, optimizer, ["body"], "body.weight", ("scheduler", "learning rate"), scheduler=raised)


def batch_norm() -> Case:
    model = freeze(Net(), "norm")
    causes = ("forward_write", "running", "train mode", "eval mode")
    return Case("BatchNorm", model, SGD(model.parameters(), lr=0.1), ["norm"], "norm.running_mean", causes)


def one_write() -> Case:
    model = freeze(Net(), "body")

    def write(model: nn.Module, number: int) -> None:
        if number == 3:
            with torch.no_grad():
                model.get_parameter("body.weight").add_(0.01)

    return Case(
        "one write",
        model,
        SGD(model.parameters(), lr=0.1),
        ["body"],
        "body.weight",
        ("outside_write", "write"),
        meddle=write,
    )


def replaced() -> Case:
    model = freeze(Net(), "head")

    def replace(model: nn.Module, number: int) -> None:
        if number == 2:
            model.head = nn.Linear(8, 3).requires_grad_(False)

    return Case(
        "replaced head", model, SGD(model.parameters(), lr=0.1), ["head"], "head.weight", ("replaced",), meddle=replace
    )


def tied() -> Case:
    model = Net()
    model.branch.weight = model.body.weight
    model.body.bias.requires_grad_(False)
    causes = ("gradient", "tied", "shared", "alias")
    return Case("tie", model, SGD(model.parameters(), lr=0.1), ["body"], "body.weight", causes)


def not_in_optimizer() -> Case:
    model = freeze(Net(), "body")
    parameters = [parameter for name, parameter in model.named_parameters() if not name.startswith("head")]
    return Case("idle: not in the optimizer", model, SGD(parameters, lr=0.1), ["body"], "head.weight", ("optimizer",))


def detached() -> Case:
    model = freeze(Net(), "body")
    model.uses_branch = "detached"
    causes = ("no_gradient", "no gradient", "detach")
    return Case("idle: detached", model, SGD(model.parameters(), lr=0.1), ["body"], "branch.weight", causes)


def dead() -> Case:
    model = freeze(Net(), "body")
    model.uses_branch = "dead"
    causes = ("zero_gradient", "zero gradient", "zero grad", "dead")
    return Case("idle: dead", model, SGD(model.parameters(), lr=0.1), ["body"], "branch.weight", causes)


def held() -> Case:
    model = freeze(Net(), "body")
    return Case("sound: held", model, Adam(model.parameters(), lr=0.01), ["body"])


def held_with_nan() -> Case:
    model = freeze(Net(), "body")
    model.body.register_parameter("unused", nn.Parameter(torch.full((2,), torch.nan), requires_grad=False))
    return Case("sound: NaN held", model, SGD(model.parameters(), lr=0.1), ["body"])


def warm_up() -> Case:
    model = freeze(Net(), "body")
    optimizer = SGD(model.parameters(), lr=0.1)
    return Case("sound: warm-up from 0", model, optimizer, ["body"], scheduler=LambdaLR(optimizer, lambda step: step / 4))


CASES = (
    *(decay, state, scheduler, batch_norm, one_write, replaced, tied),
    *(not_in_optimizer, detached, dead, held, held_with_nan, warm_up),
)
