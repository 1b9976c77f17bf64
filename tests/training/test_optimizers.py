"""Optimizers that cannot serve every run: such a run is skipped with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion

from runner.errors import SkippedError
from runner.training.optimizers import LBFGS


def test_lbfgs_without_parameters_is_skipped_in_a_torch_that_cannot_step_it(monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.13.0+cpu"))
    with pytest.raises(SkippedError, match=r"from torch 2.14 on, and this is torch 2.13.0\+cpu"):
        LBFGS([{"params": [], "name": "trainable"}])
    assert LBFGS([{"params": [nn.Parameter(torch.ones(1))], "name": "trainable"}]).param_groups
