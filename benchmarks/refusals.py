"""CPU time of a command that is refused, compared with the start of Python and with the import of Hydra.

Run from the project's root: `python -m benchmarks.refusals [--repeats N] [--root DIR]`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.timing import ROOT, RUNNER

COMMANDS = {  # what is refused: its arguments, and the greatest ratio to the time of importing Hydra that is the goal
    "a key that does not exist": (["modle=x"], 1.0),
    "a choice that does not exist": (["method=zero_lrr"], 1.0),
    "a key of another choice": (["optimizer=adam", "optimizer.momentum=0.9"], 1.0),
    "a key in a sweep": (["-m", "method=zero_lr,none", "seed=0,1", "freze=fc"], 1.0),
    "a key beside a recipe, composed": (["experiment=digits", "optimizer.momentum=0.9"], None),
    "a value, composed and checked": (["seed=abc"], None),
}


def cpu_of(command: list[str], root: Path, code: int) -> float:
    """CPU seconds of a process that ends with this exit code; `root` is the project that it imports."""
    before = os.times()
    done = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, check=False)
    after = os.times()
    assert done.returncode == code, done.stderr.decode()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout, to compare two versions")
    args = parser.parse_args()
    root = args.root.resolve()
    rounds = [
        (
            cpu_of([sys.executable, "-c", "pass"], root, 0),
            cpu_of([sys.executable, "-c", "import hydra"], root, 0),
            [cpu_of([*RUNNER, *arguments], root, 2) for arguments, _ in COMMANDS.values()],
        )
        for _ in range(args.repeats)
    ]
    print(f"CPU s, medians of {args.repeats}: Python {median(each[0] for each in rounds):.3f}", end=", ")
    print(f"`import hydra` {median(each[1] for each in rounds):.3f}")
    for index, (name, (_, goal)) in enumerate(COMMANDS.items()):
        seconds = median(each[2][index] for each in rounds)
        ratio = median(each[2][index] / each[1] for each in rounds)
        result = "" if goal is None else f"  goal <= {goal:.3g}  {'met' if ratio <= goal else 'MISSED'}"
        print(f"{name:<34} {seconds:.3f}  {ratio:5.2f} of `import hydra`{result}", flush=True)


if __name__ == "__main__":
    main()
