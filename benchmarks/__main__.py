"""All comparisons with other tools, and how the runner's own cost grows: `python -m benchmarks [--quick] [PART ...]`.

Run from the project's root, on Linux, with benchmarks/requirements.txt installed. Tables are written to benchmarks/results/,
with the machine and versions; `--quick` only prints. This process must stay small, because it measures the peak memory of
its children.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import mean, median

from benchmarks import scaling
from benchmarks.peers import processes, sweeps
from benchmarks.results import Row, measure_command, median_and_quartiles, save_table

PARTS = ("steps", "processes", "sweep", "scaling")
HAND = "by hand, requires_grad"
# Without this each thread has its own heap, and only some heaps return memory to the system at each step.
ONE_HEAP = {"MALLOC_ARENA_MAX": 1, "MALLOC_MMAP_THRESHOLD_": 2**25, "MALLOC_TRIM_THRESHOLD_": 2**34}
# Goals: the own cost of a step / a step of ResNet-18, and a step of the runner / one of the hand-written loop.
OWN_COST_GOAL, STEP_GOAL = 0.02, 1.01


def steps(quick: bool, threads: int) -> list[Row]:
    """Measure, print and return the cost of a usual step, and of one so small that a tool's own cost shows."""
    settings = [(8, 2, 32)] if quick else [(24, 8, 128), (100, 2, 32)]
    return [row for count, samples, size in settings for row in step_rows(count, samples, size, threads)]


def step_rows(count: int, samples: int, size: int, threads: int) -> list[Row]:
    """A row per contestant, with its ratio to the hand-written loop and, for the runner, to the same method by hand."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "steps.json")
        work = ["--steps", str(count), "--samples", str(samples), "--size", str(size), "--threads", str(threads)]
        heap = [f"{name}={value}" for name, value in ONE_HEAP.items()]
        measure_command(["env", *heap, sys.executable, "-m", "benchmarks.peers.steps", *work, "--out", str(out)])
        results = {result["name"]: result for result in json.loads(out.read_text())}
    rows = []
    for name, result in results.items():
        row: Row = {"contestant": name, "samples": samples, "size": size, "n": len(result["cpu"]), "did": result["same"]}
        if result["cpu"]:
            row |= step_ratios(result, results[HAND], "loop")
            row |= step_ratios(result, results.get(name.replace("runner, ", "by hand, "), results[HAND]), "same_method")
            row |= {"cpu_s": median(result["cpu"]), "cpu_s_mean": mean(result["cpu"])}
        rows.append(row)
    print(f"\na step of {samples} samples of 3x{size}x{size}, CPU; median (quartiles), and mean, which includes the looks")
    print(f"{'':<40} {'/ the hand-written loop':<36}/ the same method by hand")
    for row in sorted(rows, key=lambda row: row.get("cpu_to_loop", 0)):
        if not row["n"]:
            print(f"{row['contestant']:<40} left out: {row['did']}")
            continue
        loop, same_method = (
            f"{ratio_text(row, f'cpu_to_{key}')}  {row[f'cpu_to_{key}_mean']:.3f}" for key in ("loop", "same_method")
        )
        if not row["contestant"].startswith("runner"):
            same_method = ""
        print(f"{row['contestant']:<40} {loop:<36}{same_method:<36}{row['did']}")
    return rows


def step_ratios(result: Row, base: Row, name: str) -> Row:
    """CPU and wall time relative to `base`: median and quartiles of the ratios step by step, and the ratio of the means."""
    ratios_row: Row = {}
    for figure in ("cpu", "wall"):
        key = f"{figure}_to_{name}"
        ratios = [a / b for a, b in zip(result[figure], base[figure], strict=True)]
        ratios_row |= dict(zip((key, f"{key}_low", f"{key}_high"), median_and_quartiles(ratios), strict=True))
        ratios_row[f"{key}_mean"] = mean(result[figure]) / mean(base[figure])
    return ratios_row


def whole_processes(quick: bool, threads: int) -> list[Row]:
    """Measure, print and return the cost of a whole process."""
    rows = processes.compare_processes(1, 2, 2, 64, threads) if quick else processes.compare_processes(3, 4, 8, 128, threads)
    print(f"\nwhole process{'':<27} CPU / the hand-written loop   CPU / by_hand.py          peak memory / by_hand.py")
    for row in sorted(rows, key=lambda row: row["cpu_to_loop"]):
        keys = ("cpu_to_loop", "cpu_to_table", "peak_to_table")
        loop, table, peak = (ratio_text(row, key) for key in keys)
        print(f"{row['contestant']:<40} {loop:<30}{table:<26}{peak}")
    return rows


def whole_sweeps(quick: bool, threads: int) -> list[Row]:
    """Measure, print and return the cost of a sweep."""
    rows = sweeps.compare_sweeps(1, 64, threads, quick)
    print(f"\nsweep of {rows[0]['runs']}{'':<29} relative to the shell loop over by_hand.py: CPU, wall, peak memory")
    for row in sorted(rows, key=lambda row: row["cpu_to_loop"]):
        print(f"{row['contestant']:<40} {row['cpu_to_loop']:.3f}  {row['wall_to_loop']:.3f}  {row['peak_to_loop']:.3f}")
    return rows


def own_costs(quick: bool, threads: int) -> list[Row]:
    """Measure, print and return how the runner's own cost grows with parameters, tensors, steps and runs."""
    return [row for axis in scaling.AXES for row in scaling.measure_axis(axis, quick)]


