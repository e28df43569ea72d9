"""The backbone: a frozen, quantized language model, loaded once per process."""

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# It warns, at its import, that the optional package `kernels` is missing, which would repack 4-bit weights on a CPU,
# and, at every product, that int8 weights are multiplied in float16.
for _name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(_name).setLevel(logging.ERROR)

# ruff: noqa: E402
import bitsandbytes
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

from common.attention import ATTENTION
from common.backbone_source import locate
from common.fingerprint import fingerprint


@dataclass(frozen=True)
class Backbone:
    """A frozen model with its tokenizer; `fingerprint` names weights, tokenizer and quantization."""

    model: Any  # a transformers causal language model
    tokenizer: Any
    fingerprint: str
    device: torch.device

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def max_positions(self) -> int:
        """Length (tokens) of the longest text that the model was made for."""
        return max_positions(self.model)


def max_positions(model: Any) -> int:
    """Return the length (tokens) of the longest text that a model was made for."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 2**31))


def resolve_device(device: str) -> torch.device:
    """Turn a device's name into a device. Raises ValueError for cuda without a CUDA device: never a quiet CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds no CUDA device: choose cpu or auto, or install a CUDA build")
    return torch.device(device)


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return what the backbone computes in: bfloat16 where the hardware does, float32 on other CPUs.

    On a CPU with bfloat16 instructions a training step of the built-in backbone takes about 0.75 of float32's time.
    """
    if device.type == "cpu":
        abilities = torch.cpu.get_capabilities()
        fast = abilities.get("avx512_bf16") or abilities.get("amx_bf16")
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16


@lru_cache(maxsize=1)
def load_backbone(name: str, quantization: str, device: str) -> Backbone:
    """Load and freeze a backbone.

    `quantization` is none, nf4 or int8 (bitsandbytes; embedding and head stay as they are). Raises ValueError when the
    name or its family is unknown, when the family's attention cannot take prompts, or the device is missing.
    """
    model, tokenizer, place = load_model(name, quantization, device)
    return Backbone(model, tokenizer, fingerprint(locate(name), quantization), place)


def load_model(name: str, quantization: str, device: str, as_stored: bool = False) -> tuple[Any, Any, torch.device]:
    """Load and freeze a backbone's model that nothing else uses; return it, its tokenizer and where it is.

    `as_stored` leaves the weights in the dtype of the files, and not in the one that the backbone computes in.
    """
    source, place = locate(name), resolve_device(device)
    dtype = compute_dtype(place)
    disable_progress_bar()
    architecture = _architecture(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype="auto" if as_stored else dtype,
            quantization_config=_quantization_config(quantization, dtype),
            device_map={"": place},
            attn_implementation=ATTENTION,
        )
    except KeyError as error:
        if error.args != (ATTENTION,):
            raise
        raise ValueError(no_interface_message(architecture)) from None
    freeze(model.eval())
    return model, tokenizer, place


def freeze(model: nn.Module) -> None:
    """Let nothing of a model be trained, and keep the gradients that pass through it exact."""
    model.requires_grad_(False)
    _keep_exact_gradients(model)


def _architecture(source: str) -> str:
    """Return the name of a backbone's class. Raises ValueError for a family that transformers does not know."""
    config, _ = PreTrainedConfig.get_config_dict(source)
    family = config.get("model_type", "")
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"the family {family!r} of backbone {source!r} is not known to transformers as a causal language model: "
            "choose a decoder such as Llama or Qwen"
        )
    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])


def no_interface_message(architecture: str) -> str:
    """Say why a family is refused."""
    return (
        f"{architecture} does not pass its attention through transformers' interface, so prompts cannot join it: "
        "choose another family, such as Llama or Qwen"
    )


def _quantization_config(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if quantization == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return None


def _keep_exact_gradients(model: nn.Module) -> None:
    """Switch off bitsandbytes' repacking of 4-bit weights for inference on AVX-512 CPUs.

    In 0.50.2 the first evaluation repacks the weights, and from then on gradients are silently wrong. May go when a
    release keeps them right; test_backbone.py tells.
    """
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
