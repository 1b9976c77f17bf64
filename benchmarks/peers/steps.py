"""What a step costs under each contestant: all of them in one process, taking turns step by step.

Each contestant trains in a thread of its own, whose batches wait for its turn; the others stand still meanwhile, so that the
process's clocks count that one step, with all that its tool does around it. In every turn the order is drawn anew, and a
contestant's time is held against the hand-written loop's of the same turn: what slows the machine slows all.

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
from benchmarks.peers.work import Batch, Batches, Proof, judged, model, proof
from benchmarks.timing import Time, now

WARM_UP = 3  # turns: lazy imports, the first gradients, optimizer state, the audit's witness of the first step


class Turn:
    """Batches that wait for their turn; the length is what some tools ask for."""

    def __init__(self, batches: Batches, asked: threading.Semaphore) -> None:
        self.batches, self.asked = batches, asked
        self.go = threading.Semaphore(0)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        made = iter(self.batches)
        for _ in range(len(self)):
            self.asked.release()
            self.go.acquire()
            yield next(made)


class Contestant(threading.Thread):
    """One tool at work. `asked` is released whenever it wants a batch, and when it has ended."""

    def __init__(self, name: str, train: Callable[[Iterable[Batch]], nn.Module], batches: Batches, threads: int) -> None:
        super().__init__(name=name, daemon=True)
        self.train, self.threads = train, threads
        self.asked = threading.Semaphore(0)
        self.turn = Turn(batches, self.asked)
        self.took: list[Time] = []
        self.error: BaseException | None = None
        self.proof: Proof | None = None

    def run(self) -> None:
        torch.set_num_threads(self.threads)  # which holds for the thread that calls it
        try:
            trained = self.train(self.turn)
            self.ended = now()
            self.proof = proof(trained)
        except BaseException as error:
            self.error = error
        self.asked.release()

    def step(self) -> None:
        """Let it take one batch, and wait until it wants the next one, or has ended."""
        start = now()
        self.turn.go.release()
        self.asked.acquire()
        self.took.append(now() - start)


def contestants(steps: int, samples: int, size: int, threads: int) -> dict[str, Callable[[Iterable[Batch]], nn.Module]]:
    """Each by name, with its model built; a peer that is not installed is left out, and said."""
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
        found[f"runner, {method}"] = partial(by_runner.train, by_runner.configured(method, size, steps, threads))
    return found


def race(steps: int, samples: int, size: int, threads: int) -> list[dict[str, Any]]:
    """CPU and wall seconds of every step of each contestant, and what its model proves."""
    start = proof(model())
    batches = Batches(steps, samples, size)
    racing = [
        Contestant(name, train, batches, threads) for name, train in contestants(steps, samples, size, threads).items()
    ]
    refused = {}
    for one in racing:  # one after the other, for what they do to the process as they begin
        one.start()
        one.asked.acquire()
        if one.error:
            refused[one.name] = f"{type(one.error).__name__}: {one.error}"
    racing = [one for one in racing if one.name not in refused]
    order = random.Random(0)
    for number in range(steps):
        order.shuffle(racing)
        for one in racing:
            one.step()
            if one.error:
                raise RuntimeError(f"{one.name}, step {number + 1}") from one.error
    for one in racing:
        one.join()
    hand = next(one.proof for one in racing if one.name == "by hand, requires_grad")
    told = []
    for one in racing:
        assert one.proof is not None
        same = judged(one.name, one.proof, start, hand)
        took = one.took[WARM_UP:-1]  # the last ends with what a tool does when all is done
        told.append({"name": one.name, "same": same, "cpu": [t.cpu for t in took], "wall": [t.wall for t in took]})
    return [*told, *({"name": name, "same": reason, "cpu": [], "wall": []} for name, reason in refused.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.write_text(json.dumps(race(args.steps, args.samples, args.size, args.threads)))


if __name__ == "__main__":
    main()