def print_goals(tables: dict[str, list[Row]]) -> None:
    """Print each goal that the measured parts allow to check, and whether it was met."""
    for samples, size in sorted({(row["samples"], row["size"]) for row in tables.get("steps", ())}, reverse=True):
        rows = {row["contestant"]: row for row in tables["steps"] if row["n"] and row["size"] == size}
        runner, step = rows["runner, requires_grad"], f"a step of {samples} x 3x{size}x{size}"
        if samples == 8:
            _goal(f"{step}, without looks / by hand", runner["cpu_to_loop"], STEP_GOAL)
            _goal(f"{step}, with looks / by hand", runner["cpu_to_loop_mean"], STEP_GOAL)
        for name, row in rows.items():
            if not name.startswith(("runner", "by hand")):
                _goal(f"{step} / {name}", runner["cpu_to_loop"] / row["cpu_to_loop"], 1.0)
    if "processes" in tables:
        rows = {row["contestant"]: row for row in tables["processes"]}
        for name in processes.PEERS:
            if name in rows:
                ratio = rows["runner, requires_grad"]["cpu_to_loop"] / rows[name]["cpu_to_loop"]
                _goal(f"a process of requires_grad / {name}", ratio, 1.0)
    if "sweep" in tables:
        rows = {row["contestant"]: row for row in tables["sweep"]}
        if "Lightning, Hydra multirun" in rows:
            ratio = rows["runner, launch=local"]["cpu_to_loop"] / rows["Lightning, Hydra multirun"]["cpu_to_loop"]
            _goal("a sweep / Lightning under Hydra", ratio, 1.0)
    if "scaling" in tables:
        largest = [row for row in tables["scaling"] if row["axis"] == "parameters"][-1]
        _goal("peak bytes of the largest model / 16e9", largest["peak_bytes"] / scaling.LIMIT, 1.0)
    if {"steps", "scaling"} <= set(tables):
        step = next(row["cpu_s"] for row in tables["steps"] if row["contestant"] == HAND)  # the first row is a usual step
        own_cost = [row for row in tables["scaling"] if row["axis"] == "steps"][-1]["own_cpu_s_per_unit"]
        _goal("the runner's own cost of a step / a step of ResNet-18", own_cost / step, OWN_COST_GOAL)


def _goal(label: str, ratio: float, most: float) -> None:
    print(f"{label:<64} {ratio:7.4f}  goal <= {most:g}  {'met' if ratio <= most else 'MISSED'}")


def ratio_text(row: Row, key: str) -> str:
    """A ratio and its quartiles, for printing."""
    return f"{row[key]:6.3f} ({row[f'{key}_low']:.3f} to {row[f'{key}_high']:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"which of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="small settings, to check that everything works")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # for computations before a tool sets its number of threads
    functions = dict(zip(PARTS, (steps, whole_processes, whole_sweeps, own_costs), strict=True))
    tables = {}
    for part in args.parts or PARTS:
        tables[part] = functions[part](args.quick, args.threads)
        save_table(part, tables[part], args.threads, args.quick)
    print()
    print_goals(tables)


if __name__ == "__main__":
    main()
