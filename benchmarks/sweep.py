"""A sweep of 24 short runs in one process against 24 hand-written runs: CPU time.

Run from the project's root: `python -m benchmarks.sweep [--hand-runs K] [--repeats N] [--size S]`.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import product
from pathlib import Path

from benchmarks.timing import BY_HAND, RUNNER, Time, child, say

METHODS, PARTS, SEEDS = ("requires_grad", "zero_lr", "none"), ("fc", "backbone"), (0, 1, 2, 3)
GRID = list(product(METHODS, PARTS, SEEDS))
BATCHES = 10


def sweep(size: int) -> Time:
    """One sweep over the whole grid, with its tables."""
    grid = [f"method={','.join(METHODS)}", f"freeze={','.join(PARTS)}", f"seed={','.join(map(str, SEEDS))}"]
    work = [f"batches={BATCHES}", "data.batch_size=1", "threads=1", f"model.input=[3,{size},{size}]"]
    with tempfile.TemporaryDirectory() as folder:
        took = child([*RUNNER, "-m", *grid, *work, f"hydra.sweep.dir={folder}/sweep"])
        written = len(list(Path(folder).glob("sweep/*/changes.csv")))
    assert written == len(GRID), f"{written} of {len(GRID)} runs wrote their changes.csv"
    return took


def by_hand(runs: int, size: int) -> Time:
    """The hand-written script once a cell, of `runs` cells spread over the grid, scaled to the whole grid."""
    chosen = [GRID[number * len(GRID) // runs] for number in range(runs)]
    total = Time()
    for method, part, seed in chosen:
        cell = ["--method", method, "--freeze", part, "--seed", str(seed)]
        work = ["--batches", str(BATCHES), "--batch-size", "1", "--threads", "1", "--size", str(size)]
        with tempfile.TemporaryDirectory() as folder:
            total += child([*BY_HAND, *cell, *work, "--out", folder])
    return Time(total.cpu / runs * len(GRID), total.wall / runs * len(GRID))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hand-runs", type=int, default=len(GRID), help="hand-written runs; fewer are scaled to all 24")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=128, help="height and width of a sample")
    args = parser.parse_args()
    pairs = [(sweep(args.size), by_hand(args.hand_runs, args.size)) for _ in range(args.repeats)]
    ours, hand = pairs[-1]
    say("sweep of 24 runs, CPU", [a.cpu / b.cpu for a, b in pairs], 1 / 3, f"{ours.cpu:.0f} s against {hand.cpu:.0f} s")
    say("sweep of 24 runs, wall", [a.wall / b.wall for a, b in pairs], None, f"{ours.wall:.0f} s against {hand.wall:.0f} s")


if __name__ == "__main__":
    main()
