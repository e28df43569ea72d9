"""The floor of a mixture's step: the multiplications that it cannot do without, at the rate of a matrix product."""

import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import nn

from common.backbone import Backbone
from common.batches import TokenizedExample
from common.decoder import decoder_layers
from common.quantization import quantized_layers

NUM_PRODUCTS = 10


def step_flops(backbone: Backbone, layer: int, texts: Sequence[TokenizedExample], answers_alone: bool = False) -> float:
    """Count a step's operations that cannot be left out: linear layers and the head, forth and back to activations.

    Linear layers from the injection layer on, of all real tokens, or of the answers' and the one before each, where no
    others see prompts; the head, of the positions whose logits the answers need. Two operations a weight forth, two
    back; attention itself, norms and padding are not counted.
    """
    num_tokens = sum(len(text.answer_ids) + 1 if answers_alone else text.num_tokens for text in texts)
    num_answers = sum(len(text.answer_ids) for text in texts)
    in_layers = sum(
        linear.in_features * linear.out_features
        for part in decoder_layers(backbone.model)[layer:]
        for linear in part.modules()
        if isinstance(linear, nn.Linear)  # bitsandbytes' are such, too
    )
    text_config = backbone.model.config.get_text_config()
    flops: float = 4.0 * (num_tokens * in_layers + num_answers * text_config.hidden_size * text_config.vocab_size)
    return flops


def matrix_rate(backbone: Backbone, num_tokens: int) -> float:
    """Measure how many operations a second a product of so many tokens with a plain layer's weights does."""
    linear = max(quantized_layers(backbone.model).values(), key=lambda found: found.in_features * found.out_features)
    dtype = backbone.model.get_input_embeddings().weight.dtype
    tokens = torch.randn(num_tokens, linear.in_features, device=backbone.device, dtype=dtype)
    weight = torch.randn(linear.in_features, linear.out_features, device=backbone.device, dtype=dtype)
    seconds = []
    for _ in range(NUM_PRODUCTS):
        started = time.perf_counter()
        tokens @ weight
        synchronize(backbone.device)
        seconds.append(time.perf_counter() - started)
    return 2.0 * num_tokens * weight.numel() / median(seconds[1:])


def synchronize(device: torch.device) -> None:
    """Wait until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
