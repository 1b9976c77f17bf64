"""Known results about freezing over time, measured again: `python -m benchmarks.known_results [PART ...]`.

Run from the project's root; all parts take about ten minutes on two cores. Writes benchmarks/results/known_results.json,
and from it docs/known_results.md; with parts named, only these are measured again. `--page` writes the page alone.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from time import perf_counter

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: for small tensors a second thread costs time

from benchmarks.known_results import digits, freeze_out, memory, rounding, two_linear
from benchmarks.known_results.page import page
from benchmarks.results import FOLDER, Row, machine

PARTS = {
    "two_linear": two_linear.measure,
    "digits": digits.measure,
    "freeze_out": freeze_out.measure,
    "memory": memory.measure,
    "lisa": memory.measure_lisa,
    "rounding": rounding.measure,
}
FIGURES = FOLDER / "known_results.json"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "known_results.md"


def as_json(results: dict[str, list[Row]], versions: dict[str, str]) -> str:
    """Return the figures as JSON, with a line for each row."""
    rows = {part: ",\n".join(f"   {json.dumps(row)}" for row in results[part]) for part in PARTS if part in results}
    parts = ",\n".join(f'  "{part}": [\n{lines}\n  ]' for part, lines in rows.items())
    return f'{{\n "machine": {json.dumps(versions)},\n "results": {{\n{parts}\n }}\n}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"which of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page from the stored figures")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    stored = json.loads(FIGURES.read_text()) if FIGURES.exists() else {"results": {}}
    for part in () if args.page else args.parts or PARTS:
        start = perf_counter()
        stored["results"][part] = PARTS[part]()
        stored["machine"] = machine()
        print(f"{part:<12} {perf_counter() - start:6.1f} s", flush=True)
        FIGURES.write_text(as_json(stored["results"], stored["machine"]))
    PAGE.write_text(page(stored["results"], stored["machine"]))


if __name__ == "__main__":
    main()
