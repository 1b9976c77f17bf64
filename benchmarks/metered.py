"""A model, data, a task and an optimizer that measure the CPU time of what every training loop does.

All other CPU time of a run is the runner's own cost. They are given to `python -m runner` and `runner.run` as `_target_`, so
nothing in the runner is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

spent = 0.0  # CPU seconds of building the model, forward, backward and step, since the process began
_since: float | None = None


def start_clock() -> None:
    """Add the CPU time from here on to `spent`."""
    global _since
    _since = process_time()


def stop_clock(*_: Any) -> None:
    """Stop the clock; does nothing if it is not running, as in a step of the rehearsal, which counts as own cost."""
    global spent, _since
    if _since is not None:
        spent, _since = spent + process_time() - _since, None


def stack(layers: int, width: int, bias: bool) -> nn.Module:
    """Linear layers of `width` x `width` in two modules, `first` and `last`, each with a half of them.

    Each layer is filled with its own small constant: random numbers for a billion elements would take too long.
    """
    start_clock()
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
    stop_clock()
    return model


class Ones:
    """A data source that repeats one batch of two samples."""

    def __init__(self, input: Sequence[int]) -> None:
        self.batch = torch.ones(2, *input), torch.zeros(2, dtype=torch.long)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields x (2, *input) float32 and y (2,) int64, without an end."""
        return repeat(self.batch)


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy; starts the clock, which the optimizer stops after backward and step."""
    start_clock()
    return functional.cross_entropy(model(batch[0]), batch[1])


class Sgd(torch.optim.SGD):
    """SGD that stops the clock after a step; its hook is registered first, so the hooks of an audit run after that."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, lr=lr)
        self.register_step_post_hook(stop_clock)

    def zero_grad(self, set_to_none: bool = True) -> None:
        start_clock()
        super().zero_grad(set_to_none)
        stop_clock()
