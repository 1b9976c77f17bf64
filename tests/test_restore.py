"""The command that writes a checkpoint with some tensors as they were: what it writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from runner import diff
from runner.proof.checkpoints import restoration
from runner.restore import main
from runner.tensors import same_bits


def state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {
        "body.0.weight": torch.randn(5, 4).t(),
        "body.0.bias": torch.randn(4).bfloat16(),
        "body.1.weight": torch.randn(3).double(),
        "bn.num_batches_tracked": torch.tensor(2**24 + seed),
        "head.weight": torch.full((2, 3), float("nan")),
        "empty": torch.zeros(0, 2),
    }


@pytest.fixture
def pair(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(state(0), "a.pt")
    save_file(
        {name: each.contiguous() for name, each in state(1).items()}, "b.safetensors", metadata={"format": "pt", "by": "us"}
    )
    return ["a.pt", "b.safetensors"]


def test_what_matches_is_as_it_was_and_all_else_as_it_is(pair, capsys, monkeypatch):
    monkeypatch.setattr(restoration, "BLOCK", 16)  # bytes, so that tensors have several blocks
    assert main([*pair, "body", "--keep", "body.1", "-o", "c.safetensors"]) == 0
    assert capsys.readouterr().out == "c.safetensors: 2 tensors as in a.pt: body.0.bias and body.0.weight\n"
    found = load_file("c.safetensors")
    before, after = state(0), state(1)
    for name, tensor in found.items():
        expected = before if name.startswith("body.0.") else after
        assert same_bits(tensor, expected[name].contiguous()), name
    with safe_open("c.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "by": "us"}
    difference = diff("a.pt", "c.safetensors", ["body"], ["body.1"])
    assert difference.leaks == []


def test_the_inputs_are_left_as_they_are(pair):
    content = [Path(name).read_bytes() for name in pair]
    main([*pair, "**", "-o", "c.safetensors"])
    assert [Path(name).read_bytes() for name in pair] == content


def test_a_tied_tensor_is_restored_under_all_its_names(pair):
    weight = torch.randn(3, 2)
    torch.save({"embed": weight, "mid": torch.ones(2)}, "a.pt")
    torch.save({"embed": (tuned := weight + 1), "mid": torch.ones(2), "head": tuned}, "b.pt")
    assert main(["a.pt", "b.pt", "embed", "-o", "c.safetensors"]) == 0
    assert same_bits(load_file("c.safetensors")["head"], weight)


def test_a_wrapped_checkpoint_keeps_its_names(pair):
    torch.save({f"_orig_mod.{name}": each for name, each in state(1).items()}, "b.pt")
    assert main(["a.pt", "b.pt", "body", "-o", "c.safetensors"]) == 0
    found = load_file("c.safetensors")
    assert same_bits(found["_orig_mod.body.1.weight"], state(0)["body.1.weight"])
    assert same_bits(found["_orig_mod.bn.num_batches_tracked"], state(1)["bn.num_batches_tracked"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "c.safetensors"], "the following arguments are required"),
        (["body"], "the following arguments are required: -o"),
        (["body", "-o", "c.bin"], "give a file that ends in .safetensors"),
        (["body", "-o", "b.safetensors"], "b.safetensors exists, and is left as it is"),
        (["body", "-o", "none/c.safetensors"], "there is no folder none"),
        (["bodi", "-o", "c.safetensors"], "did you mean body"),
    ],
)
def test_a_mistake_is_one_line_exit_code_2_and_no_file(pair, capsys, arguments, message):
    assert main([*pair, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("c.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda after: after.pop("body.0.bias"), "AFTER has no body.0.bias"),
        (
            lambda after: after.update({"body.0.bias": torch.zeros(9).bfloat16()}),
            "is bfloat16 [9] in AFTER and",
        ),
        (lambda after: after.update({"body.0.bias": torch.zeros(4)}), "is float32 [4] in AFTER and bfloat16 [4] in BEFORE"),
        (lambda after: after.update({"x": torch.zeros(4).to(torch.complex128)}), "a safetensors file has no complex128"),
    ],
)
def test_what_cannot_be_restored_is_refused(pair, capsys, change, message):
    after = state(1)
    change(after)
    torch.save(after, "b.pt")
    assert main(["a.pt", "b.pt", "body", "-o", "c.safetensors"]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["a.pt", "b.pt", "b.safetensors"]
