"""What `test_two_processes.py` runs in two processes: `torchrun two_processes.py LIBRARY FOLDER`.

There are two trainings: in the second one, the process of rank 1 adds 1 to a frozen weight. Each process writes what it was
told to `FOLDER/RANK.json`.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

RANK = int(os.environ["RANK"])


def fit_with_lightning(audit_folder: Path, write: Callable, strict: bool):
    """Fit a small model with DDP, and return (the callback, a function that fits)."""
    from lightning.pytorch import Callback

    from runner.integrations.lightning import FreezeAudit
    from tests.integrations.test_lightning import Net, loader, trainer_with

    class Writes(Callback):
        def on_train_batch_start(self, trainer, module, batch, number):
            if trainer.global_step == 2:
                write(module.backbone[0].bias)

    audit = FreezeAudit(until=2, folder=audit_folder, strict=strict)
    trainer = trainer_with(audit, Writes(), strategy="ddp", devices=2, max_epochs=2)
    return audit, lambda: trainer.fit(Net(), loader())


def train_with_transformers(audit_folder: Path, write: Callable, strict: bool):
    """Train a tiny GPT-2 with DDP, and return (the callback, a function that trains)."""
    from runner.integrations.transformers import FreezeAudit
    from tests.integrations.test_transformers import At, trainer_of, with_frozen_embeddings

    audit = FreezeAudit(until=2, folder=audit_folder, strict=strict)
    writes = At("on_step_begin", 2, lambda model: write(model.transformer.wpe.weight))
    options = {"ddp_backend": "gloo", "ddp_find_unused_parameters": False}
    return audit, trainer_of(with_frozen_embeddings(), audit, writes, **options).train


def told(library: str, folder: Path, writes_on: int | None) -> dict:
    """Train, and return what this process was told; `writes_on`: the rank that writes to a frozen weight."""

    def write(tensor) -> None:
        if writes_on == RANK:
            tensor.data.add_(1)

    prepare = {"lightning": fit_with_lightning, "transformers": train_with_transformers}[library]
    audit, run = prepare(folder / f"written-on-{writes_on}", write, strict=True)
    error = ""
    try:
        run()
    except AssertionError as unsound:
        error = str(unsound)
    return {
        "verdicts": {row["name"]: row["verdict"] for row in audit.report.rows},
        "error": error,
        "notes": audit.report.notes,
    }


def main() -> None:
    warnings.simplefilter("ignore")
    library, folder = sys.argv[1], Path(sys.argv[2])
    (folder / f"{RANK}.json").write_text(json.dumps([told(library, folder, rank) for rank in (None, 1)]))


if __name__ == "__main__":
    main()
