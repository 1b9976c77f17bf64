"""Runs of models of torchvision, timm, transformers and peft, from configs alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import read_table

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:fan_in_fan_out:UserWarning")

TIMM = ("model=timm", "model.name=test_resnet", "model.input=[3,32,32]", "model.classes=4", "batches=2", "cost=off")
GPT2 = (
    *("model=huggingface", "model.auto=AutoModelForCausalLM", "data=tokens", "task=causal_lm", "batches=2", "cost=off"),
    "++model.config={model_type: gpt2, n_embd: 32, n_layer: 2, n_head: 2, vocab_size: 64}",
)
LORA = "peft_config: {_target_: peft.LoraConfig, r: 4, target_modules: [c_attn], fan_in_fan_out: true}"


def rows_of(cli, *overrides):
    """Carry out a run, and return {name: row} of its parameters."""
    code, _, err = cli(*overrides, "hydra.run.dir=out")
    assert code == 0, err
    return {row["name"]: row for row in read_table(Path("out/changes.csv")) if row["kind"] == "parameter"}


def test_a_timm_model_trains_with_all_but_its_head_frozen(cli):
    rows = rows_of(cli, *TIMM, "freeze=backbone", "model.head=fc", "save=true")
    trained = {name for name, row in rows.items() if row["verdict"] == "trained"}
    assert trained == {"fc.weight", "fc.bias"}
    assert {row["verdict"] for name, row in rows.items() if name not in trained} == {"held"}
    assert Path("out/model.safetensors").is_file()


def test_a_model_of_transformers_trains_from_a_config_alone(cli):
    rows = rows_of(cli, *GPT2, "freeze=backbone", "model.head=lm_head")
    assert rows["transformer.h.0.attn.c_attn.weight"]["verdict"] == "held"
    assert rows["transformer.wte.weight"]["verdict"] == "trained"  # it is the head's


def test_the_tokens_of_a_run_are_those_that_the_model_has(cli):
    assert rows_of(cli, *GPT2, "++model.config.vocab_size=16", "freeze=none")["transformer.wte.weight"]["shape"] == "16x32"


def test_the_config_of_a_model_may_be_given_without_a_plus(cli):
    overrides = [each.removeprefix("++") for each in GPT2]
    assert rows_of(cli, *overrides, "freeze=none")["transformer.wte.weight"]["shape"] == "64x32"


def test_a_torchvision_model_has_the_classes_and_options_that_are_given(cli):
    overrides = ("model=torchvision", "model.name=resnet18", "model.input=[3,32,32]", "model.classes=5")
    options = ("++model.width_per_group=64", "freeze=fc", "batches=1", "cost=off", "model.dtype=float64")
    row = rows_of(cli, *overrides, *options)["fc.weight"]
    assert (row["shape"], row["verdict"], row["dtype"]) == ("5x512", "held", "float64")


def test_adapters_are_put_into_a_model_after_it_is_built(cli):
    then = f"model.then=[gradient_checkpointing_enable, {{_target_: peft.get_peft_model, {LORA}}}]"
    rows = rows_of(cli, *GPT2, "freeze=none", then)
    moved = {name for name, row in rows.items() if row["moved"] == "True"}
    assert moved
    assert all("lora_" in name for name in moved)


def test_adapters_may_be_put_around_a_model_in_a_node(cli):
    inner = "{_target_: runner.training.pretrained.huggingface_models.huggingface_model, auto: AutoModelForCausalLM, "
    inner += "config: {model_type: gpt2, n_embd: 32, n_layer: 2, n_head: 2, vocab_size: 32}}"
    build = f"++model.build={{_target_: peft.get_peft_model, model: {inner}, {LORA}}}"
    rows = rows_of(cli, "model=custom", build, "data=tokens", "task=causal_lm", "freeze=none", "batches=2", "cost=off")
    assert any("lora_B" in name and row["verdict"] == "trained" for name, row in rows.items())


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 32}
LABELS = "data.fields={input_ids: {shape: [8], below: 32}, labels: {shape: [], below: 3}}"


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        *(("roberta", "auto"), ("bert", "new")),
        *(pytest.param(*pair, marks=pytest.mark.long) for pair in (("roberta", "new"), ("bert", "auto"))),
    ],
)
def test_of_a_new_head_that_an_adapter_copies_the_copy_is_trained(cli, kind, head):
    from transformers import AutoConfig, AutoModel

    AutoModel.from_config(AutoConfig.for_model(kind, **TINY)).save_pretrained("base")
    model = ("model=huggingface", "model.auto=AutoModelForSequenceClassification", "model.name=base", "model.classes=3")
    lora = "{_target_: peft.LoraConfig, task_type: SEQ_CLS, r: 2, target_modules: [query], modules_to_save: [classifier]}"
    then = f"model.then=[{{_target_: peft.get_peft_model, peft_config: {lora}}}]"
    data = ("data=synthetic", LABELS, "data.batch_size=2", "task=model_loss", "batches=2", "cost=off")
    rows = rows_of(cli, *model, then, *data, f"model.head={head}", "freeze=backbone", "strict=true")
    frozen = ".dense." if (kind, head) == ("roberta", "auto") else "nothing"  # auto takes RoBERTa's last layer alone
    copied = {name for name in rows if ".modules_to_save." in name and frozen not in name}
    assert copied
    assert {name for name, row in rows.items() if row["verdict"] == "trained"} == copied
    notes = json.loads(Path("out/run.json").read_text())["notes"]
    said = [note for note in notes if note.startswith("frozen although")]
    assert len(said) == (frozen == ".dense.")
    assert all(": base_model.model.classifier.modules_to_save.default.dense; " in note for note in said)


def test_methods_may_be_called_on_a_model_with_adapters(cli):
    then = f"model.then=[{{_target_: peft.get_peft_model, {LORA}}}, gradient_checkpointing_enable]"
    assert rows_of(cli, *GPT2, "freeze=none", then)


def test_a_model_of_another_library_is_a_file_of_the_users_own(cli):
    Path("files/model").mkdir(parents=True)
    Path("files/model/tiny.yaml").write_text(
        "build:\n  _target_: timm.create_model\n  model_name: test_vit\n  num_classes: ${model.classes}\n"
        "img_size: 32\ninput: [3, 32, 32]\nclasses: 6\nhead: head\n"
    )
    rows = rows_of(cli, "--config-dir", "files", "model=tiny", "freeze=head", "batches=1", "cost=off")
    assert (rows["head.bias"]["shape"], rows["head.bias"]["verdict"]) == ("6", "held")


def test_a_file_of_the_users_own_may_have_a_key_that_another_refers_to(cli):
    Path("files/model").mkdir(parents=True)
    Path("own_net.py").write_text("def make(size, arch):\n    import torch\n    return torch.nn.Linear(size, arch)\n")
    Path("files/model/own.yaml").write_text(
        "build:\n  _target_: own_net.make\n  size: ${model.arch}\narch: 4\ninput: [4]\nclasses: 4\n"
    )
    rows = rows_of(cli, "--config-dir", "files", "model=own", "freeze=none", "batches=1", "cost=off")
    assert rows["weight"]["shape"] == "4x4"


def test_a_plan_shows_the_parameters_of_a_librarys_model(cli):
    code, out, err = cli(*TIMM, "freeze=head", "model.head=fc", "plan=true")
    assert (code, err) == (0, "")
    assert "2 of 47 parameters would be frozen" in out


@pytest.mark.long
def test_a_sweep_compares_models_and_their_weights(cli):
    overrides = [each for each in TIMM if "name" not in each]
    code, _, err = cli("-m", *overrides, "model.name=test_resnet,test_efficientnet", "freeze=none", "hydra.sweep.dir=sweep")
    assert code == 0, err
    assert {row["status"] for row in read_table(Path("sweep/comparison.csv"))} == {"finished"}


def test_what_weights_did_not_supply_is_noted(cli):
    from transformers import AutoConfig, AutoModel

    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 32}
    AutoModel.from_config(AutoConfig.for_model("bert", **tiny)).save_pretrained("base")
    model = ("model=huggingface", "model.auto=AutoModelForMaskedLM", "model.name=base", "model.head=cls")
    rows = rows_of(cli, *model, "data=tokens", "task=model_loss", "freeze=head", "batches=1", "cost=off")
    assert rows["bert.encoder.layer.0.output.dense.weight"]["verdict"] == "trained"
    notes = json.loads(Path("out/run.json").read_text())["notes"]
    assert any(note.startswith("model.weights did not supply cls.predictions") for note in notes)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*TIMM, "model.name=test_rsnet"), "timm has no such architecture; did you mean test_resnet"),
        ((*TIMM, "++model.drop_rat=0.1"), "model.drop_rat: ResNet takes no drop_rat; did you mean model.drop_rate"),
        ((*TIMM, "++model.heads=fc"), "model.heads: ResNet takes no heads; did you mean model.head?"),
        ((*GPT2, "model.auto=AutoModelForCausalML"), "no such Auto class; did you mean AutoModelForCausalLM"),
        ((*GPT2, "++model.config.n_head=5"), "must be divisible by num_heads"),
        ((*GPT2, "++model.config.model_type=gtp2"), "transformers has no such type of model; did you mean gpt2"),
        (
            (*GPT2, "model.auto=AutoModelForImageClassification"),
            "of the type gpt2; it has AutoModel, AutoModelForCausalLM, ",
        ),
        (
            (*GPT2, "++model.attn_implementation=eagr"),
            'model=huggingface refused: Specified `attn_implementation="eagr"` is',
        ),
        ((*GPT2[:-1], "model.name=."), "model=huggingface refused: Unrecognized model in ."),
        (
            ("model=timm", "model.name=test_vit", "++model.drop_rate=abc"),
            "failed: model=timm refused: '<' not supported between instances of 'str' and 'int'",
        ),
        ((*TIMM, "++model.num_classes=7"), "model.num_classes is 7; give model.classes in place of model.num_classes"),
        ((*TIMM, "++model.pretrained=true"), "model.pretrained is True; give model.weights in place of model.pretrained"),
        (
            ("model=torchvision", "model.name=resnet18", "++model.num_classes=7"),
            "model.num_classes is 7; give model.classes in place of model.num_classes",
        ),
        ((*GPT2, "model.then=[gradient_checkpointing_enabel]"), "did you mean gradient_checkpointing_enable"),
        (("model=torchvision", "model.name=resnet81"), "torchvision has no such model; did you mean resnet18"),
        (("model=torchvision", "model.name=resnet18", "model.weights=V9"), "it has DEFAULT, IMAGENET1K_V1"),
        (("model=torchvision",), "model.name is missing; give model.name=..."),
    ],
)
def test_what_a_library_refuses_ends_with_2_and_one_short_line(overrides, message, cli):
    code, _, err = cli(*overrides, "hydra.run.dir=out")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert len(err) <= 401
