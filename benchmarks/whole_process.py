"""A whole run from the command line against the script written by hand: CPU time of the two processes.

Run from the project's root: `python -m benchmarks.whole_process [--quick]`.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from math import isclose
from pathlib import Path
from statistics import median

from benchmarks.timing import BY_HAND, RUNNER, Time, child, say

SETTINGS = [(20, 4, 1.15), (100, 8, 1.03)]  # batches, samples in each, the most CPU time against the hand-written script
NORMS = ("initial_l2", "change_l2", "change_rel", "change_max")  # sums in another order differ in their last digits


def commands(batches: int, samples: int, threads: int | None, folder: Path) -> tuple[list[str], list[str]]:
    """The runner's command and the hand-written script's; each writes to a folder of its own."""
    asked = ["method=zero_lr", "freeze=fc", "model.input=[3,128,128]", f"batches={batches}", f"data.batch_size={samples}"]
    ours = [*RUNNER, *asked, f"hydra.run.dir={folder / 'runner'}"]
    size = ["--batches", str(batches), "--batch-size", str(samples), "--size", "128"]
    if threads is not None:
        ours, size = [*ours, f"threads={threads}"], [*size, "--threads", str(threads)]
    return ours, [*BY_HAND, *size, "--out", str(folder / "by_hand")]


def pair(batches: int, samples: int, threads: int | None, ours_first: bool) -> tuple[Time, Time]:
    """What one run of each took; both must have written the same."""
    with tempfile.TemporaryDirectory() as folder:
        ours, hand = commands(batches, samples, threads, Path(folder))
        if ours_first:
            took, by_hand = child(ours), child(hand)
        else:
            by_hand, took = child(hand), child(ours)
        check_same(Path(folder, "runner", "changes.csv"), Path(folder, "by_hand", "changes.csv"))
    return took, by_hand


def check_same(ours: Path, hand: Path) -> None:
    """Both tables hold the same rows: every column equal, norms to three digits."""
    with ours.open(newline="") as first, hand.open(newline="") as second:
        for one, other in zip(csv.DictReader(first), csv.DictReader(second), strict=True):
            assert list(one) == list(other), f"columns {list(one)} and {list(other)}"
            for column, value in one.items():
                same = value == other[column]
                if column in NORMS and value and other[column]:
                    same = isclose(float(value), float(other[column]), rel_tol=1e-3)
                assert same, f"{one['name']}: {column} is {value} and {other[column]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one pair instead of five")
    parser.add_argument("--threads", type=int, help="threads of both; where not given, torch's own choice")
    args = parser.parse_args()
    pair(1, 2, args.threads, ours_first=True)  # fills the file cache
    for batches, samples, target in SETTINGS:
        pairs = [
            pair(batches, samples, args.threads, ours_first=number % 2 == 0) for number in range(1 if args.quick else 5)
        ]
        ratios = [ours.cpu / hand.cpu for ours, hand in pairs]
        seconds = f"{median(o.cpu for o, _ in pairs):.1f} s against {median(h.cpu for _, h in pairs):.1f} s"
        say(f"whole process, {batches} batches of {samples}, CPU", ratios, target, seconds)
        say(f"whole process, {batches} batches of {samples}, wall", [ours.wall / hand.wall for ours, hand in pairs])


if __name__ == "__main__":
    main()
