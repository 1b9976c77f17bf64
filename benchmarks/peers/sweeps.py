"""A sweep of 24 short runs: this runner in one process and on two workers, hand-written processes, Lightning under Hydra.

Every run's last loss must be the same number in all four, to the last digit.
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

from benchmarks.results import Row, Used, measured, spread
from benchmarks.timing import BY_HAND, RUNNER

METHODS, PARTS, SEEDS = ("requires_grad", "zero_lr", "none"), ("fc", "backbone"), (0, 1, 2, 3)
SWEPT = [f"method={','.join(METHODS)}", f"freeze={','.join(PARTS)}"]
STEPS, SAMPLES = 10, 1
Cells = dict[tuple[str, str, int], float]
Ran = tuple[Used, Cells]


def runner(launch: list[str], seeds: tuple[int, ...], size: int, threads: int) -> Ran:
    """This runner, tables and page included."""
    work = [f"batches={STEPS}", f"data.batch_size={SAMPLES}", f"threads={threads}", f"model.input=[3,{size},{size}]"]
    with tempfile.TemporaryDirectory() as folder:
        seed = f"seed={','.join(map(str, seeds))}"
        used = measured([*RUNNER, "-m", *launch, *SWEPT, seed, *work, f"hydra.sweep.dir={folder}/sweep"])
        with Path(folder, "sweep", "comparison.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
    return used, {(row["method"], row["freeze"], int(row.get("seed", seeds[0]))): float(row["loss_last"]) for row in rows}


def by_hand(seeds: tuple[int, ...], size: int, threads: int) -> Ran:
    """A shell loop over the hand-written script, which writes a table a run."""
    cells: Cells = {}
    with tempfile.TemporaryDirectory() as folder:
        loop = f"set -e; for m in {' '.join(METHODS)}; do for f in {' '.join(PARTS)}; do "
        loop += f"for s in {' '.join(map(str, seeds))}; do "
        loop += (
            " ".join(BY_HAND) + f" --method $m --freeze $f --seed $s --batches {STEPS} --batch-size {SAMPLES} --size {size}"
        )
        loop += f" --threads {threads} --out {folder}/$m-$f-$s; done; done; done"
        used = measured(["bash", "-c", loop])
        for method, part, seed in product(METHODS, PARTS, seeds):
            record = json.loads(Path(folder, f"{method}-{part}-{seed}", "run.json").read_text())
            cells[method, part, seed] = record["loss_last"]
    return used, cells


def lightning(seeds: tuple[int, ...], size: int, threads: int) -> Ran:
    """Lightning under Hydra's multirun, in one process."""
    work = [f"steps={STEPS}", f"samples={SAMPLES}", f"size={size}", f"threads={threads}"]
    with tempfile.TemporaryDirectory() as folder:
        seed = f"seed={','.join(map(str, seeds))}"
        script = [sys.executable, "-m", "benchmarks.peers.hydra_lightning", "-m"]
        used = measured([*script, *SWEPT, seed, *work, f"hydra.sweep.dir={folder}"])
        records = [json.loads(file.read_text()) for file in Path(folder).rglob("run.json")]
    return used, {(one["method"], one["freeze"], one["seed"]): one["loss_last"] for one in records}


def contestants(seeds: tuple[int, ...], size: int, threads: int) -> dict[str, Callable[[], Ran]]:
    """Each by name; what is not installed is left out."""
    found: dict[str, Callable[[], Ran]] = {
        "runner, launch=local": lambda: runner(["launch=local"], seeds, size, threads),
        "by hand, a shell loop": lambda: by_hand(seeds, size, threads),
    }
    if find_spec("hydra_plugins.hydra_joblib_launcher"):
        two = ["launch=joblib", "hydra.launcher.n_jobs=2"]
        found["runner, launch=joblib, 2 workers"] = lambda: runner(two, seeds, size, threads)
    if find_spec("lightning"):
        found["Lightning, Hydra multirun"] = lambda: lightning(seeds, size, threads)
    return found


def race(rounds: int, size: int, threads: int, quick: bool) -> list[Row]:
    """A row for each, with ratios to the shell loop of the same round."""
    seeds = SEEDS[:1] if quick else SEEDS
    racing = contestants(seeds, size, threads)
    took: dict[str, list[Used]] = {name: [] for name in racing}
    for number in range(rounds):
        expected: Cells = {}
        for name in sorted(racing, reverse=number % 2 == 1):
            used, cells = racing[name]()
            took[name].append(used)
            assert len(cells) == len(METHODS) * len(PARTS) * len(seeds), f"{name}: {len(cells)} runs"
            expected = expected or cells
            assert cells == expected, f"{name}: other losses: {sorted(set(cells.items()) ^ set(expected.items()))[:4]}"
    rows = []
    for name, own in took.items():
        row: Row = {"contestant": name, "runs": len(METHODS) * len(PARTS) * len(seeds), "size": size, "n": len(own)}
        for figure in ("cpu", "wall", "peak"):
            hand = took["by hand, a shell loop"]
            ratios = [getattr(a, figure) / getattr(b, figure) for a, b in zip(own, hand, strict=True)]
            row |= dict(zip((f"{figure}_to_loop", f"{figure}_low", f"{figure}_high"), spread(ratios), strict=True))
        rows.append(row | {"cpu_s": spread([one.cpu for one in own])[0], "wall_s": spread([one.wall for one in own])[0]})
    return rows
