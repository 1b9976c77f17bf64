"""What `runner.audit` adds to a step without a look, what a look costs, and what is left of a callback after its last step.

Run from the project's root: `python -m benchmarks.audit [--quick] [--threads N]`. Blocks of 15 steps run alternately with
and without the audit, in one process: without a look, and with `every=1`, which looks after every step. A look (a
comparison of all bits) is compared with reading the frozen tensors and their copies once, by `torch.equal`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from benchmarks.timing import print_ratios, read_clocks
from runner import audit
from runner.integrations.audited_training import AuditedTraining

STEPS_WITHOUT_LOOK = (5, 6, 7, *range(9, 16))  # the steps of a block that are measured: no bits are compared after them


class ManyTensors(nn.Module):
    """A model of 10,000 parameters of 8 elements each, which are multiplied with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(torch.ones(8)) for _ in range(10_000)])

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` times each of the parameters."""
        for part in self.parts:
            x = x * part
        return x


def resnet() -> tuple[nn.Module, Tensor, Callable[[str], bool]]:
    """Return (ResNet-18, a batch, whether a name is frozen: all but the head)."""
    return resnet18(num_classes=10), torch.randn(4, 3, 64, 64), lambda name: not name.startswith("fc.")


def linear() -> tuple[nn.Module, Tensor, Callable[[str], bool]]:
    """Return (20 linear layers of one million weights, a batch, whether a name is frozen: all but the last layer)."""
    layers = [nn.Linear(1000, 1000) for _ in range(20)]
    return nn.Sequential(*layers), torch.randn(16, 1000), lambda name: not name.startswith("19.")


def many_tensors() -> tuple[nn.Module, Tensor, Callable[[str], bool]]:
    """Return (a model of 10,000 tensors, a batch, whether a name is frozen: every second one)."""
    return ManyTensors(), torch.randn(4, 8), lambda name: int(name.split(".")[1]) % 2 == 0


MODELS = {
    "ResNet-18": (resnet, 1.01),
    "20 M weights in linear layers": (linear, 1.01),
    "10,000 tensors": (many_tensors, 1.03),
}


class Loop:
    """A plain loop over one batch, with some parameters frozen by their flags."""

    def __init__(self, build: Callable[[], tuple[nn.Module, Tensor, Callable[[str], bool]]]) -> None:
        torch.manual_seed(0)
        self.model, self.batch, is_frozen = build()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not is_frozen(name))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-6)

    def step(self, number: int = 0, training: AuditedTraining | None = None) -> float:
        """Do a step, with the calls that a callback makes in it, and return its CPU seconds."""
        start = read_clocks()
        if training is not None:
            training.before_step(number - 1)
        self.optimizer.zero_grad()
        self.model(self.batch).square().mean().backward()
        if training is not None:
            training.before_step(number - 1)
        self.optimizer.step()
        if training is not None:
            training.after_step(number)
        return (read_clocks() - start).cpu

    def block(self, training: AuditedTraining | None = None) -> float:
        """Return the median of the CPU seconds of those steps of a block after which no bits are compared."""
        seconds = {number: self.step(number, training) for number in range(1, STEPS_WITHOUT_LOOK[-1] + 1)}
        return median(seconds[number] for number in STEPS_WITHOUT_LOOK)


def audited_against_plain(loop: Loop, pairs: int, every: int | None = None) -> Iterator[float]:
    """Yield the time of a step in the audit / that of the plain loop, for each pair of blocks.

    Without `every`, no bits are compared after the steps that are measured.
    """
    loop.block()  # for what is done once: lazy imports, memory
    for number in range(pairs):
        seconds = {}
        for audited in (True, False) if number % 2 else (False, True):
            if audited:
                with audit(loop.model, optimizer=loop.optimizer, every=every):
                    seconds[audited] = loop.block()
            else:
                seconds[audited] = loop.block()
        yield seconds[True] / seconds[False]


def after_last_watched(loop: Loop, pairs: int) -> Iterator[float]:
    """Yield the time of a step with a callback, after the last one that it watches / that of the plain loop."""
    for number in range(pairs):
        seconds = {}
        for audited in (True, False) if number % 2 else (False, True):
            training = None
            if audited:
                training = AuditedTraining(None, until=STEPS_WITHOUT_LOOK[0] - 1, strict=False, folder=None, buffers="live")
                training.begin(loop.model, [loop.optimizer])
            seconds[audited] = loop.block(training)
            if training is not None:
                training.end()
        yield seconds[True] / seconds[False]


def looks(loop: Loop, repeats: int) -> Iterator[tuple[float, float]]:
    """Yield (CPU seconds that a look adds to a step, those of reading the frozen tensors and their copies once)."""
    tensors = [*(p.detach() for p in loop.model.parameters() if not p.requires_grad)]
    copies = [tensor.clone() for tensor in tensors]
    with audit(loop.model, optimizer=loop.optimizer, every=2):
        for _ in range(4):
            loop.step()
        for _ in range(repeats):
            without, with_look = loop.step(), loop.step()
            start = read_clocks()
            assert all(map(torch.equal, tensors, copies))
            yield with_look - without, (read_clocks() - start).cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name, (build, most) in MODELS.items():
        loop = Loop(build)
        print_ratios(f"a step without a look, {name}", list(audited_against_plain(loop, 2 if args.quick else 25)), most)
        print_ratios(f"a step with every=1, {name}", list(audited_against_plain(loop, 2 if args.quick else 15, every=1)))
        print_ratios(f"a step after the last watched, {name}", list(after_last_watched(loop, 2 if args.quick else 25)), 1.01)
        pairs = list(looks(loop, 3 if args.quick else 25))
        added, reading = (median(seconds) for seconds in zip(*pairs, strict=True))
        note = f"{added * 1e3:.1f} ms against {reading * 1e3:.1f} ms"
        print_ratios(f"a look / reading once, {name}", [added / reading], 1.2, note)


if __name__ == "__main__":
    main()
