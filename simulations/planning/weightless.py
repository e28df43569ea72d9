"""A backbone of the right shapes without values: all that is computed with it takes no memory and next to no time."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from common.backbone import Backbone, feed_head_contiguously, freeze, new_model, resolve_device
from common.backbone import compute_dtype as dtype_on
from common.backbone_source import STORED, locate
from common.hub import local_directory
from common.tokenizer import load_tokenizer
from simulations.planning.quantized_bytes import quantize_layers

CPU = torch.device("cpu")


@contextmanager
def weightless(name: str, quantization: str, device: str, compute_dtype: str) -> Iterator[Backbone]:
    """Let tensors made within have shapes but no values; give a backbone of such tensors.

    The arguments are values of the keys of those names; a CUDA device need not be there. Raises ValueError for files
    that are quantized by anything but bitsandbytes' 4 bits.
    """
    source = local_directory(locate(name), weights=False)
    if quantization == STORED:
        described = json.loads((source / "config.json").read_text(encoding="utf-8"))
        quantization = _stored(name, described["quantization_config"])
    place = torch.device("cuda") if device == "cuda" else resolve_device(device)
    tokenizer = load_tokenizer(source)
    # All is in one place, and to move a module is to swap its tensors, which those without values do not allow.
    with FakeTensorMode(), patch.object(nn.Module, "to", lambda module, *args, **kwargs: module):
        model = new_model(source, dtype_on(place, compute_dtype))
        if quantization != "none":
            quantize_layers(model, quantization)
        freeze(model.eval())
        feed_head_contiguously(model)
        yield Backbone(model, tokenizer, "", CPU)


def _stored(name: str, described: dict[str, Any]) -> str:
    if not described.get("load_in_4bit"):
        method = described.get("quant_method", "an unknown method")
        raise ValueError(
            f"plan cannot tell what backbone {name!r}, whose files are quantized by {method}, takes: give the "
            "unquantized checkpoint and the quantization that comes nearest"
        )
    kind = str(described.get("bnb_4bit_quant_type", "fp4"))
    return "nf4-double" if kind == "nf4" and described.get("bnb_4bit_use_double_quant") else kind
