"""`@embeddings`: tables and bare parameters that are met before the first block of a stack."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from runner.errors import ConfigError
from runner.freezing.parts.embeddings import find_embeddings
from runner.freezing.parts.evidence import Evidence
from runner.freezing.selection import select
from runner.freezing.words import FOR_PYTHON
from tests.freezing.parts.tiny_models import tiny


def found(model: nn.Module) -> list[str]:
    """Return the names that `@embeddings` stands for in a model."""
    return list(find_embeddings(model, Evidence(), FOR_PYTHON))


TRANSFORMERS = {
    "albert": [f"albert.embeddings.{name}_embeddings" for name in ("word", "position", "token_type")],
    "bart": [
        "model.shared",
        *("model.encoder.embed_tokens", "model.encoder.embed_positions"),
        *("model.decoder.embed_tokens", "model.decoder.embed_positions"),
    ],
    "beit": ["beit.embeddings.cls_token", "beit.embeddings.mask_token"],
    "bert": [f"bert.embeddings.{name}_embeddings" for name in ("word", "position", "token_type")],
    "clip": [
        *("text_model.embeddings.token_embedding", "text_model.embeddings.position_embedding"),
        *("vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding"),
    ],
    "deberta": ["deberta.embeddings.word_embeddings", "deberta.embeddings.position_embeddings"],
    "gpt2": ["transformer.wte", "transformer.wpe"],
    "llama": ["model.embed_tokens"],
    "mamba": ["backbone.embeddings"],
    "switch": ["shared", "encoder.embed_tokens", "decoder.embed_tokens"],
    "t5": ["shared", "encoder.embed_tokens", "decoder.embed_tokens"],
    "t5_one_layer": ["shared", "encoder.embed_tokens", "decoder.embed_tokens"],
    "vit": ["vit.embeddings.cls_token", "vit.embeddings.position_embeddings"],
    "xlnet": ["transformer.mask_emb", "transformer.word_embedding"],
}
TIMM = {
    "vit_tiny_patch16_224": ["cls_token", "pos_embed"],
    "deit_tiny_distilled_patch16_224": ["cls_token", "pos_embed", "dist_token"],
    "vit_small_r26_s32_224": ["cls_token", "pos_embed"],  # a ResNet comes before its blocks
    "cait_xxs24_224": ["cls_token", "pos_embed"],
    "vit_base_patch16_siglip_224": ["pos_embed"],  # not the latent of its attention pool
    "naflexvit_base_patch16_gap": ["embeds.reg_token", "embeds.pos_embed"],
}
TORCHVISION = {
    "vit_b_16": ["class_token", "encoder.pos_embedding"],
    "mvit_v1_b": [f"pos_encoding.{name}" for name in ("class_token", "spatial_pos", "temporal_pos", "class_pos")],
}


@pytest.mark.parametrize(("name", "expected"), TRANSFORMERS.items())
def test_the_embeddings_of_transformers_models(name, expected):
    assert found(tiny(name)) == expected


@pytest.mark.parametrize(("name", "expected"), TIMM.items())
def test_the_embeddings_of_timm_models(name, expected):
    with torch.device("meta"):
        assert found(timm.create_model(name)) == expected


@pytest.mark.parametrize(("name", "expected"), TORCHVISION.items())
def test_the_embeddings_of_torchvision_models(name, expected):
    with torch.device("meta"):
        assert found(torchvision.models.get_model(name)) == expected


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "swin_t", "maxvit_t"])
def test_layer_scales_norms_and_tables_of_relative_positions_are_no_embeddings(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    with pytest.raises(
        ConfigError, match=r"^patterns: '@embeddings' matches no parameter: no Embedding and no bare parameter"
    ):
        select(model, ["@embeddings"])


class Block(nn.Module):
    """A block with an embedding of its own, as T5's blocks have."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.mix, self.gamma = nn.Embedding(4, 2), nn.Linear(4, 4), nn.Parameter(torch.ones(4))


class Net(nn.Module):
    """A model with embeddings of all kinds, and parameters that are none, around `depth` blocks."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.token, self.scale, self.in_proj_weight = (nn.Parameter(torch.ones(size)) for size in ((1, 4), (), (4, 4)))
        self.words, self.bags = nn.Embedding(5, 4), nn.EmbeddingBag(5, 4)
        self.extra = nn.ParameterList([nn.Parameter(torch.ones(3, 4))])
        self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
        self.late = nn.Embedding(5, 4)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_what_stands_in_blocks_or_after_them_is_no_embedding(depth):
    assert found(Net(depth)) == ["token", "words", "bags", "extra.0"]


def test_of_a_model_without_blocks_the_tables_are_the_embeddings_but_no_bare_parameter():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 2))
    model.weights = nn.Parameter(torch.ones(2, 2))
    assert found(model) == ["0"]


def test_the_embeddings_of_a_wrapped_model_are_the_same_tensors():
    model = Net(2)
    plain = select(model, ["@embeddings"]).parameters.values()
    wrapped = select(nn.DataParallel(model), ["@embeddings"]).parameters.values()
    assert list(map(id, plain)) == list(map(id, wrapped))
