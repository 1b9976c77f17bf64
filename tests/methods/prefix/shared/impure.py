"""Models whose frozen first layers depend on more than their weights and their input, and optimizers that write unseen."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path

import numpy
import torch
from torch import nn

calls = 0
FACTOR = 1.0


class Net(nn.Module):
    """A body and a head, on samples of shape (8,). Subclasses change what the body returns."""

    def __init__(self) -> None:
        super().__init__()
        self.body = self.make_body()
        self.head = nn.Linear(8, 3)

    def make_body(self) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def forward(self, x):
        return self.head(self.body(x))


class Body(nn.Module):
    """A linear layer whose output goes through `change`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.calls = 0

    def forward(self, x):
        return self.change(self.layer(x))

    def change(self, y):
        return y


class ClockBody(Body):
    def change(self, y):
        return y + (time.time() > 1e12)


class DateBody(Body):
    def change(self, y):
        return y + (datetime.datetime.now().year > 9000)


class FileBody(Body):
    def change(self, y):
        return y * float(Path("factor.txt").read_text())


class EnvironmentBody(Body):
    def change(self, y):
        return y * len(os.listdir("."))


class RandomBody(Body):
    def change(self, y):
        return y + torch.rand(1)


class NumpyRandomBody(Body):
    def change(self, y):
        return y + float(numpy.random.rand())


class OwnGeneratorBody(Body):
    def __init__(self) -> None:
        super().__init__()
        self.generator = numpy.random.default_rng(0)

    def change(self, y):
        return y + (float(self.generator.random()) > 2)


class CountingBody(Body):
    """Has the same output in the first calls, and another one later."""

    def change(self, y):
        self.calls += 1
        return y * (1 if self.calls < 1000 else 2)


class GlobalCountingBody(Body):
    def change(self, y):
        global calls
        calls += 1
        return y * (1 if calls < 1000 else 2)


class GlobalBody(Body):
    """Depends on a global that another run may have changed, but changes nothing."""

    def change(self, y):
        return y * FACTOR


class BufferBody(Body):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def change(self, y):
        self.seen += 1
        return y


def net(body: type[Body]) -> type[Net]:
    """Return a class of nets with such a body."""
    return type(f"Net{body.__name__}", (Net,), {"make_body": lambda self: body(), "__module__": __name__})


Clock, Date, File, Environment = net(ClockBody), net(DateBody), net(FileBody), net(EnvironmentBody)
Random, NumpyRandom, OwnGenerator = net(RandomBody), net(NumpyRandomBody), net(OwnGeneratorBody)
Counting, GlobalCounting, Buffer, Global = net(CountingBody), net(GlobalCountingBody), net(BufferBody), net(GlobalBody)


class UsesTheHead(Net):
    """Its first layers read the weights of the head."""

    def forward(self, x):
        return self.head(self.body(x + self.head.weight.detach().sum()))


class BatchDependent(Net):
    """Its first layers subtract the mean of the batch."""

    def forward(self, x):
        return self.head(self.body(x - x.mean(0)))


class WritesUnseen(torch.optim.SGD):
    """SGD that from its step `begin` on changes every parameter through `.data`, those without a gradient too."""

    def __init__(self, params, begin: int = 3, **options) -> None:
        super().__init__(params, **options)
        self.begin, self.count = begin, 0

    def step(self, closure=None):
        loss = super().step(closure)
        self.count += 1
        if self.count == self.begin:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.mul_(0.5)
        return loss


class WritesInForward(Net):
    """Its head, which trains, changes the body in the forward pass of the fifth call."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x):
        self.count += self.training
        if self.count == 5:
            self.body[0].weight.data.mul_(0.5)
        return super().forward(x)


class AfterTheBoundary(Net):
    """Changes, after its head has run, what its body does in the next step."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def forward(self, x):
        y = super().forward(self.scale * x)
        self.scale *= 0.9
        return y


