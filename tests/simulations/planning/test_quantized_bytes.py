"""Bytes of a quantized weight, counted by hand, and that the head stays as it is."""

import pytest
from torch import nn

from common.backbone import load_backbone
from simulations.planning.quantized_bytes import QuantizedLinear, weight_bytes
from simulations.planning.weightless import weightless


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ("nf4", 128 * 64 // 2 + 128 * 4 + 64),  # two codes a byte, 128 blocks of 64, 16 values
        ("nf4-double", 128 * 64 // 2 + 128 + 4 + 64),
        ("int8", 128 * 64 + 128 * 4),
        ("int8-weights", 128 * 64 + 128 * 5),
    ],
)
def test_a_weight_takes_its_codes_and_its_scales(quantization: str, expected: int) -> None:
    assert weight_bytes(quantization, 128, 64) == expected


def test_the_layers_that_stand_in_are_those_that_are_quantized() -> None:
    real = load_backbone("skills", "nf4", "cpu")
    quantized = {name for name, module in real.model.named_modules() if "4bit" in type(module).__name__}
    with weightless("skills", "nf4", "cpu", "auto") as backbone:
        stood_in = {name for name, module in backbone.model.named_modules() if isinstance(module, QuantizedLinear)}
        assert isinstance(backbone.model.get_output_embeddings(), nn.Linear)
    assert stood_in == quantized != set()
