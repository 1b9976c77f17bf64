"""Bugs that people reported after months: an audit of the same training tells each of them, with names and causes."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from runner import audit, select
from runner.errors import ConfigError
from runner.proof.audit_report import LeakError, UnsoundError
from runner.testing import assert_frozen, assert_trains

ADAPTERS = "re:.*lora_.*"


def base():
    """Return a small model: two layers that adapters can be put around, and a head."""
    torch.manual_seed(0)
    layers = {"first": nn.Linear(4, 4), "bend": nn.Tanh(), "second": nn.Linear(4, 4), "head": nn.Linear(4, 3)}
    return nn.Sequential(OrderedDict(layers))


def with_lora(model, *targets, **options):
    """Return the model in peft, with adapters around some layers that already change its output."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False, **options))


def train(model, steps=4, after_step=lambda step: None, optimizer=None):
    """Train all parameters that have a flag, as most trainers do, or what is in a given optimizer."""
    flagged = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = optimizer or torch.optim.AdamW(flagged, lr=0.01)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(torch.randn(8, 4).requires_grad_()).square().mean().backward()
        optimizer.step()
        after_step(step)


def names_with(report, verdict):
    """Return {name: cause} of the parameters with a verdict."""
    return {row["name"]: row["cause"] for row in report.rows if (row["kind"], row["verdict"]) == ("parameter", verdict)}


def test_peft_2759_making_a_frozen_adapter_active_made_it_trainable():
    """Two pretrained adapters were loaded as frozen; `set_adapter`, called to use them, made them trainable."""
    from peft import LoraConfig, PeftModel

    with_lora(base(), "first").save_pretrained("pretrained")
    model = PeftModel.from_pretrained(base(), "pretrained", adapter_name="pretrained", is_trainable=False)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.add_adapter("tuned", LoraConfig(r=2, target_modules=["second"], init_lora_weights=False))
    model.base_model.set_adapter(["pretrained", "tuned"])
    with audit(model, ["**.pretrained", "**.base_layer", "**.head"]) as report:
        train(model)
    leaks = {f"base_model.model.first.lora_{each}.pretrained.weight": "gradient" for each in "AB"}
    assert names_with(report, "leaked") == leaks
    assert set(names_with(report, "trained")) == {f"base_model.model.second.lora_{each}.tuned.weight" for each in "AB"}


@pytest.mark.filterwarnings("ignore:Adapter other was active")
def test_peft_3716_the_head_stayed_frozen_after_an_adapter_was_deleted():
    """Deleting the active adapter falls back to another, whose trainable copy of the head kept the flag False."""
    from peft import LoraConfig

    model = with_lora(base(), "first", modules_to_save=["head"])
    model.add_adapter("other", LoraConfig(r=2, target_modules=["first"], init_lora_weights=False))
    model.set_adapter("other")
    model.delete_adapter("other")
    head = model.base_model.model.head.modules_to_save["default"].requires_grad_(False)  # as peft 0.21.2 leaves it
    with audit(model, ["**.base_layer", "**.second", "**.original_module"]) as report:
        train(model)
    idle = names_with(report, "idle")
    assert idle == {
        f"base_model.model.head.modules_to_save.default.{name}": "not_in_optimizer" for name in ("weight", "bias")
    }
    assert len(idle) == len(list(head.parameters()))
    with pytest.raises(UnsoundError, match=r"2 trainable parameters did not change: .*head\.modules_to_save"):
        report.raise_if_unsound()


