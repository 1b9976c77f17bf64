"""How the runner's own cost, all that is not forward, backward or step, grows: with parameters, tensors, steps, runs.

Run from the project's root, on Linux: `python -m benchmarks.scaling [--quick] [AXIS ...]`. Each point is a process of
its own, one thread. Own cost is the CPU time of `runner.run(...)`, files included, less what benchmarks/metered.py notes: of
the first run, which meters the model, and of the same one again, as in a sweep; along `runs`, of a whole sweep from the
command line. Growth is linear if a unit costs no more in the last decade than in the one before.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Any

from benchmarks.results import Row, measured
from benchmarks.timing import RUNNER, child

Point = dict[str, Any]
SMALL = {"layers": 2, "width": 8, "bias": True, "steps": 4}
LIMIT = 16e9  # bytes that the largest point may take
AXES: dict[str, list[tuple[int, Point]]] = {
    "parameters": [
        (10**5, {"layers": 10, "width": 100, "bias": False}),
        (10**6, {"layers": 100, "width": 100, "bias": False}),
        (10**7, {"layers": 100, "width": 316, "bias": False}),
        (10**8, {"layers": 100, "width": 1000, "bias": False}),
        (10**9, {"layers": 100, "width": 3162, "bias": False}),
    ],
    "tensors": [(10**n, {"layers": 10**n // 2}) for n in (1, 2, 3, 4)],
    "steps": [(10**n, {"steps": 10**n}) for n in (1, 2, 3, 4)],
    "runs": [(10**n, {}) for n in (0, 1, 2, 3)],
}
QUICK = {"parameters": 3, "tensors": 3, "steps": 3, "runs": 2}  # how many points of each are taken


def overrides(point: Point) -> list[str]:
    """A run on a stack of linear layers, frozen by `requires_grad` but for its last one."""
    made = {**SMALL, **point}
    build = {name: made[name] for name in ("layers", "width", "bias")}
    half = made["layers"] - max(1, made["layers"] // 2)
    return [
        "model=custom",
        "model.build._target_=benchmarks.metered.stack",
        *(f"++model.build.{name}={value}" for name, value in build.items()),
        f"model.input=[{made['width']}]",
        f"model.classes={made['width']}",
        "data=custom",
        "data._target_=benchmarks.metered.Ones",
        "task=custom",
        "task._target_=benchmarks.metered.loss_of",
        "++task._partial_=true",
        "optimizer=custom",
        "optimizer._target_=benchmarks.metered.Sgd",
        "method=requires_grad",
        "freeze=none",
        "freeze.patterns=['**']",
        f"freeze.keep=[last.{half - 1}]",
        f"batches={made['steps']}",
        "threads=1",
    ]


def in_here(point: Point, repeats: int) -> Point:
    """One point in this process: CPU seconds that are the runner's, and of all those the system's, and the peak memory."""
    from benchmarks import metered
    from runner import run

    made, own, system = {**SMALL, **point}, [], []
    with tempfile.TemporaryDirectory() as folder:
        run(*overrides(SMALL), f"hydra.run.dir={folder}/first")  # what is imported once
        for number in range(repeats):
            metered.spent, begun, system_begun = 0.0, process_time(), os.times().system
            result = run(*overrides(point), f"hydra.run.dir={folder}/{number}")
            own.append(process_time() - begun - metered.spent)
            system.append(os.times().system - system_begun)
            assert result.verdict == "held", result.record
            assert len(result.rows) == made["layers"] * (2 if made["bias"] else 1), len(result.rows)
            del result  # which holds the model
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"own": own, "system": system, "peak": peak}


def in_child(point: Point, repeats: int) -> Point:
    """The same in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "point.json")
        asked = ["--point", json.dumps(point), "--repeats", str(repeats), "--out", str(out)]
        child([sys.executable, "-m", "benchmarks.scaling", *asked])
        return json.loads(out.read_text())


def sweep(runs: int) -> Point:
    """A sweep of so many runs from the command line; what they trained is left out, measured alone."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = f"seed={','.join(map(str, range(runs)))}" if runs < 100 else f"seed=range({runs})"
        used = measured([*RUNNER, "-m", *overrides({}), seeds, f"hydra.sweep.dir={folder}/sweep"])
        written = len(list(Path(folder).glob("sweep/*/changes.csv")))
    assert written == runs, f"{written} of {runs} runs wrote their changes.csv"
    return {"own": [used.cpu], "system": [None], "peak": used.peak}


def growth(units: Sequence[int], costs: Sequence[float]) -> list[float]:
    """What a further unit costs, between each point and the next."""
    pairs = list(zip(units, costs, strict=True))
    return [(c - b) / (n - m) for (m, b), (n, c) in pairwise(pairs)]


def axis(name: str, quick: bool) -> list[Row]:
    """Measure and print one axis; returns its rows."""
    rows: list[Row] = []
    points = AXES[name][: QUICK[name] if quick else None]
    for units, point in points:
        found = sweep(units) if name == "runs" else in_child(point, 1 if units > 10**8 else 2)
        first, *again = found["own"]
        row: Row = {"axis": name, "units": units, "own_cpu_s": first, "own_cpu_s_again": again[0] if again else None}
        rows.append(row | {"system_cpu_s": found["system"][0], "peak_bytes": int(found["peak"])})
        told = f"again {again[0]:8.3f} s" if again else ""
        print(f"{name:<11} {units:>13,}  own {first:9.3f} s  {told:<17} peak {found['peak'] / 1e9:5.2f} GB", flush=True)
    each = growth([row["units"] for row in rows], [row["own_cpu_s"] for row in rows])
    for row, cost in zip(rows[1:], each, strict=True):
        row["own_cpu_s_per_unit"] = cost
    if len(each) > 1:
        print(
            f"{name:<11} a unit in the last decade costs {each[-1] / each[-2]:.2f} of one in the decade before", flush=True
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("axes", nargs="*", help=f"of {', '.join(AXES)}; all where none is given")
    parser.add_argument("--quick", action="store_true", help="without the largest points")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point is not None:
        args.out.write_text(json.dumps(in_here(args.point, args.repeats)))
        return
    for name in args.axes or AXES:
        axis(name, args.quick)


if __name__ == "__main__":
    main()
