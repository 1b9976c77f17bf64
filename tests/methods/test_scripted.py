"""Every method on a model with a layer that torch has scripted: it holds as on any other, or is skipped with a reason."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from runner.config.schema import CONF
from runner.errors import SkippedError
from tests.in_memory import run_experiment


class Scripted(nn.Module):
    """A scripted layer with BatchNorm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


MODEL = ("model=custom", f"model.build._target_={__name__}.Scripted", "model.input=[8]", "model.classes=4")
NO_PREFIX = "body is a ScriptModule, which takes no hook: the frozen prefix cannot be found"
SKIPPED = {
    "cached_prefix": NO_PREFIX,
    "detach": NO_PREFIX,
    "to_buffer": "body is a ScriptModule, whose parameters cannot become buffers",
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("method", sorted(path.stem for path in (CONF / "method").glob("*.yaml")))
def test_a_method_holds_a_scripted_layer_or_is_skipped_with_a_reason(method):
    overrides = (*MODEL, f"method={method}", "freeze=backbone", "data.epochs=2")
    if method in SKIPPED:
        with pytest.raises(SkippedError, match=f"^{SKIPPED[method]}$"):
            run_experiment(*overrides)
    else:
        outcome = run_experiment(*overrides)
        assert {row["verdict"] for row in outcome.rows if row["kind"] == "parameter" and row["frozen"]} == {
            "none": {"leaked"},
            "restore": {"returned"},
        }.get(method, {"held"})