class Switched(nn.Module):
    """A model with two adapters and a head that is to be trained with each; `set_adapter` forgets the head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.adapters = nn.ModuleDict({"one": nn.Linear(4, 4), "two": nn.Linear(4, 4)})
        self.head = nn.Linear(4, 3)
        self.active = "one"

    def set_adapter(self, name):
        self.requires_grad_(False)
        self.adapters[name].requires_grad_(True)
        self.active = name

    def forward(self, x):
        return self.head(self.adapters[self.active](x))


def test_peft_3626_the_head_stopped_training_at_the_first_switch_of_adapters():
    """The switch set the flags of the adapters alone; the loss still fell, so that the head was found untouched later."""
    model = Switched()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.set_adapter("two")
    with audit(model, ["adapters.one"]) as report:
        train(model, optimizer=optimizer)
    assert names_with(report, "idle") == {"head.weight": "no_gradient", "head.bias": "no_gradient"}
    assert set(names_with(report, "trained")) == {"adapters.two.weight", "adapters.two.bias"}
    with pytest.raises(UnsoundError, match="did not train in 4 steps"), assert_trains(model, ["head"]):
        train(model, optimizer=optimizer)


def test_trl_3926_preparing_a_model_that_has_adapters_froze_the_adapters():
    """SFTTrainer prepared a PeftModel for training on quantized weights, which froze every parameter that it found."""
    from peft import prepare_model_for_kbit_training

    model = with_lora(base(), "first", "second")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    with audit(model, ["**.base_layer", "**.head"]) as report:
        train(model, optimizer=optimizer)
    assert {name.rpartition(".lora_")[0] for name in names_with(report, "idle")} == {
        f"base_model.model.{layer}" for layer in ("first", "second")
    }
    assert set(names_with(report, "idle").values()) == {"no_gradient"}
    with pytest.raises(UnsoundError, match=r"4 trainable parameters did not change.*; no parameter was trained"):
        report.raise_if_unsound()
    with audit(model) as report:  # the flags are wrong, and still it is told that nothing was trained
        train(model, optimizer=optimizer)
    with pytest.raises(UnsoundError, match="no parameter was trained"):
        report.raise_if_unsound()


def test_ms_swift_9452_the_first_save_froze_the_adapter():
    """Saving converted the adapter with the help of a second one, whose mode for inference was set on the first, too."""
    model = with_lora(base(), "first")
    model.base_model.model.head.requires_grad_(True)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.01)

    def save(step):
        if step == 2:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_("lora_" not in name and parameter.requires_grad)

    with audit(model) as report:

        def after_step(step):
            save(step)
            report.follow_flags()  # as the callbacks for Lightning and transformers do

        train(model, optimizer=optimizer, steps=2, after_step=after_step)
    assert any(
        text.startswith("from step 3 on, the flags declare frozen: base_model.model.first.lora_A") for text in report.notes
    )
    with pytest.raises(UnsoundError) as caught, assert_trains(model, [ADAPTERS]):
        train(model, optimizer=optimizer, steps=2)
    assert str(caught.value).splitlines() == [
        f"2 of 2 parameters that patterns=['{ADAPTERS}'] matches did not train in 2 steps:",
        *(f"  base_model.model.first.lora_{each}.default.weight did not change: no_gradient" for each in "AB"),
    ]


class VisionLanguage(nn.Module):
    """A vision tower, a merger and a language model."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.visual, self.merger, self.language = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.language(self.merger(self.visual(x).tanh()))


@pytest.mark.parametrize("is_frozen", [True, False])
def test_qwen_vl_series_finetune_115_a_vision_tower_that_was_to_train_did_not(is_frozen):
    """With the tower frozen and unfrozen, all weights of the two runs were the same: adapters had frozen the tower again."""
    model = VisionLanguage()
    model.requires_grad_(False).merger.requires_grad_(True)
    model.visual.requires_grad_(not is_frozen)
    model = with_lora(model, "language")  # peft freezes all that has no adapter
    model.base_model.model.merger.requires_grad_(True)
    frozen = ["**.language.base_layer", *(["**.visual"] if is_frozen else [])]
    with audit(model, frozen) as report:
        train(model)
    name = "base_model.model.visual.weight"
    (row,) = (row for row in report.rows if row["name"] == name)
    assert row["verdict"] == ("held" if is_frozen else "idle")
    if is_frozen:
        report.raise_if_unsound()
    else:
        with pytest.raises(UnsoundError, match=rf"{name} \(not_in_optimizer\)"):
            report.raise_if_unsound()


def test_llama_factory_10139_the_position_embedding_of_a_frozen_vision_tower_was_trained():
    """A list of the tower's parts, written for an older model, missed a new part: it has a flag, and moves."""
    model = nn.ModuleDict({"blocks": nn.Linear(4, 4), "merger": nn.Linear(4, 4), "pos_embed": nn.Linear(4, 4)})
    model.blocks.requires_grad_(False)
    tower = nn.Sequential(OrderedDict(model.items()))
    frozen = select(tower, ["**"], keep=["merger"])
    with pytest.raises(LeakError, match=r"pos_embed\.weight changed by up to .*: gradient"), assert_frozen(tower, frozen):
        train(tower)


def test_lerobot_4018_names_that_no_part_of_the_model_has_froze_nothing():
    """Layers were to be frozen by names that never existed, so that `requires_grad` was set on nothing, silently."""
    with pytest.raises(ConfigError, match=r"text_model\.model\.norm"), audit(base(), ["text_model.model.norm.weight"]):
        pytest.fail("the block ran")


def test_trlx_517_a_reference_model_shared_its_embedding_with_the_policy():
    """The reference was a copy of the last layers alone; the embedding that it shares was trained with the policy."""
    policy = base()
    reference = copy.deepcopy(policy).requires_grad_(False)
    reference.first = policy.first
    with audit({"policy": policy, "reference": reference}, ["reference"]) as report:
        train(policy)
    assert names_with(report, "leaked") == {"policy.first.weight": "gradient", "policy.first.bias": "gradient"}


def test_peft_1732_the_batchnorm_of_a_frozen_base_moved_and_was_not_saved_with_the_adapter():
    """The loaded model gave other outputs: the adapter was saved, and what its base had become was not."""
    model = with_lora(nn.Sequential(OrderedDict(norm=nn.BatchNorm1d(4), **dict(base().named_children()))), "first")
    with audit(model) as report:
        train(model)
    drifted = {row["name"].rpartition(".")[2] for row in report.rows if row["verdict"] == "drifted"}
    assert drifted == {"running_mean", "running_var", "num_batches_tracked"}
    with pytest.raises(LeakError, match="running_mean changed"), assert_frozen(model, None, buffers="frozen"):
        train(model)
