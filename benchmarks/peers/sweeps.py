"""A sweep of 24 short runs: the runner in one process and with two workers, hand-written processes, Lightning under Hydra.

Each run's last loss must be exactly the same number in all four.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from benchmarks.results import Row, Usage, measure_command, median_and_quartiles
from benchmarks.timing import BY_HAND, RUNNER

METHODS, PARTS, SEEDS = ("requires_grad", "zero_lr", "none"), ("fc", "backbone"), (0, 1, 2, 3)
SWEPT = [f"method={','.join(METHODS)}", f"freeze={','.join(PARTS)}"]
STEPS, SAMPLES = 10, 1
Losses = dict[tuple[str, str, int], float]  # (method, freeze, seed) -> last loss
Result = tuple[Usage, Losses]


def runner(launch: list[str], seeds: tuple[int, ...], size: int, threads: int) -> Result:
    """Sweep with this runner, with tables and page."""
    work = [f"batches={STEPS}", f"data.batch_size={SAMPLES}", f"threads={threads}", f"model.input=[3,{size},{size}]"]
    with tempfile.TemporaryDirectory() as folder:
        seed = f"seed={','.join(map(str, seeds))}"
        usage = measure_command([*RUNNER, "-m", *launch, *SWEPT, seed, *work, f"hydra.sweep.dir={folder}/sweep"])
        with Path(folder, "sweep", "comparison.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
    return usage, {(row["method"], row["freeze"], int(row.get("seed", seeds[0]))): float(row["loss_last"]) for row in rows}


def by_hand(seeds: tuple[int, ...], size: int, threads: int) -> Result:
    """Run the hand-written script in a shell loop; it writes tables for each run."""
    losses: Losses = {}
    with tempfile.TemporaryDirectory() as folder:
        loop = f"set -e; for m in {' '.join(METHODS)}; do for f in {' '.join(PARTS)}; do "
        loop += f"for s in {' '.join(map(str, seeds))}; do "
        loop += (
            " ".join(BY_HAND) + f" --method $m --freeze $f --seed $s --batches {STEPS} --batch-size {SAMPLES} --size {size}"
        )
        loop += f" --threads {threads} --out {folder}/$m-$f-$s; done; done; done"
        usage = measure_command(["bash", "-c", loop])
        for method, part, seed in product(METHODS, PARTS, seeds):
            record = json.loads(Path(folder, f"{method}-{part}-{seed}", "run.json").read_text())
            losses[method, part, seed] = record["loss_last"]
    return usage, losses


def lightning(seeds: tuple[int, ...], size: int, threads: int) -> Result:
    """Sweep with Lightning under Hydra's multirun, in one process."""
    work = [f"steps={STEPS}", f"samples={SAMPLES}", f"size={size}", f"threads={threads}"]
    with tempfile.TemporaryDirectory() as folder:
        seed = f"seed={','.join(map(str, seeds))}"
        script = [sys.executable, "-m", "benchmarks.peers.hydra_lightning", "-m"]
        usage = measure_command([*script, *SWEPT, seed, *work, f"hydra.sweep.dir={folder}"])
        records = [json.loads(file.read_text()) for file in Path(folder).rglob("run.json")]
    return usage, {(one["method"], one["freeze"], one["seed"]): one["loss_last"] for one in records}


def sweep_functions(seeds: tuple[int, ...], size: int, threads: int) -> dict[str, Callable[[], Result]]:
    """{name: function that runs the sweep}; tools that are not installed are left out."""
    found: dict[str, Callable[[], Result]] = {
        "runner, launch=local": lambda: runner(["launch=local"], seeds, size, threads),
        "by hand, a shell loop": lambda: by_hand(seeds, size, threads),
    }
    if find_spec("hydra_plugins.hydra_joblib_launcher"):
        two = ["launch=joblib", "hydra.launcher.n_jobs=2"]
        found["runner, launch=joblib, 2 workers"] = lambda: runner(two, seeds, size, threads)
    if find_spec("lightning"):
        found["Lightning, Hydra multirun"] = lambda: lightning(seeds, size, threads)
    return found


def compare_sweeps(rounds: int, size: int, threads: int, quick: bool) -> list[Row]:
    """A row for each contestant, with ratios to the shell loop of the same round."""
    seeds = SEEDS[:1] if quick else SEEDS
    sweeps = sweep_functions(seeds, size, threads)
    used: dict[str, list[Usage]] = {name: [] for name in sweeps}
    for number in range(rounds):
        expected: Losses = {}
        for name in sorted(sweeps, reverse=number % 2 == 1):
            usage, losses = sweeps[name]()
            used[name].append(usage)
            assert len(losses) == len(METHODS) * len(PARTS) * len(seeds), f"{name}: {len(losses)} runs"
            expected = expected or losses
            assert losses == expected, f"{name}: other losses: {sorted(set(losses.items()) ^ set(expected.items()))[:4]}"
    rows = []
    for name, own in used.items():
        row: Row = {"contestant": name, "runs": len(METHODS) * len(PARTS) * len(seeds), "size": size, "n": len(own)}
        for figure in ("cpu", "wall", "peak"):
            hand = used["by hand, a shell loop"]
            ratios = [getattr(a, figure) / getattr(b, figure) for a, b in zip(own, hand, strict=True)]
            row |= dict(
                zip((f"{figure}_to_loop", f"{figure}_low", f"{figure}_high"), median_and_quartiles(ratios), strict=True)
            )
        rows.append(
            row
            | {
                "cpu_s": median_and_quartiles([one.cpu for one in own])[0],
                "wall_s": median_and_quartiles([one.wall for one in own])[0],
            }
        )
    return rows
