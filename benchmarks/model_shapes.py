"""Models of well-known shapes with random weights, for what depends on shapes alone."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config

from common.tokenizer import train_tokenizer

SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def _llama(vocab: int, hidden: int, layers: int, heads: int, kv_heads: int, inner: int, tied: bool) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
        **SPECIAL,
    )


def shapes() -> dict[str, PreTrainedConfig]:
    """Return the configurations by name; the sizes are those that the models' cards publish."""
    return {
        "smollm2-135m": _llama(49152, 576, 30, 9, 3, 1536, tied=True),
        "qwen2.5-0.5b": Qwen2Config(
            vocab_size=151936,
            hidden_size=896,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            intermediate_size=4864,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            **SPECIAL,
        ),
        "llama-3.2-1b": _llama(128256, 2048, 16, 32, 8, 8192, tied=True),
        "llama-3.1-8b": _llama(128256, 4096, 32, 32, 8, 14336, tied=False),
    }


def write(name: str, directory: Path) -> None:
    """Write a model of a shape with random bfloat16 weights, and a tokenizer of bytes; it takes 2 bytes a parameter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(shapes()[name], dtype=torch.bfloat16).save_pretrained(directory)
    train_tokenizer([], 259).save_pretrained(directory)
