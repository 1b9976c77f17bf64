"""A model that trains, fails, kills its process, hangs or is slow; written into the current folder as `mine.py`."""

from __future__ import annotations

from pathlib import Path

SOURCE = '''
import os, signal, time
from pathlib import Path
import runner.training.models


class Net(runner.training.models.MLP):
    """An MLP. `behavior`: good, fails, dies (is killed), dies_once, hangs (in a step), slow (0.5 seconds a step)."""

    def __init__(self, features, width, classes, behavior="good"):
        super().__init__(features, width, classes)
        self.behavior = behavior

    def forward(self, x):
        Path("ran").mkdir(exist_ok=True)
        Path("ran", f"{self.behavior}-{os.getpid()}").touch()
        if self.behavior == "fails":
            raise KeyError("on purpose")
        if self.behavior == "dies" or self.behavior == "dies_once" and not Path("died").exists():
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.behavior == "hangs":
            time.sleep(600)
        if self.behavior == "slow":
            time.sleep(0.5)
        return super().forward(x)
'''

# Overrides of a sweep that uses this model; `+model.build.behavior=...` must be added.
FAILING_MODEL = ("model=mlp", "batches=3", "model.build._target_=mine.Net", "hydra.sweep.dir=sweep")


def write_failing_model() -> None:
    """Write `mine.py` into the current folder."""
    Path("mine.py").write_text(SOURCE)
