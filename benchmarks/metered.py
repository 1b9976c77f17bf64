"""A model, data, a task and an optimizer that note the CPU time of what any loop does, so that the rest is the runner's.

`python -m runner` and `runner.run` take them as `_target_`: nothing of the runner is changed or replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

spent = 0.0  # CPU seconds in here since the process began: building the model, forward, backward, step
_since: float | None = None


def start() -> None:
    """From now on it is not the runner's."""
    global _since
    _since = process_time()


def stop(*_: Any) -> None:
    """From now on it is the runner's again; a step that no batch began, of a rehearsal, is the runner's."""
    global spent, _since
    if _since is not None:
        spent, _since = spent + process_time() - _since, None


def stack(layers: int, width: int, bias: bool) -> nn.Module:
    """A stack of linear layers, each `width` x `width`, filled with small numbers: `first` and `last` halves of it.

    Noise in a billion elements would take longer than everything else, so each is a constant of its own.
    """
    start()
    with torch.device("meta"):
        built = [nn.Linear(width, width, bias=bias) for _ in range(layers)]
    for number, layer in enumerate(built, 1):
        layer.to_empty(device="cpu")
        for parameter in layer.parameters():
            nn.init.constant_(parameter, 1 / (width + number))
    half = max(1, layers // 2)
    model = nn.Sequential()
    model.add_module("first", nn.Sequential(*built[:half]))
    model.add_module("last", nn.Sequential(*built[half:]))
    stop()
    return model


class Ones:
    """The same two samples again and again."""

    def batches(self, count: int, input: Sequence[int], classes: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields x (2, *input) float32 and y (2,) int64."""
        batch = torch.ones(2, *input), torch.zeros(2, dtype=torch.long)
        for _ in range(count):
            yield batch


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy; the clock it starts is stopped by the optimizer, after backward and step."""
    start()
    return functional.cross_entropy(model(batch[0]), batch[1])


class Sgd(torch.optim.SGD):
    """SGD; its hook is the first, so that those of an audit come after the clock has stopped."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, lr=lr)
        self.register_step_post_hook(stop)

    def zero_grad(self, set_to_none: bool = True) -> None:
        start()
        super().zero_grad(set_to_none)
        stop()
