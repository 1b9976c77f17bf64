"""Where the CPU time of an import, of a run and of a run of a sweep goes: the table of docs/performance.md.

Run from the project's root, on Linux: `python -m benchmarks.where_time_goes [--cells N] [--repeats N] [--print-only]`. It
prints the table and writes it into the page. Shares are of the CPU time of the whole process, medians over `--repeats`
processes; of a run of a sweep, medians over the runs from the third on, with what the sweep does once for all runs (it
composes their configs at its start, and writes tables and page at its end, imports left out) divided by their number.
Functions of the runner are timed by name in `benchmarks/timed_parts.py`, without a profiler.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.shared_prefix import BATCHES, PASSES, SAMPLES, grid, joined
from benchmarks.timed_parts import END as ENDING
from benchmarks.timed_parts import MARKED, PARTS
from benchmarks.timing import ROOT, time_command

PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- what follows is written by: python -m benchmarks.where_time_goes -->", "<!-- end of what is written -->"
RUN, COMPOSED, ENDED = MARKED
LEFT_OUT = 2  # runs of a sweep: they import, and compute what later ones read
Seconds = dict[str, float]  # {part: CPU seconds}

PROCESSES = {  # column -> what Python is to run
    "`import runner`": ["-c", "import runner"],
    "`from runner import audit`": ["-c", "from runner import audit"],
    "`--help`": ["-m", "runner", "--help"],
    "a run, 4 steps": ["-m", "runner", "freeze=backbone", "batches=4", "model.input=[3,64,64]", "threads=1"],
}
SMALL, LARGE = "a run of a sweep, `mlp`", "a run of a sweep, ResNet-18"
COLUMNS = (*PROCESSES, SMALL, LARGE)


def sweep_arguments(column: str, cells: int) -> list[str]:
    """The arguments of the runner for a sweep of so many runs."""
    if column == SMALL:
        return ["model=mlp", "freeze=backbone", "batches=10", "threads=1", "cost=off", f"seed=range({cells})"]
    rates, decays = grid(cells)
    work = [f"batches={BATCHES}", f"data.epochs={PASSES}", f"data.batch_size={SAMPLES}", "model.input=[3,128,128]"]
    frozen = ["method=requires_grad", "freeze=backbone", "freeze.buffers=frozen", "threads=1"]
    return [*frozen, *work, f"optimizer.lr={joined(rates)}", f"optimizer.weight_decay={joined(decays)}"]


def measured(arguments: Sequence[str], folder: Path) -> tuple[Seconds, list[tuple[str, Seconds]]]:
    """Run Python with its parts timed; return the seconds of each part, and those at each mark."""
    file = folder / "parts.json"
    time = time_command([sys.executable, "-m", "benchmarks.timed_parts", str(file), *arguments])
    found = json.loads(file.read_text())
    seconds: Seconds = found["seconds"]
    return seconds | {ENDING: time.cpu - sum(seconds.values())}, found["marks"]


def process_seconds(column: str, repeats: int) -> Seconds:
    """The seconds of each part of a whole process, medians over several processes."""
    found = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            arguments = PROCESSES[column]
            place = [f"hydra.run.dir={folder}/run"] if "runner" in arguments and "--help" not in arguments else []
            found.append(measured([*arguments, *place], Path(folder))[0])
    return medians(found)


def cell_seconds(column: str, cells: int) -> Seconds:
    """The seconds of each part of a run of a sweep, medians over its runs. Asserts that they read what the first stored."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder, "sweep")
        arguments = ["-m", "runner", "-m", *sweep_arguments(column, cells), f"hydra.sweep.dir={sweep}"]
        _, marks = measured(arguments, Path(folder))
        records = [json.loads(file.read_text()) for file in sweep.glob("*/run.json")]
    if column == LARGE:
        read = sorted(record["shared"]["batches_read"] for record in records)
        assert read[1:] == [BATCHES * PASSES] * (cells - 1), f"batches that the runs read from the store: {read}"
    starts = [seconds for name, seconds in marks if name == RUN]
    assert len(starts) == cells, f"{len(starts)} of {cells} runs were carried out in the sweep's process"
    by_run = [since(first, second) for first, second in zip(starts[LEFT_OUT:], starts[LEFT_OUT + 1 :], strict=False)]
    at = dict(marks)
    once = since(at[COMPOSED], at[f"after {COMPOSED}"]), since(at[ENDED], at[f"after {ENDED}"])
    found = medians(by_run)
    for part in PARTS:
        found[part] += sum(each.get(part, 0.0) for each in once) / cells if not part.startswith("import") else 0.0
    return found


def since(first: Seconds, second: Seconds) -> Seconds:
    """The seconds of each part from one mark to a later one."""
    return {part: second[part] - first.get(part, 0.0) for part in second}


def medians(found: Sequence[Seconds]) -> Seconds:
    """The median seconds of each part."""
    return {part: median(each.get(part, 0.0) for each in found) for part in PARTS}


def table(by_column: dict[str, Seconds]) -> str:
    """A Markdown table: a row for each part, with its share of each column's seconds."""
    lines = [f"| part | {' | '.join(by_column)} |", f"|---|{'---|' * len(by_column)}"]
    for part in PARTS:
        shares = [seconds[part] / sum(seconds.values()) for seconds in by_column.values()]
        lines.append(f"| {part} | {' | '.join(map(as_percentage, shares))} |")
    return "\n".join(lines) + "\n"


def as_percentage(share: float) -> str:
    """A share as `12%`, `<1%`, or nothing if it is below a thousandth."""
    return "" if share < 0.001 else "<1%" if share < 0.01 else f"{share:.0%}"


def with_table(page: str, text: str) -> str:
    """The page with the table between its two comments replaced. Raises ValueError if a comment is missing."""
    before, found, rest = page.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not found or not found_end:
        raise ValueError(f"{PAGE.name} lacks the comment {END if found else BEGIN}")
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=24, help="runs of a sweep: 4 to 8, or a multiple of 3 up to 24")
    parser.add_argument("--repeats", type=int, default=3, help="processes, for an import and a run")
    parser.add_argument("--print-only", action="store_true", help="do not write the table into the page")
    args = parser.parse_args()
    if args.cells < LEFT_OUT + 2:
        parser.error(f"--cells is {args.cells}; give {LEFT_OUT + 2} or more")
    by_column = {column: process_seconds(column, args.repeats) for column in PROCESSES}
    by_column |= {column: cell_seconds(column, args.cells) for column in (SMALL, LARGE)}
    text = table(by_column)
    print(text)
    if not args.print_only:
        PAGE.write_text(with_table(PAGE.read_text(), text))


if __name__ == "__main__":
    main()