class FirstCall(Net):
    """Keeps, in an attribute, what it saw in its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = None

    def forward(self, x):
        if self.shift is None:
            self.shift = float(x.mean())
        return super().forward(x - self.shift)


class CooledInBackward(Net):
    """Multiplies the body's output by a tensor, neither parameter nor buffer, that a backward hook changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = torch.ones(())
        self.head.bias.register_hook(self.cool)

    def cool(self, gradient) -> None:
        self.temperature.mul_(0.9)

    def forward(self, x):
        return self.head(self.body(x * self.temperature))


class Branching(Net):
    """Does something between two frozen layers for the second batch, which the first does not show."""

    def make_body(self) -> nn.Module:
        return nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x):
        y, dark = self.body[0](x), x[:, 0] < 0
        if dark.any():
            y = y * torch.where(dark, 0.5, 1.0)[:, None]
        return self.head(self.body[1](y))


def fails_later(model, batch):
    """A task that cannot be carried out where the head has been trained for a while."""
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    if model.head.weight.abs().max() > 1:
        raise ArithmeticError("the head is too large")
    return loss


def doubles_mappings(model, batch):
    """A task that does with a mapping what it does not with a tuple."""
    return nn.functional.cross_entropy(model(batch[0] * (2 if isinstance(batch, dict) else 1)), batch[1])


class RaisesInACopy(Net):
    """Fails as a copy, because it finds itself by its address."""

    def __init__(self) -> None:
        super().__init__()
        self.known = {id(self): True}

    def forward(self, x):
        assert self.known[id(self)]
        return super().forward(x)


class HasDates(Net):
    def __init__(self) -> None:
        super().__init__()
        self.dates = numpy.array(["2020-01-01"], dtype="datetime64[D]")


class ContainsItself(Net):
    def __init__(self) -> None:
        super().__init__()
        self.table = {}
        self.table["table"] = self.table


def annealed(model, batch):
    """A task that scales its input by a number that it changes after the model has run."""
    x, y = batch
    loss = nn.functional.cross_entropy(model(x * annealed.scale), y)
    annealed.scale *= 0.9
    return loss


annealed.scale = 1.0


class Perturbs(torch.optim.SGD):
    """SGD that adds 64 to every parameter at its step `begin`, through `.data`, and takes it away four steps later."""

    def __init__(self, params, begin: int = 9, **options) -> None:
        super().__init__(params, **options)
        self.begin, self.count = begin, 0

    def step(self, closure=None):
        loss = super().step(closure)
        self.count += 1
        change = {self.begin: 64.0, self.begin + 4: -64.0}.get(self.count)
        if change:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.add_(change)
        return loss


class Conv(Net):
    """Its body is a convolution on samples of shape (3, 6, 6)."""

    def make_body(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 8))


class Pictures:
    """The same four batches in each pass, in one of two memory formats."""

    def __init__(self, channels_last: bool = False) -> None:
        form = torch.channels_last if channels_last else torch.contiguous_format
        generator = torch.Generator().manual_seed(0)
        shape = (8, 3, 6, 6)
        self.batches = [
            (torch.randn(shape, generator=generator).contiguous(memory_format=form), torch.arange(8) % 3) for _ in range(4)
        ]

    def __iter__(self):
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class SometimesDivides(Net):
    """Its first layers divide a batch by 255 where its largest value is above 1."""

    def forward(self, x):
        return super().forward(x / 255 if x.max() > 2.5 else x)


class SometimesRandom(Net):
    """Its first layers draw random numbers for some batches."""

    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x) if x.max() > 2.5 else x)


class EnvironmentVariable(Net):
    def forward(self, x):
        return super().forward(x * float(os.environ.get("FACTOR", "1")))


class Shuffled(torch.utils.data.Dataset):
    """24 samples, a few of which have large values."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(24, 8, generator=generator), torch.arange(24) % 3

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index):
        return self.x[index], self.y[index]
