"""A checkpoint is read from a file or a folder, without running code; what cannot be read is refused with one message."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from runner.contract import MAX_ERROR_LINE
from runner.errors import ConfigError
from runner.tensors import same_bits
from runner.tensors.checkpoint import read_checkpoint

STATE = {"body.weight": torch.randn(3, 4), "body.steps": torch.tensor(7), "head.bias": torch.randn(2).bfloat16()}


class Code:
    """Unpickling it makes the folder `executed`."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def saved(value: object, file: str = "model.pt", **options: object) -> str:
    """Save a value with `torch.save` and return the name of the file."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, file, **options)
    return file


def saved_safetensors(tensors: dict[str, torch.Tensor], file: str) -> str:
    """Save tensors as a safetensors file and return its name."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    return file


def is_state(read: dict[str, torch.Tensor]) -> bool:
    """Return whether what was read has the names and bits of STATE."""
    return read.keys() == STATE.keys() and all(same_bits(read[name], STATE[name]) for name in STATE)


def refusal(path: str) -> str:
    """Return the message with which a checkpoint is refused."""
    with pytest.raises(ConfigError) as refused:
        read_checkpoint(path)
    text = str(refused.value)
    assert "\n" not in text
    assert len(text) <= MAX_ERROR_LINE
    return text


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        OrderedDict,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer_states": [{"state": {}, "param_groups": []}]},
        lambda state: {"model": state, "model_ema": state, "args": argparse.Namespace(lr=0.1)},
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        lambda state: {"net": state, "acc": 93.0, "epoch": 3},
    ],
)
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_state_dict_is_found_however_people_wrap_it_in_a_torch_file(wrap, options):
    assert is_state(read_checkpoint(saved(wrap(STATE), **options)))


@pytest.mark.parametrize("file", ["model.safetensors", "without_suffix"])
def test_a_safetensors_file_is_known_by_its_suffix_or_by_its_content(file):
    assert is_state(read_checkpoint(saved_safetensors(STATE, file)))


def test_a_path_may_begin_with_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(STATE)
    assert is_state(read_checkpoint("~/model.pt"))


def test_of_several_wrapped_models_the_one_under_the_name_of_a_state_dict_is_taken():
    other = {name: each + 1 for name, each in STATE.items()}
    assert is_state(read_checkpoint(saved({"model": other, "ema": other, "state_dict": STATE})))


FIRST, REST = dict([*STATE.items()][:1]), dict([*STATE.items()][1:])


def shards(suffix: str, save, index: str | None) -> None:
    """Save STATE as two files in `folder`, with an index of that name if there is one."""
    for number, part in enumerate((FIRST, REST), 1):
        save(part, f"folder/part-{number}{suffix}")
    if index:
        files = {name: f"part-{1 if name in FIRST else 2}{suffix}" for name in STATE}
        Path("folder", index).write_text(json.dumps({"metadata": {}, "weight_map": files}))


FOLDERS = {
    "one safetensors file": lambda: saved_safetensors(STATE, "folder/model.safetensors"),
    "safetensors beside other files": lambda: (
        saved_safetensors(STATE, "folder/model.safetensors"),
        saved({"state": {}}, "folder/optimizer.pt"),
        saved_safetensors(FIRST, "folder/other.safetensors"),
    ),
    "a torch file of transformers": lambda: (saved(STATE, "folder/pytorch_model.bin"), saved([1], "folder/optimizer.pt")),
    "one torch file": lambda: saved({"state_dict": STATE}, "folder/last.ckpt"),
    "safetensors shards with an index": lambda: shards(".safetensors", saved_safetensors, "model.safetensors.index.json"),
    "torch shards with an index": lambda: shards(".bin", saved, "pytorch_model.bin.index.json"),
    "shards with an index of another name": lambda: shards(".safetensors", saved_safetensors, "unet.safetensors.index.json"),
    "safetensors files without an index": lambda: shards(".safetensors", saved_safetensors, None),
}


@pytest.mark.parametrize("make", FOLDERS.values(), ids=FOLDERS.keys())
def test_a_folder_is_read_whatever_files_it_has(make):
    make()
    assert is_state(read_checkpoint("folder"))


def test_reading_shards_does_not_read_files_that_the_index_does_not_list():
    shards(".safetensors", saved_safetensors, "model.safetensors.index.json")
    saved_safetensors(STATE, "folder/old.safetensors")
    assert is_state(read_checkpoint("folder"))


@pytest.mark.parametrize(
    "save",
    [
        lambda: saved({"a": Code()}),
        lambda: saved({"a": Code()}, _use_new_zipfile_serialization=False),
        lambda: saved({"state_dict": STATE, "callback": Code()}),
        lambda: Path("model.pt").write_bytes(pickle.dumps(Code(), protocol=2)),
        lambda: saved(Code(), "folder/model.bin"),
    ],
)
def test_a_pickle_with_code_in_it_is_refused_and_the_code_does_not_run(save):
    save()
    path = "folder" if Path("folder").is_dir() else "model.pt"
    assert "holds more than tensors: reading it would run the code of" in refusal(path)
    assert not Path("executed").exists()


def test_the_code_of_these_pickles_would_run_with_another_reader():
    torch.load(saved(Code()), weights_only=False)
    assert Path("executed").exists()


@pytest.mark.parametrize("model", [nn.Linear(2, 2), torchvision.models.squeezenet1_1()])
def test_a_whole_pickled_model_is_refused_and_the_message_says_to_save_its_state_dict(model):
    text = refusal(saved(model))
    assert f"{type(model).__module__}.{type(model).__qualname__}" in text
    assert text.endswith("save the weights alone, torch.save(model.state_dict(), FILE)")


