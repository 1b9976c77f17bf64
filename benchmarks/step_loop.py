"""The runner's loop inside its audit against the same loop by hand, step by step in one process.

Run from the project's root: `python -m benchmarks.step_loop [--quick]`. Steps alternate A B B A, so that a drift of
the machine cancels. Counted: data, step, and the audit's looks at the bits. Not counted: the copy made before and the
norms after, which both loops would need (see norms.py).
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

from benchmarks.timing import Time, now, say
from runner.freezing.groups import by_role
from runner.freezing.selection import select
from runner.methods.zero_lr import ZeroLr
from runner.proof.audit import audit
from runner.training.data import Synthetic
from runner.training.loop import train
from runner.training.tasks import Classification

SAMPLES, INPUT, CLASSES = 8, (3, 128, 128), 1000


def model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A ResNet-18 and SGD over its two groups, `fc` at a learning rate of 0."""
    torch.manual_seed(0)
    model = resnet18(weights=None)
    selection = select(model, ["fc"])
    groups = ZeroLr().groups(by_role(model, selection), selection)
    return model, torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def audited(count: int) -> Iterator[Any]:
    """The runner's loop, a step a `next`, wired as runner/experiment.py does."""
    model, optimizer = model_and_optimizer()
    batches = Synthetic(SAMPLES).batches(count, INPUT, CLASSES, seed=0)
    with audit(model, select(model, ["fc"]), optimizer):
        yield None  # what follows is counted
        yield from train(model, optimizer, Classification(), batches)


def by_hand(count: int) -> Iterator[Any]:
    """The plain loop, a step a `next`, which keeps what the runner's `steps.csv` holds."""
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
    """What each step of the two loops took, interleaved A B B A."""
    loops = {"audited": audited(count), "by_hand": by_hand(count)}
    took: dict[str, list[Time]] = {name: [] for name in loops}
    for loop in loops.values():
        next(loop)
    for number in range(count):
        for name in sorted(loops, reverse=number % 2 == 1):
            start = now()
            step = next(loops[name])
            took[name].append(now() - start)
            del step
    for loop in loops.values():
        loop.close()
    return took["audited"], took["by_hand"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=32, help="steps in a repetition; at a power of 2 the last is a look")
    parser.add_argument("--quick", action="store_true", help="two repetitions of 8 steps instead of five of 32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    steps = 8 if args.quick else args.steps
    repetition(2)  # what is done once in a process: lazy imports, thread pools
    pairs = [repetition(steps) for _ in range(2 if args.quick else 5)]
    totals = [(sum(ours, Time()), sum(hand, Time())) for ours, hand in pairs]
    said = f"{median(o.cpu for o, _ in totals) / steps * 1e3:.0f} ms a step"
    say(f"step loop, {steps} steps of {SAMPLES}, CPU", [ours.cpu / hand.cpu for ours, hand in totals], 1.01, said)
    say(f"step loop, {steps} steps of {SAMPLES}, wall", [ours.wall / hand.wall for ours, hand in totals], 1.01)
    between = [n for n in range(steps) if (n + 1) & n]  # steps after which nothing is looked at
    plain = [ours[n].cpu / hand[n].cpu for ours, hand in pairs for n in between]
    say("  of which steps without a look, CPU", plain)


if __name__ == "__main__":
    main()
