"""Tiny GPT-2 models that peft has wrapped."""

from __future__ import annotations

import warnings
from functools import partial

from torch import nn

from tests.freezing.parts.tiny_models import GPT2

BLOCK = "base_model.model.transformer.h.{}"
LM = {"task_type": "CAUSAL_LM"}
# {kind: (class of peft's config, options)}
KINDS = {
    "lora": ("LoraConfig", {"r": 2, "fan_in_fan_out": True, **LM}),
    "dora": ("LoraConfig", {"r": 2, "fan_in_fan_out": True, "use_dora": True, **LM}),
    "ia3": ("IA3Config", {"fan_in_fan_out": True, **LM}),
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 3, **LM}),
    "lora_head": ("LoraConfig", {"r": 2, "fan_in_fan_out": True, "task_type": "SEQ_CLS"}),
    "lora_table": ("LoraConfig", {"r": 2, "fan_in_fan_out": True, "target_modules": ["wte", "c_attn"], **LM}),
}


def peft_model(kind: str) -> nn.Module:
    """Return a GPT-2 with the adapters of this kind; `lora_head` trains a new head for three classes too."""
    import peft
    import transformers

    config, options = KINDS[kind]
    classify = partial(transformers.GPT2ForSequenceClassification, transformers.GPT2Config(**GPT2, num_labels=3))
    base = classify() if kind == "lora_head" else transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft calls what transformers will remove
        return peft.get_peft_model(base, getattr(peft, config)(**options))
