"""What a linear layer's weight takes when it is quantized, and a stand-in that computes as such a layer does."""

from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.quantization import quantized_layers

BLOCK = 64  # weights that share a scale, bitsandbytes' default for 4 bits
NESTED_BLOCK = 256  # scales that share one, where they are quantized too
CODES_4BIT = 16  # values that codes stand for, float32


def weight_bytes(quantization: str, num_out: int, num_in: int) -> int:
    """Return the bytes of a quantized weight `[out, in]` with all that is kept to read it. Raises KeyError for none."""
    count = num_out * num_in
    blocks = ceil(count / BLOCK)
    codes = ceil(count / 2) + 4 * CODES_4BIT
    return {
        "nf4": codes + 4 * blocks,
        "fp4": codes + 4 * blocks,
        "nf4-double": codes + blocks + 4 * ceil(blocks / NESTED_BLOCK),
        "int8": count + 4 * num_out,
        "int8-weights": count + 5 * num_out,  # a float32 scale and an int8 zero
    }[quantization]


class QuantizedLinear(nn.Linear):
    """Takes the memory of a quantized layer, without its values: its weight is unpacked for each product."""

    def __init__(self, quantization: str, plain: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        size = weight_bytes(quantization, plain.out_features, plain.in_features)
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8), requires_grad=False)
        self.bias = plain.bias
        self._product = _Int8Product if quantization == "int8" else _Product

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply `[..., in]`; return `[..., out]`."""
        product: Tensor = self._product.apply(inputs, self.out_features)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias


class _Product(torch.autograd.Function):
    """A product with a weight that exists only while it is computed."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, num_out: int) -> Tensor:
        ctx.num_in = inputs.shape[-1]
        return F.linear(inputs, inputs.new_empty(num_out, ctx.num_in))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad @ grad.new_empty(grad.shape[-1], ctx.num_in), None


class _Int8Product(_Product):
    """The product of bitsandbytes' int8, which quantizes the inputs too and, in 0.50.2, keeps them until the end."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, num_out: int) -> Tensor:
        ctx.num_in = inputs.shape[-1]
        if ctx.needs_input_grad[0]:
            ctx.kept = inputs
        half = inputs.to(torch.float16)
        codes = half.to(torch.int8)
        shape = (*inputs.shape[:-1], num_out)
        product = codes.new_empty(shape, dtype=torch.int32)
        scaled = product.to(torch.float32) * 1.0
        return scaled.to(inputs.dtype)


def quantize_layers(model: Any, quantization: str) -> None:
    """Put stand-ins in the place of those linear layers that would be quantized."""
    for name, linear in quantized_layers(model).items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, QuantizedLinear(quantization, linear))
