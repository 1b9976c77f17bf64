"""What other programs that compare checkpoints find in pairs whose truth is known, and what they take.

Run from the project's root: `python -m benchmarks.checkpoint_rivals [--rivals DIR]`. The rivals are no dependencies; install
each with `pip install --no-deps --target DIR/NAME NAME`. mergekit's diff is an open pull request (608), so not installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import runner
from benchmarks.checkpoints import MEASURE

WRAPPER = "_orig_mod."
Edit = Callable[[dict[str, Tensor]], None]


def _flip(tensors: dict[str, Tensor], name: str, dtype: torch.dtype) -> None:
    tensors[name].view(dtype)[3, 3] ^= 1


def _rename(tensors: dict[str, Tensor]) -> None:
    tensors[f"{WRAPPER}layers.0.matrix.weight"] = tensors.pop("layers.0.matrix.weight") + 1


EDITS: dict[str, tuple[str, Edit]] = {  # {what changes: (the tensor, the change)}
    "nothing": ("", lambda tensors: None),
    "one bit in a matrix": ("layers.0.matrix.weight", lambda t: _flip(t, "layers.0.matrix.weight", torch.int32)),
    "a matrix, by 1%": ("layers.0.matrix.weight", lambda t: t["layers.0.matrix.weight"].mul_(1.01)),
    "a small bias": ("layers.0.matrix.bias", lambda t: t["layers.0.matrix.bias"].mul_(1.01)),
    "one bit in bfloat16": ("layers.0.half.weight", lambda t: _flip(t, "layers.0.half.weight", torch.int16)),
    "an integer buffer": ("bn.num_batches_tracked", lambda t: t["bn.num_batches_tracked"].add_(100)),
    "2**24 to 2**24+1": ("bn.num_batches_tracked", lambda t: t["bn.num_batches_tracked"].add_(1)),
    "0.0 to -0.0": ("layers.0.matrix.weight", lambda t: t["layers.0.matrix.weight"][0, 0].neg_()),
    "NaN": ("layers.0.matrix.weight", lambda t: t["layers.0.matrix.weight"][0].fill_(float("nan"))),
    "renamed and changed": ("layers.0.matrix.weight", _rename),
}


@dataclass(frozen=True)
class Rival:
    """A program: how it is called, and how its output names a tensor that it says has changed."""

    package: str
    command: Callable[[str, str], list[str]]
    says: Callable[[str, str], bool]


def _named_with_a_change(output: str, name: str) -> bool:
    """Return whether a line of modeldelta names the tensor with a change that is not 0.0000."""
    return any(name in line and line.split()[1:2] not in ([], ["0.0000"]) for line in output.splitlines())


RIVALS = (
    Rival(
        "freeze-runner",
        lambda before, after: ["-m", "runner.diff", before, after, "**", "re:.*tracked"],
        lambda output, name: any("leaked:" in line and name in line for line in output.splitlines()),
    ),
    Rival("modeldelta", lambda before, after: ["-m", "modeldelta", before, after, "--top-n", "99"], _named_with_a_change),
    Rival(
        "ckptkit",
        lambda before, after: ["-m", "ckptkit.cli", "diff", f"{before}/model.safetensors", f"{after}/model.safetensors"],
        lambda output, name: any(name in line and "changed" in line for line in output.splitlines()),
    ),
)


def model(size: int) -> dict[str, Tensor]:
    """Return the tensors of a small model."""
    torch.manual_seed(0)
    matrix = torch.randn(size, size)
    matrix[0, 0] = 0.0
    return {
        "layers.0.matrix.weight": matrix,
        "layers.0.matrix.bias": torch.randn(64),
        "layers.0.half.weight": torch.randn(size, size).bfloat16(),
        "bn.num_batches_tracked": torch.tensor(2**24),
    }


def saved(folder: Path, size: int, edit: Edit) -> tuple[str, str]:
    """Write a pair of checkpoints, as folders, and return their paths."""
    before, after = model(size), model(size)
    edit(after)
    for name, tensors in (("before", before), ("after", after)):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")
    return str(folder / "before"), str(folder / "after")


def answer(rival: Rival, pair: tuple[str, str], name: str, environment: Mapping[str, str]) -> str:
    """Return whether a program names the tensor that has changed; of a pair of equals, whether it says that any has."""
    done = subprocess.run(
        [sys.executable, *rival.command(*pair)], env=dict(environment), capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 3):
        return f"fails: {(done.stderr.strip().splitlines() or ['?'])[-1].split(':')[0].rpartition('.')[2]}"
    if name:
        return "found" if rival.says(done.stdout, name) else "-"
    return "ALARM" if any(rival.says(done.stdout, each) for each in model(8)) else "ok"


def cost(rival: Rival, pair: tuple[str, str], environment: Mapping[str, str]) -> str:
    """Return the seconds of CPU and the peak memory of a comparison, as a process that is small itself measures them."""
    command = [sys.executable, "-c", MEASURE, sys.executable, *rival.command(*pair)]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=True)
    seconds, peak = map(float, done.stdout.split()[-2:])
    return f"{seconds:.1f} s, {peak / 1e6:.2f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rivals", type=Path, help="the folder into which the rivals were installed")
    parser.add_argument("--size", type=int, default=6000, help="rows of the two square matrices of the pair that is timed")
    args = parser.parse_args()
    columns: dict[str, list[str]] = {}
    for rival in RIVALS:
        path = args.rivals / rival.package if args.rivals else None
        found = {each.name: each.version for each in distributions(path=[str(path)])} if path and path.is_dir() else {}
        if rival.package != "freeze-runner" and rival.package not in found:
            print(f"{rival.package} is not installed, and left out", file=sys.stderr)
            continue
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(path or ""), os.getcwd()])),
            "COLUMNS": "300",
        }
        cells = []
        for name, edit in EDITS.values():
            with tempfile.TemporaryDirectory() as folder:
                cells.append(answer(rival, saved(Path(folder), 64, edit), name, environment))
        with tempfile.TemporaryDirectory() as folder:
            cells.append(cost(rival, saved(Path(folder), args.size, EDITS["a matrix, by 1%"][1]), environment))
        columns[f"{rival.package} {found.get(rival.package, runner.__version__)}"] = cells
    print(f"| what changes | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for row, title in enumerate([*EDITS, f"two matrices of {args.size}x{args.size}"]):
        print(f"| {title} | {' | '.join(cells[row] for cells in columns.values())} |")


if __name__ == "__main__":
    main()
