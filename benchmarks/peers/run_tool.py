"""Train with one tool: `python -m benchmarks.peers.run_tool NAME --out FILE [--steps N] [--samples N] [--size N]`.

It only imports what this tool needs, as a user's script would.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.work import Batches, digests_of, model

NAMES = ("start", "loop", "lightning", "finetuning_scheduler", "fastai")


def train_function(name: str) -> Callable[..., Any]:
    """The tool's train function; that of `start` returns the model untrained, for the digests of the initial weights."""
    if name == "lightning":
        from benchmarks.peers.by_lightning import train
    elif name == "finetuning_scheduler":
        from benchmarks.peers.by_lightning import train_scheduled as train
    elif name == "fastai":
        from benchmarks.peers.by_fastai import train
    elif name == "loop":
        from benchmarks.peers.by_loop import train

        return partial(train, method="requires_grad")
    else:
        return lambda net, batches: net
    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train = train_function(args.name)
    trained = train(model(), Batches(args.steps, args.samples, args.size))
    args.out.write_text(json.dumps(asdict(digests_of(trained))))


if __name__ == "__main__":
    main()
