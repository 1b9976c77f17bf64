"""CPU time of a whole run from the command line, compared with that of the script written by hand.

Run from the project's root: `python -m benchmarks.whole_process [--quick]`.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from math import isclose
from pathlib import Path
from statistics import median

from benchmarks.timing import BY_HAND, RUNNER, Time, print_ratios, time_command

SETTINGS = [(4, 4, 1.10), (20, 4, 1.15), (100, 8, 1.03)]  # batches, samples per batch, goal for the ratio of CPU times
NORMS = ("initial_l2", "change_l2", "change_rel", "change_max")  # sums in a different order differ in the last digits


def commands(batches: int, samples: int, threads: int | None, folder: Path) -> tuple[list[str], list[str]]:
    """The commands of the runner and of the hand-written script; each writes into its own subfolder of `folder`."""
    overrides = [
        "method=zero_lr",
        "freeze=fc",
        "model.input=[3,128,128]",
        f"batches={batches}",
        f"data.batch_size={samples}",
    ]
    runner = [*RUNNER, *overrides, f"hydra.run.dir={folder / 'runner'}"]
    size = ["--batches", str(batches), "--batch-size", str(samples), "--size", "128"]
    if threads is not None:
        runner, size = [*runner, f"threads={threads}"], [*size, "--threads", str(threads)]
    return runner, [*BY_HAND, *size, "--out", str(folder / "by_hand")]


def pair(batches: int, samples: int, threads: int | None, runner_first: bool) -> tuple[Time, Time]:
    """The times of one run of (the runner, the hand-written script); raises AssertionError if their tables differ."""
    with tempfile.TemporaryDirectory() as folder:
        runner, hand = commands(batches, samples, threads, Path(folder))
        if runner_first:
            runner_time, hand_time = time_command(runner), time_command(hand)
        else:
            hand_time, runner_time = time_command(hand), time_command(runner)
        check_same(Path(folder, "runner", "changes.csv"), Path(folder, "by_hand", "changes.csv"))
    return runner_time, hand_time


def check_same(runner: Path, hand: Path) -> None:
    """Raise AssertionError if the rows differ in a column that both have; norms are compared to three digits."""
    with runner.open(newline="") as first, hand.open(newline="") as second:
        for one, other in zip(csv.DictReader(first), csv.DictReader(second), strict=True):
            assert set(other) <= set(one), f"columns {list(one)} and {list(other)}"
            for column, value in other.items():
                same = value == one[column]
                if column in NORMS and value and one[column]:
                    same = isclose(float(value), float(one[column]), rel_tol=1e-3)
                assert same, f"{one['name']}: {column} is {one[column]} and {value}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one pair instead of five")
    parser.add_argument("--threads", type=int, help="threads of both (default: torch's choice)")
    args = parser.parse_args()
    pair(1, 2, args.threads, runner_first=True)  # fills the file cache
    for batches, samples, target in SETTINGS:
        pairs = [
            pair(batches, samples, args.threads, runner_first=number % 2 == 0) for number in range(1 if args.quick else 5)
        ]
        ratios = [runner.cpu / hand.cpu for runner, hand in pairs]
        seconds = f"{median(o.cpu for o, _ in pairs):.1f} s against {median(h.cpu for _, h in pairs):.1f} s"
        print_ratios(f"whole process, {batches} batches of {samples}, CPU", ratios, target, seconds)
        print_ratios(
            f"whole process, {batches} batches of {samples}, wall", [runner.wall / hand.wall for runner, hand in pairs]
        )


if __name__ == "__main__":
    main()
