"""The runner's loop inside its audit, compared with the same loop by hand, step by step in one process.

Run from the project's root: `python -m benchmarks.step_loop [--quick]`. Steps run in the order A B B A, so that slow changes
of the machine's speed cancel. Measured are data, step, and the audit's looks (comparisons of bits), but not the copy before
and the norms after, which both loops would need (see norms.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torchvision.models import resnet18

from benchmarks.timing import Time, print_ratios, read_clocks
from runner.freezing.groups import by_role
from runner.freezing.selection import select
from runner.methods.zero_lr import ZeroLr
from runner.proof.audit import audit
from runner.training.data.synthetic import Synthetic
from runner.training.loop import train
from runner.training.tasks.task import BatchTask

SAMPLES, INPUT, CLASSES = 8, (3, 128, 128), 1000


def model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A ResNet-18 and SGD over its two groups, `fc` at a learning rate of 0."""
    torch.manual_seed(0)
    model = resnet18(weights=None)
    selection = select(model, ["fc"])
    groups = ZeroLr().groups(by_role(model, selection), selection)
    return model, torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def audited(count: int) -> Iterator[Any]:
    """The runner's loop, set up as in runner/experiment.py; the first `next` sets it up, each later one runs a step."""
    model, optimizer = model_and_optimizer()
    batches = Synthetic(SAMPLES, input=INPUT, classes=CLASSES).read(0, 0, count)
    with audit(model, select(model, ["fc"]), optimizer):
        yield None  # measured from here on
        yield from train(model, optimizer, BatchTask(), batches)


def by_hand(count: int) -> Iterator[Any]:
    """The plain loop; the first `next` sets it up, each later one runs a step and returns the values of `steps.csv`."""
    model, optimizer = model_and_optimizer()
    generator = torch.Generator().manual_seed(0)
    loss_of = nn.CrossEntropyLoss()
    yield None
    model.train()
    for number in range(count):
        x = torch.randn(SAMPLES, *INPUT, generator=generator)
        y = torch.randint(CLASSES, (SAMPLES,), generator=generator)
        start = perf_counter()
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        rates = [group["lr"] for group in optimizer.param_groups]
        yield number, loss.detach(), perf_counter() - start, rates


def repetition(count: int) -> tuple[list[Time], list[Time]]:
    """The time of each step of (the audited loop, the plain loop); the loops alternate in the order A B B A."""
    loops = {"audited": audited(count), "by_hand": by_hand(count)}
    times: dict[str, list[Time]] = {name: [] for name in loops}
    for loop in loops.values():
        next(loop)
    for number in range(count):
        for name in sorted(loops, reverse=number % 2 == 1):
            start = read_clocks()
            step = next(loops[name])
            times[name].append(read_clocks() - start)
            del step
    for loop in loops.values():
        loop.close()
    return times["audited"], times["by_hand"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=32, help="steps in a repetition")
    parser.add_argument("--quick", action="store_true", help="two repetitions of 8 steps instead of five of 32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    steps = 8 if args.quick else args.steps
    repetition(2)  # for what is done once per process: lazy imports, thread pools
    pairs = [repetition(steps) for _ in range(2 if args.quick else 5)]
    totals = [(sum(audited_times, Time()), sum(hand, Time())) for audited_times, hand in pairs]
    note = f"{median(o.cpu for o, _ in totals) / steps * 1e3:.0f} ms per step"
    print_ratios(
        f"step loop, {steps} steps of {SAMPLES}, CPU",
        [audited_times.cpu / hand.cpu for audited_times, hand in totals],
        1.01,
        note,
    )
    print_ratios(
        f"step loop, {steps} steps of {SAMPLES}, wall",
        [audited_times.wall / hand.wall for audited_times, hand in totals],
        1.01,
    )
    no_look = [n for n in range(steps) if (n + 1) & n]  # steps after which the audit does not compare bits
    ratios = [audited_times[n].cpu / hand[n].cpu for audited_times, hand in pairs for n in no_look]
    print_ratios("  only steps without a look, CPU", ratios)


if __name__ == "__main__":
    main()
