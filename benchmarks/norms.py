"""What a snapshot and the change norms cost: memory, and time compared with reading both copies once.

Run from the project's root, on Linux: `python -m benchmarks.norms [--quick]`.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torchvision import models

from benchmarks.timing import ROOT, print_ratios, read_clocks
from runner.proof.changes import Snapshot, measure_change, snapshot

LARGE = "wide_resnet50_2"  # 276 MB of parameters, large, so that other memory of the process matters little


def measure_all(before: Snapshot, model: nn.Module) -> None:
    """Compute the norms of every parameter and buffer, as the audit does when it ends."""
    for name, entry in before.entries.items():
        measure_change(before.values[name], entry.tensor)


def change_all(model: nn.Module) -> None:
    """Add 1 to every parameter and buffer."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.add_(1)


def extra_memory(name: str) -> float:
    """(Peak memory of this process - its memory before the snapshot) / bytes of the parameters; call it once per process."""
    small = nn.Sequential(nn.Linear(1000, 1000), nn.BatchNorm1d(1000))
    small_before = snapshot(small)
    measure_all(small_before, small)
    change_all(small)
    measure_all(small_before, small)  # from here on all code that is used has been loaded
    model = models.get_model(name, weights=None)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    before = snapshot(model)
    change_all(model)
    measure_all(before, model)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (peak - resident) / sum(p.numel() * p.element_size() for p in model.parameters())


def extra_memory_in_child(name: str) -> float:
    """`extra_memory` in a new process, which returns freed tensors to the system at once instead of keeping their memory."""
    command = [sys.executable, "-m", "benchmarks.norms", "--memory-of", name]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return float(subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout)


def times(repeats: int, **work: Callable[[], Any]) -> dict[str, list[tuple[float, float]]]:
    """(CPU, wall) seconds of each function in each round; all functions run in turn; the first round is not included."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(repeats + 1):
        for name, call in work.items():
            start = read_clocks()
            call()
            spent = read_clocks() - start
            seconds[name].append((spent.cpu, spent.wall))
    return {name: rounds[1:] for name, rounds in seconds.items()}


def compare(threads: int, repeats: int) -> None:
    """Print the time of the norms / that of reading both copies once, for an unchanged model and for one that moved."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = models.resnet18(weights=None)
    before = snapshot(model)
    current = [entry.tensor.detach() for entry in before.entries.values()]
    first, second = list(before.values.values()), [tensor.clone() for tensor in before.values.values()]
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(first, second, strict=True))
    for state in ("held", "moved"):
        if state == "moved":
            change_all(model)
        seconds = times(
            repeats,
            norms=lambda: measure_all(before, model),
            equal=lambda: [
                torch.equal(a, b) for a, b in zip(first, second, strict=True)
            ],  # they are equal, so both are read to the end
            sum=lambda: [(a.sum(), b.sum()) for a, b in zip(first, current, strict=True)],
            snapshot=lambda: snapshot(model),
        )
        for clock, name in enumerate(("CPU", "wall")):
            for reading, target in (("equal", 1.5), ("sum", None)):
                ratios = [a[clock] / b[clock] for a, b in zip(seconds["norms"], seconds[reading], strict=True)]
                note = " against ".join(f"{median(t[clock] for t in seconds[w]) * 1e3:.1f} ms" for w in ("norms", reading))
                print_ratios(f"norms / {reading}(), all {state}, threads={threads}, {name}", ratios, target, note)
    milliseconds = median(wall for _, wall in seconds["snapshot"]) * 1e3
    print_ratios(
        f"snapshot / equal(), threads={threads}, wall",
        [a[1] / b[1] for a, b in zip(seconds["snapshot"], seconds["equal"], strict=True)],
        None,
        f"{milliseconds:.1f} ms",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    args = parser.parse_args()
    if args.memory_of:
        print(extra_memory(args.memory_of))
        return
    for name in ("resnet18", LARGE):
        print_ratios(
            f"extra memory / parameters, {name}", [extra_memory_in_child(name) for _ in range(1 if args.quick else 5)], 1.05
        )
    for threads in (1, 2):
        compare(threads, 5 if args.quick else 21)


if __name__ == "__main__":
    main()