def halved(file: str) -> None:
    """Cut a file to half of its size."""
    content = Path(file).read_bytes()
    Path(file).write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("file", "write"),
    [
        ("a.pt", lambda file: (saved(STATE, file), halved(file))),
        ("a.pt", lambda file: (saved(STATE, file, _use_new_zipfile_serialization=False), halved(file))),
        ("a.safetensors", lambda file: (saved_safetensors(STATE, file), halved(file))),
        ("a.pt", lambda file: Path(file).write_bytes(b"")),
        ("a.safetensors", lambda file: Path(file).write_bytes(b"")),
        ("a.pt", lambda file: Path(file).write_bytes(b"PK")),
        ("a.safetensors", lambda file: Path(file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00")),
        ("a.pth", lambda file: Path(file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00")),
        ("a.ckpt", lambda file: Path(file).write_bytes(bytes(range(256)) * 9)),
    ],
)
def test_a_file_that_is_truncated_or_no_checkpoint_is_refused(file, write):
    write(file)
    assert refusal(file).startswith(f"model.checkpoint: {file} cannot be read (")
    assert not Path("executed").exists()


@pytest.mark.parametrize("value", [{"weight": [1.0, 2.0]}, ["a"] * 99, 3])
@pytest.mark.parametrize("protocol", [2, 5])
def test_a_plain_pickle_is_refused_as_what_it_is(value, protocol):
    Path("a.pkl").write_bytes(pickle.dumps(value, protocol))
    assert refusal("a.pkl").startswith(
        "model.checkpoint: a.pkl is a plain pickle, not a file of torch.save, and is not read"
    )
    assert not Path("executed").exists()


def test_of_several_weights_in_a_file_a_note_says_which_are_loaded():
    notes: list[str] = []
    other = {name: torch.zeros_like(each) for name, each in STATE.items()}
    assert is_state(read_checkpoint(saved({"model_ema": other, "model": STATE}, "a.pt"), note=notes.append))
    text = "model.checkpoint: of the weights in a.pt, model are loaded and model_ema are not; save those alone to load them"
    assert notes == [text]
    read_checkpoint(saved({"model": STATE, "epoch": 3}, "a.pt"), note=notes.append)
    assert notes == [text]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([torch.ones(2)], "a.pt holds a list; expected names and tensors of one model"),
        (torch.ones(2), "a.pt holds a Tensor; expected"),
        ({"epoch": 3, "optimizer": {}}, "a.pt holds a dict of epoch and optimizer; expected"),
        ({}, "a.pt holds {}; expected"),
        ({"generator": STATE, "critic": STATE}, "a.pt holds a dict of generator and critic; expected"),
        ({"critic": {}, "generator": 3}, "a.pt holds a dict of critic and generator; expected"),
        ({0: torch.ones(2)}, "a.pt holds a dict of 0; expected"),
        ({"weight": torch.ones(2), "epoch": 3}, "a.pt holds a dict of weight and epoch; expected"),
    ],
)
def test_what_is_no_mapping_of_the_tensors_of_one_model_is_refused(value, said):
    assert said in refusal(saved(value, "a.pt"))


@pytest.mark.parametrize("path", ["", "nowhere", "nowhere/model.safetensors"])
def test_a_path_where_nothing_is_is_refused(path):
    assert refusal(path) == f"model.checkpoint is {path!r}, which does not exist; give a file or a folder with weights"


def adapter() -> None:
    """Write the files of a peft adapter into `folder`."""
    Path("folder/adapter_config.json").write_text("{}")
    saved_safetensors(STATE, "folder/adapter_model.safetensors")


def bad_index(text: str) -> None:
    """Write an index of shards into `folder`."""
    Path("folder/model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: None, "folder has no weights, neither *.safetensors nor *.bin, *.pt, *.pth, *.ckpt; give a file"),
        (lambda: Path("folder/run.json").touch(), "a run writes them with save=true"),
        (lambda: (saved(STATE, "folder/a.pt"), saved(STATE, "folder/b.pth")), "folder has a.pt and b.pth; give one of"),
        (
            lambda: (saved_safetensors(STATE, "folder/a.safetensors"), saved_safetensors(FIRST, "folder/b.safetensors")),
            "folder has body.weight in several files, b.safetensors is one; give one of the files",
        ),
        (lambda: bad_index('{"weight_map": {"a": "gone.safetensors"}}'), "lacks gone.safetensors, which model.safetensors"),
        (lambda: bad_index('{"weight_map": {"a": "../secret.bin"}}'), "lists ../secret.bin, which is not in its folder"),
        (lambda: bad_index('{"weight_map": {"a": "/secret.bin"}}'), "lists /secret.bin, which is not in its folder"),
        (lambda: bad_index("{"), "is no index of files with weights (JSONDecodeError"),
        (lambda: bad_index("[]"), "is no index of files with weights (TypeError"),
        (lambda: bad_index('{"weight_map": [3]}'), "is no index of files with weights ("),
        (lambda: bad_index('{"weight_map": {"a": 3}}'), "is no index of files with weights ("),
        (
            lambda: (
                Path("folder/adapter_config.json").touch(),
                saved_safetensors(STATE, "folder/adapter_model.safetensors"),
            ),
            "folder is a peft adapter, not a model's weights; give the weights of its base model here, and load",
        ),
    ],
)
def test_a_folder_without_the_weights_of_one_model_is_refused(make, said):
    Path("folder").mkdir()
    make()
    assert said in refusal("folder")
