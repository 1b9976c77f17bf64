"""CPU time of a sweep of 24 short runs in one process, compared with 24 processes of the hand-written script.

Run from the project's root: `python -m benchmarks.sweep [--hand-runs K] [--repeats N] [--size S]`.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import product
from pathlib import Path

from benchmarks.timing import BY_HAND, RUNNER, Time, print_ratios, time_command

METHODS, PARTS, SEEDS = ("requires_grad", "zero_lr", "none"), ("fc", "backbone"), (0, 1, 2, 3)
GRID = list(product(METHODS, PARTS, SEEDS))
BATCHES = 10


def sweep_time(size: int) -> Time:
    """The time of one sweep over the whole grid, with its tables."""
    grid = [f"method={','.join(METHODS)}", f"freeze={','.join(PARTS)}", f"seed={','.join(map(str, SEEDS))}"]
    work = [f"batches={BATCHES}", "data.batch_size=1", "threads=1", f"model.input=[3,{size},{size}]"]
    with tempfile.TemporaryDirectory() as folder:
        time = time_command([*RUNNER, "-m", *grid, *work, f"hydra.sweep.dir={folder}/sweep"])
        written = len(list(Path(folder).glob("sweep/*/changes.csv")))
    assert written == len(GRID), f"{written} of {len(GRID)} runs wrote their changes.csv"
    return time


def by_hand_time(runs: int, size: int) -> Time:
    """The time of `runs` runs of the hand-written script, spread over the grid, scaled to the whole grid."""
    chosen = [GRID[number * len(GRID) // runs] for number in range(runs)]
    total = Time()
    for method, part, seed in chosen:
        settings = ["--method", method, "--freeze", part, "--seed", str(seed)]
        work = ["--batches", str(BATCHES), "--batch-size", "1", "--threads", "1", "--size", str(size)]
        with tempfile.TemporaryDirectory() as folder:
            total += time_command([*BY_HAND, *settings, *work, "--out", folder])
    return Time(total.cpu / runs * len(GRID), total.wall / runs * len(GRID))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--hand-runs", type=int, default=len(GRID), help="runs of the hand-written script; the time is scaled to 24"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=128, help="height and width of a sample")
    args = parser.parse_args()
    pairs = [(sweep_time(args.size), by_hand_time(args.hand_runs, args.size)) for _ in range(args.repeats)]
    sweep, hand = pairs[-1]
    print_ratios(
        "sweep of 24 runs, CPU", [a.cpu / b.cpu for a, b in pairs], 1 / 3, f"{sweep.cpu:.0f} s against {hand.cpu:.0f} s"
    )
    print_ratios(
        "sweep of 24 runs, wall", [a.wall / b.wall for a, b in pairs], None, f"{sweep.wall:.0f} s against {hand.wall:.0f} s"
    )


if __name__ == "__main__":
    main()
