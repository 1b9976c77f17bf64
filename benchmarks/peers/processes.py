"""What a whole process costs under each contestant: CPU time, the clock, and peak memory, from the shell and back to it.

The runner is its own command line and writes its files; `by hand, with table` is benchmarks/by_hand.py, which writes the
same ones. The others write a digest of what they trained. Processes run in turn, in an order drawn anew each round.
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
from benchmarks.results import Row, Used, measured, spread
from benchmarks.timing import BY_HAND, RUNNER

LOOP, TABLE = "by hand", "by hand, with table"
PEERS = {
    "Lightning, BaseFinetuning": ("lightning", "lightning"),
    "Lightning, finetuning-scheduler": ("finetuning_scheduler", "finetuning_scheduler"),
    "fastai, Learner": ("fastai", "fastai"),
}


def commands(steps: int, samples: int, size: int, threads: int) -> dict[str, list[str]]:
    """The command of each contestant; `OUT` stands for where it writes."""
    work = [
        "--steps",
        str(steps),
        "--samples",
        str(samples),
        "--size",
        str(size),
        "--threads",
        str(threads),
        "--out",
        "OUT/proof",
    ]
    one = [sys.executable, "-m", "benchmarks.peers.one"]
    found = {LOOP: [*one, "loop", *work]}
    table = ["--method", "requires_grad", "--freeze", "backbone", "--batches", str(steps), "--batch-size", str(samples)]
    found[TABLE] = [*BY_HAND, *table, "--size", str(size), "--threads", str(threads), "--out", "OUT/run"]
    for name, (package, tool) in PEERS.items():
        if find_spec(package):
            found[name] = [*one, tool, *work]
    for method in METHODS:
        found[f"runner, {method}"] = [*RUNNER, *overrides(method, samples, size, steps, threads), "hydra.run.dir=OUT/run"]
    return found


def once(command: Sequence[str]) -> tuple[Used, dict[str, Any]]:
    """Run one, and return what it took and what it proves: a digest, or a run.json."""
    with tempfile.TemporaryDirectory() as folder:
        used = measured(
            [part.replace("OUT", folder) if part.endswith(("OUT/run", "OUT/proof")) else part for part in command]
        )
        proof = Path(folder, "proof")
        return used, json.loads((proof if proof.exists() else Path(folder, "run", "run.json")).read_text())


def checked(name: str, found: dict[str, Any], start: dict[str, Any], hand: dict[str, Any]) -> None:
    """AssertionError where a contestant did other work than the hand-written loop; `race` compares the runner's digests."""
    if "verdict" in found:
        assert found["verdict"] == "held", f"{name}: {found}"
    else:
        assert found["backbone"] == start["backbone"], f"{name}: the frozen part moved"
        assert found["head"] == hand["head"], f"{name}: the trained head differs from the hand-written loop's"


def race(rounds: int, steps: int, samples: int, size: int, threads: int) -> list[Row]:
    """A row for each contestant, with ratios to the hand-written loop of the same round."""
    running = commands(steps, samples, size, threads)
    work = ["--steps", "0", "--samples", str(samples), "--size", str(size), "--threads", str(threads), "--out", "OUT/proof"]
    _, start = once([sys.executable, "-m", "benchmarks.peers.one", "start", *work])
    _, hand = once(running[LOOP])  # which also fills the file cache
    took: dict[str, list[Used]] = {name: [] for name in running}
    digests, losses = set(), set()
    order = random.Random(0)
    names = list(running)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            used, proof = once(running[name])
            checked(name, proof, start, hand)
            took[name].append(used)
            digests |= {proof["trained_digest"]} if "trained_digest" in proof else set()
            losses |= {proof["loss_last"]} if "loss_last" in proof else set()
    assert len(digests) == 1, f"the runner's methods trained {len(digests)} different heads"
    assert len(losses) == 1, f"the runner and by_hand.py end with {len(losses)} different losses"
    return [row(name, took, steps) for name in running]


def row(name: str, took: dict[str, list[Used]], steps: int) -> Row:
    """One contestant against the hand-written loop and against the hand-written script with a table, round by round."""
    own = took[name]
    found: Row = {"contestant": name, "steps": steps, "n": len(own)}
    for figure in ("cpu", "wall", "peak"):
        for against, base in (("loop", took[LOOP]), ("table", took[TABLE])):
            ratios = [getattr(a, figure) / getattr(b, figure) for a, b in zip(own, base, strict=True)]
            middle, low, high = spread(ratios)
            found |= {
                f"{figure}_to_{against}": middle,
                f"{figure}_to_{against}_low": low,
                f"{figure}_to_{against}_high": high,
            }
    found |= {"cpu_s": spread([one.cpu for one in own])[0], "peak_bytes": max(one.peak for one in own)}
    return found
