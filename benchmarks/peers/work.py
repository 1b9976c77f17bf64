"""The work that every contestant does: ResNet-18, its backbone frozen, SGD with momentum, the same batches; its proof."""

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
    """`count` batches of `samples` noise pictures, made when they are asked for, as `data=synthetic` makes them."""

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
    """ResNet-18 in two modules, `backbone` and `head`, as examples of fine-tuning have it; it computes the same."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = nn.Sequential(*list(net.children())[:-1], nn.Flatten()), net.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def model(seed: int = SEED) -> nn.Module:
    """The weights that the runner gives ResNet-18 at this seed."""
    torch.manual_seed(seed)
    return resnet18(weights=None)


@dataclass(frozen=True)
class Proof:
    """What a model holds, as digests: its head, the parameters of its backbone, BatchNorm's statistics."""

    head: str
    backbone: str
    statistics: str


def proof(net: nn.Module) -> Proof:
    """The digests of a ResNet-18, or of one in two modules; a parameter counts as one where it was made a buffer."""
    last = net.head if isinstance(net, Backbone) else net.fc
    weights, statistics = [], []
    for module in net.modules():
        own = {**module._parameters, **module._buffers} if module is not last else {}
        for key, tensor in sorted(own.items()):
            if tensor is not None:
                (weights if key in ("weight", "bias") else statistics).append(tensor)
    return Proof(digest([last.weight, last.bias]), digest(weights), digest(statistics))


def digest(tensors: Iterable[Tensor]) -> str:
    """sha256 over the bytes of the tensors, in order."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def judged(what: str, found: Proof, start: Proof, hand: Proof) -> str:
    """In words, what a contestant did otherwise than the hand-written loop; AssertionError where it did other work."""
    assert found.backbone == start.backbone, f"{what}: the frozen part moved"
    assert found.head == hand.head, f"{what}: the trained head differs from the hand-written loop's"
    if found.statistics == hand.statistics:
        return "same bits"
    kept = found.statistics == start.statistics
    return "same weights; BatchNorm statistics " + ("not tracked" if kept else "differ from the hand-written loop's")
