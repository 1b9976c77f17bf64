"""fastai's Learner with two parameter groups, the first one frozen; without recorder, progress bar and validation.

Source: https://docs.fast.ai/learner.html
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from fastai.callback.core import TrainEvalCallback
from fastai.data.core import DataLoaders
from fastai.learner import CastToTensor, Learner
from fastai.optimizer import OptimWrapper
from fastai.torch_core import params
from torch import nn

from benchmarks.peers.work import LR, MOMENTUM, Backbone, Batch


def train(net: nn.Module, batches: Iterable[Batch]) -> nn.Module:
    """Train one epoch on the batches with torch's SGD in an OptimWrapper, as in fastai's documentation."""
    model = Backbone(net)
    learner = Learner(
        DataLoaders(batches, [], device=torch.device("cpu")),
        model,
        loss_func=nn.CrossEntropyLoss(),
        opt_func=partial(OptimWrapper, opt=torch.optim.SGD, momentum=MOMENTUM),
        lr=LR,
        splitter=lambda m: [params(m.backbone), params(m.head)],
        train_bn=False,
        default_cbs=False,
        cbs=[TrainEvalCallback, CastToTensor],
    )
    learner.freeze()
    learner.fit(1)
    return model
