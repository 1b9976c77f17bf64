"""What a run of `mlp` costs in a sweep beyond its own training: CPU time, disk, and the memory of the process as it goes on.

Run from the project's root: `python -m benchmarks.small_cells [--runs N]`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from time import process_time

from benchmarks.timing import ROOT, RUNNER, child

WORK = ("model=mlp", "batches=10", "threads=1", "cost=off")
GOALS = {"cpu": 0.15, "disk": 1.0, "memory": 1.05}


def training(repeats: int = 50) -> float:
    """CPU seconds of the run itself, without composing and files: the training that a cell is there for."""
    sys.path.insert(0, str(ROOT))
    from runner.experiment import experiment
    from tests.measure import configured

    config = configured("batches=10", "threads=1", "cost=off")
    took = []
    for _ in range(repeats):
        start = process_time()
        experiment(config)
        took.append(process_time() - start)
    return median(took[5:])


def cpu(runs: int, folder: Path) -> float:
    """CPU seconds of a whole sweep of so many runs."""
    return child([*RUNNER, "-m", *WORK, f"seed=range({runs})", f"hydra.sweep.dir={folder}"]).cpu


def memory(runs: int, folder: Path) -> dict[int, float]:
    """Resident MB of the sweep's process, by the number of runs that have ended; until the last one has."""
    command = [*RUNNER, "-m", *WORK, f"seed=range({runs})", f"hydra.sweep.dir={folder}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    seen: dict[int, float] = {}
    while process.poll() is None and (not seen or max(seen) < runs - 1):
        time.sleep(0.2)
        status = Path(f"/proc/{process.pid}/status").read_text()
        resident = next((line for line in status.splitlines() if line.startswith("VmRSS")), "VmRSS: 0 kB")
        ended = sum((Path(entry.path) / "run.json").exists() for entry in os.scandir(folder)) if folder.exists() else 0
        seen[ended] = int(resident.split()[1]) / 1024
    process.wait()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args().runs
    few = max(2, runs // 10)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small, large = cpu(few, folder / "few"), cpu(runs, folder / "many")
        bare = training()
        each = (large - small) / (runs - few)
        sizes = [
            sum(file.stat().st_size for file in run.rglob("*") if file.is_file()) for run in (folder / "many").glob("*__*")
        ]
        seen = memory(runs, folder / "memory")
    over = each - bare
    print(f"CPU s a run, training apart   {over:.3f}  ({each:.3f} less {bare:.3f}; n={runs})  goal {GOALS['cpu']}")
    print(f"disk MB a run                 {median(sizes) / 1e6:.3f}  (largest {max(sizes) / 1e6:.3f})  goal {GOALS['disk']}")
    first = next(value for ended, value in sorted(seen.items()) if ended >= few)
    last = seen[max(seen)]
    print(f"memory, last run / run {few:<6} {last / first:.3f}  ({first:.0f} MB, {last:.0f} MB)  goal {GOALS['memory']}")


if __name__ == "__main__":
    main()
