"""What a snapshot and the change norms cost in memory, and in time against reading both copies once.

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

from benchmarks.timing import ROOT, now, say
from runner.proof.changes import Snapshot, change, snapshot

LARGE = "wide_resnet50_2"  # 276 MB of parameters, so that what a process does besides weighs little


def measure_all(before: Snapshot, model: nn.Module) -> None:
    """The norms of every parameter and buffer, as the audit's end takes them."""
    for name, entry in before.entries.items():
        change(before.values[name], entry.tensor)


def move(model: nn.Module) -> None:
    """Change every parameter, and every buffer."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.add_(1)


def memory(name: str) -> float:
    """This process's peak over what it held before the snapshot, against the parameters' bytes; call it once a process."""
    small = nn.Sequential(nn.Linear(1000, 1000), nn.BatchNorm1d(1000))
    untouched = snapshot(small)
    measure_all(untouched, small)
    move(small)
    measure_all(untouched, small)  # by now all code that is used has been read from disk
    model = models.get_model(name, weights=None)
    held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    before = snapshot(model)
    move(model)
    measure_all(before, model)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (peak - held) / sum(p.numel() * p.element_size() for p in model.parameters())


def memory_in_child(name: str) -> float:
    """The same in a fresh process, whose freed tensors go back to the system at once instead of being held for reuse."""
    command = [sys.executable, "-m", "benchmarks.norms", "--memory-of", name]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return float(subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout)


def times(repeats: int, **work: Callable[[], Any]) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall seconds of each piece of work, interleaved; the first round is not counted."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(repeats + 1):
        for name, call in work.items():
            start = now()
            call()
            spent = now() - start
            took[name].append((spent.cpu, spent.wall))
    return {name: found[1:] for name, found in took.items()}


def compare(threads: int, repeats: int) -> None:
    """Print the time of the norms against reading both copies once, for a model that is held and one that moved."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = models.resnet18(weights=None)
    before = snapshot(model)
    live = [entry.tensor.detach() for entry in before.entries.values()]
    one, other = list(before.values.values()), [tensor.clone() for tensor in before.values.values()]
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(one, other, strict=True))
    for state in ("held", "moved"):
        if state == "moved":
            move(model)
        took = times(
            repeats,
            norms=lambda: measure_all(before, model),
            equal=lambda: [torch.equal(a, b) for a, b in zip(one, other, strict=True)],  # equal, so read to the end
            sum=lambda: [(a.sum(), b.sum()) for a, b in zip(one, live, strict=True)],
            snapshot=lambda: snapshot(model),
        )
        for clock, name in enumerate(("CPU", "wall")):
            for reading, target in (("equal", 1.5), ("sum", None)):
                ratios = [a[clock] / b[clock] for a, b in zip(took["norms"], took[reading], strict=True)]
                said = " against ".join(f"{median(t[clock] for t in took[w]) * 1e3:.1f} ms" for w in ("norms", reading))
                say(f"norms / {reading}(), all {state}, threads={threads}, {name}", ratios, target, said)
    copies = median(wall for _, wall in took["snapshot"]) * 1e3
    say(
        f"snapshot / equal(), threads={threads}, wall",
        [a[1] / b[1] for a, b in zip(took["snapshot"], took["equal"], strict=True)],
        None,
        f"{copies:.1f} ms",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    args = parser.parse_args()
    if args.memory_of:
        print(memory(args.memory_of))
        return
    for name in ("resnet18", LARGE):
        say(f"extra memory / parameters, {name}", [memory_in_child(name) for _ in range(1 if args.quick else 5)], 1.05)
    for threads in (1, 2):
        compare(threads, 5 if args.quick else 21)


if __name__ == "__main__":
    main()
