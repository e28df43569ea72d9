"""Models of well-known shapes with random weights, for what depends on shapes alone."""

import json
from pathlib import Path
from typing import Any

import torch

from common.backbone import new_model
from common.tokenizer import train_tokenizer

CPU = torch.device("cpu")


def _shape(vocab: int, hidden: int, layers: int, heads: int, kv_heads: int, inner: int, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }


# Sizes are those that the models' cards publish.
SHAPES = {
    "smollm2-135m": _shape(49152, 576, 30, 9, 3, 1536, tied=True),
    "qwen2.5-0.5b": _shape(151936, 896, 24, 14, 2, 4864, tied=True) | {"model_type": "qwen2"},
    "llama-3.2-1b": _shape(128256, 2048, 16, 32, 8, 8192, tied=True),
    "llama-3.1-8b": _shape(128256, 4096, 32, 32, 8, 14336, tied=False),
}


def write_shape(name: str, directory: Path, device: torch.device = CPU) -> None:
    """Write a model of a shape with random bfloat16 weights, and a tokenizer of bytes; it takes 2 bytes a parameter.

    `device` is where the weights are drawn: 8 B take seconds on a GPU, minutes on a CPU.
    """
    write_description(name, directory)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        new_model(directory, torch.bfloat16).save_pretrained(directory)


def write_description(name: str, directory: Path) -> None:
    """Write what a model of a shape has beside its weights."""
    (directory / "config.json").write_text(json.dumps(SHAPES[name]))
    train_tokenizer([], 259).save_pretrained(directory)
