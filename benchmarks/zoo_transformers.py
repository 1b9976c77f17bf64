"""The models of transformers and peft in the zoo: a tiny config of each architecture, its data and task, and its head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.zoo_models import Entry

Config = Mapping[str, Any]


def written(value: Any) -> str:
    """Return a value as it is written on the command line, such as `{a: [1, 2], b: true}`."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(written, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def fields(**each: Config) -> tuple[str, ...]:
    """Return the overrides for batches with these fields; a model that takes labels makes its own loss of them."""
    return ("data=synthetic", f"++data.fields={written(each)}")


BERT = {
    **{"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64},
    **{"num_hidden_layers": 2, "num_attention_heads": 2},
}
LLAMA = {**BERT, "num_key_value_heads": 2}
T5 = {
    **{"vocab_size": 32, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2},
    **{"num_heads": 2, "decoder_start_token_id": 0},
}
BART = {
    **{"vocab_size": 32, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64},
    **{"decoder_ffn_dim": 64, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
}
LAYERS = {key: value for key, value in BERT.items() if key != "vocab_size"}
VIT = {**LAYERS, "image_size": 32, "patch_size": 8}
SOUND = {
    **BERT,
    **{"conv_dim": [16, 16], "conv_kernel": [10, 8], "conv_stride": [5, 4], "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "pad_token_id": 31},
}
MEL = {"num_mel_bins": 8, "max_source_positions": 32, "max_target_positions": 32}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
SEGFORMER = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
CLIP = {
    "projection_dim": 16,
    "text_config": {**BERT, "max_position_embeddings": 16, "eos_token_id": 31, "pad_token_id": 0},
    "vision_config": VIT,
}
EXPERTS = {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2}
QWEN = {**EXPERTS, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
STATES = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
FOUR = {"num_labels": 4}

IDS, LABELS, PICTURE = {"shape": [16], "below": 32}, {"shape": [], "below": 4}, {"shape": [3, 32, 32]}
CAUSAL, TOKENS = ("data=tokens", "task=causal_lm"), ("data=tokens", "task=model_loss")
TEXT, SEEN = fields(input_ids=IDS, labels=LABELS), fields(pixel_values=PICTURE, labels=LABELS)
PIXELS = fields(pixel_values={"shape": [3, 64, 64]}, labels={"shape": [64, 64], "below": 4})
WAVE = fields(input_values={"shape": [1600]}, labels=LABELS)
SPELLED = fields(input_values={"shape": [1600]}, labels={"shape": [4], "below": 31})
SPOKEN = fields(input_features={"shape": [8, 64]}, labels={"shape": [8], "below": 32})
SPECTRUM = fields(input_values={"shape": [64, 32]}, labels=LABELS)
# The loss of CLIP: which picture belongs to which text, among those of the batch. It returns none without `return_loss`.
PAIRED = (
    *fields(input_ids=IDS, pixel_values=PICTURE, labels={"shape": [], "below": 2}),
    "task.outputs={logits_per_image: 1}",
)

# (auto class after AutoModel, type of the model, its config, data and task, its head)
TRANSFORMERS: tuple[tuple[str, str, Config, tuple[str, ...], str], ...] = (
    ("ForCausalLM", "gpt2", {"vocab_size": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}, CAUSAL, "lm_head"),
    ("ForCausalLM", "llama", LLAMA, CAUSAL, "lm_head"),
    ("ForCausalLM", "gemma2", {**LLAMA, "head_dim": 16}, CAUSAL, "lm_head"),
    ("ForCausalLM", "opt", {**BERT, "ffn_dim": 64, "word_embed_proj_dim": 16}, CAUSAL, "lm_head"),
    ("ForCausalLM", "gpt_neox", BERT, CAUSAL, "lm_head"),
    ("ForCausalLM", "bloom", {"vocab_size": 32, "hidden_size": 32, "n_layer": 2, "n_head": 2}, CAUSAL, "lm_head"),
    ("ForCausalLM", "mamba", STATES, CAUSAL, "lm_head"),
    ("ForCausalLM", "mamba2", {**STATES, "num_heads": 4, "head_dim": 16, "n_groups": 1}, CAUSAL, "lm_head"),
    ("ForCausalLM", "mixtral", {**LLAMA, "num_local_experts": 4, "output_router_logits": True}, TOKENS, "lm_head"),
    ("ForCausalLM", "qwen2_moe", QWEN, CAUSAL, "lm_head"),
    ("ForCausalLM", "olmoe", EXPERTS, CAUSAL, "lm_head"),
    ("ForMaskedLM", "bert", BERT, TOKENS, "cls.predictions.decoder"),
    ("ForMaskedLM", "roberta", BERT, TOKENS, "lm_head.decoder"),
    (
        *("ForMaskedLM", "distilbert"),
        {"vocab_size": 32, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2},
        *(TOKENS, "vocab_projector"),
    ),
    ("ForMaskedLM", "albert", {**BERT, "embedding_size": 16}, TOKENS, "predictions.decoder"),
    ("ForMaskedLM", "deberta-v2", BERT, TOKENS, "cls.predictions.decoder"),
    ("ForSequenceClassification", "roberta", {**BERT, **FOUR}, TEXT, "classifier.out_proj"),
    ("ForSeq2SeqLM", "t5", T5, TOKENS, "lm_head"),
    ("ForSeq2SeqLM", "bart", BART, TOKENS, "lm_head"),
    ("ForSeq2SeqLM", "marian", {**BART, "decoder_vocab_size": 32}, TOKENS, "lm_head"),
    ("ForSeq2SeqLM", "switch_transformers", {**T5, "num_experts": 4}, TOKENS, "lm_head"),
    ("ForImageClassification", "vit", {**VIT, **FOUR}, SEEN, "classifier"),
    ("ForImageClassification", "swin", {**SWIN, **FOUR}, SEEN, "classifier"),
    (
        *("ForImageClassification", "convnext"),
        {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, **FOUR},
        *(SEEN, "classifier"),
    ),
    ("ForSemanticSegmentation", "segformer", {**SEGFORMER, **FOUR}, PIXELS, "decode_head.classifier"),
    ("ForCTC", "wav2vec2", SOUND, SPELLED, "lm_head"),
    ("ForAudioClassification", "hubert", {**SOUND, **FOUR}, WAVE, "classifier"),
    ("ForSpeechSeq2Seq", "whisper", {**BART, **MEL}, SPOKEN, "proj_out"),
    (
        *("ForAudioClassification", "audio-spectrogram-transformer"),
        {**LAYERS, "max_length": 64, "num_mel_bins": 32, **FOUR},
        *(SPECTRUM, "classifier.dense"),
    ),
    ("", "clip", CLIP, PAIRED, "text_projection|visual_projection"),
)
PREDICTS = {"task_type": "CAUSAL_LM"}
KEPT = {"modules_to_save": ["classifier"]}
# (class of peft's config, its arguments, the model of the table above that is adapted, the head within it)
PEFT: tuple[tuple[str, Config, str, str], ...] = (
    ("LoraConfig", {"r": 4, "target_modules": ["q_proj", "v_proj"], **PREDICTS}, "llama", "lm_head"),
    ("IA3Config", {"target_modules": ["k", "v", "wo"], "feedforward_modules": ["wo"]}, "t5", "lm_head"),
    ("OFTConfig", {"oft_block_size": 8, "target_modules": ["q_proj"], **PREDICTS}, "gemma2", "lm_head"),
    ("LoHaConfig", {"r": 4, "target_modules": ["q_proj"], **KEPT}, "vit", "classifier.modules_to_save.default"),
    (
        *("VeraConfig", {"r": 4, "target_modules": ["query", "value"], **KEPT}, "roberta"),
        "classifier.modules_to_save.default.out_proj",
    ),
    ("PromptTuningConfig", {"num_virtual_tokens": 4, **PREDICTS}, "gpt_neox", "lm_head"),
)


def transformers_entries() -> Iterator[Entry]:
    """Yield an entry for each architecture of transformers in the table."""
    for task, kind, config, data, heads in TRANSFORMERS:
        overrides = (
            *("model=huggingface", f"model.auto=AutoModel{task}", *data, "data.batch_size=2"),
            f"++model.config={written({'model_type': kind, **config})}",
        )
        yield Entry("transformers", f"{kind} {task}".strip(), overrides, tuple(heads.split("|")))


def peft_entries() -> Iterator[Entry]:
    """Yield an entry for each way to adapt a model in the table; what peft adds trains, and the head too."""
    adapted = {entry.model.split()[0]: entry for entry in transformers_entries()}  # the last one of its architecture
    for name, arguments, kind, head in PEFT:
        node = {"_target_": "peft.get_peft_model", "peft_config": {"_target_": f"peft.{name}", **arguments}}
        own_loss = ("task=model_loss",) if name == "PromptTuningConfig" else ()  # its scores begin with those of the prompt
        overrides = (*adapted[kind].overrides, f"model.then={written([node])}", *own_loss)
        keep = "freeze.keep=['@head', '@adapters']"
        prefix = "base_model." if name == "PromptTuningConfig" else "base_model.model."
        yield Entry("peft", f"{name.removesuffix('Config')} {kind}", (*overrides, keep), (prefix + head,))
