"""A step of a later epoch under `method=cached_prefix`, compared with `requires_grad`, and with the head alone on features.

Run from the project's root: `python -m benchmarks.cached_prefix [--quick] [--threads N]`. ResNet-18, its backbone frozen and
in eval mode, 3x128x128, batches of 8. The three loops run in turn in one process, the two short ones in the order A B B A,
so that neither always runs right after the long one, when the processor's caches are cold.
Measured are data, step and the audit's looks. The first epoch, in which the frozen layers run, is not measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.timing import Time, print_ratios, read_clocks
from runner.assemble.setup import assembled
from runner.config.check import check
from runner.config.compose import compose_config
from runner.config.schema import Config
from runner.experiment import TrainingState, training_steps
from runner.proof.audit import audit
from runner.seeding import seed_all

SAMPLES, INPUT, CLASSES = 8, (3, 128, 128), 1000


def config(method: str, batches: int, epochs: int) -> Config:
    """The checked config of one run."""
    overrides = [
        f"method={method}",
        "freeze=backbone",
        "freeze.buffers=frozen",
        f"batches={batches}",
        f"data.epochs={epochs}",
    ]
    overrides += [f"model.input={list(INPUT)}", f"model.classes={CLASSES}", f"data.batch_size={SAMPLES}", "device=cpu"]
    return check(compose_config(*overrides))


@contextmanager
def by_runner(method: str, batches: int, epochs: int) -> Iterator[Iterator[Any]]:
    """Yields the runner's steps after the first epoch (an iterator), set up as in runner/experiment.py."""
    checked = config(method, batches, epochs)
    with (
        assembled(checked) as setup,
        audit(setup.model, setup.phases[0].selection, setup.optimizer, before=setup.before) as report,
    ):
        steps = training_steps(setup, report, TrainingState())
        for _ in islice(steps, batches if method == "cached_prefix" else 1):
            pass
        yield steps


@contextmanager
def head_alone(batches: int) -> Iterator[Iterator[Any]]:
    """The lower limit: yields the steps of a plain loop that trains the head on shuffled features."""
    seed_all(0)
    features, targets = torch.randn(batches * SAMPLES, 512), torch.randint(CLASSES, (batches * SAMPLES,))
    model, loss_of = nn.Linear(512, CLASSES), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def steps() -> Iterator[Any]:
        while True:
            for index in torch.randperm(len(features)).split(SAMPLES):
                optimizer.zero_grad()
                loss = loss_of(model(features[index]), targets[index])
                loss.backward()
                optimizer.step()
                yield loss.detach(), [group["lr"] for group in optimizer.param_groups]

    yield steps()


def time_per_step(steps: Iterator[Any], count: int) -> Time:
    """Run `count` more steps, and return the mean time of a step."""
    start = read_clocks()
    for _ in islice(steps, count):
        pass
    total = read_clocks() - start
    return Time(total.cpu / count, total.wall / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rounds, batches, few, many = 3 if args.quick else args.rounds, 20, 2, 50
    epochs = 2 + 2 * (rounds + 1) * many // batches
    with (
        by_runner("cached_prefix", batches, epochs) as cached,
        by_runner("requires_grad", batches, epochs) as whole,
        head_alone(batches) as head,
    ):
        times: list[tuple[Time, Time, Time]] = []  # of two steps each: requires_grad, cached_prefix, head alone
        for number in range(rounds + 1):
            whole_time, short = time_per_step(whole, few), {}
            for name in ("cached", "head", "head", "cached") if number % 2 else ("head", "cached", "cached", "head"):
                short[name] = short.get(name, Time()) + time_per_step({"cached": cached, "head": head}[name], many)
            times.append((whole_time + whole_time, short["cached"], short["head"]))
            if number == 0:
                times.clear()  # the first round includes what is done once per process
    size = f"{rounds} rounds, {torch.get_num_threads()} threads"
    step_times = " ms, ".join(f"{median(row[place].cpu for row in times) / 2 * 1e3:.3g}" for place in range(3)) + " ms"
    for clock in ("cpu", "wall"):
        ratio = [getattr(whole, clock) / getattr(cached, clock) for whole, cached, _ in times]
        print(f"{size}, {clock}: requires_grad / cached_prefix {median(ratio):.1f} ({min(ratio):.1f} to {max(ratio):.1f})")
        print_ratios(
            f"{size}, {clock}: cached_prefix / head alone", [getattr(c, clock) / getattr(h, clock) for _, c, h in times], 1.3
        )
    print(f"CPU time of a step, medians: {step_times} (requires_grad, cached_prefix, head alone)")


if __name__ == "__main__":
    main()
