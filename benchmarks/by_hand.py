"""What a careful user writes without this project: freeze a part of ResNet-18, train, and measure what moved.

The reference for the other benchmarks: it imports nothing of the project, does the same as
`python -m runner method=... freeze=...` in the most direct way, and writes the same columns and rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18


def tensors(model: nn.Module) -> dict[str, tuple[str, str, Tensor]]:
    """{name: (kind, type of its module, tensor)} for each parameter and buffer, in the order of the modules."""
    found = {}
    for owner, module in model.named_modules():
        kind = type(module).__name__
        prefix = f"{owner}." if owner else ""
        for name, parameter in module.named_parameters(recurse=False):
            found[prefix + name] = ("parameter", kind, parameter)
        for name, buffer in module.named_buffers(recurse=False):
            found[prefix + name] = ("buffer", kind, buffer)
    return found


def row(name: str, kind: str, module_type: str, before: Tensor, after: Tensor, frozen: bool, group: str, lr: Any) -> dict:
    """The row of `changes.csv` for one tensor."""
    moved = not torch.equal(before, after)
    old, new = (before, after) if before.is_floating_point() else (before.double(), after.double())
    difference = new.detach() - old
    initial, distance = torch.linalg.vector_norm(old).item(), torch.linalg.vector_norm(difference).item()
    if frozen:
        verdict = "leaked" if moved else "held"
    elif kind == "buffer":
        verdict = "drifted" if moved else "still"
    else:
        verdict = "trained" if moved else "idle"
    return {
        "name": name,
        "aliases": "",
        "kind": kind,
        "module_type": module_type,
        "shape": "x".join(map(str, before.shape)),
        "numel": before.numel(),
        "dtype": str(before.dtype).removeprefix("torch."),
        "frozen": frozen,
        "group": group,
        "lr": lr,
        "requires_grad": after.requires_grad,
        "initial_l2": initial,
        "change_l2": distance,
        "change_rel": distance / initial if initial else None,
        "change_max": difference.abs().max().item(),
        "moved": moved,
        "verdict": verdict,
        "cause": "",
    }


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows that all have the keys of the first one."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def parse_arguments() -> argparse.Namespace:
    """The settings of a run, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--method", choices=["zero_lr", "requires_grad", "none"], default="zero_lr")
    parser.add_argument("--freeze", choices=["fc", "backbone"], default="fc")
    parser.add_argument("--buffers", choices=["live", "frozen"], default="live", help="frozen: keep that part in eval mode")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--passes", type=int, default=1, help="how often all batches are trained on")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--size", type=int, default=224, help="height and width of a sample")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    return parser.parse_args()


def draw_batches(count: int, samples: int, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw batches of random pictures and classes, one when it is asked for."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(samples, 3, size, size, generator=generator), torch.randint(1000, (samples,), generator=generator)


def optimizer_of(model: nn.Module, frozen: set[str], args: argparse.Namespace) -> torch.optim.Optimizer:
    """Freeze the parameters in `frozen` by a method; return the optimizer, with a group for them and one for the others."""
    parts = {"frozen": frozen, "trainable": {name for name, _ in model.named_parameters()} - frozen}
    groups = [{"name": n, "params": [p for k, p in model.named_parameters() if k in part]} for n, part in parts.items()]
    if args.method == "zero_lr":
        groups[0]["lr"] = 0.0
    for parameter in groups[0]["params"] if args.method == "requires_grad" else []:
        parameter.requires_grad_(False)
    return torch.optim.SGD(groups, lr=args.lr, momentum=0.9, weight_decay=args.weight_decay)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[tuple[Tensor, Tensor]]) -> list[dict]:
    """Train on the batches, with the modules in the modes that they are in; return the rows of `steps.csv`."""
    loss_of = nn.CrossEntropyLoss()
    steps = []
    for number, (x, y) in enumerate(batches, 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        lrs = {f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups}
        steps.append({"step": number, "loss": loss.item(), "seconds": time.perf_counter() - start, **lrs})
    return steps


def write_run(
    out: Path,
    model: nn.Module,
    before: dict[str, Tensor],
    frozen: set[str],
    lrs: dict[str, float],
    steps: list[dict],
    settings: dict[str, Any],
) -> None:
    """Write the files of a run: how each tensor moved since `before`, the steps, and a record with the settings.

    `frozen`: names of parameters and buffers. `lrs`: {name of a parameter group: its learning rate}.
    """
    rows = []
    for name, (kind, module_type, tensor) in tensors(model).items():
        group = "" if kind == "buffer" else "frozen" if name in frozen else "trainable"
        rows.append(row(name, kind, module_type, before[name], tensor, name in frozen, group, lrs.get(group)))
    verdict = "leaked" if any(row["verdict"] == "leaked" for row in rows) else "held"
    losses = {"loss_first": steps[0]["loss"], "loss_last": steps[-1]["loss"]}
    record = {"verdict": verdict, **losses, **settings, "torch": torch.__version__}
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "changes.csv", rows)
    write_csv(out / "steps.csv", steps)
    (out / "run.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = resnet18(weights=None)
    before = {name: tensor.detach().clone() for name, (_, _, tensor) in tensors(model).items()}
    frozen = {name for name, _ in model.named_parameters() if name.startswith("fc.") == (args.freeze == "fc")}
    optimizer = optimizer_of(model, frozen, args)
    model.train()
    if args.buffers == "frozen":
        for name, module in model.named_children():
            module.train((name == "fc") != (args.freeze == "fc"))
        frozen |= {name for name, _ in model.named_buffers() if args.freeze == "backbone"}
    batches: Iterable[tuple[Tensor, Tensor]] = draw_batches(args.batches, args.batch_size, args.size, args.seed)
    if args.passes > 1:
        batches = [*batches] * args.passes
    steps = train(model, optimizer, batches)
    lrs = {group["name"]: group["lr"] for group in optimizer.param_groups}
    write_run(args.out, model, before, frozen, lrs, steps, {"seed": args.seed, "threads": args.threads})


if __name__ == "__main__":
    main()
