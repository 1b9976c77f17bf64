"""The callback for transformers, in real trainings of a tiny GPT-2: Trainer, peft, TRL, saving, resuming, NEFTune."""

from __future__ import annotations

import gc
import re

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from runner.integrations.transformers import FreezeAudit
from runner.proof.audit_report import UnsoundError
from tests.conftest import read_table

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore", "error:FreezeAudit")]  # the libraries warn of much


NOT_LORA = [r"re:(?!.*lora_).*"]


def gpt2(tied: bool = True) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, tie_word_embeddings=tied))


def with_frozen_embeddings() -> GPT2LMHeadModel:
    model = gpt2()
    for part in (model.transformer.wte, model.transformer.wpe):
        part.requires_grad_(False)
    return model


def with_lora(**options) -> PeftModel:
    return get_peft_model(gpt2(), LoraConfig(target_modules=["c_attn"], r=2, lora_alpha=2, **options))


def data(count: int = 48) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(32, (count, 8), generator=generator)
    return [{"input_ids": text, "labels": text} for text in texts]


def trainer_of(model: nn.Module, *callbacks: TrainerCallback, **options) -> Trainer:
    """Return a Trainer that makes 12 steps."""
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "learning_rate": 1e-2}
    arguments = TrainingArguments("out", **{**quiet, "per_device_train_batch_size": 4, "num_train_epochs": 1, **options})
    return Trainer(model, arguments, train_dataset=data(), eval_dataset=data(4), callbacks=list(callbacks))


def train(model: nn.Module, audit: FreezeAudit, *callbacks: TrainerCallback, **options) -> dict[str, str]:
    """Train for 12 steps, and return {name: "verdict cause"} of the parameters."""
    trainer_of(model, audit, *callbacks, **options).train()
    return verdicts(audit)


def verdicts(audit: FreezeAudit) -> dict[str, str]:
    rows = [row for row in audit.report.rows if row["kind"] == "parameter"]
    return {row["name"]: f"{row['verdict']} {row['cause']}".strip() for row in rows}


def held(found: dict[str, str]) -> list[str]:
    """Return the names of what held; asserts that all else was trained."""
    assert set(found.values()) <= {"held", "trained"}
    return [name for name, verdict in found.items() if verdict == "held"]


class At(TrainerCallback):
    """Calls a function with the model at an event, after a number of steps."""

    def __init__(self, event: str, step: int, function) -> None:
        def on_event(args, state, control, model=None, **_):
            if state.global_step == step:
                function(model)

        setattr(self, event, on_event)


def no_hooks_are_left() -> bool:
    return not _global_optimizer_pre_hooks and not _global_optimizer_post_hooks


FROZEN_EMBEDDINGS = ["transformer.wte.weight", "transformer.wpe.weight"]


# One training


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"gradient_accumulation_steps": 2},
        {"bf16": True},
        {"optim": "adafactor", "max_grad_norm": 0},
        {"neftune_noise_alpha": 5},
        {"logging_steps": 2, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3},
    ],
    ids=str,
)
def test_frozen_embeddings_held_and_all_else_was_trained(options, capsys):
    trainer = trainer_of(with_frozen_embeddings(), audit := FreezeAudit(strict=True, until=6), **options)
    trainer.train()
    assert held(verdicts(audit)) == FROZEN_EMBEDDINGS
    assert audit.report.steps == 6
    assert "2 frozen tensors held, and what is trainable was trained" in capsys.readouterr().out
    assert no_hooks_are_left()


def test_the_training_gets_the_same_bits_with_and_without_the_callback():
    models = [with_frozen_embeddings(), with_frozen_embeddings()]
    trainer_of(models[0]).train()
    trainer_of(models[1], FreezeAudit()).train()
    assert all(map(torch.equal, models[0].state_dict().values(), models[1].state_dict().values()))


def test_verdicts_are_in_the_log_history_and_the_rows_in_the_folder(tmp_path):
    audit = FreezeAudit(folder=tmp_path / "proof")
    trainer = trainer_of(with_frozen_embeddings(), audit)
    trainer.train()
    (logged,) = [entry for entry in trainer.state.log_history if "freeze_audit/held" in entry]
    assert (logged["freeze_audit/held"], logged["freeze_audit/leaked"], logged["step"]) == (2, 0, 12)
    assert [
        row["name"] for row in read_table(tmp_path / "proof" / "changes.csv") if row["frozen"] == "True"
    ] == FROZEN_EMBEDDINGS
    trainer.log(audit.metrics)


