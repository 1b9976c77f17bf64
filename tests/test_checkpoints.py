"""Runs from a checkpoint, end to end: same bytes again, exit codes, notes, and what `model.head=new` stands for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from runner import run
from runner.tensors import same_bits
from runner.training.models import MLP
from tests.conftest import read_table

MLP_RUN = ("model=mlp", "batches=2", "freeze=backbone")
MINE = """
import os
import torch
from torch import nn
from runner.training.pretrained.loaded import Loaded

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm = nn.Linear(4, 8), nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(self.body(x).relu())

class Classifier(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.encoder, self.dense, self.out = Encoder(), nn.Linear(8, 8), nn.Linear(8, classes)

    def forward(self, x):
        return self.out(self.dense(self.encoder(x)).relu())

def with_weights():
    return Loaded(Classifier(), frozenset({"out.weight", "out.bias"}))

class Code:
    def __reduce__(self):
        return os.mkdir, ("executed",)
"""
OWN = (
    *("model=custom", "model.build._target_=mine.Classifier", "model.input=[4]", "model.classes=3"),
    *("model.checkpoint=encoder.pt", "batches=2", "freeze=backbone", "hydra.run.dir=out"),
)


@pytest.fixture
def _encoder(monkeypatch):
    """Write the module `mine`, and save the encoder of its classifier as `encoder.pt`."""
    Path("mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(os.getcwd())
    import mine

    torch.save(mine.Encoder().state_dict(), "encoder.pt")
    torch.save({"model": mine.Code()}, "code.pt")
    torch.save(mine.Classifier(), "whole.pt")


def notes_in(folder: str) -> list[str]:
    """Return the notes of a run."""
    return json.loads(Path(folder, "run.json").read_text())["notes"]


def frozen_in(folder: str) -> set[str]:
    """Return the names of the frozen parameters of a run."""
    return {row["name"] for row in read_table(Path(folder, "changes.csv")) if row["frozen"] == "True"}


@pytest.mark.parametrize("model", ["mlp", "token_mlp"])
def test_a_run_continues_from_the_weights_that_another_run_saved_to_the_last_bit(cli, model):
    run_it = (f"model={model}", "batches=2", "save=true")
    assert cli(*run_it, "hydra.run.dir=first")[0] == 0
    results = [
        run(*run_it, "freeze=all", "optimizer.lr=0", f"model.checkpoint={path}", f"hydra.run.dir={folder}")
        for path, folder in (("first", "second"), ("first/model.safetensors", "third"))
    ]
    saved, trained = load_file("first/model.safetensors"), results[0].model.state_dict()
    assert saved.keys() < trained.keys()  # of tied weights, it has one
    held = [name for name in saved if not name.startswith("norm.running") and not name.endswith("tracked")]
    assert all(same_bits(saved[name], trained[name]) for name in held)
    assert same_bits(trained["back.weight"], trained["there.weight"])
    assert Path("second/changes.csv").read_bytes() == Path("third/changes.csv").read_bytes()
    first = {row["name"]: row for row in read_table(Path("second/changes.csv"))}
    mean = saved["norm.running_mean"]
    assert float(first["norm.running_mean"]["initial_l2"]) == pytest.approx(float(mean.double().norm()), rel=1e-6)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning", "ignore::FutureWarning")
def test_a_run_with_adapters_continues_from_the_weights_that_it_saved_to_the_last_bit(cli):
    lora = "peft_config: {_target_: peft.LoraConfig, r: 4, target_modules: [c_attn], fan_in_fan_out: true}"
    run_it = (
        *("model=huggingface", "model.auto=AutoModelForCausalLM", "data=tokens", "task=causal_lm", "batches=2", "cost=off"),
        "model.config={model_type: gpt2, n_embd: 32, n_layer: 2, n_head: 2, vocab_size: 64}",
        *(f"model.then=[{{_target_: peft.get_peft_model, {lora}}}]", "freeze=as_built", "save=true"),
    )
    assert cli(*run_it, "hydra.run.dir=first")[0] == 0
    saved = load_file("first/model.safetensors")
    assert any(tensor.any() for name, tensor in saved.items() if "lora_B" in name)
    result = run(*run_it, "seed=3", "optimizer.lr=0", "model.checkpoint=first", "hydra.run.dir=second")
    assert any(note == "model.checkpoint is loaded after model.then, whose model it fits" for note in notes_in("second"))
    assert not any("stays at its random start" in note for note in notes_in("second"))
    now = result.model.state_dict()
    assert saved.keys() <= now.keys()
    assert all(same_bits(saved[name], now[name]) for name in saved)
    assert cli(*run_it, "model.checkpoint=first", "plan=true")[0] == 0


def test_two_runs_from_one_checkpoint_give_the_same_bytes_and_another_checkpoint_gives_others(cli):
    for seed, file in ((1, "a.pt"), (2, "b.pt")):
        torch.manual_seed(seed)
        torch.save(MLP([64]).state_dict(), file)
    for folder, file in (("one", "a.pt"), ("two", "a.pt"), ("other", "b.pt")):
        assert cli(*MLP_RUN, f"model.checkpoint={file}", f"hydra.run.dir={folder}")[0] == 0
    one, two, other = (Path(folder, "changes.csv").read_bytes() for folder in ("one", "two", "other"))
    assert one == two != other


@pytest.mark.long
def test_resnet18_takes_a_checkpoint_of_other_classes_and_the_head_is_said_to_be_new(cli):
    import torchvision

    torch.save({"state_dict": torchvision.models.resnet18(num_classes=7).state_dict()}, "seven.pth")
    model = ("model=resnet18", "model.input=[3,32,32]", "model.classes=3", "model.checkpoint=seven.pth", "batches=1")
    code, _, err = cli(*model, "freeze=backbone", "model.head=new", "hydra.run.dir=out", "cost=off")
    assert (code, err) == (0, "")
    said = "fc.bias and fc.weight are not loaded and stay as they were built: model.classes is 3"
    assert said in notes_in("out")[0]
    assert "@head is what no weights supplied: fc" in notes_in("out")
    assert not frozen_in("out") & {"fc.weight", "fc.bias"}


@pytest.mark.usefixtures("_encoder")
def test_the_head_is_what_the_checkpoint_of_a_base_model_lacks(cli):
    code, _, err = cli(*OWN, "model.strict=false", "model.head=new")
    assert (code, err) == (0, "")
    assert "@head is what no weights supplied: dense and out" in notes_in("out")
    assert frozen_in("out") == {"encoder.body.weight", "encoder.body.bias", "encoder.norm.weight", "encoder.norm.bias"}
    assert not [note for note in notes_in("out") if note.startswith("frozen although")]


@pytest.mark.usefixtures("_encoder")
@pytest.mark.parametrize("checkpoint", ["encoder.pt", "null"])
def test_what_the_weights_of_the_builder_supplied_is_not_new_either(cli, checkpoint):
    builder = ("model.build._target_=mine.with_weights", f"model.checkpoint={checkpoint}")
    assert cli(*OWN, *builder, "model.strict=false", "model.head=new")[0] == 0
    assert "@head is what no weights supplied: out" in notes_in("out")


@pytest.mark.parametrize(("key", "other"), [("model.weights", "model.checkpoint"), ("model.checkpoint", "model.weights")])
def test_a_file_of_weights_is_called_by_the_key_that_it_was_given_with(cli, key, other):
    torch.save({"model": MLP([4], 3).state_dict(), "model_ema": MLP([4], 3).state_dict()}, "mlp.pt")
    run_it = ("model=timm", "model.name=test_resnet", "model.input=[3,32,32]", "freeze=none", "batches=1", "cost=off")
    code, _, err = cli(*run_it, f"{key}=mlp.pt", "hydra.run.dir=out")
    assert code == 2
    assert f"failed: {key}: 0 of its " in err
    assert other not in err


def test_a_note_says_which_of_several_weights_in_a_file_are_loaded(cli):
    assert cli(*MLP_RUN, "save=true", "hydra.run.dir=first")[0] == 0
    saved = load_file("first/model.safetensors")  # of tied weights, it has one
    torch.save({"model": saved, "model_ema": saved}, "both.pt")
    code, _, err = cli(*MLP_RUN, "model.checkpoint=both.pt", "hydra.run.dir=out")
    assert code == 0, err
    assert any("of the weights in both.pt, model are loaded and model_ema are not" in note for note in notes_in("out"))


@pytest.mark.usefixtures("_encoder")
def test_with_another_head_a_note_says_what_stays_frozen_at_its_random_start(cli):
    assert cli(*OWN, "model.strict=false", "model.head=out")[0] == 0
    assert (
        "frozen although no weights supplied it, so it stays at its random start: dense; "
        "freeze=backbone model.head=new keeps it trainable"
    ) in notes_in("out")
    assert cli(*OWN[:-1], "hydra.run.dir=both", "model.strict=false", "model.head=[dense,out]")[0] == 0
    assert not [note for note in notes_in("both") if note.startswith("frozen although")]


@pytest.mark.usefixtures("_encoder")
def test_a_plan_checks_the_names_and_shapes_of_a_checkpoint_and_names_the_new_head(cli):
    code, out, _ = cli(*OWN[:-1], "model.strict=false", "model.head=new", "plan=true")
    assert code == 0
    assert "note: @head is what no weights supplied: dense and out" in " ".join(out.split())
    code, _, err = cli(*OWN[:-1], "plan=true")
    assert (code, err.count("\n")) == (2, 1)
    assert "4 missing in it: dense.weight, dense.bias, out.weight and out.bias; model.strict=false loads what fits" in err


@pytest.mark.usefixtures("_encoder")
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("model.checkpoint=nowhere.pt",), "model.checkpoint is 'nowhere.pt', which does not exist"),
        (("model.checkpoint=''",), "model.checkpoint is '', which does not exist"),
        (("model.checkpoint=code.pt", "model.strict=false"), "reading it would run the code of "),
        (("model.checkpoint=whole.pt",), "reading it would run the code of mine.Classifier, so it is refused"),
        (("model.checkpoint=encoder.pt",), "7 of its 7 tensors fit the model; 4 missing in it: dense.weight"),
        (
            ("model.checkpoint=encoder.pt", "model.strict=false", "model.head=nwe"),
            "nwe, is not in the model; did you mean new?",
        ),
        (("model.checkpoint=mine.py",), "mine.py cannot be read (not a file of torch.save)"),
        (("model.checkpoint=null", "model.head=new"), "model.head=new stands for what the weights do not supply"),
        (("model.head=new", "model.checkpoint=all.pt"), "model.head=new: the weights supply every parameter"),
        (
            ("model.build._target_=torch.nn.Identity", "model.checkpoint=null"),
            "Identity has no parameters: there is",
        ),
        (("model.head=3", "model.strict=false"), "give a pattern, a list of patterns, auto, or new"),
    ],
)
def test_a_checkpoint_or_head_that_does_not_fit_ends_with_2_and_one_line(cli, overrides, said):
    import mine

    torch.save(mine.Classifier().state_dict(), "all.pt")
    code, _, err = cli(*OWN, *overrides)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert len(err) <= 401
    assert not Path("executed").exists()
    assert not Path("out/changes.csv").exists()


def test_a_checkpoint_that_does_not_exist_leaves_no_folder(cli):
    assert cli("model=mlp", "model.checkpoint=nowhere", "hydra.run.dir=out")[0] == 2
    assert not Path("out").exists()


def test_a_sweep_over_checkpoints_compares_them(cli):
    for seed in (1, 2):
        torch.manual_seed(seed)
        torch.save(MLP([64]).state_dict(), f"{seed}.pt")
    assert cli("-m", *MLP_RUN, "model.checkpoint=1.pt,2.pt", "hydra.sweep.dir=sweep")[0] == 0
    rows = read_table(Path("sweep/comparison.csv"))
    assert sorted(row["model.checkpoint"] for row in rows) == ["1.pt", "2.pt"]
    assert len({row["loss_first"] for row in rows}) == 2
