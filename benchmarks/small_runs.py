"""What a run of `mlp` in a sweep costs in addition to its training: CPU time, disk, and whether memory and time grow.

Run from the project's root: `python -m benchmarks.small_runs [--runs N]`.
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

from benchmarks.timing import ROOT, RUNNER, time_command

WORK = ("model=mlp", "batches=10", "threads=1", "cost=off")
GOALS = {"cpu": 0.06, "disk": 1.0, "memory": 1.01, "flat": 1.05}
FIRST = 20  # the run from which on memory and time are compared with those at the end
TICKS = os.sysconf("SC_CLK_TCK")


def training_cpu(repeats: int = 50) -> float:
    """CPU seconds (median) of a run in memory: without composing the config and writing files."""
    sys.path.insert(0, str(ROOT))
    from runner.experiment import experiment
    from tests.in_memory import config_with

    config = config_with("batches=10", "threads=1", "cost=off")
    seconds = []
    for _ in range(repeats):
        start = process_time()
        experiment(config)
        seconds.append(process_time() - start)
    return median(seconds[5:])


def sweep_cpu(runs: int, folder: Path) -> float:
    """CPU seconds of a whole sweep of `runs` runs."""
    return time_command([*RUNNER, "-m", *WORK, f"seed=range({runs})", f"hydra.sweep.dir={folder}"]).cpu


def process_by_run(runs: int, folder: Path) -> dict[int, tuple[float, float]]:
    """{number of runs that have ended: (resident MB, CPU seconds) of the sweep's process}."""
    command = [*RUNNER, "-m", *WORK, f"seed=range({runs})", f"hydra.sweep.dir={folder}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    states: dict[int, tuple[float, float]] = {}
    while process.poll() is None and (not states or max(states) < runs - 1):
        time.sleep(0.2)
        status = Path(f"/proc/{process.pid}/status").read_text()
        resident = next((line for line in status.splitlines() if line.startswith("VmRSS")), "VmRSS: 0 kB")
        ended = sum((Path(entry.path) / "run.json").exists() for entry in os.scandir(folder)) if folder.exists() else 0
        used = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        states[ended] = int(resident.split()[1]) / 1024, sum(map(int, used)) / TICKS
    process.wait()
    return states


def cpu_a_run(states: dict[int, tuple[float, float]], first: int, last: int) -> float:
    """CPU seconds of a run between two numbers of runs that have ended."""
    ends = [min(states, key=lambda ended: abs(ended - number)) for number in (first, last)]
    return (states[ends[1]][1] - states[ends[0]][1]) / (ends[1] - ends[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args().runs
    few = max(2, runs // 10)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small_sweep, large_sweep = sweep_cpu(few, folder / "few"), sweep_cpu(runs, folder / "many")
        training = training_cpu()
        per_run = (large_sweep - small_sweep) / (runs - few)
        disk = [
            sum(file.stat().st_size for file in run.rglob("*") if file.is_file()) for run in (folder / "many").glob("*__*")
        ]
        states = process_by_run(runs, folder / "memory")
    own = per_run - training
    print(
        f"CPU s per run, own cost       {own:.3f}  ({per_run:.3f} - {training:.3f} training; n={runs})  goal {GOALS['cpu']}"
    )
    print(f"disk MB per run               {median(disk) / 1e6:.3f}  (largest {max(disk) / 1e6:.3f})  goal {GOALS['disk']}")
    first = next(size for ended, (size, _) in sorted(states.items()) if ended >= FIRST)
    last = states[max(states)][0]
    print(f"memory, last run / run {FIRST:<6} {last / first:.3f}  ({first:.0f} MB, {last:.0f} MB)  goal {GOALS['memory']}")
    fifth = (runs - FIRST) // 5
    early, late = cpu_a_run(states, FIRST, FIRST + fifth), cpu_a_run(states, runs - fifth, runs)
    print(f"CPU a run, last / first fifth {late / early:.3f}  ({early:.3f} s, {late:.3f} s)  goal {GOALS['flat']}")


if __name__ == "__main__":
    main()
