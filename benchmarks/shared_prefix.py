"""A sweep over learning rates and weight decays with frozen first layers, compared with the work by hand and by Lightning.

Run from the project's root: `python -m benchmarks.shared_prefix [--cells C] [--size S] [--hand-runs K] [--peers K]`. 24
cells (8 learning rates x 3 weight decays) train the head of a ResNet-18 whose backbone is frozen in eval mode: 5 passes over
128 samples of 3x128x128, batches of 8, one thread. The CPU and wall time of this runner are compared with those of
- a hand-written script for each cell (`by_hand.py`),
- one hand-written process that computes the outputs of the frozen layers once (`by_hand_features.py`),
- Lightning under Hydra's multirun, in one process (`peers/hydra_heads.py`),
- this runner with `sweep.share=none`.

All draw the same samples in the same order and begin with the same weights. In each round it is asserted that they trained
the same heads: the last loss, and how far weight and bias of the head moved, compared to three digits.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import product
from math import isclose
from pathlib import Path

from benchmarks.timing import BY_HAND, RUNNER, Time, print_ratios, time_command

RATES = (0.001, 0.0001, 0.01, 0.0003, 0.003, 0.0005, 0.002, 0.005)
DECAYS = (0.0, 0.0001, 0.01)
BATCHES, SAMPLES, PASSES = 16, 8, 5
Cell = tuple[float, float]  # learning rate, weight decay
Heads = dict[Cell, list[float]]  # of each cell the last loss, and the L2 norms of the changes of weight and bias
Measured = tuple[Time, Heads]
SHARED, SCRIPTS, ONE_PROCESS = "runner", "scripts by hand", "one process by hand"
LIGHTNING, UNSHARED = "Lightning, Hydra multirun", "runner, sweep.share=none"
TARGETS = {
    SCRIPTS: 0.06,
    LIGHTNING: 0.10,
    ONE_PROCESS: 2.5,
    UNSHARED: None,
}  # for the ratio of CPU times, of the runner to each


def grid(cells: int) -> tuple[Sequence[float], Sequence[float]]:
    """Learning rates and weight decays that make so many cells. Raises ValueError if there are none."""
    decays = DECAYS if cells % len(DECAYS) == 0 else DECAYS[:1]
    rates = RATES[: cells // len(decays)]
    if not rates or len(rates) * len(decays) != cells:
        raise ValueError(f"{cells} cells; give 1 to {len(RATES)}, or a multiple of 3 up to {len(RATES) * len(DECAYS)}")
    return rates, decays


def joined(values: Sequence[float]) -> str:
    """The values with commas between them, as Hydra takes them."""
    return ",".join(map(str, values))


def norms(table: Path) -> list[float]:
    """How far weight and bias of the head moved, from a `changes.csv`; asserts that nothing else moved."""
    with table.open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    moved = {name for name, row in rows.items() if row["moved"] == "True"}
    assert moved == {"fc.weight", "fc.bias"}, f"{table}: {sorted(moved)} moved"
    return [float(rows[name]["change_l2"]) for name in ("fc.weight", "fc.bias")]


def runner(cells: int, size: int, share: str, folder: Path) -> Measured:
    """A sweep of this runner, with tables and page."""
    rates, decays = grid(cells)
    frozen = ["method=requires_grad", "freeze=backbone", "freeze.buffers=frozen", f"sweep.share={share}"]
    work = [f"batches={BATCHES}", f"data.epochs={PASSES}", f"data.batch_size={SAMPLES}", "threads=1"]
    swept = [f"optimizer.lr={joined(rates)}", f"optimizer.weight_decay={joined(decays)}"]
    place = [f"model.input=[3,{size},{size}]", f"hydra.sweep.dir={folder}"]
    time = time_command([*RUNNER, "-m", *frozen, *work, *swept, *place])
    heads: Heads = {}
    read = []
    for file in folder.glob("*/run.json"):
        record = json.loads(file.read_text())
        given = dict(text.split("=", 1) for text in record["overrides"])
        cell = float(given["optimizer.lr"]), float(given["optimizer.weight_decay"])
        heads[cell] = [record["loss_last"], *norms(file.with_name("changes.csv"))]
        read.append((record["shared"] or {}).get("batches_read", 0))
    steps = BATCHES * PASSES
    expected = [0] * cells if share == "none" else [steps - BATCHES, *[steps] * (cells - 1)]
    assert sorted(read) == expected, f"sweep.share={share}: batches read from the store by each run: {sorted(read)}"
    return time, heads


def scripts(cells: int, runs: int, size: int, folder: Path) -> Measured:
    """`runs` of the scripts by hand, spread over the grid, one process each; the time is scaled to all cells."""
    every = list(product(*grid(cells)))
    total, heads = Time(), Heads()
    for lr, decay in [every[number * cells // runs] for number in range(runs)]:
        out = folder / f"{lr}-{decay}"
        frozen = ["--method", "requires_grad", "--freeze", "backbone", "--buffers", "frozen", "--threads", "1"]
        work = ["--batches", str(BATCHES), "--passes", str(PASSES), "--batch-size", str(SAMPLES), "--size", str(size)]
        total += time_command([*BY_HAND, *frozen, *work, "--lr", str(lr), "--weight-decay", str(decay), "--out", str(out)])
        heads[lr, decay] = [json.loads((out / "run.json").read_text())["loss_last"], *norms(out / "changes.csv")]
    return Time(total.cpu / runs * cells, total.wall / runs * cells), heads


def one_process(cells: int, size: int, folder: Path) -> Measured:
    """The process by hand that computes the outputs of the frozen layers once."""
    rates, decays = (list(map(str, values)) for values in grid(cells))
    work = ["--batches", str(BATCHES), "--passes", str(PASSES), "--batch-size", str(SAMPLES), "--size", str(size)]
    script = [sys.executable, "-m", "benchmarks.by_hand_features", "--threads", "1", "--out", str(folder)]
    time = time_command([*script, *work, "--lr", *rates, "--weight-decay", *decays])
    records = {file: json.loads(file.read_text()) for file in folder.glob("*/run.json")}
    heads = {
        (record["lr"], record["weight_decay"]): [record["loss_last"], *norms(file.with_name("changes.csv"))]
        for file, record in records.items()
    }
    return time, heads


def lightning(cells: int, size: int, folder: Path) -> Measured:
    """The sweep of Lightning under Hydra's multirun."""
    rates, decays = grid(cells)
    work = [f"batches={BATCHES}", f"passes={PASSES}", f"samples={SAMPLES}", f"size={size}", "threads=1"]
    script = [sys.executable, "-m", "benchmarks.peers.hydra_heads", "-m", f"hydra.sweep.dir={folder}"]
    time = time_command([*script, *work, f"lr={joined(rates)}", f"weight_decay={joined(decays)}"])
    records = [json.loads(file.read_text()) for file in folder.glob("*/run.json")]
    return time, {(one["lr"], one["weight_decay"]): [one["loss_last"], *one["moved"]] for one in records}


