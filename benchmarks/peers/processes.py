"""The cost of a whole process of each contestant: CPU time, wall time and peak memory.

The runner is started from its command line and writes its files. `by hand, with table` is benchmarks/by_hand.py, which
writes the same files. The others write digests of their trained model. Processes run one at a time, in random
order in each round.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.peers.by_runner import METHODS, overrides
from benchmarks.results import Row, Usage, measure_command, median_and_quartiles
from benchmarks.timing import BY_HAND, RUNNER

LOOP, TABLE = "by hand", "by hand, with table"
PEERS = {
    "Lightning, BaseFinetuning": ("lightning", "lightning"),
    "Lightning, finetuning-scheduler": ("finetuning_scheduler", "finetuning_scheduler"),
    "fastai, Learner": ("fastai", "fastai"),
}


def workload(steps: int, samples: int, size: int, threads: int) -> list[str]:
    """The options of `run_tool` that say how much to train; `OUT` is a placeholder for the folder that it writes to."""
    numbers = {"--steps": steps, "--samples": samples, "--size": size, "--threads": threads}
    return [*(text for option, number in numbers.items() for text in (option, str(number))), "--out", "OUT/digests"]


def commands(steps: int, samples: int, size: int, threads: int) -> dict[str, list[str]]:
    """The command of each contestant; `OUT` is a placeholder for the folder that it writes to."""
    work = workload(steps, samples, size, threads)
    run_tool = [sys.executable, "-m", "benchmarks.peers.run_tool"]
    found = {LOOP: [*run_tool, "loop", *work]}
    table = ["--method", "requires_grad", "--freeze", "backbone", "--batches", str(steps), "--batch-size", str(samples)]
    found[TABLE] = [*BY_HAND, *table, "--size", str(size), "--threads", str(threads), "--out", "OUT/run"]
    for name, (package, tool) in PEERS.items():
        if find_spec(package):
            found[name] = [*run_tool, tool, *work]
    for method in METHODS:
        found[f"runner, {method}"] = [*RUNNER, *overrides(method, samples, size, steps, threads), "hydra.run.dir=OUT/run"]
    return found


def run_once(command: Sequence[str]) -> tuple[Usage, dict[str, Any]]:
    """Run a command; returns what it used, and the JSON that it wrote: digests, or a `run.json`."""
    with tempfile.TemporaryDirectory() as folder:
        usage = measure_command(
            [part.replace("OUT", folder) if part.endswith(("OUT/run", "OUT/digests")) else part for part in command]
        )
        digests = Path(folder, "digests")
        return usage, json.loads((digests if digests.exists() else Path(folder, "run", "run.json")).read_text())


def check_same_work(name: str, found: dict[str, Any], start: dict[str, Any], hand: dict[str, Any]) -> None:
    """Raise AssertionError if a contestant leaked or trained another head (the heads of the runner are compared later)."""
    if "verdict" in found:
        assert found["verdict"] == "held", f"{name}: {found}"
    else:
        assert found["backbone"] == start["backbone"], f"{name}: the frozen part moved"
        assert found["head"] == hand["head"], f"{name}: the trained head differs from the hand-written loop's"


def compare_processes(rounds: int, steps: int, samples: int, size: int, threads: int) -> list[Row]:
    """A row for each contestant, with ratios to the hand-written loop of the same round."""
    running = commands(steps, samples, size, threads)
    work = workload(0, samples, size, threads)
    _, start = run_once([sys.executable, "-m", "benchmarks.peers.run_tool", "start", *work])
    _, hand = run_once(running[LOOP])  # this also fills the file cache
    used: dict[str, list[Usage]] = {name: [] for name in running}
    digests, losses = set(), set()
    order = random.Random(0)
    names = list(running)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            usage, written = run_once(running[name])
            check_same_work(name, written, start, hand)
            used[name].append(usage)
            digests |= {written["trained_digest"]} if "trained_digest" in written else set()
            losses |= {written["loss_last"]} if "loss_last" in written else set()
    assert len(digests) == 1, f"the runner's methods trained {len(digests)} different heads"
    assert len(losses) == 1, f"the runner and by_hand.py end with {len(losses)} different losses"
    return [row(name, used, steps) for name in running]


def row(name: str, used: dict[str, list[Usage]], steps: int) -> Row:
    """One contestant's row: ratios to the hand-written loop and to by_hand.py, of the same round; median and quartiles."""
    own = used[name]
    found: Row = {"contestant": name, "steps": steps, "n": len(own)}
    for figure in ("cpu", "wall", "peak"):
        for against, base in (("loop", used[LOOP]), ("table", used[TABLE])):
            ratios = [getattr(a, figure) / getattr(b, figure) for a, b in zip(own, base, strict=True)]
            middle, low, high = median_and_quartiles(ratios)
            found |= {
                f"{figure}_to_{against}": middle,
                f"{figure}_to_{against}_low": low,
                f"{figure}_to_{against}_high": high,
            }
    found |= {"cpu_s": median_and_quartiles([one.cpu for one in own])[0], "peak_bytes": max(one.peak for one in own)}
    return found
