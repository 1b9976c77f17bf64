"""All comparisons with other tools, and how the runner's own cost grows: `python -m benchmarks [--quick] [PART ...]`.

Run from the project's root, on Linux, in an environment that holds benchmarks/requirements.txt. Tables go to
benchmarks/results/, with the machine and versions; `--quick` only prints. This process stays small, for its children's
peak memory is measured.
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
from benchmarks.results import Row, measured, save, spread

PARTS = ("steps", "processes", "sweep", "scaling")
HAND = "by hand, requires_grad"
# Threads would get heaps of their own, some of which give memory back to the system at each step and some not.
ONE_HEAP = {"MALLOC_ARENA_MAX": 1, "MALLOC_MMAP_THRESHOLD_": 2**25, "MALLOC_TRIM_THRESHOLD_": 2**34}
OF_A_STEP, OF_HAND = 0.02, 1.01  # goals: of a ResNet-18's step for the runner's own cost, of the hand-written loop


def steps(quick: bool, threads: int) -> list[Row]:
    """Print and return what a step costs: a usual one, and one so small that what a tool adds to it shows."""
    settings = [(8, 2, 32)] if quick else [(24, 8, 128), (100, 2, 32)]
    return [row for count, samples, size in settings for row in raced(count, samples, size, threads)]


def raced(count: int, samples: int, size: int, threads: int) -> list[Row]:
    """Each contestant against the hand-written loop, and the runner's methods against the same method by hand, too."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "steps.json")
        work = ["--steps", str(count), "--samples", str(samples), "--size", str(size), "--threads", str(threads)]
        heap = [f"{name}={value}" for name, value in ONE_HEAP.items()]
        measured(["env", *heap, sys.executable, "-m", "benchmarks.peers.steps", *work, "--out", str(out)])
        found = {one["name"]: one for one in json.loads(out.read_text())}
    rows = []
    for name, one in found.items():
        row: Row = {"contestant": name, "samples": samples, "size": size, "n": len(one["cpu"]), "did": one["same"]}
        if one["cpu"]:
            row |= against(one, found[HAND], "loop")
            row |= against(one, found.get(name.replace("runner, ", "by hand, "), found[HAND]), "same_method")
            row |= {"cpu_s": median(one["cpu"]), "cpu_s_mean": mean(one["cpu"])}
        rows.append(row)
    print(
        f"\na step of {samples} samples of 3x{size}x{size}, CPU; median (quartiles), and mean, which holds the audit's looks"
    )
    print(f"{'':<40} {'to the hand-written loop':<36}to the same method by hand")
    for row in sorted(rows, key=lambda row: row.get("cpu_to_loop", 0)):
        if not row["n"]:
            print(f"{row['contestant']:<40} left out: {row['did']}")
            continue
        loop, own = (f"{said(row, f'cpu_to_{key}')}  {row[f'cpu_to_{key}_mean']:.3f}" for key in ("loop", "same_method"))
        print(f"{row['contestant']:<40} {loop:<36}{own if row['contestant'].startswith('runner') else '':<36}{row['did']}")
    return rows


def against(one: Row, base: Row, name: str) -> Row:
    """Ratios, step by step, and that of the means."""
    found: Row = {}
    for figure in ("cpu", "wall"):
        key = f"{figure}_to_{name}"
        ratios = [a / b for a, b in zip(one[figure], base[figure], strict=True)]
        found |= dict(zip((key, f"{key}_low", f"{key}_high"), spread(ratios), strict=True))
        found[f"{key}_mean"] = mean(one[figure]) / mean(base[figure])
    return found


def whole(quick: bool, threads: int) -> list[Row]:
    """Print and return what a process costs."""
    rows = processes.race(1, 2, 2, 64, threads) if quick else processes.race(3, 4, 8, 128, threads)
    print(
        f"\nwhole process{'':<27} CPU to the hand-written loop  CPU to it with the table  peak memory to it with the table"
    )
    for row in sorted(rows, key=lambda row: row["cpu_to_loop"]):
        keys = ("cpu_to_loop", "cpu_to_table", "peak_to_table")
        loop, table, peak = (said(row, key) for key in keys)
        print(f"{row['contestant']:<40} {loop:<30}{table:<26}{peak}")
    return rows