def test_a_tied_head_moves_the_embeddings_that_a_pattern_freezes():
    with pytest.warns(UserWarning, match=r"after step 8: 1 frozen tensor leaked: transformer\.wte\.weight \(gradient\)"):
        train(gpt2(), FreezeAudit(["transformer.wte"]))


def test_strict_raises_at_the_last_watched_step():
    trainer = trainer_of(gpt2(), audit := FreezeAudit(["transformer.h.0"], strict=True, until=2))
    with pytest.raises(
        UnsoundError, match=r"after step 2: 12 frozen tensors leaked: transformer\.h\.0\.ln_1\.weight \(gradient\)"
    ):
        trainer.train()
    assert trainer.state.global_step == 2
    assert len(audit.report.leaks) == 12
    assert no_hooks_are_left()


def test_strict_raises_at_the_end_what_leaked_after_the_last_watched_step():
    late = At("on_step_end", 10, lambda model: model.transformer.wpe.weight.data.add_(1))
    with pytest.raises(UnsoundError, match=r"1 frozen tensor leaked: transformer\.wpe\.weight \(unknown\)"):
        train(with_frozen_embeddings(), FreezeAudit(strict=True, until=2), late)


def test_best_weights_that_are_loaded_at_the_end_are_compared_too():
    options = {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    train(with_frozen_embeddings(), FreezeAudit(strict=True), **options)

    class ChangesWhatWasSaved(TrainerCallback):
        def on_save(self, args, state, control, **_):
            path = f"out/checkpoint-{state.global_step}/model.safetensors"
            saved = load_file(path)
            save_file({**saved, "transformer.wpe.weight": saved["transformer.wpe.weight"] + 1}, path, {"format": "pt"})

    with pytest.raises(UnsoundError, match=r"1 frozen tensor leaked: transformer\.wpe\.weight \(unknown\)"):
        train(with_frozen_embeddings(), FreezeAudit(strict=True), ChangesWhatWasSaved(), **options)


# Flags that change in mid-training


@pytest.mark.parametrize("until", [4, None])
def test_layers_that_are_unfrozen_in_mid_training_are_trainable_from_then_on(until):
    class Unfreezes(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, optimizer=None, **_):
            if state.global_step == 6:
                optimizer.param_groups[0]["params"] += model.transformer.h[0].requires_grad_(True).parameters()

    model, audit = gpt2(), FreezeAudit(until=until, strict=True)
    model.transformer.h[0].requires_grad_(False)
    before = model.transformer.h[0].ln_1.bias.clone()
    found = train(model, audit, Unfreezes())
    assert held(found) == [name for name in found if name.startswith("transformer.h.0.")]
    assert not torch.equal(before, model.transformer.h[0].ln_1.bias)
    since = "from step 7 on, the flags declare trainable: transformer.h.0.ln_1.weight"
    assert any(note.startswith(since) for note in audit.report.notes)


@pytest.mark.parametrize("until", [4, None])
def test_layers_that_are_unfrozen_in_mid_training_do_not_train_for_the_optimizer_of_the_trainer_lacks_them(until):
    model = gpt2()
    model.transformer.h[0].requires_grad_(False)
    unfreezes = At("on_step_begin", 6, lambda model: model.transformer.h[0].requires_grad_(True))
    with pytest.raises(UnsoundError, match=r"unfrozen in mid-run, and unchanged since: transformer\.h\.0\.ln_1\.weight"):
        train(model, FreezeAudit(until=until, strict=True), unfreezes)


# Several trainings, resuming, failures


def test_each_training_is_audited_anew():
    audit = FreezeAudit(strict=True)
    trainer = trainer_of(with_frozen_embeddings(), audit)
    trainer.train()
    report = audit.report
    trainer.train()
    assert audit.report is not report
    assert held(verdicts(audit)) == FROZEN_EMBEDDINGS


def test_a_training_that_is_resumed_is_audited_from_its_first_step_on():
    saving = {"save_strategy": "steps", "save_steps": 6}
    train(with_frozen_embeddings(), FreezeAudit(strict=True), **saving)
    model, audit = with_frozen_embeddings(), FreezeAudit(strict=True, until=2)
    model.transformer.wpe.weight.data.add_(1)  # restored before the audit begins
    trainer = trainer_of(model, audit, **saving)
    trainer.train(resume_from_checkpoint="out/checkpoint-6")
    assert trainer.state.global_step == 12
    assert (held(verdicts(audit)), audit.report.steps) == (FROZEN_EMBEDDINGS, 2)


def test_the_audit_of_a_training_that_failed_ends_with_the_next_one_or_with_its_trainer():
    def fail(model):
        raise OSError("the disk is full")

    trainer = trainer_of(
        with_frozen_embeddings(), audit := FreezeAudit(strict=True), failing := At("on_step_begin", 3, fail)
    )
    with pytest.raises(OSError, match="the disk is full"):
        trainer.train()
    trainer.remove_callback(failing)
    trainer.train()
    assert held(verdicts(audit)) == FROZEN_EMBEDDINGS
    assert no_hooks_are_left()
    trainer.add_callback(failing)
    with pytest.raises(OSError, match="the disk is full"):
        trainer.train()
    del trainer, audit
    gc.collect()
    assert no_hooks_are_left()


# Adapters


def test_lora_trains_the_adapter_alone():
    found = train(with_lora(), FreezeAudit(strict=True))
    assert {name for name, verdict in found.items() if verdict == "trained"} == {
        f"base_model.model.transformer.h.{layer}.attn.c_attn.lora_{part}.default.weight" for layer in (0, 1) for part in "AB"
    }


def test_patterns_look_through_the_wrapper_of_peft():
    found = train(with_lora(), FreezeAudit(NOT_LORA, strict=True))
    assert len(held(found)) == 28


@pytest.mark.parametrize("step", [4, 10])
def test_merging_and_unmerging_rounds_the_base_and_leaves_other_bits(step):
    def merge_and_unmerge(model):
        model.merge_adapter()
        model.unmerge_adapter()

    audit = FreezeAudit()
    trainer = trainer_of(with_lora(), audit, At("on_step_begin", step, merge_and_unmerge))
    if step == 4:
        with pytest.warns(UserWarning, match=r"c_attn\.base_layer\.weight \(outside_write\)"):
            trainer.train()
    else:
        trainer.train()
    assert audit.report.leaks == [
        f"base_model.model.transformer.h.{layer}.attn.c_attn.base_layer.weight" for layer in (0, 1)
    ]


@pytest.mark.parametrize("safe", [True, False])
def test_the_base_holds_the_adapter_after_merge_and_unload(safe):
    def merge(model):
        model.merge_and_unload(safe_merge=safe)

    merges = At("on_train_end", 12, merge)
    with pytest.raises(UnsoundError, match=r"2 frozen tensors leaked: .*h\.0\.attn\.c_attn\.base_layer\.weight \(unknown\)"):
        trainer_of(with_lora(), merges, FreezeAudit(strict=True)).train()


def test_peft_2759_the_copies_of_a_module_to_save_trained_though_they_were_loaded_for_inference(tmp_path):
    with_lora(modules_to_save=["lm_head"]).save_pretrained("adapter")
    model = PeftModel.from_pretrained(gpt2(), "adapter", is_trainable=False)
    for name, parameter in model.named_parameters():  # as peft 0.17 did
        if "lm_head.modules_to_save" in name:
            parameter.requires_grad_(True)
    with pytest.raises(UnsoundError, match=r"lm_head\.modules_to_save\.default\.weight \(gradient\)"):
        train(model, FreezeAudit(["**"], strict=True))


def test_peft_3716_a_fallback_adapter_stayed_frozen():
    model = with_lora(modules_to_save=["lm_head"])
    model.add_adapter("other", LoraConfig(target_modules=["c_attn"], r=2))
    model.set_adapter("other")
    model.delete_adapter("other")
    copied = "base_model.model.lm_head.modules_to_save.default.weight"
    model.get_parameter(copied).requires_grad_(False)  # as peft 0.21 leaves it, though it is active again
    with pytest.raises(UnsoundError, match=rf"1 trainable parameter did not change: {re.escape(copied)}"):
        train(model, FreezeAudit(["transformer"], strict=True))


def test_qwen_vl_series_finetune_115_the_part_that_was_to_be_unfrozen_was_not():
    model = gpt2()
    model.transformer.h[0].requires_grad_(False)
    with pytest.raises(UnsoundError, match=r"12 trainable parameters did not change: transformer\.h\.0\.ln_1\.weight"):
        train(model, FreezeAudit(["transformer.wpe"], strict=True))


def test_llama_factory_10139_the_position_embeddings_of_a_frozen_part_were_trained():
    model = gpt2()
    model.transformer.h.requires_grad_(False)
    model.transformer.wte.requires_grad_(False)
    with pytest.raises(UnsoundError, match=r"1 frozen tensor leaked: transformer\.wpe\.weight \(gradient\)"):
        train(model, FreezeAudit(["transformer.h", "transformer.wte", "transformer.wpe"], strict=True))


def test_trl_6700_the_optimizer_was_made_while_every_flag_was_off_and_trained_nothing():
    def switch(model, flag: bool) -> None:
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(flag)

    class Switches(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **_):
            switch(model, True)  # so that gradients and their norm look healthy

    model = with_lora()
    switch(model, False)
    with pytest.raises(
        UnsoundError, match=r"4 trainable parameters did not change: .*lora_A\.default\.weight \(not_in_optimizer\)"
    ):
        train(model, FreezeAudit(strict=True, until=4), Switches())


def test_trl_3926_preparing_a_peft_model_for_quantised_training_froze_its_adapter():
    model = prepare_model_for_kbit_training(with_lora())
    trainer = trainer_of(model, FreezeAudit(strict=True), gradient_checkpointing=True)
    with pytest.raises(UnsoundError, match="no parameter was trained"):
        trainer.train()


def freeze_adapter(model) -> None:
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(False)


@pytest.mark.parametrize(
    ("frozen", "problem"),
    [(None, "no parameter has requires_grad=True"), (NOT_LORA, "requires_grad is False though not declared frozen")],
)
def test_ms_swift_9452_the_first_save_froze_the_adapter(frozen, problem):
    model = with_lora()
    model.enable_input_require_grads()  # so that the loss has a gradient all the same
    saves = At("on_save", 6, freeze_adapter)
    with pytest.raises(UnsoundError, match=f"from step 7 on, {problem}"):
        train(model, FreezeAudit(frozen, until=2, strict=True), saves, save_strategy="steps", save_steps=6)


# TRL


def test_sft_trainer_of_trl():
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_list([{"input_ids": each["input_ids"].tolist()} for each in data()])
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "bf16": False}
    arguments = SFTConfig("out", per_device_train_batch_size=4, num_train_epochs=1, max_length=8, **quiet)
    audit = FreezeAudit(strict=True)
    SFTTrainer(
        gpt2(),
        arguments,
        train_dataset=rows,
        processing_class=tokenizer(),
        peft_config=LoraConfig(target_modules=["c_attn"], r=2),
        callbacks=[audit],
    ).train()
    assert len(held(verdicts(audit))) == 28


