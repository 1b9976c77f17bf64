"""Two checkpoints are compared to the last bit, whatever their files; what cannot be compared is refused or said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from runner import audit, diff
from runner.contract import CHANGE_COLUMNS
from runner.errors import ConfigError
from runner.proof.audit_report import LeakError
from runner.proof.checkpoints import tensor_rows


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "body.0.weight": torch.randn(6, 5),
        "body.0.bias": torch.zeros(6),
        "bn.running_mean": torch.zeros(3),
        "bn.num_batches_tracked": torch.tensor(2**24),
        "head.weight": torch.randn(4, 6).bfloat16(),
        "head.bias": torch.randn(4, dtype=torch.float64),
    }


def copied(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in tensors.items()}


def shards(tensors, path: Path) -> None:
    """Write two shards and their index, as transformers does."""
    path.mkdir()
    names = list(tensors)
    files = {name: f"model-{1 + (place > 2)}.safetensors" for place, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def legacy(tensors, path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


SAVERS: dict[str, Callable] = {
    "safetensors": lambda tensors, path: save_file(tensors, path),
    "torch": torch.save,
    "lightning": lambda tensors, path: torch.save({"epoch": 3, "state_dict": tensors}, path),
    "legacy": legacy,
    "shards": shards,
}


@pytest.fixture(params=SAVERS)
def saver(request):
    return SAVERS[request.param]


@pytest.fixture
def pair(tmp_path, saver):
    """Return a function that saves two state dicts, and returns their paths."""

    def save(before, after):
        for tensors, name in ((before, "before"), (after, "after")):
            saver(tensors, tmp_path / name)
        return tmp_path / "before", tmp_path / "after"

    return save


def saved(tmp_path: Path, before: object, after: object) -> tuple[Path, Path]:
    torch.save(before, tmp_path / "a.pt")
    torch.save(after, tmp_path / "b.pt")
    return tmp_path / "a.pt", tmp_path / "b.pt"


def row_of(found, name):
    return next(row for row in found.rows if row["name"] == name)


def verdicts(found) -> dict[str, str]:
    return {row["name"]: row["verdict"] for row in found.rows}


def test_equal_checkpoints_hold_every_bit(pair):
    found = diff(*pair(state(), state()), ["body"])
    assert verdicts(found) == {
        **dict.fromkeys(("body.0.weight", "body.0.bias"), "held"),
        **dict.fromkeys(("bn.running_mean", "bn.num_batches_tracked"), "still"),
        **dict.fromkeys(("head.weight", "head.bias"), "idle"),
    }
    assert not any(row["moved"] or row["moved_elements"] for row in found.rows)
    assert found.leaks == []
    found.raise_if_leaked()


def flip_one_bit(tensors):
    tensors["body.0.weight"].view(torch.int32)[5, 4] ^= 1


CHANGES: dict[str, tuple[str, Callable]] = {
    "one bit in a matrix": ("body.0.weight", flip_one_bit),
    "minus zero": ("body.0.bias", lambda tensors: tensors["body.0.bias"][2].neg_()),
    "a small bias": ("head.bias", lambda tensors: tensors["head.bias"][1].mul_(1 + 2.0**-52)),
    "bfloat16": ("head.weight", lambda tensors: tensors["head.weight"].view(torch.int16)[0, 0].add_(1)),
    "2**24+1 in int64": ("bn.num_batches_tracked", lambda tensors: tensors["bn.num_batches_tracked"].add_(1)),
    "NaN": ("head.bias", lambda tensors: tensors["head.bias"][0].fill_(float("nan"))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_found_wherever_it_is(pair, change):
    name, write = CHANGES[change]
    after = copied(state())
    write(after)
    found = diff(*pair(state(), after), [name])
    assert found.leaks == [name]
    row = row_of(found, name)
    assert (row["verdict"], row["cause"], row["moved"], row["moved_elements"]) == ("leaked", "unknown", True, 1)
    assert {each["verdict"] for each in found.rows} == {"leaked", "idle", "still"}
    with pytest.raises(LeakError, match=rf"1 frozen tensor changed: {name} \(unknown\)"):
        found.raise_if_leaked()


def test_nans_with_the_same_bits_held(pair):
    tensors = {"weight": torch.full((3,), float("nan"))}
    assert verdicts(diff(*pair(tensors, tensors), ["weight"])) == {"weight": "held"}


def test_norms_are_those_of_the_audit_of_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_rows, "BLOCK", 64)  # bytes, so that tensors have several blocks
    model = nn.Sequential(nn.Linear(7, 9), nn.BatchNorm1d(9), nn.Linear(9, 2))
    optimizer = torch.optim.Adam(model[2].parameters())
    torch.save(model.state_dict(), tmp_path / "a.pt")
    with audit(model, ["0", "1"], optimizer) as report:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 7)).square().sum().backward()
            optimizer.step()
    torch.save(model.state_dict(), tmp_path / "b.pt")
    found = diff(tmp_path / "a.pt", tmp_path / "b.pt", ["0", "1"])
    for expected in report.rows:
        row = row_of(found, expected["name"])
        for key in ("kind", "shape", "numel", "dtype", "frozen", "moved", "moved_elements", "verdict"):
            assert row[key] == expected[key], (key, row["name"])
        for key in ("initial_l2", "change_l2", "change_rel", "change_max"):
            assert row[key] == (expected[key] and pytest.approx(expected[key], rel=1e-6)), (key, row["name"])
    assert list(found.frame.columns) == list(CHANGE_COLUMNS)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16, torch.complex64, torch.bool, torch.int64])
def test_any_dtype_is_compared_bit_by_bit(tmp_path, dtype):
    before = torch.tensor([0, 1, 1, 0]).to(dtype)
    after = before.clone()
    after.view(torch.uint8)[-dtype.itemsize] ^= 1
    found = diff(*saved(tmp_path, {"a": before, "b": before}, {"a": before, "b": after}))
    assert verdicts(found) == {"a": "idle", "b": "trained"}
    assert row_of(found, "b")["moved_elements"] == 1


def test_strided_scalar_and_empty_tensors_are_compared_by_their_elements(tmp_path):
    before = {
        "t": torch.arange(6.0).reshape(2, 3).t(),
        "s": torch.tensor(1.0),
        "e": torch.zeros(0, 3),
        "o": torch.arange(9)[3:5],
    }
    after = {name: each.contiguous().clone() for name, each in before.items()}
    assert set(verdicts(diff(*saved(tmp_path, before, after))).values()) == {"idle"}
    after["t"][0, 1] += 1
    assert verdicts(diff(*saved(tmp_path, before, after)))["t"] == "trained"


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("is_sparse", [True, False])
def test_sparse_and_quantised_tensors_are_compared_in_a_file_that_is_loaded_whole(tmp_path, is_sparse):
    dense = torch.arange(4.0)
    tensor = dense.to_sparse() if is_sparse else torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8)
    pair = saved(tmp_path, {"a": tensor, "b": torch.ones(2)}, {"a": tensor.clone(), "b": torch.zeros(2)})
    found = diff(*pair)
    assert verdicts(found) == {"a": "idle", "b": "trained"}
    assert found.notes[0] == "BEFORE: a.pt has tensors that are sparse or quantised, so it is loaded whole"


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_the_scale_of_a_quantised_tensor_and_the_sign_of_a_stored_zero_are_compared_too(tmp_path):
    one, other = (torch.quantize_per_tensor(torch.zeros(4), scale, 0, torch.qint8) for scale in (0.1, 0.2))
    assert verdicts(diff(*saved(tmp_path, {"a": one}, {"a": other}), ["a"])) == {"a": "leaked"}
    zeros = [torch.sparse_coo_tensor([[0]], [zero], (3,), check_invariants=True) for zero in (0.0, -0.0)]
    assert verdicts(diff(*saved(tmp_path, {"a": zeros[0]}, {"a": zeros[1]}), ["a"])) == {"a": "leaked"}
    assert verdicts(diff(*saved(tmp_path, {"a": zeros[0]}, {"a": zeros[0]}), ["a"])) == {"a": "held"}


def test_a_negative_view_is_compared_by_its_values(tmp_path):
    x = torch.arange(4.0) + 1
    assert verdicts(diff(*saved(tmp_path, {"a": torch._neg_view(x)}, {"a": x}), ["a"])) == {"a": "leaked"}
    assert verdicts(diff(*saved(tmp_path, {"a": torch._neg_view(x)}, {"a": -x}), ["a"])) == {"a": "held"}


def test_an_empty_tensor_is_not_tied_to_the_one_that_follows_it(tmp_path):
    tensors = {"e": torch.zeros(0), "w": torch.ones(4), "z": torch.ones(2)}
    save_file(tensors, tmp_path / "a")
    save_file({**tensors, "w": torch.zeros(4)}, tmp_path / "b")
    assert diff(tmp_path / "a", tmp_path / "b", ["**"], keep=["e"]).leaks == ["w"]


# Names


def test_what_appeared_and_vanished_is_said_and_a_frozen_tensor_that_vanished_leaked(tmp_path):
    before, after = state(), copied(state())
    del after["body.0.bias"], after["head.bias"]
    after["head.new"] = torch.zeros(2)
    found = diff(*saved(tmp_path, before, after), ["body"])
    assert (found.only_before, found.only_after) == (["body.0.bias", "head.bias"], ["head.new"])
    assert found.leaks == ["body.0.bias"]
    assert "head.bias" not in verdicts(found)
    assert "only in BEFORE: body.0.bias and head.bias" in found.notes
    assert "only in AFTER: head.new" in found.notes


@pytest.mark.parametrize(
    ("change", "cause"), [(lambda tensor: tensor.half(), "dtype_changed"), (lambda tensor: tensor[:3].clone(), "replaced")]
)
def test_another_dtype_or_shape_is_a_leak_of_what_was_frozen(tmp_path, change, cause):
    after = copied(state())
    after["body.0.weight"] = change(after["body.0.weight"])
    row = row_of(diff(*saved(tmp_path, state(), after), ["body"]), "body.0.weight")
    assert (row["verdict"], row["cause"], row["change_l2"], row["moved_elements"]) == ("leaked", cause, None, None)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "_fsdp_wrapped_module."])
@pytest.mark.parametrize("is_before", [True, False])
def test_names_to_which_a_wrapper_has_added_parts_are_the_same_tensors(tmp_path, prefix, is_before):
    wrapped = {f"{prefix}{name}": each for name, each in state().items()}
    pair = (wrapped, state()) if is_before else (state(), wrapped)
    found = diff(*saved(tmp_path, *pair), ["body"])
    assert {row["verdict"] for row in found.rows if row["frozen"]} == {"held"}
    assert len(found.renamed) == 6
    assert (found.only_before, found.only_after) == ([], [])


def test_a_layer_that_an_adapter_wraps_is_compared_under_its_new_name(tmp_path):
    after = {name.replace("body.0.", "body.0.base_layer."): each for name, each in state().items()}
    after["body.0.lora_A.weight"] = torch.zeros(2, 5)
    found = diff(*saved(tmp_path, state(), after), ["body"])
    assert found.renamed["body.0.weight"] == "body.0.base_layer.weight"
    assert {row["verdict"] for row in found.rows if row["frozen"]} == {"held"}
    assert found.only_after == ["body.0.lora_A.weight"]


def test_a_tied_tensor_that_is_stored_once_is_compared_under_the_name_that_is_left(tmp_path):
    weight = torch.randn(5, 3)
    before = {"embed.weight": weight, "mid.weight": torch.ones(3), "head.weight": weight}
    after = {"embed.weight": weight + 1, "mid.weight": torch.ones(3)}
    found = diff(*saved(tmp_path, before, after), ["head"])
    assert found.leaks == ["head.weight"]
    assert row_of(found, "head.weight")["aliases"] == "embed.weight"
    assert found.only_before == []


def test_tied_names_that_are_untied_are_each_judged(tmp_path):
    weight = torch.randn(5, 3)
    before = {"embed.weight": weight, "head.weight": weight}
    found = diff(*saved(tmp_path, before, {"embed.weight": weight.clone(), "head.weight": weight + 1}), ["**"])
    assert verdicts(found) == {"embed.weight": "held", "head.weight": "leaked"}


def test_an_adapter_stores_nothing_of_its_base_and_no_tensor_of_that_is_said_to_have_held(tmp_path):
    torch.save(state(), tmp_path / "base.pt")
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    head = {"base_model.model.head.weight": state()["head.weight"] + 1, "base_model.model.head.bias": state()["head.bias"]}
    save_file({"base_model.model.body.0.lora_A.weight": torch.zeros(2, 5), **head}, folder / "adapter_model.safetensors")
    found = diff(tmp_path / "base.pt", folder, ["body", "head.bias"])
    assert verdicts(found) == {"head.weight": "trained", "head.bias": "held"}
    assert found.only_before == []
    assert "declared frozen and not in the adapter, so not compared: body.0.weight and body.0.bias" in found.notes


def adapter(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write the folder of a peft adapter."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    save_file({f"base_model.model.{name}": each for name, each in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def test_a_layer_that_an_adapter_stores_with_its_own_parameters_beside_is_compared(tmp_path):
    torch.save(state(), tmp_path / "base.pt")
    own = {"body.0.lora_embedding_A": torch.zeros(2, 5), "body.0.base_layer.weight": state()["body.0.weight"]}
    assert verdicts(diff(tmp_path / "base.pt", adapter(tmp_path / "a", own), ["body.0.weight"])) == {"body.0.weight": "held"}
    own["body.0.base_layer.weight"] += 1
    assert diff(tmp_path / "base.pt", adapter(tmp_path / "b", own), ["body.0.weight"]).leaks == ["body.0.weight"]


def test_of_a_module_that_peft_trains_a_copy_of_the_copy_is_compared(tmp_path):
    after = {f"base_model.model.{name}": each for name, each in state().items() if not name.startswith("head")}
    for name in ("weight", "bias"):
        after[f"base_model.model.head.original_module.{name}"] = state()[f"head.{name}"]
        after[f"base_model.model.head.modules_to_save.default.{name}"] = state()[f"head.{name}"] + 1
    found = diff(*saved(tmp_path, state(), after))
    assert found.renamed["head.bias"] == "base_model.model.head.modules_to_save.default.bias"
    assert verdicts(found)["head.bias"] == "trained"
    assert found.only_before == []


def test_an_adapter_that_stores_nothing_of_what_was_frozen_has_compared_nothing(tmp_path):
    torch.save(state(), tmp_path / "base.pt")
    found = diff(tmp_path / "base.pt", adapter(tmp_path / "a", {"body.0.lora_A.weight": torch.zeros(2, 5)}), ["body"])
    assert str(found).startswith("nothing that was declared frozen was compared")
    with pytest.raises(ConfigError, match="BEFORE is an adapter, which holds nothing of its base"):
        diff(tmp_path / "a", tmp_path / "base.pt")


def test_an_adapter_of_another_model_is_refused(tmp_path):
    torch.save(state(), tmp_path / "base.pt")
    with pytest.raises(ConfigError, match="AFTER is an adapter of h and 3 more, and BEFORE has no such module"):
        diff(tmp_path / "base.pt", adapter(tmp_path / "a", {"h.0.lora_A.weight": torch.zeros(2, 5)}), ["body"])


def test_a_tied_name_that_only_the_second_file_has_can_be_declared(tmp_path):
    weight = torch.randn(5, 3)
    found = diff(*saved(tmp_path, {"embed.weight": weight}, {"embed.weight": weight, "head.weight": weight}), ["head"])
    assert verdicts(found) == {"embed.weight": "idle", "head.weight": "held"}


def test_of_two_adapters_what_the_second_lacks_is_gone(tmp_path):
    one = {"body.0.lora_A.weight": torch.zeros(2, 5), "body.0.lora_B.weight": torch.zeros(6, 2)}
    two = {"body.0.lora_A.weight": torch.ones(2, 5)}
    found = diff(adapter(tmp_path / "a", one), adapter(tmp_path / "b", two), ["**.lora_B"])
    assert found.leaks == ["base_model.model.body.0.lora_B.weight"]
    other = {"h.0.lora_A.weight": torch.zeros(2, 5)}
    with pytest.raises(ConfigError, match="names in common"):
        diff(tmp_path / "a", adapter(tmp_path / "c", other))


# Patterns


def test_without_patterns_nothing_is_frozen(tmp_path):
    found = diff(*saved(tmp_path, state(), {**state(), "head.bias": torch.zeros(4, dtype=torch.float64)}))
    assert {row["verdict"] for row in found.rows if row["kind"] == "parameter"} == {"trained", "idle"}
    assert str(found).startswith("nothing declared frozen: 1 trained, 3 idle")


def test_exceptions_are_trainable(tmp_path):
    found = diff(*saved(tmp_path, state(), state()), ["**"], keep=["head"])
    assert [row["name"] for row in found.rows if row["frozen"]] == ["body.0.weight", "body.0.bias"]


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (["bodi"], r"'bodi' matches no parameter.*did you mean body"),
        (["@head"], "'@head' needs a model, and a checkpoint has only names"),
        (["type:Linear"], "'type:Linear' needs a model"),
        (["backbone"], "'backbone' matches no parameter or module of the model; it has bn, body, body.0 and head"),
        (["fc"], "'fc' matches no parameter or module of the model; it has bn, body, body.0 and head"),
        ("body", r"frozen is 'body'.*give lists of patterns"),
        (["re:("], "re:"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(tmp_path, frozen, message):
    with pytest.raises(ConfigError, match=message):
        diff(*saved(tmp_path, state(), state()), frozen)


# What cannot be compared


def test_checkpoints_of_different_models_are_refused_with_the_share_of_names_in_common(tmp_path):
    other = {f"encoder.{number}.weight": torch.zeros(2) for number in range(9)}
    with pytest.raises(ConfigError, match=r"have 1 of 6 names in common \(17%\), so they are of two models"):
        diff(*saved(tmp_path, state(), {**other, "head.bias": torch.zeros(4)}))


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    before, after = saved(tmp_path, state(), state())
    rows = tensor_rows.change_between

    def write_meanwhile(*pair):
        torch.save({**state(), "more": torch.zeros(1)}, after)
        return rows(*pair)

    monkeypatch.setattr(tensor_rows, "change_between", write_meanwhile)
    with pytest.raises(ConfigError, match=r"b\.pt has changed while it was read"):
        diff(before, after)


def test_a_file_that_becomes_too_short_while_it_is_read_is_refused(tmp_path, monkeypatch):
    save_file(state(), tmp_path / "a")
    save_file(state(), tmp_path / "b")
    rows = tensor_rows.change_between

    def shorten(*pair):
        (tmp_path / "b").write_bytes((tmp_path / "b").read_bytes()[:300])
        return rows(*pair)

    monkeypatch.setattr(tensor_rows, "change_between", shorten)
    with pytest.raises(ConfigError, match="has changed while it was read"):
        diff(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("name", ["safetensors", "torch", "lightning"])
def test_a_truncated_file_is_refused(tmp_path, name):
    for file in ("a", "b"):
        SAVERS[name](state(), tmp_path / file)
    whole = (tmp_path / "b").read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        (tmp_path / "b").write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"AFTER: .*b"):
            diff(tmp_path / "a", tmp_path / "b")


def _with_header(content: bytes, header: bytes) -> bytes:
    """Return the bytes of a safetensors file with another header."""
    old_size = int.from_bytes(content[:8], "little")
    return len(header).to_bytes(8, "little") + header + content[8 + old_size :]


def test_a_header_that_points_elsewhere_is_refused(tmp_path):
    save_file({"a": torch.zeros(4)}, tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    for wrong in (
        b'"shape":[4.0]',
        b'"shape":[-2,-2]',
        b'"shape":[5]',
        b'"shape":[4],"shape":[4]',
    ):
        (tmp_path / "b").write_bytes(
            _with_header(content, content[8:].split(b"}}")[0].replace(b'"shape":[4]', wrong) + b"}}")
        )
        with pytest.raises(ConfigError, match=r"AFTER: .*cannot be read"):
            diff(tmp_path / "a", tmp_path / "b")
    for wrong in (b'"data_offsets":[0,32]', b'"data_offsets":[4,16]', b'"data_offsets":[16,0]', b'"data_offsets":[0,12]'):
        (tmp_path / "b").write_bytes(content.replace(b'"data_offsets":[0,16]', wrong))
        with pytest.raises(ConfigError, match=r"AFTER: .*cannot be read"):
            diff(tmp_path / "a", tmp_path / "b")


class Code:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self):
        return Path.mkdir, (Path(self.folder),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, is_zip):
    torch.save(state(), tmp_path / "a.pt")
    torch.save({**state(), "x": Code(tmp_path / "run")}, tmp_path / "b.pt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ConfigError, match=r"b\.pt holds more than tensors: reading it would run the code of"):
        diff(tmp_path / "a.pt", tmp_path / "b.pt")
    assert not (tmp_path / "run").exists()


def test_the_state_dict_is_found_or_named(tmp_path):
    moved = {**state(), "head.bias": torch.zeros(4, dtype=torch.float64)}
    value = {"model": state(), "ema": {"shadow": moved}, "step": 3}
    before, after = saved(tmp_path, {**value}, {**value})
    assert "trained" not in verdicts(diff(before, after)).values()
    torch.save({"ema": {"shadow": state()}, "model": moved}, before)
    assert verdicts(diff(before, after))["head.bias"] == "trained"
    assert "trained" not in verdicts(diff(before, before, key="ema.shadow")).values()
    with pytest.raises(ConfigError, match=r"has no 'ame' of --key ame; there is ema and model"):
        diff(before, after, key="ame")


def test_a_key_is_that_of_the_files_of_torch_save_among_the_two(tmp_path):
    save_file(state(), tmp_path / "a.safetensors")
    torch.save({"ema": {"model": state()}, "other": {"x": torch.zeros(1)}, "more": {"y": torch.zeros(1)}}, tmp_path / "b.pt")
    assert not [row for row in diff(tmp_path / "a.safetensors", tmp_path / "b.pt", key="ema.model").rows if row["moved"]]
    with pytest.raises(ConfigError, match=r"--key ema is for files of torch\.save, and there are safetensors files alone"):
        diff(tmp_path / "a.safetensors", tmp_path / "a.safetensors", key="ema")


def test_an_index_that_lists_a_tensor_that_its_file_lacks_is_refused(tmp_path):
    shards(state(), tmp_path / "a")
    index = tmp_path / "a" / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**places, "ghost.weight": places["head.bias"]}}))
    with pytest.raises(ConfigError, match=r"index\.json lists ghost\.weight, which its file lacks"):
        diff(tmp_path / "a", tmp_path / "a")


@pytest.mark.parametrize(("content", "why"), [(b"", "it is empty"), (b"hello", "not a file of torch.save")])
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path, content, why):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"BEFORE: .*a\.pt cannot be read \({why}\)"):
        diff(tmp_path / "a.pt", tmp_path / "a.pt")


def test_an_older_file_of_torch_save_is_loaded_whole_and_that_is_said(tmp_path):
    for file in ("a.pt", "b.pt"):
        legacy(state(), tmp_path / file)
    assert (
        "AFTER: b.pt is an older file of torch.save, so it is loaded whole"
        in diff(tmp_path / "a.pt", tmp_path / "b.pt").notes
    )


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    torch.save(state(), tmp_path / "a.pt")
    with pytest.raises(ConfigError, match=r"AFTER: .*empty has no weights"):
        diff(tmp_path / "a.pt", tmp_path / "empty")
