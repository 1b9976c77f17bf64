"""What counting the costs of a run takes, compared with one of its training steps.

Run from the project's root: `python -m benchmarks.counting [--threads N]`. Counted are a step of the run and one in which
everything trains, as `cost=count` does: both copies, both passes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from benchmarks.timing import print_ratios, read_clocks
from runner import select
from runner.cost.meter import CountingMeter
from runner.tensors import tensor_entries


class Norms(nn.Sequential):
    """A model of 10,000 parameters: layers that normalise vectors of `width` elements."""

    def __init__(self, width: int) -> None:
        super().__init__(*(nn.LayerNorm(width) for _ in range(5000)))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {  # builder, shape of a batch, what trains
    "ResNet-18": (lambda: resnet18(num_classes=10), (8, 3, 128, 128), "fc"),
    "10,000 tensors of 8": (lambda: Norms(8), (4, 8), "4999"),
    "10,000 tensors of 1,000": (lambda: Norms(1000), (4, 1000), "4999"),
}


def task(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the sum of the outputs as the loss."""
    return model(batch).sum()


def time_pair(model: nn.Module, batch: Tensor, head: str) -> tuple[float, float]:
    """Return the CPU seconds of (counting, one training step with everything but `head` frozen)."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.requires_grad_(True)
    selection = select(model, ["**"], keep=[head])
    begin = read_clocks()
    meter = CountingMeter({}, torch.device("cpu"), lambda text, urgent=False: print(text))
    meter.on_model_built(model)
    counting = read_clocks() - begin
    for parameter in selection.parameters.values():
        parameter.requires_grad_(False)
    begin = read_clocks()
    with ExitStack() as undo:
        meter.wrap_task(task, optimizer, undo)
        meter.on_phase_prepared(model, selection)
        meter.on_batch(batch)
        meter.on_phase_end(list(model.parameters()), optimizer, {})
        meter.read_costs(model, optimizer, tensor_entries(model))
    counting += read_clocks() - begin
    begin = read_clocks()
    model.train()
    task(model, batch).backward()
    optimizer.step()
    return counting.cpu, (read_clocks() - begin).cpu


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    for name, (build, shape, head) in MODELS.items():
        # A model each time: a step without values is counted once for equal models, and here the module's name differs.
        pairs = []
        for number in range(3):
            model = build()
            model.add_module(f"unused{number}", nn.Identity())
            pairs.append(time_pair(model, torch.randn(shape), head))
        seconds = sorted(first for first, _ in pairs)[1]
        print_ratios(f"counting / a step, {name} ({seconds:.2f} s)", [first / second for first, second in pairs])


if __name__ == "__main__":
    main()
