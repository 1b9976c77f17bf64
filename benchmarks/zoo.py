"""Freeze the backbone of every model of the zoo for one batch: was the head found, did it hold, and what was saved?

Run from the project's root: `python -m benchmarks.zoo [--only 'timm/*'] [--sample N --seed S] [-o FILE]`. The file is
written anew after each model, and a file that exists is continued: only models that are not in it, or failed there, are
run. The table is the same for the same versions: it has no times.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import random
import re
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.zoo_models import Entry, timm_entries, torchvision_entries
from benchmarks.zoo_transformers import peft_entries, transformers_entries

LIBRARIES = ("torchvision", "timm", "transformers", "peft")
METHODS = ("requires_grad", "zero_lr")
COMMON = ("freeze=backbone", "batches=1", "threads=1", "device=cpu")
SHARES = ("flops_share", "saved_bytes_share", "gradient_bytes_share", "optimizer_state_bytes_share")
# `heads`: the modules that are not frozen: the head that was found, and in what peft adapts also what it adds; names that
# differ in one number are one name with a `*`. `trained`: how many parameters trained. `idle`: tensors that were to
# train, and did not move. A share is relative to training everything. `same_bits`: whether the head has the same bits after
# both methods; it has not where torch takes another kernel, which rounds differently, once a layer is frozen: in attention
# with a trained mask, such as a relative position bias, and in a linear layer whose input is transposed. `reason`: why
# there is no verdict, or no share.
COLUMNS = (
    *("library", "model", "parameters", "heads", "method", "verdict", "trained", "idle"),
    *(*SHARES, "same_bits", "reason"),
)
Row = dict[str, str]


def entries() -> list[Entry]:
    """Return all models of the zoo."""
    return [*torchvision_entries(), *timm_entries(), *transformers_entries(), *peft_entries()]


def run_entry(entry: Entry) -> list[Row]:
    """Return the rows of one model, one for each method."""
    rows, digests = [], []
    for method in METHODS:
        row, digest = run_method(entry, method)
        rows.append(row)
        digests.append(digest)
    for row in rows:
        row["same_bits"] = str(digests[0] == digests[1]) if all(digests) else ""
    return rows


def run_method(entry: Entry, method: str) -> tuple[Row, str]:
    """Return the row of one run, and the digest of what trained; "" if the run failed, for a reason that the row has."""
    from runner import run

    row = {"library": entry.library, "model": entry.model, "method": method}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = run(*COMMON, *entry.overrides, f"method={method}", f"hydra.run.dir={folder}")
        except Exception as error:
            return {**row, "reason": " ".join(f"{type(error).__name__}: {error}".split())[:400]}, ""
        finally:
            gc.collect()
    if result.status == "interrupted":
        raise KeyboardInterrupt
    if result.status != "finished":
        return {**row, "reason": f"{result.status}: {result.record['reason']}"}, ""
    parameters = [each for each in result.rows if each["kind"] == "parameter"]
    counts = {
        "parameters": sum(each["numel"] for each in parameters),
        "trained": sum(each["numel"] for each in parameters if each["verdict"] == "trained"),
        "idle": sum(each["verdict"] == "idle" for each in parameters),
    }
    cost = result.record["cost"]
    shares = {key: "" if cost.get(key) is None else f"{cost[key]:.4g}" for key in SHARES}
    why_no_share = [note for note in result.record["notes"] if note.startswith("cost: ")] if "" in shares.values() else []
    verdict = {"heads": "|".join(not_frozen(parameters)), "verdict": str(result.verdict), "reason": "; ".join(why_no_share)}
    return {**row, **verdict, **shares, **{key: str(count) for key, count in counts.items()}}, _digest(result.record)


def _digest(record: Any) -> str:
    """Return the digest of what trained; "" if nothing did."""
    return record["trained_digest"] or ""


def not_frozen(parameters: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the modules whose parameters are not frozen; several that differ in a number are one with a `*`.

    A tied parameter counts to the last module that has it: the head, where an embedding is tied to it.
    """
    names = [(row["aliases"] or row["name"]).split("|")[-1] for row in parameters if not row["frozen"]]
    modules = {name.rpartition(".")[0] or name for name in names}
    alike: dict[str, list[list[str]]] = {}
    for name in sorted(modules):
        alike.setdefault(re.sub(r"\b\d+\b", "*", name), []).append(name.split("."))
    return sorted(
        ".".join(min(part) if len({*part}) == 1 else "*" for part in zip(*each, strict=True)) for each in alike.values()
    )


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write the table under its name once it is whole."""
    beside = path.with_suffix(".part")
    with beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    beside.replace(path)


def read(path: Path) -> dict[str, list[Row]]:
    """Return {name of a model: its rows} of a table that exists, without models that failed; {} if there is no table."""
    if not path.exists():
        return {}
    rows: dict[str, list[Row]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows.setdefault(f"{row['library']}/{row['model']}", []).append(dict(row))
    return {name: each for name, each in rows.items() if all(row["verdict"] for row in each)}


def chosen(every: Sequence[Entry], pattern: str, sample: int | None, seed: int) -> list[Entry]:
    """Return the models whose names match the pattern, or a sample of them that the seed decides."""
    matching = [entry for entry in every if fnmatchcase(entry.name, pattern)]
    if sample is None or sample >= len(matching):
        return matching
    taken = {entry.name for entry in random.Random(seed).sample(matching, sample)}
    return [entry for entry in matching if entry.name in taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of names such as timm/resnet10t (default: all)")
    parser.add_argument("--sample", type=int, metavar="N", help="as many, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="decides the sample (default: 0)")
    parser.add_argument("-o", dest="out", type=Path, default=Path("docs/zoo.csv"), metavar="FILE")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    every = entries()
    rows = read(args.out)
    for entry in chosen(every, args.only, args.sample, args.seed):
        if entry.name not in rows:
            rows[entry.name] = run_entry(entry)
            write(args.out, chain.from_iterable(rows[each.name] for each in every if each.name in rows))
        for row in rows[entry.name]:
            said = f"{row['verdict']}  {row['flops_share']:>6}  {row['heads']}" if row.get("verdict") else row["reason"]
            print(f"{entry.name:<50} {row['method']:<14} {said}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
