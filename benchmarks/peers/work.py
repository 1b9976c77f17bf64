"""The work of every contestant (ResNet-18, frozen backbone, SGD with momentum, the same batches), and how it is checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

CLASSES, LR, MOMENTUM, SEED = 1000, 0.1, 0.9, 0
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Batches:
    """`count` batches of `samples` random images, generated when iterated; the same as those of `data=synthetic`."""

    count: int
    samples: int
    size: int
    seed: int = SEED

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.count):
            x = torch.randn(self.samples, 3, self.size, self.size, generator=generator)
            yield x, torch.randint(CLASSES, (self.samples,), generator=generator)


class Backbone(nn.Module):
    """ResNet-18 as two modules, `backbone` and `head`, as in fine-tuning examples; it computes the same."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = nn.Sequential(*list(net.children())[:-1], nn.Flatten()), net.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def model(seed: int = SEED) -> nn.Module:
    """A ResNet-18 with the weights that the runner gives it for this seed."""
    torch.manual_seed(seed)
    return resnet18(weights=None)


@dataclass(frozen=True)
class Digests:
    """Digests of a model's head, of the parameters of its backbone, and of its BatchNorm statistics."""

    head: str
    backbone: str
    statistics: str


def digests_of(net: nn.Module) -> Digests:
    """The digests of a ResNet-18 or a `Backbone`; a parameter that was turned into a buffer counts as a parameter."""
    last = net.head if isinstance(net, Backbone) else net.fc
    weights, statistics = [], []
    for module in net.modules():
        own = {**module._parameters, **module._buffers} if module is not last else {}
        for key, tensor in sorted(own.items()):
            if tensor is not None:
                (weights if key in ("weight", "bias") else statistics).append(tensor)
    return Digests(digest([last.weight, last.bias]), digest(weights), digest(statistics))


def digest(tensors: Iterable[Tensor]) -> str:
    """sha256 over the bytes of the tensors, in order."""
    hasher = hashlib.sha256()
    for tensor in tensors:
        hasher.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def check_same_work(name: str, found: Digests, start: Digests, hand: Digests) -> str:
    """`same bits`, or how a contestant's BatchNorm statistics differ from the hand-written loop's.

    Raises AssertionError if its backbone moved or its head differs from the hand-written loop's.
    """
    assert found.backbone == start.backbone, f"{name}: the frozen part moved"
    assert found.head == hand.head, f"{name}: the trained head differs from the hand-written loop's"
    if found.statistics == hand.statistics:
        return "same bits"
    unchanged = found.statistics == start.statistics
    return "same weights; BatchNorm statistics " + ("not tracked" if unchanged else "differ from the hand-written loop's")
