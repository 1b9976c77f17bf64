"""Tiny models of transformers, built from configs, for tests of what is found in them."""

from __future__ import annotations

from torch import nn

TEXT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VISION = {**TEXT, "image_size": 16, "patch_size": 8}
del VISION["vocab_size"]
STACKS = {f"{side}_{key}": 2 for side in ("encoder", "decoder") for key in ("layers", "attention_heads")}
BART = {"vocab_size": 40, "d_model": 16, **STACKS, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2}
MIXTURE = {**TEXT, "num_key_value_heads": 2, "num_experts_per_tok": 2}
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2}
DEEPSEEK = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
DEEPSEEK |= {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 8, "first_k_dense_replace": 1}
# {name: (class of the model, class of its config, options)}
CONFIGS = {
    "albert": ("AlbertForMaskedLM", "AlbertConfig", {**TEXT, "embedding_size": 8}),
    "bart": ("BartForConditionalGeneration", "BartConfig", BART),
    "beit": ("BeitForImageClassification", "BeitConfig", {**VISION, "use_mask_token": True}),
    "bert": ("BertForSequenceClassification", "BertConfig", TEXT),
    "clip": ("CLIPModel", "CLIPConfig", {"text_config": TEXT, "vision_config": VISION, "projection_dim": 8}),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", {"depths": [1] * 4, "hidden_sizes": [8] * 4}),
    "deberta": ("DebertaV2ForMaskedLM", "DebertaV2Config", {**TEXT, "relative_attention": True, "pos_att_type": ["p2c"]}),
    "deepseek": ("DeepseekV3ForCausalLM", "DeepseekV3Config", {**MIXTURE, **DEEPSEEK}),
    "ernie": (
        "Ernie4_5_MoeForCausalLM",
        "Ernie4_5_MoeConfig",
        {**MIXTURE, "moe_num_experts": 4, "moe_intermediate_size": 8},
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig", {**MIXTURE, "num_local_experts": 4, "head_dim": 8}),
    "granite": ("GraniteMoeForCausalLM", "GraniteMoeConfig", {**MIXTURE, "num_local_experts": 4}),
    "jetmoe": ("JetMoeForCausalLM", "JetMoeConfig", {**MIXTURE, "num_local_experts": 4, "kv_channels": 8}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", TEXT),
    "llama4": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        {**MIXTURE, "intermediate_size_mlp": 32, "num_local_experts": 4, "head_dim": 8},
    ),
    "mamba": ("MambaForCausalLM", "MambaConfig", {**TEXT, "state_size": 4}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**MIXTURE, "num_local_experts": 4}),
    "olmoe": ("OlmoeForCausalLM", "OlmoeConfig", {**MIXTURE, "num_experts": 4}),
    "phimoe": ("PhimoeForCausalLM", "PhimoeConfig", {**MIXTURE, "num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {**MIXTURE, "num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
    ),
    "switch": (
        "SwitchTransformersForConditionalGeneration",
        "SwitchTransformersConfig",
        {**T5, "num_layers": 2, "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    ),
    "t5": ("T5ForConditionalGeneration", "T5Config", {**T5, "num_layers": 2}),
    "t5_one_layer": ("T5ForConditionalGeneration", "T5Config", {**T5, "num_layers": 1}),
    "vilt": ("ViltForQuestionAnswering", "ViltConfig", {**VISION, "vocab_size": 40}),
    "vit": ("ViTForImageClassification", "ViTConfig", VISION),
    "xlnet": (
        "XLNetLMHeadModel",
        "XLNetConfig",
        {"vocab_size": 40, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
    ),
}


def tiny(name: str, **options) -> nn.Module:
    """Return the model of this name in CONFIGS, on the meta device; `options` are further options of its config."""
    import torch
    import transformers

    model, config, given = CONFIGS[name]
    with torch.device("meta"):
        return getattr(transformers, model)(getattr(transformers, config)(**given, **options))
