"""Optimizers that do not support every run: the run is skipped with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion

from runner.errors import SkippedError
from runner.training.optimizers import LBFGS


def test_lbfgs_without_parameters_is_skipped_before_torch_2_14(monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.13.0+cpu"))
    with pytest.raises(SkippedError, match=r"needs torch 2.14 or newer; this is torch 2.13.0\+cpu"):
        LBFGS([{"params": [], "name": "trainable"}])
    assert LBFGS([{"params": [nn.Parameter(torch.ones(1))], "name": "trainable"}]).param_groups
