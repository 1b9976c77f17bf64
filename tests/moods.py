"""A model whose runs end in every way that a run can end, written into the current folder as `mine.py`."""

from __future__ import annotations

from pathlib import Path

SOURCE = '''
import os, signal, time
from pathlib import Path
import runner.training.models


class Net(runner.training.models.MLP):
    """`mood`: good, fails, dies, dies_once, hangs (in a step), slow (steps of half a second)."""

    def __init__(self, features, width, classes, mood="good"):
        super().__init__(features, width, classes)
        self.mood = mood

    def forward(self, x):
        Path("ran").mkdir(exist_ok=True)
        Path("ran", f"{self.mood}-{os.getpid()}").touch()
        if self.mood == "fails":
            raise KeyError("in a bad mood")
        if self.mood == "dies" or self.mood == "dies_once" and not Path("died").exists():
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mood == "hangs":
            time.sleep(600)
        if self.mood == "slow":
            time.sleep(0.5)
        return super().forward(x)
'''

MOODY = ("model=mlp", "batches=3", "model.build._target_=mine.Net", "hydra.sweep.dir=sweep")


def write_moods() -> None:
    """Write the model into the current folder."""
    Path("mine.py").write_text(SOURCE)
