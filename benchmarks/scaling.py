"""How the runner's own cost (all except forward, backward and step) grows with parameters, tensors, steps and runs.

Run from the project's root, on Linux: `python -m benchmarks.scaling [--quick] [AXIS ...]`. Each point is measured in its own
process with one thread. Own cost is the CPU time of `runner.run(...)`, with its files, minus the time that
benchmarks/metered.py measures. It is measured for the first run, which also measures the model's costs, and for a second
one, as in a sweep. On the axis `runs` it is the CPU time of a whole sweep from the command line. Growth is linear if a
unit costs no more between the last two points than between the two before.
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

from benchmarks.results import Row, measure_command
from benchmarks.timing import RUNNER, time_command

Point = dict[str, Any]
SMALL = {"layers": 2, "width": 8, "bias": True, "steps": 4}
LIMIT = 16e9  # goal for the peak memory of the largest point, in bytes
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
QUICK = {"parameters": 3, "tensors": 3, "steps": 3, "runs": 2}  # the number of points per axis


def overrides(point: Point) -> list[str]:
    """The command line of a run on a stack of linear layers, all frozen by `requires_grad` except the last one."""
    settings = {**SMALL, **point}
    build = {name: settings[name] for name in ("layers", "width", "bias")}
    half = settings["layers"] - max(1, settings["layers"] // 2)
    return [
        "model=custom",
        "model.build._target_=benchmarks.metered.stack",
        *(f"++model.build.{name}={value}" for name, value in build.items()),
        f"model.input=[{settings['width']}]",
        f"model.classes={settings['width']}",
        "data=custom",
        "data._target_=benchmarks.metered.Ones",
        f"++data.input=[{settings['width']}]",
        "task=custom",
        "task._target_=benchmarks.metered.loss_of",
        "optimizer=custom",
        "optimizer._target_=benchmarks.metered.Sgd",
        "method=requires_grad",
        "freeze=none",
        "freeze.patterns=['**']",
        f"freeze.keep=[last.{half - 1}]",
        f"batches={settings['steps']}",
        "threads=1",
    ]


def measure_point(point: Point, repeats: int) -> Point:
    """Run one point in this process; returns own CPU seconds and system CPU seconds of each repeat, and peak bytes."""
    from benchmarks import metered
    from runner import run

    settings, own, system = {**SMALL, **point}, [], []
    with tempfile.TemporaryDirectory() as folder:
        run(*overrides(SMALL), f"hydra.run.dir={folder}/first")  # a first run, for what is imported once
        for number in range(repeats):
            metered.spent, start, system_start = 0.0, process_time(), os.times().system
            result = run(*overrides(point), f"hydra.run.dir={folder}/{number}")
            own.append(process_time() - start - metered.spent)
            system.append(os.times().system - system_start)
            assert result.verdict == "held", result.record
            assert len(result.rows) == settings["layers"] * (2 if settings["bias"] else 1), len(result.rows)
            del result  # it refers to the model
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"own": own, "system": system, "peak": peak}


def measure_point_in_child(point: Point, repeats: int) -> Point:
    """`measure_point` in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "point.json")
        arguments = ["--point", json.dumps(point), "--repeats", str(repeats), "--out", str(out)]
        time_command([sys.executable, "-m", "benchmarks.scaling", *arguments])
        return json.loads(out.read_text())


def measure_sweep(runs: int) -> Point:
    """Run a sweep of `runs` runs from the command line; returns its CPU seconds, training included, and peak bytes."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = f"seed={','.join(map(str, range(runs)))}" if runs < 100 else f"seed=range({runs})"
        usage = measure_command([*RUNNER, "-m", *overrides({}), seeds, f"hydra.sweep.dir={folder}/sweep"])
        written = len(list(Path(folder).glob("sweep/*/changes.csv")))
    assert written == runs, f"{written} of {runs} runs wrote their changes.csv"
    return {"own": [usage.cpu], "system": [None], "peak": usage.peak}


def costs_per_unit(units: Sequence[int], costs: Sequence[float]) -> list[float]:
    """The cost of one more unit, between each point and the next."""
    pairs = list(zip(units, costs, strict=True))
    return [(c - b) / (n - m) for (m, b), (n, c) in pairwise(pairs)]


def measure_axis(name: str, quick: bool) -> list[Row]:
    """Measure and print one axis; returns its rows."""
    rows: list[Row] = []
    points = AXES[name][: QUICK[name] if quick else None]
    for units, point in points:
        result = measure_sweep(units) if name == "runs" else measure_point_in_child(point, 1 if units > 10**8 else 2)
        first, *second = result["own"]
        row: Row = {"axis": name, "units": units, "own_cpu_s": first, "own_cpu_s_again": second[0] if second else None}
        rows.append(row | {"system_cpu_s": result["system"][0], "peak_bytes": int(result["peak"])})
        second_text = f"second {second[0]:8.3f} s" if second else ""
        print(
            f"{name:<11} {units:>13,}  own {first:9.3f} s  {second_text:<17} peak {result['peak'] / 1e9:5.2f} GB", flush=True
        )
    each = costs_per_unit([row["units"] for row in rows], [row["own_cpu_s"] for row in rows])
    for row, cost in zip(rows[1:], each, strict=True):
        row["own_cpu_s_per_unit"] = cost
    if len(each) > 1:
        print(f"{name:<11} cost per unit, last two points / the two before: {each[-1] / each[-2]:.2f}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("axes", nargs="*", help=f"which of {', '.join(AXES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="without the largest points")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point is not None:
        args.out.write_text(json.dumps(measure_point(args.point, args.repeats)))
        return
    for name in args.axes or AXES:
        measure_axis(name, args.quick)


if __name__ == "__main__":
    main()
