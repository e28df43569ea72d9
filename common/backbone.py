"""The backbone: a frozen, quantized language model, loaded once per process."""

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

# It warns, at its import, that the optional package `kernels` is missing, which would repack 4-bit weights on a CPU,
# and, at every product, that int8 weights are multiplied in float16.
# torchao, which transformers and peft import where it is installed, tells of kernels for GPUs that are not there.
for _name in (
    "bitsandbytes.backends.cpu.ops",
    "bitsandbytes.autograd._functions",
    "torchao",
    "torch.utils._pytree",
):
    logging.getLogger(_name).setLevel(logging.ERROR)

# ruff: noqa: E402
import bitsandbytes
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

from common.attention import ATTENTION
from common.backbone_source import STORED, check_quantization, locate
from common.fingerprint import fingerprint
from common.hub import local_directory
from common.quantization import check_gradients, quantization_config


@dataclass(frozen=True)
class Backbone:
    """A frozen model with its tokenizer; `fingerprint` names weights, tokenizer and quantization.

    `device` is where texts go in: that of the embeddings, if the layers are spread over several.
    """

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


def compute_dtype(device: torch.device, wanted: str = "auto") -> torch.dtype:
    """Return what the backbone computes in; auto: bfloat16 where the hardware does, float32 on other CPUs.

    On a CPU with bfloat16 instructions a training step of the built-in backbone takes about 0.75 of float32's time.
    """
    if wanted != "auto":
        return getattr(torch, wanted)  # type: ignore[no-any-return]
    if device.type == "cpu":
        abilities = torch.cpu.get_capabilities()
        fast = abilities.get("avx512_bf16") or abilities.get("amx_bf16")
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16


@lru_cache(maxsize=8)  # one but for clients of a simulation that compress it in ways of their own
def load_backbone(name: str, quantization: str, device: str, dtype: str = "auto", device_map: str = "") -> Backbone:
    """Load and freeze a backbone.

    The arguments are values of the keys backbone, quantization, device, compute-dtype, device-map. Embedding and head
    stay unquantized. Raises ValueError when the name or its family is unknown, when the family's attention cannot take
    prompts, when no or wrong gradients pass through the quantization, when the device is missing or the GPUs too small.
    """
    model, tokenizer, place = load_model(name, quantization, device, dtype, device_map)
    return Backbone(model, tokenizer, fingerprint(locate(name), quantization), place)


def load_model(
    name: str, quantization: str, device: str, dtype: str = "auto", device_map: str = "", as_stored: bool = False
) -> tuple[Any, Any, torch.device]:
    """Load and freeze a backbone's model that nothing else uses; return it, its tokenizer and where it is.

    `as_stored` leaves the weights in the dtype of the files, and not in the one that the backbone computes in.
    """
    source, place = str(local_directory(locate(name))), resolve_device(device)
    if device_map and place.type == "cpu":
        raise ValueError(f"device-map must be empty on a CPU, got {device_map!r}: leave it out or give device=cuda")
    computed_in = compute_dtype(place, dtype)
    quantized = quantization_config(quantization, computed_in)
    disable_progress_bar()
    architecture, described = _architecture(source)
    check_quantization(name, quantization, described)
    tokenizer = AutoTokenizer.from_pretrained(source)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype="auto" if as_stored else computed_in,
            **({} if quantized is None else {"quantization_config": quantized}),  # None would overrule the checkpoint's
            device_map=device_map or {"": place},
            attn_implementation=ATTENTION,
        )
    except KeyError as error:
        if error.args != (ATTENTION,):
            raise
        raise ValueError(no_interface_message(architecture)) from None
    except (ImportError, RuntimeError) as error:
        if quantization != STORED:
            raise
        method, reason = described["quantization_config"].get("quant_method"), " ".join(str(error).split())
        raise ValueError(
            f"backbone {name!r} is quantized by {method}, which cannot be loaded here ({reason}): install what it "
            "needs, or give the unquantized checkpoint"
        ) from None
    if device_map:
        _check_device_map(model, device_map)
        place = model.get_input_embeddings().weight.device
    freeze(model.eval())
    feed_head_contiguously(model)
    check_gradients(model, quantization)
    return model, tokenizer, place


def new_model(directory: Path, dtype: torch.dtype) -> Any:
    """Build the model that a directory's config.json describes, with random weights."""
    config = AutoConfig.from_pretrained(directory)
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)


def freeze(model: nn.Module) -> None:
    """Let nothing of a model be trained, and keep the gradients that pass through it exact."""
    model.requires_grad_(False)
    _keep_exact_gradients(model)


def feed_head_contiguously(model: Any) -> None:
    """Copy what enters the head, the last positions of all, to lie in one piece.

    From a slice, torch 2.13 multiplies bfloat16 text by text on a CPU, with a copy of the head's weights for each. A
    slice of one text passes for contiguous and keeps its strides, so it has to be cloned.
    """
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(
            lambda module, args: (args[0].clone(memory_format=torch.contiguous_format), *args[1:])
        )


def _check_device_map(model: Any, device_map: str) -> None:
    """Raise ValueError where a part of the model was left on the CPU or on disk: a step would take minutes."""
    left = sorted(part for part, place in model.hf_device_map.items() if str(place) in ("cpu", "disk"))
    if left:
        raise ValueError(
            f"device-map {device_map} leaves {len(left)} of {len(model.hf_device_map)} parts of the backbone "
            f"({left[0]} first) on the CPU or on disk: expected all on GPUs; choose a quantization that takes less, or "
            "give more GPUs"
        )


def _architecture(source: str) -> tuple[str, dict[str, Any]]:
    """Return the name of a backbone's class and its config.json.

    Raises ValueError for a family that transformers does not know.
    """
    described, _ = PreTrainedConfig.get_config_dict(source)
    family = described.get("model_type", "")
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"the family {family!r} of backbone {source!r} is not known to transformers as a causal language model: "
            "choose a decoder such as Llama or Qwen"
        )
    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]), described


def no_interface_message(architecture: str) -> str:
    """Say why a family is refused."""
    return (
        f"{architecture} does not pass its attention through transformers' interface, so prompts cannot join it: "
        "choose another family, such as Llama or Qwen"
    )


def _keep_exact_gradients(model: nn.Module) -> None:
    """Switch off bitsandbytes' repacking of 4-bit weights for inference on AVX-512 CPUs.

    In 0.50.2 the first evaluation repacks the weights, and from then on gradients are silently wrong. May go when a
    release keeps them right; test_backbone.py tells.
    """
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