def tokenizer():
    """Return a tokenizer of 32 words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"w{number}": number for number in range(32)}, unk_token="w1"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", pad_token="w0", unk_token="w1")


# Bad input


def test_a_pattern_that_matches_nothing_is_refused_before_the_first_step():
    trainer = trainer_of(gpt2(), FreezeAudit(["transformer.wtee"]))
    with pytest.raises(ValueError, match=r"frozen: 'transformer\.wtee' matches no parameter.*did you mean transformer\.wte"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert no_hooks_are_left()


def test_nothing_frozen_is_one_message_and_a_failure_if_strict():
    with pytest.warns(UserWarning, match="no parameter has requires_grad=False") as caught:
        train(gpt2(), FreezeAudit())
    assert len([each for each in caught if "FreezeAudit" in str(each.message)]) == 1
    with pytest.raises(UnsoundError, match="after step 8: nothing was frozen"):
        train(gpt2(), FreezeAudit(strict=True))


def test_data_parallel_holds_the_tensors_that_are_trained():
    trainer = trainer_of(with_frozen_embeddings(), audit := FreezeAudit(strict=True))
    trainer.model_wrapped = nn.DataParallel(trainer.model)
    trainer.train()
    assert held(verdicts(audit)) == FROZEN_EMBEDDINGS


def test_a_model_that_was_compiled(monkeypatch):
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):
        monkeypatch.setenv(name, "no")  # the Trainer sets them, and would compile in the tests after this one
    torch._dynamo.reset()
    audit = FreezeAudit(strict=True)
    found = train(with_frozen_embeddings(), audit, torch_compile=True, torch_compile_backend="eager")
    assert held(found) == FROZEN_EMBEDDINGS
    torch._dynamo.reset()
    AcceleratorState._reset_state(reset_partial_state=True)
