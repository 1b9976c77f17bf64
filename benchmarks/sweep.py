"""CPU time of a sweep of 24 short runs, compared with 24 processes of the hand-written script.

Run from the project's root: `python -m benchmarks.sweep [--launch local joblib] [--hand-runs K] [--repeats N] [--size S]`.
With `--launch joblib` the sweep has two worker processes; their time counts, and that of the process they are forked from.
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
LAUNCHES = {"local": ["launch=local"], "joblib": ["launch=joblib", "hydra.launcher.n_jobs=2"]}
GOALS = {"local": 0.22, "joblib": 0.25}  # of the CPU time by hand


def sweep_time(launch: str, size: int) -> Time:
    """The time of one sweep over the whole grid, with its tables."""
    grid = [f"method={','.join(METHODS)}", f"freeze={','.join(PARTS)}", f"seed={','.join(map(str, SEEDS))}"]
    work = [f"batches={BATCHES}", "data.batch_size=1", "threads=1", f"model.input=[3,{size},{size}]"]
    with tempfile.TemporaryDirectory() as folder:
        time = time_command([*RUNNER, "-m", *LAUNCHES[launch], *grid, *work, f"hydra.sweep.dir={folder}/sweep"])
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
    parser.add_argument("--launch", nargs="+", choices=LAUNCHES, default=["local"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=128, help="height and width of a sample")
    args = parser.parse_args()
    times: dict[str, list[tuple[Time, Time]]] = {launch: [] for launch in args.launch}
    for _ in range(args.repeats):
        by_hand = by_hand_time(args.hand_runs, args.size)
        for launch, pairs in times.items():
            pairs.append((sweep_time(launch, args.size), by_hand))
    for launch, pairs in times.items():
        sweep, hand = pairs[-1]
        label, ratios = f"sweep of 24 runs, launch={launch}", [a.cpu / b.cpu for a, b in pairs]
        print_ratios(f"{label}, CPU", ratios, GOALS[launch], f"{sweep.cpu:.0f} s against {hand.cpu:.0f} s")
        ratios = [a.wall / b.wall for a, b in pairs]
        print_ratios(f"{label}, wall", ratios, None, f"{sweep.wall:.0f} s against {hand.wall:.0f} s")


if __name__ == "__main__":
    main()
