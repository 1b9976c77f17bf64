"""Make the report of many generated run folders: wall and CPU time, memory, the size of the page, and the time to open it.

Run from the project's root: `python -m benchmarks.report [--runs N] [--rows N] [--steps N] [--open]`. Each
folder has its own config, record and losses.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice, product
from pathlib import Path

from tests.run_folders import change_row, write_run

METHODS = ("requires_grad", "zero_lr", "exclude", "grad_none", "none")
RATES = [f"optimizer.lr={rate / 100}" for rate in range(1, 21)]


def make_runs(folder: Path, runs: int, rows: int, steps: int) -> None:
    """Make run folders: five methods, one of which leaks, 20 learning rates, and as many seeds as needed."""
    names = [f"layer{number // 20}.{number % 20}.weight" for number in range(rows)]
    held = [
        change_row(name, "held" if number % 2 else "trained", 0.1 * (1 - number % 2)) for number, name in enumerate(names)
    ]
    leaked = [change_row(name, "leaked" if number % 2 else "trained", 0.1, "gradient") for number, name in enumerate(names)]
    seeds = range(runs // (len(METHODS) * len(RATES)) + 1)
    for seed, rate, method in islice(product(seeds, RATES, METHODS), runs):
        losses = [2.3 - 0.001 * seed - 0.01 * step for step in range(steps)]
        write_run(folder, method, rate, f"seed={seed}", rows=leaked if method == "none" else held, losses=losses)


def measure(folder: Path, page: Path) -> None:
    """Run `python -m runner.report` once, and print its time, its peak memory and the size of the page."""
    before, start_time = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "runner.report", str(folder), "-o", str(page)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start_time, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size, peak = page.stat().st_size / 1e6, after.ru_maxrss / 1024
    print(f"report: {wall:.1f} s wall, {cpu:.1f} s CPU, peak {peak:.0f} MiB, page {size:.2f} MB")


def measure_files(folder: Path) -> None:
    """Write the files of a sweep once, in a new process, and print the CPU time and the size of the page."""
    before = os.times()
    code = (
        "import sys; from pathlib import Path; from runner.report.files import write_sweep_files as w; w(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"a sweep's files: {cpu:.1f} s CPU, page {(folder / 'report.html').stat().st_size / 1e6:.2f} MB")


def measure_opening(page: Path) -> None:
    """Open the page in headless Chromium three times, and print the time to load it."""
    from tests.report.page.browser.conftest import start_browser

    with tempfile.TemporaryDirectory() as profile:
        driver = start_browser(Path(profile))
        try:
            for _ in range(3):
                start_time = time.perf_counter()
                driver.get(page.as_uri())
                navigation = "performance.getEntriesByType('navigation')[0]"
                ready, loaded = driver.execute_script(f"let t = {navigation}; return [t.domInteractive, t.loadEventEnd]")
                seconds = time.perf_counter() - start_time
                print(f"opening: {ready / 1000:.2f} s to parse, {loaded / 1000:.2f} s to load, {seconds:.2f} s in all")
        finally:
            driver.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=12, help="rows of each changes.csv: the mlp has 12, ResNet-18 has 122")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--open", action="store_true", help="also open the page in Chromium; needs selenium")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, page = Path(temporary) / "sweep", Path(temporary) / "report.html"
        make_runs(folder, args.runs, args.rows, args.steps)
        print(f"{args.runs:,} runs of {args.rows} rows and {args.steps} steps")
        measure(folder, page)
        measure_files(folder)
        if args.open:
            measure_opening(page)


if __name__ == "__main__":
    main()
