"""A tiny random model of every family of decoders that a mixture is tested on."""

from typing import Any

import torch
import transformers
from tiny import CPU, byte_tokenizer

from common.attention import ATTENTION
from common.backbone import Backbone

# Special tokens of the byte tokenizer; large first weights, so that attention is far from even.
COMMON = {"vocab_size": 259, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "initializer_range": 0.15}
USUAL = COMMON | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
# A window shorter than the texts, in every other layer at least where the family allows it.
SLIDING = {"sliding_window": 12}
ALTERNATING = SLIDING | {"layer_types": ["sliding_attention", "full_attention"] * 2}
# All experts at once: where a token changes its experts, the loss jumps and finite differences tell nothing.
EXPERTS = {"num_experts_per_tok": 4, "num_local_experts": 4}

# What each family's configuration needs beside the usual sizes, or in place of them.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": USUAL,
    "mistral": USUAL | SLIDING,
    "mixtral": USUAL | SLIDING | EXPERTS,
    "qwen2": USUAL | ALTERNATING | {"use_sliding_window": True},
    "qwen3": USUAL | {"head_dim": 12},
    "qwen3_moe": USUAL | EXPERTS | {"moe_intermediate_size": 24, "head_dim": 8},
    "gemma": USUAL | {"head_dim": 12},
    "gemma2": USUAL | ALTERNATING | {"head_dim": 12, "attn_logit_softcapping": 2.0},
    "gemma3_text": USUAL | ALTERNATING | {"head_dim": 12},
    "phi": USUAL,
    "phi3": USUAL | SLIDING,
    "olmo2": USUAL,
    "olmoe": USUAL | {"num_experts_per_tok": 4, "num_experts": 4},
    "stablelm": USUAL,
    "starcoder2": USUAL | SLIDING,
    "gpt_neox": USUAL,
    "gpt2": COMMON | {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256},
    "opt": USUAL | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "granite": USUAL | {"attention_multiplier": 0.25},
    "cohere": USUAL,
    "smollm3": USUAL,
    "gpt_oss": USUAL | ALTERNATING | EXPERTS | {"head_dim": 12},
}

# Families whose attention does not pass through transformers' interface.
REFUSED: dict[str, dict[str, Any]] = {
    "bloom": COMMON | {"hidden_size": 32, "n_layer": 4, "n_head": 4},
    "gptj": COMMON | {"n_embd": 32, "n_layer": 4, "n_head": 4, "rotary_dim": 4},
    "falcon": USUAL,
}


def family_model(family: str, attention: str | None = None, **changes: Any) -> Any:
    """Build a family's tiny model, the same at every call; `attention` None: what the family uses by itself."""
    config = transformers.AutoConfig.for_model(family, **(FAMILIES | REFUSED)[family] | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                torch.nn.init.normal_(parameter)
    return model.eval().requires_grad_(False)


def family_backbone(family: str, **changes: Any) -> Backbone:
    """Return a family's tiny model as a backbone."""
    return Backbone(family_model(family, ATTENTION, **changes), byte_tokenizer(), family, CPU)