def scaled(sweep: Callable[[int, Path], Measured], cells: int, of: int) -> Measured:
    """The time of a sweep of `of` cells, from one of `cells` and one of a single cell: what is done once counts once."""
    with tempfile.TemporaryDirectory() as folder:
        time, heads = sweep(cells, Path(folder, "many"))
        if 1 < cells < of:
            first, _ = sweep(1, Path(folder, "one"))
            more = (of - 1) / (cells - 1)
            time = Time(first.cpu + more * (time.cpu - first.cpu), first.wall + more * (time.wall - first.wall))
    return time, heads


def contestants(args: argparse.Namespace) -> dict[str, Callable[[], Measured]]:
    """{name: function that does the work and returns its time for all cells}."""
    cells, size = args.cells, args.size
    found: dict[str, Callable[[], Measured]] = {
        SHARED: lambda: scaled(lambda count, folder: runner(count, size, "prefix", folder), cells, cells),
        SCRIPTS: lambda: scaled(lambda count, folder: scripts(count, args.hand_runs, size, folder), cells, cells),
        ONE_PROCESS: lambda: scaled(lambda count, folder: one_process(count, size, folder), cells, cells),
    }
    if args.peers:
        found[UNSHARED] = lambda: scaled(lambda count, folder: runner(count, size, "none", folder), args.peers, cells)
        if find_spec("lightning"):
            found[LIGHTNING] = lambda: scaled(lambda count, folder: lightning(count, size, folder), args.peers, cells)
        else:
            print("left out: Lightning is not installed", file=sys.stderr)
    return found


def assert_same_heads(found: dict[str, Heads]) -> None:
    """Raise AssertionError if a cell of a contestant ends with another head than that of the runner."""
    for name, heads in found.items():
        common = heads.keys() & found[SHARED].keys()
        assert common, f"{name}: no cell was carried out that the runner's sweep has too"
        for cell in common:
            values, expected = heads[cell], found[SHARED][cell]
            same = all(isclose(one, other, rel_tol=1e-3) for one, other in zip(values, expected, strict=True))
            assert same, f"{name}: the cell {cell} ends with {values}, in the runner with {expected}"


def compare(args: argparse.Namespace) -> dict[str, list[Time]]:
    """The times of each contestant for all cells, in `args.repeats` rounds; every second round is in the reverse order."""
    doing = contestants(args)
    times: dict[str, list[Time]] = {name: [] for name in doing}
    for number in range(args.repeats):
        heads = {}
        for name in sorted(doing, reverse=number % 2 == 1):
            time, heads[name] = doing[name]()
            times[name].append(time)
        assert_same_heads(heads)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=24, help="cells of the sweep: 1 to 8, or a multiple of 3 up to 24")
    parser.add_argument("--size", type=int, default=128, help="height and width of a sample")
    parser.add_argument("--hand-runs", type=int, help="scripts by hand that are run; their time is scaled to all cells")
    parser.add_argument("--peers", type=int, help="cells of Lightning and of sweep.share=none, scaled likewise; 0: left out")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    args.hand_runs = args.cells if args.hand_runs is None else args.hand_runs
    args.peers = args.cells if args.peers is None else args.peers
    try:
        for cells in filter(None, (args.cells, args.peers)):
            grid(cells)
    except ValueError as error:
        parser.error(str(error))
    if not 1 <= args.hand_runs <= args.cells or not 0 <= args.peers <= args.cells:
        parser.error("--hand-runs and --peers are at most the number of cells")
    times = compare(args)
    print(f"a sweep of {args.cells} cells, one thread; the runner compared with")
    for clock, (name, target) in product(("cpu", "wall"), TARGETS.items()):
        if name in times:
            own, other = ([getattr(time, clock) for time in times[each]] for each in (SHARED, name))
            seconds = f"{own[-1]:.1f} s against {other[-1]:.1f} s"
            ratios = [a / b for a, b in zip(own, other, strict=True)]
            print_ratios(f"{name}, {clock}", ratios, target if clock == "cpu" else None, seconds)


if __name__ == "__main__":
    main()
