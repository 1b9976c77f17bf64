"""`@norms`: the norm layers of a model, by torch's classes, or by the name of the class and what is in it."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d

from runner.errors import ConfigError
from runner.freezing.parts.norms import is_norm
from runner.freezing.selection import select
from tests.freezing.parts.tiny_models import tiny


class ChannelNorm(nn.Module):
    """A norm of one's own, with a scale for each channel of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, 4, 1, 1))


class NormedMix(nn.Module):
    """A layer that is called after norms, but has a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 4))


class PreNorm(nn.Module):
    """A block that begins with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(4), nn.Linear(4, 4)
        self.gamma = nn.Parameter(torch.ones(4))


class Normalize(nn.Module):
    """Subtracts the mean of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.BatchNorm2d(4), True),
        (nn.BatchNorm1d(4, affine=False), True),
        (nn.SyncBatchNorm(4), True),
        (nn.InstanceNorm3d(4), True),
        (nn.LayerNorm([2, 4]), True),
        (nn.GroupNorm(2, 4), True),
        (nn.RMSNorm(4), True),
        (timm.layers.BatchNormAct2d(4), True),
        (timm.layers.LayerNorm2d(4), True),
        (FrozenBatchNorm2d(4), True),
        (ChannelNorm(), True),
        (NormedMix(), False),
        (PreNorm(), False),
        (Normalize(), False),
        (Conv2dNormActivation(3, 4), False),
        (timm.models.levit.NormLinear(4, 2), False),
        (nn.Linear(4, 4), False),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)).parametrizations["weight"][0], False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_norm_is_known_by_its_class_or_by_the_name_of_its_class_and_its_parameters(module, expected):
    assert is_norm(module) == expected


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: torchvision.models.resnet18(), 40),
        (lambda: torchvision.models.vit_b_16(), 50),
        (lambda: timm.create_model("mobilevit_xxs"), 106),
        (lambda: timm.create_model("convnext_atto"), 34),
        (lambda: tiny("llama"), 5),
        (lambda: tiny("gpt2"), 10),
        (lambda: tiny("t5"), 12),
    ],
)
def test_the_norms_of_real_models_are_their_scales_and_shifts(make, count):
    with torch.device("meta"):
        parameters = select(make(), ["@norms"]).parameters
    assert len(parameters) == count
    assert {parameter.dim() for parameter in parameters.values()} == {1}


def test_the_running_statistics_of_norms_are_frozen_with_frozen_buffers():
    model = torchvision.models.resnet18()
    assert len(select(model, ["@norms"], buffers="frozen").buffers) == 60
    assert select(model, ["**"], keep=["@norms"], buffers="frozen").buffers == {}


def test_a_model_without_norms_is_refused():
    with pytest.raises(
        ConfigError, match=r"^patterns: '@norms' matches no parameter: it has no norm layer with parameters$"
    ):
        select(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2, elementwise_affine=False)), ["@norms"])