def swept(quick: bool, threads: int) -> list[Row]:
    """Print and return what a sweep costs."""
    rows = sweeps.race(1, 64, threads, quick)
    print(f"\nsweep of {rows[0]['runs']}{'':<29} to the shell loop over the hand-written script: CPU, wall, peak memory")
    for row in sorted(rows, key=lambda row: row["cpu_to_loop"]):
        print(f"{row['contestant']:<40} {row['cpu_to_loop']:.3f}  {row['wall_to_loop']:.3f}  {row['peak_to_loop']:.3f}")
    return rows


def grown(quick: bool, threads: int) -> list[Row]:
    """Print and return how the runner's own cost grows; its share of a step is held against one of ResNet-18."""
    return [row for axis in scaling.AXES for row in scaling.axis(axis, quick)]


def judge(tables: dict[str, list[Row]]) -> None:
    """Print which goals were met."""
    for samples, size in sorted({(row["samples"], row["size"]) for row in tables.get("steps", ())}, reverse=True):
        found = {row["contestant"]: row for row in tables["steps"] if row["n"] and row["size"] == size}
        ours, step = found["runner, requires_grad"], f"a step of {samples} x 3x{size}x{size}"
        if samples == 8:
            _goal(f"{step}, between looks / by hand", ours["cpu_to_loop"], OF_HAND)
            _goal(f"{step}, looks included / by hand", ours["cpu_to_loop_mean"], OF_HAND)
        for name, row in found.items():
            if not name.startswith(("runner", "by hand")):
                _goal(f"{step} / {name}", ours["cpu_to_loop"] / row["cpu_to_loop"], 1.0)
    if "processes" in tables:
        whole = {row["contestant"]: row for row in tables["processes"]}
        for name in processes.PEERS:
            if name in whole:
                ratio = whole["runner, requires_grad"]["cpu_to_loop"] / whole[name]["cpu_to_loop"]
                _goal(f"a process of requires_grad / {name}", ratio, 1.0)
    if "sweep" in tables:
        found = {row["contestant"]: row for row in tables["sweep"]}
        if "Lightning, Hydra multirun" in found:
            ratio = found["runner, launch=local"]["cpu_to_loop"] / found["Lightning, Hydra multirun"]["cpu_to_loop"]
            _goal("a sweep / Lightning under Hydra", ratio, 1.0)
    if "scaling" in tables:
        largest = [row for row in tables["scaling"] if row["axis"] == "parameters"][-1]
        _goal("peak bytes of the largest model / 16e9", largest["peak_bytes"] / scaling.LIMIT, 1.0)
    if {"steps", "scaling"} <= set(tables):
        step = next(row["cpu_s"] for row in tables["steps"] if row["contestant"] == HAND)  # the usual one comes first
        own = [row for row in tables["scaling"] if row["axis"] == "steps"][-1]["own_cpu_s_per_unit"]
        _goal("the runner's own cost of a step / a step of ResNet-18", own / step, OF_A_STEP)


def _goal(what: str, ratio: float, most: float) -> None:
    print(f"{what:<64} {ratio:7.4f}  goal <= {most:g}  {'met' if ratio <= most else 'MISSED'}")


def said(row: Row, key: str) -> str:
    """A ratio and its spread."""
    return f"{row[key]:6.3f} ({row[f'{key}_low']:.3f} to {row[f'{key}_high']:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all where none is given")
    parser.add_argument("--quick", action="store_true", help="small settings, to see that all works")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; they are {', '.join(PARTS)}")
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # for what is computed before a tool sets its threads
    measuring = dict(zip(PARTS, (steps, whole, swept, grown), strict=True))
    tables = {}
    for part in args.parts or PARTS:
        tables[part] = measuring[part](args.quick, args.threads)
        save(part, tables[part], args.threads, args.quick)
    print()
    judge(tables)


if __name__ == "__main__":
    main()
