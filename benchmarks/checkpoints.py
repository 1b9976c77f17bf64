"""What comparing two checkpoints takes: memory for a pair of any size, and time beside `cmp`.

Run from the project's root: `python -m benchmarks.checkpoints [--gigabytes 20] [--folder DIR]`. It writes a pair of
safetensors files of that size; `--sparse` makes files that take no room on the disk, which are all zeros.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

LAYERS = 40
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""  # in a process that is small itself, because a child begins with the peak of the process that it is forked from
CODE = """
import sys
from runner import diff
found = diff(sys.argv[1], sys.argv[2], ["layers"])
assert not found.leaks and len(found.rows) == int(sys.argv[3]), found
"""


def write(path: Path, gigabytes: float, is_sparse: bool) -> int:
    """Write a safetensors file of bfloat16 tensors, one of which has a tenth of all bytes; return how many there are."""
    torch.manual_seed(0)
    total = int(gigabytes * 1e9)
    sizes = {
        "embed.weight": total // 10,
        **{f"layers.{number}.weight": total * 9 // 10 // LAYERS for number in range(LAYERS)},
    }
    header, end = {}, 0
    for name, size in sizes.items():
        begin, end = end, end + size // 2 * 2
        header[name] = {"dtype": "BF16", "shape": [(end - begin) // 2], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        if not is_sparse:
            block = torch.randn(1 << 19).bfloat16().view(torch.uint8).numpy().tobytes()
            for _ in range(end // len(block)):
                opened.write(block)
        opened.truncate(8 + len(text) + end)
    return len(sizes)


def seconds_and_peak(command: list[str]) -> tuple[float, float, float]:
    """Run a command, and return (seconds, CPU seconds, the peak of its resident memory in GB, mapped pages included)."""
    start = perf_counter()
    done = subprocess.run([sys.executable, "-c", MEASURE, *command], capture_output=True, text=True, check=True)
    seconds, peak = map(float, done.stdout.split())
    return perf_counter() - start, seconds, peak * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, help="where the files are written; they are removed at the end")
    parser.add_argument("--sparse", action="store_true")
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        files = [str(Path(folder, name)) for name in ("before.safetensors", "after.safetensors")]
        tensors, _ = (write(Path(file), args.gigabytes, args.sparse) for file in files)
        start = [sys.executable, "-c", "from runner import diff"]
        commands = {"cmp": ["cmp", *files], "diff": [sys.executable, "-c", CODE, *files, str(tensors)], "import": start}
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
        for _ in range(args.repetitions):
            for name, command in commands.items():
                found[name].append(seconds_and_peak(command))
        for name, values in found.items():
            wall, cpu, peak = (median(each[place] for each in values) for place in range(3))
            print(f"{name:7} {wall:7.2f} s  CPU {cpu:7.2f} s  peak {peak:.2f} GB")
        ratio = median(d[1] / c[1] for c, d in zip(found["cmp"], found["diff"], strict=True))
        print(f"diff / cmp, CPU time, import included: {ratio:.2f} (n = {args.repetitions})")


if __name__ == "__main__":
    main()
