"""`model.head=new` stands for the topmost modules that the weights did not supply."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from runner.assemble.new_parts import frozen_at_random, frozen_new_parts, head_of_new, parts_of
from runner.errors import ConfigError
from runner.freezing.selection import select
from runner.tensors.checkpoint import read_checkpoint
from runner.training.models import MLP
from runner.training.pretrained.loading import load_into


def names_below(model: nn.Module, *prefixes: str) -> set[str]:
    """Return the names of the parameters and buffers of a model that begin with one of the prefixes."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name for name, _ in tensors if name.startswith(prefixes)}


RESNET = torchvision.models.resnet18()
SEGMENTATION = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
NESTED = nn.ModuleDict({"head": nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2)), "body": nn.Linear(2, 2)})


@pytest.mark.parametrize(
    ("model", "prefixes", "parts"),
    [
        (RESNET, ("fc.",), ["fc"]),
        (RESNET, ("fc.weight",), ["fc.weight"]),  # its bias was supplied
        (RESNET, ("layer4.", "fc."), ["layer4", "fc"]),
        (RESNET, ("layer4.1.bn2.", "fc.bias"), ["layer4.1.bn2", "fc.bias"]),
        (RESNET, ("bn1.running",), []),  # buffers alone do not train
        (RESNET, ("bn1.weight", "bn1.bias"), ["bn1.weight", "bn1.bias"]),  # its statistics were supplied
        (SEGMENTATION, ("classifier.",), ["classifier"]),
        (NESTED, ("head.",), ["head"]),
        (NESTED, ("head.0.",), ["head.0"]),
        (NESTED, ("head.", "body."), ["head", "body"]),  # never the model itself
        (MLP([4]), ("there.", "back."), ["there", "back"]),
        (RESNET, ("nothing",), []),
    ],
)
def test_new_tensors_are_named_by_the_topmost_modules_that_are_new_as_a_whole(model, prefixes, parts):
    assert parts_of(model, names_below(model, *prefixes)) == parts


def test_a_buffer_that_no_file_has_does_not_make_a_module_partly_old():
    model = nn.ModuleDict({"head": nn.Linear(2, 2), "body": nn.Linear(2, 2)})
    model["head"].register_buffer("positions", torch.arange(3), persistent=False)
    assert parts_of(model, {"head.weight", "head.bias"}) == ["head"]


def test_there_is_no_new_head_without_weights_and_none_where_they_supply_everything():
    with pytest.raises(ConfigError, match=r"there are no weights; give model\.checkpoint=FILE, or model\.head=auto$"):
        head_of_new(RESNET, None)
    for new in (set(), {"bn1.running_mean"}):
        with pytest.raises(ConfigError, match=r"^model\.head=new: the weights supply every parameter"):
            head_of_new(RESNET, new)


@pytest.mark.parametrize(
    ("patterns", "keep", "frozen"),
    [
        (["**"], [], ["layer4", "fc"]),
        (["**"], ["fc"], ["layer4"]),
        (["fc"], [], ["fc"]),
        (["fc.bias"], [], ["fc.bias"]),
        (["**"], ["layer4", "fc"], []),
        (["conv1"], [], []),
    ],
)
def test_the_parts_that_are_new_and_frozen_are_found(patterns, keep, frozen):
    new = names_below(RESNET, "layer4.", "fc.")
    assert frozen_new_parts(RESNET, select(RESNET, patterns, keep), new) == frozen


def test_a_new_tied_tensor_that_is_frozen_is_found():
    model = MLP([4])
    new = names_below(model, "there.", "back.")
    assert frozen_new_parts(model, select(model, ["there.weight"]), new) == ["there.weight", "back.weight"]
    assert frozen_new_parts(model, select(model, ["there.bias"]), new) == ["there.bias"]


SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
}
SEGFORMER = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
    "num_labels": 5,
}
LIBRARY_MODELS = {  # (config, its options, the base model, the whole model, what its weights do not supply)
    "RoBERTa": ("RobertaConfig", SMALL, "RobertaModel", "RobertaForSequenceClassification", ["classifier"]),
    "DistilBERT": (
        "DistilBertConfig",
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50},
        "DistilBertModel",
        "DistilBertForSequenceClassification",
        ["pre_classifier", "classifier"],
    ),
    "segformer": ("SegformerConfig", SEGFORMER, "SegformerModel", "SegformerForSemanticSegmentation", ["decode_head"]),
}


def library_model(kind: str):
    """Return (base model, class of the whole model, its config, what is new in it) for a tiny model of transformers."""
    import transformers

    config_class, options, base, whole, new = LIBRARY_MODELS[kind]
    config = getattr(transformers, config_class)(**options)
    return getattr(transformers, base)(config), getattr(transformers, whole), config, new


@pytest.mark.long
@pytest.mark.parametrize("kind", LIBRARY_MODELS)
def test_what_transformers_says_is_missing_is_the_whole_head(kind, tmp_path):
    base, whole, _, new = library_model(kind)
    base.save_pretrained(tmp_path / "base")
    model, info = whole.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert head_of_new(model, info["missing_keys"]) == new


@pytest.mark.long
@pytest.mark.parametrize("kind", ["RoBERTa", "DistilBERT"])
def test_what_a_checkpoint_of_the_base_model_lacks_is_the_whole_head(kind, tmp_path):
    base, whole, config, new = library_model(kind)
    base.save_pretrained(tmp_path / "base", max_shard_size="8KB")
    model = whole(config)
    loaded = load_into(model, read_checkpoint(str(tmp_path / "base")), strict=False)
    assert head_of_new(model, loaded.new) == new
    oracle = whole.from_pretrained(tmp_path / "base").state_dict()
    old = model.state_dict().keys() - loaded.new
    assert all(torch.equal(model.state_dict()[name], oracle[name]) for name in old)


@pytest.mark.long
def test_a_file_whose_names_its_library_changes_is_refused_with_a_hint(tmp_path):
    base, whole, config, _ = library_model("segformer")
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(ConfigError, match="it is of another model, or only its library can load it"):
        load_into(whole(config), read_checkpoint(str(tmp_path / "base")), strict=False)
    torch.save(base.state_dict(), tmp_path / "base.pt")  # with the names of the model itself
    model = whole(config)
    loaded = load_into(model, read_checkpoint(str(tmp_path / "base.pt")), strict=False)
    assert head_of_new(model, loaded.new) == ["decode_head"]


@pytest.mark.long
def test_a_tied_gpt2_takes_the_files_of_its_whole_and_of_its_base(tmp_path):
    import transformers

    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0)
    source = transformers.GPT2LMHeadModel(config)
    source.save_pretrained(tmp_path / "whole", max_shard_size="8KB")
    source.transformer.save_pretrained(tmp_path / "base")
    for folder in ("whole", "base"):
        model = transformers.GPT2LMHeadModel(config)
        assert load_into(model, read_checkpoint(str(tmp_path / folder))).new == frozenset()
        assert all(torch.equal(each, source.state_dict()[name]) for name, each in model.state_dict().items())


def test_the_advice_on_new_parts_that_are_frozen_is_one_that_can_help():
    text = "frozen although no weights supplied it, so it stays at its random start: head; "
    assert frozen_at_random(["head"], {"head.weight"}) == f"{text}freeze=backbone model.head=new keeps it trainable"
    built_frozen = "its builder set requires_grad=False, so have it built trainable"
    assert frozen_at_random(["head"], {"header.weight", "body.weight"}) == f"{text}{built_frozen}"
