"""The cost of a step of each contestant: all run in one process and take turns step by step.

Each contestant trains in its own thread. Its data source blocks until it is its turn, and the other threads wait meanwhile,
so that the process's clocks measure one step, with everything that its tool does around it. The order is random in every
round, and a contestant's time is divided by that of the hand-written loop in the same round, because a slow machine slows
all of them.

`python -m benchmarks` calls it: `python -m benchmarks.peers.steps --out FILE [--steps N] [--samples N] [--size N]`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.peers import by_loop, by_runner
from benchmarks.peers.work import Batch, Batches, Digests, check_same_work, digests_of, model
from benchmarks.timing import Time, read_clocks

WARM_UP = 3  # steps: they include lazy imports, the first gradients and optimizer state, and the audit's tracing of step 1


class BlockingBatches:
    """Batches that block until `go` is released; before each one `waiting` is released. Some tools need the length."""

    def __init__(self, batches: Batches, waiting: threading.Semaphore) -> None:
        self.batches, self.waiting = batches, waiting
        self.go = threading.Semaphore(0)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        iterator = iter(self.batches)
        for _ in range(len(self)):
            self.waiting.release()
            self.go.acquire()
            yield next(iterator)


class Contestant(threading.Thread):
    """A thread that trains with one tool. `waiting` is released when it waits for a batch, and when it has ended."""

    def __init__(self, name: str, train: Callable[[Iterable[Batch]], nn.Module], batches: Batches, threads: int) -> None:
        super().__init__(name=name, daemon=True)
        self.train, self.threads = train, threads
        self.waiting = threading.Semaphore(0)
        self.blocking = BlockingBatches(batches, self.waiting)
        self.times: list[Time] = []
        self.error: BaseException | None = None
        self.digests: Digests | None = None

    def run(self) -> None:
        torch.set_num_threads(self.threads)  # applies to the calling thread
        try:
            trained = self.train(self.blocking)
            self.digests = digests_of(trained)
        except BaseException as error:
            self.error = error
        self.waiting.release()

    def step(self) -> None:
        """Give it one batch, wait until it waits for the next one or has ended, and record the time."""
        start = read_clocks()
        self.blocking.go.release()
        self.waiting.acquire()
        self.times.append(read_clocks() - start)


def train_functions(steps: int, samples: int, size: int, threads: int) -> dict[str, Callable[[Iterable[Batch]], nn.Module]]:
    """{name: train function}, each with its own model; tools that are not installed are left out, with a line on stderr."""
    found: dict[str, Callable[[Iterable[Batch]], nn.Module]] = {}
    for method in by_loop.METHODS:
        found[f"by hand, {method}"] = partial(by_loop.train, model(), method=method)
    try:
        from benchmarks.peers import by_lightning

        found["Lightning, BaseFinetuning"] = partial(by_lightning.train, model())
        import finetuning_scheduler  # noqa: F401

        found["Lightning, finetuning-scheduler"] = partial(by_lightning.train_scheduled, model())
    except ImportError as missing:
        print(f"left out: {missing}", file=sys.stderr)
    try:
        from benchmarks.peers import by_fastai

        found["fastai, Learner"] = partial(by_fastai.train, model())
    except ImportError as missing:
        print(f"left out: {missing}", file=sys.stderr)
    for method in by_runner.METHODS:
        found[f"runner, {method}"] = partial(by_runner.train, by_runner.build_config(method, size, steps, threads))
    return found


def compare_steps(steps: int, samples: int, size: int, threads: int) -> list[dict[str, Any]]:
    """For each contestant: its name, CPU and wall seconds of its steps, and `same`, the result of `check_same_work`."""
    start = digests_of(model())
    batches = Batches(steps, samples, size)
    contestants = [
        Contestant(name, train, batches, threads) for name, train in train_functions(steps, samples, size, threads).items()
    ]
    refused = {}
    for contestant in contestants:  # started one after the other, because their setup changes global state of the process
        contestant.start()
        contestant.waiting.acquire()
        if contestant.error:
            refused[contestant.name] = f"{type(contestant.error).__name__}: {contestant.error}"
    contestants = [contestant for contestant in contestants if contestant.name not in refused]
    order = random.Random(0)
    for number in range(steps):
        order.shuffle(contestants)
        for contestant in contestants:
            contestant.step()
            if contestant.error:
                raise RuntimeError(f"{contestant.name}, step {number + 1}") from contestant.error
    for contestant in contestants:
        contestant.join()
    hand = next(contestant.digests for contestant in contestants if contestant.name == "by hand, requires_grad")
    results = []
    for contestant in contestants:
        assert contestant.digests is not None
        same = check_same_work(contestant.name, contestant.digests, start, hand)
        times = contestant.times[WARM_UP:-1]  # the last time includes what a tool does at the end of training
        results.append(
            {"name": contestant.name, "same": same, "cpu": [t.cpu for t in times], "wall": [t.wall for t in times]}
        )
    return [*results, *({"name": name, "same": reason, "cpu": [], "wall": []} for name, reason in refused.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.write_text(json.dumps(compare_steps(args.steps, args.samples, args.size, args.threads)))


if __name__ == "__main__":
    main()
