"""A tiny random Llama that stands in for a backbone, and mixtures and examples for it."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from common.backbone import Backbone, load_backbone
from common.batches import Batch, TokenizedExample, collate, tokenize
from common.decoder import probe_kv_shapes
from common.example import Example
from common.fingerprint import fingerprint
from common.injection import PromptedBackbone
from common.mixture import Mixture
from common.mixture_arrays import initial_arrays
from common.mixture_file import CARD, WEIGHTS, card, weights_bytes
from common.mixture_spec import MixtureSpec
from common.saved_run import CONFIG
from common.tokenizer import train_tokenizer

CPU = torch.device("cpu")
VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS = 259, 64, 4, 4, 2


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([], VOCAB)


def tiny_config(**changes: Any) -> LlamaConfig:
    """Large first weights: with the usual ones attention is nearly even and hides mistakes."""
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 256,
        "initializer_range": 0.15,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "attn_implementation": "sdpa",
    }
    return LlamaConfig(**(sizes | changes))


def tiny_llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(tiny_config(**changes)).eval().requires_grad_(False)


def tiny_backbone(dtype: torch.dtype = torch.float32) -> Backbone:
    return Backbone(tiny_llama().to(dtype), byte_tokenizer(), "tiny", CPU)


def mixture_for(
    backbone: Backbone, num_experts: int = 3, layer: int = 2, scale: float = 10.0, seed: int = 0, **changes: Any
) -> Mixture:
    """Draw a mixture whose values are `scale` times 0.02, and keys the root of their size times that."""
    spec = MixtureSpec(num_experts, 4, 8, backbone.hidden_size, probe_kv_shapes(backbone, layer), **changes)
    rng = np.random.default_rng(seed)
    arrays = initial_arrays(spec, rng, prompt_scale=0.02)
    for name, array in arrays.items():
        if name.startswith("pool."):
            array *= np.float32(scale)
        elif name.endswith("bias"):
            array += rng.normal(size=array.shape).astype(np.float32)
    mixture = Mixture(spec)
    mixture.load_arrays(arrays)
    return mixture


def tiny_prompted(num_experts: int = 3, layer: int = 2, **changes: Any) -> PromptedBackbone:
    backbone = tiny_backbone()
    return PromptedBackbone(backbone, mixture_for(backbone, num_experts, layer, **changes))


def examples(count: int = 12) -> list[Example]:
    """Draw examples of three tasks in turn, of various lengths; not of the suite, so that golden losses outlive it."""
    rng = Random(0)
    drawn = []
    for index in range(count):
        word = "".join(rng.choice("abcdefgh") for _ in range(rng.randint(2, 9)))
        task, domain, instruction, output = (
            ("shout", "letters", "write it in capitals", word.upper()),
            ("turn", "letters", "spell the word backwards", word[::-1]),
            ("count", "numbers", "how many letters are in the word", str(len(word))),
        )[index % 3]
        drawn.append(Example("train", task, domain, "", instruction, f"input: {word}", output))
    return drawn


def tokenized(some: Sequence[Example]) -> list[TokenizedExample]:
    return [tokenize(example, byte_tokenizer(), 128) for example in some]


def batch_of(count: int = 4) -> Batch:
    return collate(tokenized(examples(count)), 2, CPU)


def logits_of(prompted: PromptedBackbone, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    return prompted.logits(batch)


def backbone_on_disk(directory: Path, seed: int = 0) -> str:
    tiny_llama(seed).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return str(directory)


def mixture_on_disk(directory: Path, mixture: Mixture, fingerprint: str, source: str) -> None:
    """Write a mixture as a run does after a round."""
    (directory / CARD).write_text(json.dumps(card(mixture.spec, source, fingerprint, 2)))
    arrays = {name: tensor.numpy() for name, tensor in mixture.state_dict().items()}
    (directory / WEIGHTS).write_bytes(weights_bytes(arrays))


def run_on_disk(directory: Path, source: str, quantization: str = "none", mixture: Mixture | None = None) -> Mixture:
    """Write what a run leaves behind; return the mixture."""
    mixture = mixture or mixture_for(load_backbone.__wrapped__(source, quantization, "cpu"))
    directory.mkdir()
    mixture_on_disk(directory, mixture, fingerprint(source, quantization), source)
    (directory / CONFIG).write_text(json.dumps({"backbone": source, "quantization": quantization, "seed": 0}))
    return mixture
